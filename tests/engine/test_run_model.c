/* Run folders as MODEL: the logits are those of the export, bit by bit, however the states are stored and whatever is pending on them; in little memory,
 * packed, one by one; and what is refused: no checkpoint, a run that is at work, damage. */
#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "engine/train/run_model.h"
#include "models/formats/packed.h"
#include "tests/engine/run_fixture.h"
#include "tests/engine/serve_harness.h"

enum { TOKENS = 40 };

typedef struct paths {
    char run[600], exported[600], packed[600];
} paths;

static paths paths_of(const test_run *r)
{
    paths p;
    snprintf(p.run, sizeof p.run, "%s/run", r->dir);
    snprintf(p.exported, sizeof p.exported, "%s/exported", r->dir);
    snprintf(p.packed, sizeof p.packed, "%s/packed", r->dir);
    return p;
}

static void train(test_run *r, const char *name, const char *const *sets)
{
    test_run_make(r, name, 4096, 61);
    test_run_small_yaml(r, "");
    cr_assert_eq(test_process_run(r, sets), 0, "%s", name);
}

static void export(const paths *p)
{
    trainer t;
    train_config *c;
    run_folder f;
    MUST(command_open(&t, &c, &f, p->run, NULL, 0));
    MUST(command_export(&t, p->exported, HF_F32));
    trainer_close(&t);
    train_config_free(c);
    run_folder_close(&f);
}

static float *logits_of(const char *path, test_serve_options o, int *V)
{
    test_serve t;
    int32_t token[TOKENS];
    test_serve_open(&t, path, o);
    test_serve_tokens(&t, token, TOKENS, 7);
    float *out = test_serve_logits(&t, token, TOKENS, 16);
    *V = t.V;
    test_serve_close(&t);
    return out;
}

static void pack(const paths *p)
{
    model *m;
    const packed_options o = {.experts = PACKED_AS_IS, .dense = PACKED_AS_IS};
    MUST(run_model_open(&m, p->run));
    cr_assert_eq(model_kind_of(m), MODEL_RUN);
    MUST(packed_write(m, p->packed, &o));
    model_close(m);
}

/* Sections of the checkpoint that were never written, that steps are missing on, that a gradient is pending on. */
static void count_pending(const paths *p, int count[3])
{
    char dir[700], note[512];
    io *disk;
    checkpoint *c;
    const manifest *m;
    snprintf(dir, sizeof dir, "%s/checkpoint", p->run);
    MUST(io_open(&disk, "pread", note));
    MUST(checkpoint_open(&c, disk, dir, 1, false, &m, note));
    for (int i = 0; i < m->sections; i++) {
        count[0] += m->records[i].slot < 0;
        count[1] += m->records[i].step < m->step;
        count[2] += m->records[i].grad_step > 0;
    }
    checkpoint_close(c);
    io_close(disk);
}

Test(run_model, the_logits_of_the_export)
{
    static const char *const cases[][8] = {
        {"deferred", "optimizer.update=deferred"},
        {"speculative", "optimizer.update=speculative"},
        {"moments", "optimizer.update=deferred", "optimizer.moments=bf16"},
        {"halves", "optimizer.update=deferred", "optimizer.expert_weights=bf16"},
        {"both", "optimizer.update=deferred", "optimizer.expert_weights=bf16", "optimizer.moments=bf16"},
        {"idle", "optimizer.update=deferred", "model.num_experts=40", "model.num_experts_per_tok=1", "train.tokens_per_step=16",
         "train.micro_batch_tokens=16", "train.steps=3"},
        {"wide", "model.num_experts=2", "model.num_experts_per_tok=1", "model.moe_intermediate_size=3000", "train.steps=2", "train.tokens_per_step=16",
         "train.micro_batch_tokens=16"}, /* a matrix of an expert is larger than the file of the dense part */
        {"two", "optimizer.update=deferred", "memory.ssd=[store/, more/]", "optimizer.moments=bf16", "optimizer.clip_norm=0.01"},
    };
    int count[3] = {0};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        test_run r;
        int V;
        train(&r, cases[i][0], cases[i] + 1);
        const paths p = paths_of(&r);
        count_pending(&p, count);
        export(&p);
        float *want = logits_of(p.exported, (test_serve_options){0}, &V);
        float *all = logits_of(p.run, (test_serve_options){0}, &V);
        test_serve_same(cases[i][0], all, want, TOKENS, V);
        float *least = logits_of(p.run, (test_serve_options){.least = true, .threads = 1, .backend = "ref"}, &V);
        test_serve_same(cases[i][0], least, want, TOKENS, V);
        pack(&p);
        float *packed = logits_of(p.packed, (test_serve_options){0}, &V);
        test_serve_same(cases[i][0], packed, want, TOKENS, V);
        free(want), free(all), free(least), free(packed);
        test_run_close(&r);
    }
    cr_assert(count[0] > 0 && count[1] > 0 && count[2] > 0, "nothing was pending: %d never written, %d behind, %d with a gradient", count[0], count[1],
              count[2]);
}

/* A run that began from a folder: what it never touched is still read there. */
Test(run_model, untouched_experts_of_the_folder_it_began_from)
{
    static const char *const sets[] = {"model.num_experts=40", "model.num_experts_per_tok=1", "train.tokens_per_step=16", "train.micro_batch_tokens=16",
                                       "train.steps=2", NULL};
    test_run first, second;
    char yaml[1200];
    int V, count[3] = {0};
    train(&first, "from_first", sets);
    const paths a = paths_of(&first);
    export(&a);
    test_run_make(&second, "from_second", 4096, 61);
    snprintf(yaml, sizeof yaml,
             "model: {from: %s}\ndata: {path: tokens.bin}\ntrain: {steps: 2, seq_len: 16, tokens_per_step: 16, micro_batch_tokens: 16, seed: 3}\n"
             "optimizer: {lr: 1.0e-2, update: deferred}\nmemory: {host: 512MiB, ssd: [store/], buffered: true}\nrun: {threads: 2}\n",
             a.exported);
    FILE *f = fopen(second.yaml, "w");
    cr_assert(f != NULL && fputs(yaml, f) >= 0 && fclose(f) == 0);
    cr_assert_eq(test_process_run(&second, NULL), 0);
    const paths b = paths_of(&second);
    count_pending(&b, count);
    cr_assert_gt(count[0], 0);
    export(&b);
    float *want = logits_of(b.exported, (test_serve_options){0}, &V), *got = logits_of(b.run, (test_serve_options){0}, &V);
    test_serve_same("from", got, want, TOKENS, V);
    free(want), free(got);
    test_run_close(&second);
    test_run_close(&first);
}

static void expect_refused(const char *path, moe_err status, const char *text)
{
    model *m;
    cr_assert_eq(run_model_open(&m, path), status, "%s", moe_error_text());
    cr_assert(m == NULL && strstr(moe_error_text(), text) != NULL, "expected \"%s\" in: %s", text, moe_error_text());
}

Test(run_model, a_folder_at_work_is_left_alone)
{
    test_run r;
    run_folder f;
    model *m, *again;
    train(&r, "locked", (const char *[]){"train.steps=2", NULL});
    const paths p = paths_of(&r);
    MUST(run_folder_open(&f, p.run, false));
    expect_refused(p.run, MOE_E_TEMP, "another process works in this run folder");
    run_folder_close(&f);
    MUST(run_model_open(&m, p.run));
    MUST(run_model_open(&again, p.run));
    cr_assert_eq(run_folder_open(&f, p.run, false), MOE_E_TEMP);
    model_close(m);
    model_close(again);
    MUST(run_folder_open(&f, p.run, false));
    run_folder_close(&f);
    char *texts;
    MUST(run_model_texts(&texts, p.run));
    cr_assert(strncmp(texts, r.dir, strlen(r.dir)) == 0 && strcmp(texts + strlen(texts) - 11, "/tokens.bin") == 0, "%s", texts);
    free(texts);
    test_run_close(&r);
}

Test(run_model, a_configuration_that_was_changed_is_named)
{
    test_run r;
    char command[800];
    train(&r, "changed", (const char *[]){"train.steps=2", NULL});
    const paths p = paths_of(&r);
    snprintf(command, sizeof command, "sed -i 's/^  weight_decay: [^ ]*/  weight_decay: 0.5/' %s/config.yaml", p.run);
    cr_assert_eq(system(command), 0);
    expect_refused(p.run, MOE_E_CONFIG, "/run/config.yaml is not what the checkpoint was trained with: optimizer.weight_decay: the run was started with ");
    cr_assert_null(strstr(moe_error_text(), "--run-dir"), "advice for a run that goes on: %s", moe_error_text());
    test_run_close(&r);
}

/* Turns over one bit of the file, offset from the end where negative. */
static void damage(const char *folder, const char *name, long offset)
{
    char path[800];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *f = fopen(path, "r+");
    cr_assert_not_null(f, "%s", path);
    cr_assert_eq(fseek(f, offset, offset < 0 ? SEEK_END : SEEK_SET), 0);
    const int c = fgetc(f);
    cr_assert_eq(fseek(f, -1, SEEK_CUR), 0);
    cr_assert(fputc(c ^ 1, f) != EOF && fclose(f) == 0);
}

/* The checkpoint before is opened, and the user is told. */
Test(run_model, a_damaged_newest_manifest_is_told)
{
    test_run r;
    model *m;
    train(&r, "older", (const char *[]){"train.steps=4", "checkpoint.every=2", "checkpoint.keep=2", NULL});
    const paths p = paths_of(&r);
    MUST(run_model_open(&m, p.run));
    cr_assert_str_eq(model_note(m), "");
    model_close(m);
    damage(p.run, "checkpoint/manifest-4.bin", -20);
    MUST(run_model_open(&m, p.run));
    cr_assert_not_null(strstr(model_note(m), "manifest-4.bin"), "%s", model_note(m));
    model_close(m);
    test_run_close(&r);
}

Test(run_model, damage_is_named)
{
    test_run r;
    test_serve t;
    int32_t token[TOKENS];
    int sequence;
    train(&r, "damaged", (const char *[]){"train.steps=2", "checkpoint.keep=1", "optimizer.update=speculative", NULL});
    const paths p = paths_of(&r);
    /* The records of all experts in the slot that the checkpoint names. */
    char dir[700], note[512], slot[64];
    io *disk;
    checkpoint *c;
    const manifest *m;
    snprintf(dir, sizeof dir, "%s/checkpoint", p.run);
    MUST(io_open(&disk, "pread", note));
    MUST(checkpoint_open(&c, disk, dir, 1, false, &m, note));
    cr_assert_geq(m->records[0].slot, 0);
    snprintf(slot, sizeof slot, "store/slot-%d.bin", m->records[0].slot);
    checkpoint_close(c);
    io_close(disk);
    damage(p.run, slot, 1);
    test_serve_open(&t, p.run, (test_serve_options){0});
    test_serve_tokens(&t, token, TOKENS, 7);
    MUST(serve_sequence_begin(t.s, &sequence));
    float *logits = malloc(TOKENS * (size_t)t.V * sizeof *logits);
    serve_span span = {.sequence = sequence, .token = token, .n = TOKENS, .want = SERVE_ALL};
    MUST(serve_step(t.s, &span, 1, logits));
    cr_assert(span.rc == MOE_E_DATA && strstr(span.text, "part w of expert section 0 is damaged") != NULL, "%s", span.text);
    free(logits);
    test_serve_close(&t);
    damage(p.run, slot, 1);

    damage(p.run, "checkpoint/dense-0.bin", 100);
    expect_refused(p.run, MOE_E_DATA, "dense-0.bin: damaged: its checksum is");
    damage(p.run, "checkpoint/dense-0.bin", 100);
    damage(p.run, "store/store.id", 20);
    expect_refused(p.run, MOE_E_DATA, "store.id: checksum mismatch");
    damage(p.run, "store/store.id", 20);
    damage(p.run, "checkpoint/manifest-2.bin", -20);
    expect_refused(p.run, MOE_E_DATA, "no checkpoint is whole");
    cr_assert_eq(snprintf(dir, sizeof dir, "rm -r %s/checkpoint", p.run) > 0 && system(dir) == 0, 1);
    expect_refused(p.run, MOE_E_NOINPUT, "no checkpoint in this run folder");
    test_run_close(&r);
}
