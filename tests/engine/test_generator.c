/* Continuous batching over an engine that is pretended: its logits are a hash of the tokens a sequence has, so any token that goes to the
 * wrong sequence, twice or not at all changes every text behind it. The real engine is tested through the command line. */
#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "engine/serve/eos.h"
#include "engine/serve/generator.h"

enum { V = 256, PAGE = 4, MOST = 512, SEQUENCES = 16 };

struct serve {
    struct {
        bool used, broken;
        int n;
        int32_t token[MOST];
    } sequence[SEQUENCES];
    int limit, most_used, used, most_tokens; /* sequences; seen at once; tokens of a step seen */
    bool reuse;
    int64_t reused;
    int32_t fails_at;  /* a sequence that is given this token breaks; -1: none */
    int steps, stop_at; /* raises `signal` in this step */
    volatile sig_atomic_t signal;
};

moe_err serve_sequence_begin(serve *s, int *sequence)
{
    for (int q = 0; q < s->limit; q++)
        if (!s->sequence[q].used) {
            memset(&s->sequence[q], 0, sizeof s->sequence[q]);
            s->sequence[q].used = true;
            s->used++;
            s->most_used = s->used > s->most_used ? s->used : s->most_used;
            *sequence = q;
            return MOE_OK;
        }
    return moe_fail(MOE_E_FULL, "every sequence is used");
}

void serve_sequence_end(serve *s, int sequence)
{
    cr_assert(s->sequence[sequence].used);
    s->sequence[sequence].used = false;
    s->used--;
}

int64_t serve_sequence_reuse(serve *s, int sequence, const int32_t *token, int64_t n)
{
    int64_t best = 0;
    for (int q = 0; s->reuse && q < s->limit; q++) {
        int64_t same = 0;
        while (q != sequence && same < n - 1 && same < s->sequence[q].n && s->sequence[q].token[same] == token[same])
            same++;
        best = same / PAGE * PAGE > best ? same / PAGE * PAGE : best;
    }
    memcpy(s->sequence[sequence].token, token, (size_t)best * sizeof *token);
    s->sequence[sequence].n = (int)best;
    s->reused += best;
    return best;
}

static void hash_logits(const serve *s, int q, float *logits)
{
    uint32_t h = 2166136261u;
    for (int i = 0; i < s->sequence[q].n; i++)
        h = (h ^ (uint32_t)s->sequence[q].token[i]) * 16777619u;
    for (int v = 0; v < V; v++) {
        h = h * 1664525u + 1013904223u;
        logits[v] = v >= 'a' && v <= 'z' ? (float)(h >> 20) / 1024 : -20.0f;
    }
}

moe_err serve_step(serve *s, serve_span *span, int n, float *logits)
{
    int tokens = 0;
    for (int i = 0; i < n; i++) {
        const int q = span[i].sequence;
        cr_assert(s->sequence[q].used && !s->sequence[q].broken);
        span[i].rc = MOE_OK;
        for (int k = 0; k < span[i].n; k++) {
            s->sequence[q].token[s->sequence[q].n++] = span[i].token[k];
            if (span[i].token[k] == s->fails_at) {
                span[i].rc = MOE_E_IO;
                snprintf(span[i].text, sizeof span[i].text, "the disk is gone");
                s->sequence[q].broken = true;
            }
        }
        tokens += span[i].n;
        if (span[i].want == SERVE_LAST) {
            hash_logits(s, q, logits);
            logits += V;
        }
    }
    s->most_tokens = tokens > s->most_tokens ? tokens : s->most_tokens;
    if (++s->steps == s->stop_at)
        s->signal = 1;
    return MOE_OK;
}

/* --- helpers ------------------------------------------------------------------------------------------------------------------ */

static tokenizer *bytes;
static int32_t first_ids[] = {'T', 'h', 'e', ' ', 'f', 'i', 'r', 's', 't', ' ', 'p', 'r', 'o', 'm', 'p', 't'}, second_ids[] = {'2', '.'};
static token_ids prompts[] = {{first_ids, 16, 16}, {second_ids, 2, 2}};

static void setup(void) { cr_assert_eq(tokenizer_open(&bytes, "bytes"), MOE_OK); }
static void teardown(void) { tokenizer_close(bytes); }
TestSuite(generator, .init = setup, .fini = teardown);

static generator_options options(void)
{
    generator_options o = {
        .tokenizer = bytes, .V = V, .prompt = prompts, .nprompts = 2, .streams = 3, .max_tokens = 20, .chunk = 64, .max_running = 6,
        .sampling = sampler_defaults(),
    };
    o.sampling.seed = 5;
    return o;
}

static serve engine(void) { return (serve){.limit = SEQUENCES, .fails_at = -1}; }

static generator *run(const generator_options *o, serve *s)
{
    generator *g;
    cr_assert_eq(generator_open(&g, o), MOE_OK, "%s", moe_error_text());
    cr_assert_eq(generator_run(g, s), MOE_OK, "%s", moe_error_text());
    cr_assert_eq(s->used, 0, "every sequence was ended");
    return g;
}

static void expect_same(const generator *a, const generator *b, const char *what)
{
    for (int i = 0; i < generator_texts(a) && i < generator_texts(b); i++) {
        const generated *x = generator_text(a, i), *y = generator_text(b, i);
        cr_assert(x->tokens.n == y->tokens.n && memcmp(x->tokens.id, y->tokens.id, x->tokens.n * sizeof *x->tokens.id) == 0, "%s: text %d", what,
                  i);
        cr_assert(x->text.n == y->text.n && memcmp(x->text.data, y->text.data, x->text.n) == 0, "%s: text %d", what, i);
        cr_assert_eq(x->finish, y->finish, "%s: text %d", what, i);
    }
}

/* --- tests -------------------------------------------------------------------------------------------------------------------- */

Test(generator, the_same_texts_in_any_company)
{
    static const struct {
        int chunk, max_running;
        bool reuse;
    } row[] = {{6, 6, false}, {7, 6, true}, {1, 1, false}, {5, 2, true}, {64, 3, true}, {17, 4, false}};
    const generator_options o = options();
    serve s = engine();
    generator *whole = run(&o, &s);
    cr_assert_eq(s.most_used, 6);
    for (size_t i = 0; i < sizeof row / sizeof *row; i++) {
        generator_options other = o;
        serve t = engine();
        other.chunk = row[i].chunk;
        other.max_running = row[i].max_running;
        t.limit = row[i].max_running;
        t.reuse = row[i].reuse;
        generator *g = run(&other, &t);
        char what[64];
        snprintf(what, sizeof what, "chunk %d, %d at once, reuse %d", row[i].chunk, row[i].max_running, row[i].reuse);
        expect_same(whole, g, what);
        cr_assert_leq(t.most_tokens, row[i].chunk);
        cr_assert_leq(t.most_used, row[i].max_running);
        if (row[i].reuse && row[i].max_running > 1)
            cr_assert_gt(t.reused, 0, "%s: streams of one prompt share it", what);
        generator_close(g);
    }
    generator_close(whole);
}

Test(generator, more_streams_change_no_text)
{
    generator_options o = options();
    o.nprompts = 1, o.streams = 5;
    serve s = engine(), t = engine();
    generator *many = run(&o, &s);
    o.streams = 1, o.max_running = 1;
    generator *one = run(&o, &t);
    expect_same(one, many, "the first stream");
    cr_assert_neq(memcmp(generator_text(many, 0)->text.data, generator_text(many, 1)->text.data, 20), 0, "streams differ");
    cr_assert_eq(generator_text(one, 0)->finish, GENERATE_LENGTH);
    cr_assert_eq(generator_text(one, 0)->tokens.n, 20);
    const generator_times *times = generator_get_times(one);
    cr_assert_eq(times->prompt_tokens, 16);
    cr_assert_eq(times->prefill_steps, 1);
    cr_assert_eq(times->decode_steps, 19, "the last token is not fed");
    generator_close(many);
    generator_close(one);
}

Test(generator, end_tokens_and_stop_strings_end_texts)
{
    generator_options o = options();
    serve s = engine();
    generator *plain = run(&o, &s);
    const generated *first = generator_text(plain, 0);
    const int32_t eos[] = {first->tokens.id[7]};
    char stop[3] = {first->text.data[4], first->text.data[5], '\0'};
    size_t at = 0;
    while (first->tokens.id[at] != eos[0])
        at++;
    o.eos = eos, o.neos = 1;
    s = engine();
    generator *g = run(&o, &s);
    cr_assert_eq(generator_text(g, 0)->finish, GENERATE_EOS);
    cr_assert_eq(generator_text(g, 0)->tokens.n, at + 1);
    cr_assert_eq(generator_text(g, 0)->text.n, at, "an end token has no text");
    generator_close(g);
    const char *const stops[] = {stop};
    o.neos = 0, o.stop = stops, o.nstop = 1;
    s = engine();
    g = run(&o, &s);
    cr_assert_eq(generator_text(g, 0)->finish, GENERATE_STOP);
    cr_assert_str_eq(generator_text(g, 0)->stop, stop);
    cr_assert(generator_text(g, 0)->text.n <= 4 && memcmp(generator_text(g, 0)->text.data, first->text.data, generator_text(g, 0)->text.n) == 0);
    generator_close(g);
    generator_close(plain);
}

Test(generator, an_error_ends_its_own_text)
{
    const generator_options o = options();
    serve s = engine(), t = engine();
    generator *good = run(&o, &s);
    t.fails_at = '2';
    generator *g = run(&o, &t);
    for (int i = 0; i < 6; i++) {
        const generated *x = generator_text(g, i);
        if (i < 3) {
            cr_assert_eq(x->finish, GENERATE_LENGTH);
            cr_assert_eq(memcmp(x->text.data, generator_text(good, i)->text.data, x->text.n), 0);
        } else {
            cr_assert_eq(x->finish, GENERATE_ERROR);
            cr_assert_eq(x->rc, MOE_E_IO);
            cr_assert_str_eq(x->error, "the disk is gone");
            cr_assert_eq(x->tokens.n, 0);
        }
    }
    generator_close(good);
    generator_close(g);
}

static void collect(void *user, int i, const char *text, size_t n)
{
    cr_assert_eq(text_buffer_append(&((text_buffer *)user)[i], text, n), MOE_OK);
}

Test(generator, a_signal_ends_all_and_what_was_emitted_is_the_text)
{
    generator_options o = options();
    text_buffer emitted[6] = {{0}};
    serve s = engine();
    s.stop_at = 9;
    o.interrupted = &s.signal;
    o.emit = collect, o.user = emitted;
    o.sampling.logprobs = 2;
    generator *g = run(&o, &s);
    cr_assert_eq(s.steps, 9);
    for (int i = 0; i < 6; i++) {
        const generated *x = generator_text(g, i);
        cr_assert_eq(x->finish, GENERATE_INTERRUPTED);
        cr_assert(x->text.n == emitted[i].n && (x->text.n == 0 || memcmp(x->text.data, emitted[i].data, x->text.n) == 0));
        for (size_t k = 0; k < x->tokens.n; k++) {
            cr_assert_eq(x->sampled[k].token, x->tokens.id[k]);
            cr_assert_eq(x->sampled[k].ntop, 2);
        }
        text_buffer_free(&emitted[i]);
    }
    generator_close(g);
}

Test(generator, what_cannot_be_is_refused)
{
    generator *g;
    generator_options o = options();
    token_ids none = {0};
    int32_t far_id[] = {V};
    token_ids far = {far_id, 1, 1};
    o.nprompts = 1;
    o.prompt = &none;
    cr_assert_eq(generator_open(&g, &o), MOE_E_USAGE);
    o.prompt = &far;
    cr_assert_eq(generator_open(&g, &o), MOE_E_DATA);
    o = options();
    o.streams = 0;
    cr_assert_eq(generator_open(&g, &o), MOE_E_USAGE);
    o = options();
    o.chunk = 3;
    cr_assert_eq(generator_open(&g, &o), MOE_E_CONFIG);
    o = options();
    o.sampling.top_p = 7;
    cr_assert_eq(generator_open(&g, &o), MOE_E_USAGE);
    cr_assert_null(g);
}

/* --- which tokens end a text -------------------------------------------------------------------------------------------------- */

static void put(const char *dir, const char *name, const char *text)
{
    char path[256];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    remove(path);
    if (text == NULL)
        return;
    FILE *f = fopen(path, "w");
    cr_assert_not_null(f);
    fputs(text, f);
    fclose(f);
}

Test(generator, end_tokens_come_from_the_files_in_order)
{
    static const struct {
        const char *generation, *config, *text;
        moe_err rc;
        int n;
        int32_t first;
    } row[] = {
        {NULL, NULL, NULL, MOE_OK, 0, 0},
        {NULL, NULL, "{\"a\": 1}", MOE_OK, 0, 0},
        {NULL, NULL, "{\"eos_token_id\": [9, 8]}", MOE_OK, 2, 9},
        {"{\"eos_token_id\": 3}", NULL, "{\"eos_token_id\": [9, 8]}", MOE_OK, 1, 3},
        {NULL, "{\"eos_token_id\": 7}", "{\"eos_token_id\": 9}", MOE_OK, 1, 7},
        {"{\"a\": [1], \"eos_token_id\": [3, 4, 5]}", "{\"eos_token_id\": 7}", NULL, MOE_OK, 3, 3},
        {"{\"eos_token_id\": null}", "{\"eos_token_id\": 7}", NULL, MOE_OK, 1, 7},
        {"{\"eos_token_id\": 256}", NULL, NULL, MOE_E_DATA, 0, 0},
        {"{\"eos_token_id\": \"x\"}", NULL, NULL, MOE_E_DATA, 0, 0},
        {"{\"eos_token_id\": [1, [2]]}", NULL, NULL, MOE_E_DATA, 0, 0},
        {"{\"eos_token_id\": 1", NULL, NULL, MOE_E_DATA, 0, 0},
    };
    char dir[] = "/tmp/moe_eos_XXXXXX";
    cr_assert_not_null(mkdtemp(dir));
    for (size_t i = 0; i < sizeof row / sizeof *row; i++) {
        eos_set set;
        put(dir, "generation_config.json", row[i].generation);
        put(dir, "config.json", row[i].config);
        const moe_err rc = eos_find(&set, dir, row[i].text, bytes, V);
        cr_assert_eq(rc, row[i].rc, "row %zu: %s", i, moe_error_text());
        if (rc == MOE_OK)
            cr_assert(set.n == row[i].n && (set.n == 0 || set.token[0] == row[i].first), "row %zu", i);
    }
    put(dir, "generation_config.json", NULL);
    put(dir, "config.json", NULL);
    rmdir(dir);
}
