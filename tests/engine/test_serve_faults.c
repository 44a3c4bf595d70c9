/* What serving refuses, and disk errors: the sequences whose experts cannot be read end, the others do not notice. */
#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/serve/serve_private.h"
#include "memory/budget.h"
#include "tests/engine/serve_harness.h"

#define MODEL "tests/fixtures/train/qwen3_moe"

/* A disk on which one range cannot be read: the real one, whose transfers come back with an error. */
static struct bad_disk {
    moe_err (*wait)(io_queue *q, io_transfer **done);
    moe_err (*submit)(io_queue *q, io_transfer *list);
    uint64_t begin, end; /* bytes of any file */
    int failed, in_flight;
    bool together; /* what is in flight comes back in one list */
} bad;

static moe_err bad_submit(io_queue *q, io_transfer *list)
{
    for (const io_transfer *t = list; t != NULL; t = t->next)
        bad.in_flight++;
    return bad.submit(q, list);
}

static moe_err wait_together(io_queue *q, io_transfer **done)
{
    moe_err rc = MOE_OK;
    *done = NULL;
    cr_assert(bad.in_flight > 0, "waits for nothing");
    while (rc == MOE_OK && bad.in_flight > 0) {
        io_transfer *some = NULL, *next;
        rc = bad.wait(q, &some);
        for (; some != NULL; some = next) {
            next = some->next;
            bad.in_flight--;
            some->next = *done;
            *done = some;
        }
    }
    return rc;
}

static moe_err bad_wait(io_queue *q, io_transfer **done)
{
    const moe_err rc = bad.together ? wait_together(q, done) : bad.wait(q, done);
    for (io_transfer *t = *done; t != NULL; t = t->next) {
        bad.in_flight -= !bad.together;
        if (t->offset < bad.end && t->offset + t->bytes > bad.begin) {
            t->rc = MOE_E_IO;
            snprintf(t->text, sizeof t->text, "the test's disk does not read this");
            bad.failed++;
        }
    }
    return rc;
}

static void make_bad(io *disk)
{
    static io_ops ops;
    ops = *disk->ops;
    bad = (struct bad_disk){.wait = ops.queue_wait, .submit = ops.queue_submit};
    ops.queue_wait = bad_wait;
    ops.queue_submit = bad_submit;
    disk->ops = &ops;
}

static void refuse(test_serve *t, serve_span *span, int n, moe_err rc, const char *text)
{
    cr_assert_eq(serve_step(t->s, span, n, NULL), rc, "%s", moe_error_text());
    cr_assert(strstr(moe_error_text(), text) != NULL, "\"%s\" is not in: %s", text, moe_error_text());
}

Test(serve_faults, what_cannot_be_is_refused_and_changes_nothing)
{
    test_serve t;
    int32_t token[200] = {0};
    int sequence[9];
    test_serve_open(&t, MODEL, (test_serve_options){.sequences = 2, .context = 70, .chunk = 80});
    MUST(serve_sequence_begin(t.s, &sequence[0]));
    MUST(serve_sequence_begin(t.s, &sequence[1]));
    cr_assert_eq(serve_sequence_begin(t.s, &sequence[2]), MOE_E_FULL);
    serve_span span[2] = {{.sequence = sequence[0], .token = token, .n = 3}, {.sequence = sequence[1], .token = token, .n = 71}};
    refuse(&t, span, 2, MOE_E_CONFIG, "context of 70");
    cr_assert_eq(serve_sequence_length(t.s, sequence[0]), 0, "the first span of a refused step");
    span[1].n = 70, span[0].n = 11;
    refuse(&t, span, 2, MOE_E_CONFIG, "opened for 80");
    span[0].n = 3, span[1].n = 3;
    token[2] = t.V;
    refuse(&t, span, 2, MOE_E_DATA, "not in the vocabulary");
    token[2] = -1;
    refuse(&t, span, 1, MOE_E_DATA, "token 2: id -1");
    token[2] = 0;
    span[1].sequence = sequence[0];
    refuse(&t, span, 2, MOE_E_CONFIG, "one span of a sequence");
    span[1].sequence = 7;
    refuse(&t, span, 2, MOE_E_CONFIG, "not running");
    span[0].n = 0;
    refuse(&t, span, 1, MOE_E_CONFIG, "at least 1");
    MUST(serve_step(t.s, span, 0, NULL));
    MUST(kv_check_pool(&t.s->kv));
    test_serve_close(&t);
}

Test(serve_faults, too_little_memory_is_refused_with_the_parts_and_the_least)
{
    test_serve t;
    serve *s;
    serve_stats stats;
    test_serve_open(&t, MODEL, (test_serve_options){0});
    serve_get_stats(t.s, &stats);
    cr_assert(stats.least_bytes > stats.dense_bytes + stats.kv_bytes + stats.scratch_bytes);
    serve_config c = t.c;
    c.host_bytes = 8 << 20;
    cr_assert_eq(serve_open(&s, &c), MOE_E_CONFIG);
    cr_assert_null(s);
    static const char *const parts[] = {"dense weights", "KV cache", "working buffers", "two experts", "at least"};
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
        cr_assert(strstr(moe_error_text(), parts[i]) != NULL, "\"%s\" is not in: %s", parts[i], moe_error_text());
    c = t.c;
    c.kv = NUM_Q4_0;
    cr_assert_eq(serve_open(&s, &c), MOE_E_CONFIG);
    c = t.c;
    c.max_context = (int64_t)1 << 40;
    cr_assert_eq(serve_open(&s, &c), MOE_E_CONFIG);
    test_serve_close(&t);
}

Test(serve_faults, dense_weights_that_cannot_be_read_are_an_error_of_open)
{
    test_serve t;
    serve *s;
    test_serve_open(&t, MODEL, (test_serve_options){0});
    make_bad(t.io);
    bad.end = UINT64_MAX;
    cr_assert_eq(serve_open(&s, &t.c), MOE_E_IO);
    cr_assert(strstr(moe_error_text(), "the test's disk") != NULL, "%s", moe_error_text());
    bad.together = true;
    cr_assert_eq(serve_open(&s, &t.c), MOE_E_IO, "several that fail at once");
    bad.end = 0;
    bad.together = false;
    MUST(serve_open(&s, &t.c));
    serve_close(s);
    test_serve_close(&t);
}

/* One step of S single tokens with the expert at fault: which spans die; the others' logits are `want`. */
static int step_with_fault(uint64_t begin, uint64_t end, const float *want, int S, const int32_t *token)
{
    test_serve t;
    serve_span span[8];
    int dead = 0;
    test_serve_open(&t, MODEL, (test_serve_options){.context = 64});
    make_bad(t.io);
    bad.begin = begin, bad.end = end;
    float *got = malloc((size_t)S * (size_t)t.V * sizeof *got);
    for (int i = 0; i < S; i++) {
        span[i] = (serve_span){.token = token + i, .n = 1, .want = SERVE_LAST};
        MUST(serve_sequence_begin(t.s, &span[i].sequence));
    }
    MUST(serve_step(t.s, span, S, got));
    cr_assert(bad.failed > 0 || end == 0, "nothing was read there");
    for (int i = 0; i < S; i++) {
        if (span[i].rc == MOE_OK) {
            test_serve_same("beside a lost expert", got + (size_t)i * (size_t)t.V, want + (size_t)i * (size_t)t.V, 1, t.V);
            continue;
        }
        dead++;
        cr_assert_eq(span[i].rc, MOE_E_IO);
        cr_assert(strstr(span[i].text, "the test's disk") != NULL, "%s", span[i].text);
        cr_assert_eq(serve_step(t.s, &span[i], 1, got), MOE_E_CONFIG, "a broken sequence goes on");
        serve_sequence_end(t.s, span[i].sequence);
    }
    MUST(kv_check_pool(&t.s->kv));
    bad.end = 0;
    int sequence;
    if (dead > 0) { /* a new sequence reads what is whole again */
        MUST(serve_sequence_begin(t.s, &sequence));
        serve_span again = {.sequence = sequence, .token = token, .n = 1, .want = SERVE_LAST};
        MUST(serve_step(t.s, &again, 1, got));
        test_serve_same("after the fault", got, want, 1, t.V);
    }
    free(got);
    test_serve_close(&t);
    return dead;
}

Test(serve_faults, an_expert_that_cannot_be_read_ends_only_those_who_need_it)
{
    enum { S = 8 };
    test_serve t;
    int32_t token[S];
    int some = 0;
    test_serve_open(&t, MODEL, (test_serve_options){0});
    test_serve_tokens(&t, token, S, 3);
    float *want = malloc((size_t)S * (size_t)t.V * sizeof *want);
    for (int i = 0; i < S; i++) {
        float *one = test_serve_logits(&t, token + i, 1, 1);
        memcpy(want + (size_t)i * (size_t)t.V, one, (size_t)t.V * sizeof *one);
        free(one);
    }
    tensor_info info[3];
    const model_spec *m = model_spec_of(t.model);
    for (int layer = 0; layer < m->L; layer++)
        for (int e = 0; m->moe_layer[layer] && e < m->E && some < 3; e++) {
            model_extent at;
            spec_expert_tensors(m, layer, e, info);
            model_find(t.model, &info[1], &at);
            const int dead = step_with_fault(at.offset + at.bytes / 2, at.offset + at.bytes / 2 + 1, want, S, token);
            some += dead > 0 && dead < S;
        }
    cr_assert(some > 0, "no fault hit some sequences and not all of them");
    free(want);
    test_serve_close(&t);
}
