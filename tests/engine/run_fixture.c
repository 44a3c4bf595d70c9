#include "tests/engine/run_fixture.h"

#include <criterion/criterion.h>
#include <ftw.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static int remove_one(const char *path, const struct stat *st, int flag, struct FTW *ftw)
{
    (void)st, (void)flag, (void)ftw;
    return remove(path);
}

static void remove_tree(const char *path) { nftw(path, remove_one, 16, FTW_DEPTH | FTW_PHYS); }

void test_run_make(test_run *r, const char *name, int64_t tokens, int vocab)
{
    *r = (test_run){.folder.lock = -1};
    mkdir(MOE_TEST_TMP, 0777);
    snprintf(r->dir, sizeof r->dir, MOE_TEST_TMP "/%s-%d", name, (int)getpid());
    remove_tree(r->dir);
    cr_assert(mkdir(r->dir, 0777) == 0, "%s: cannot make", r->dir);
    snprintf(r->yaml, sizeof r->yaml, "%s/test.yaml", r->dir);
    char path[600];
    snprintf(path, sizeof path, "%s/tokens.bin", r->dir);
    FILE *f = fopen(path, "wb");
    cr_assert(f != NULL);
    uint32_t x = 12345;
    for (int64_t i = 0; i < tokens; i++) {
        x = x * 1664525u + 1013904223u;
        /* mostly small ids, so that there is something to learn and some experts stay idle */
        const uint16_t id = (uint16_t)((x >> 16) % (uint32_t)((x >> 28) ? (vocab + 3) / 4 : vocab));
        cr_assert(fwrite(&id, sizeof id, 1, f) == 1);
    }
    fclose(f);
}

static void write_yaml(test_run *r, const char *fmt, ...)
{
    FILE *f = fopen(r->yaml, "w");
    va_list ap;
    cr_assert(f != NULL);
    va_start(ap, fmt);
    vfprintf(f, fmt, ap);
    va_end(ap);
    fclose(f);
}

void test_run_fixture_yaml(test_run *r, const fixture *f)
{
    char *from = realpath(f->dir, NULL);
    cr_assert(from != NULL);
    write_yaml(r,
               "model: {from: %s}\n"
               "data: {path: tokens.bin}\n"
               "train: {steps: %d, seq_len: %d, tokens_per_step: %d, micro_batch_tokens: %d, seed: 1}\n"
               "optimizer: {lr: %.9g, betas: [%.9g, %.9g], eps: %.9g, weight_decay: %.9g, clip_norm: %.9g,\n"
               "            schedule: {kind: constant}, expert_weights: %s}\n"
               "balance: {aux_loss_coef: %.9g, z_loss_coef: %.9g, bias_update_rate: %.9g, scope: %s, per_layer: %s}\n"
               "memory: {host: 512MiB, ssd: [store/], buffered: true}\n"
               "run: {threads: 2}\n",
               from, f->steps, f->seq_len, f->windows_per_step * f->seq_len, f->windows_per_micro * f->seq_len, f->lr, f->beta1, f->beta2, f->eps,
               f->weight_decay, f->clip_norm, f->bf16_weights ? "bf16" : "f32", f->aux_coef, f->z_coef,
               f->bias_update_rate, f->scope, f->per_layer ? "true" : "false");
    free(from);
}

void test_run_small_yaml(test_run *r, const char *extra)
{
    write_yaml(r,
               "model: {model_type: qwen3_moe, vocab_size: 61, hidden_size: 40, num_hidden_layers: 3, num_attention_heads: 4,\n"
               "        num_key_value_heads: 2, head_dim: 12, moe_intermediate_size: 52, num_experts: 7, num_experts_per_tok: 2,\n"
               "        norm_topk_prob: true}\n"
               "data: {path: tokens.bin}\n"
               "train: {steps: 6, seq_len: 16, tokens_per_step: 128, micro_batch_tokens: 64, seed: 3}\n"
               "optimizer: {lr: 1.0e-2, clip_norm: 1.0, schedule: {kind: cosine, warmup_steps: 2, min_lr: 1.0e-3}}\n"
               "balance: {aux_loss_coef: 0.01, z_loss_coef: 0.001, scope: sequence}\n"
               "memory: {host: 512MiB, ssd: [store/], buffered: true}\n"
               "run: {threads: 2}\n%s", extra);
}

static moe_err open_folder(test_run *r)
{
    if (r->options.io == NULL) {
        char run[600];
        snprintf(run, sizeof run, "%s/run", r->dir);
        return run_folder_open(&r->folder, run, true);
    }
    r->folder = (run_folder){.path = strdup("run"), .uuid = {1}, .lock = -1};
    return io_make_dir(r->options.io, r->folder.path);
}

moe_err test_run_open(test_run *r, const char *const *sets)
{
    int n = 0;
    while (sets != NULL && sets[n] != NULL)
        n++;
    TRY(train_config_load(&r->config, r->yaml, sets, n));
    moe_err rc;
    TRY_GOTO(open_folder(r), rc, fail);
    TRY_GOTO(trainer_open(&r->t, r->config, &r->folder, r->options), rc, fail);
    r->open = true;
    return MOE_OK;
fail:
    run_folder_close(&r->folder);
    train_config_free(r->config);
    r->config = NULL;
    return rc;
}

void test_run_shut(test_run *r)
{
    if (!r->open)
        return;
    trainer_close(&r->t);
    run_folder_close(&r->folder);
    train_config_free(r->config);
    r->config = NULL;
    r->open = false;
}

void test_run_close(test_run *r)
{
    test_run_shut(r);
    remove_tree(r->dir);
}

static uint64_t mix(uint64_t h, const void *data, size_t bytes)
{
    const unsigned char *p = data;
    for (size_t i = 0; i < bytes; i++)
        h = (h ^ p[i]) * 0x100000001b3ull; /* FNV-1a */
    return h;
}

uint64_t test_run_weights_hash(test_run *r)
{
    trainer *t = &r->t;
    uint64_t h = mix(0xcbf29ce484222325ull, t->dense.w, dense_state_bytes(&t->dense));
    for (section_id s = 0; s < t->plan.sections; s++) {
        tier_lease l;
        const record rec = tier_record(t->tier, s);
        unsigned parts = TIER_STATE;
        if (rec.step < t->finished && rec.grad_step != 0)
            parts = TIER_ALL;
        MUST(tier_acquire(t->tier, s, parts, 0, &l));
        const size_t bytes = t->decoder.moe.layout.floats * sizeof(float);
        uint64_t n = 0;
        const adamw_step *steps = step_log_after(&t->log, rec.step, &n);
        if (n > 0)
            MUST(moe_update(&t->decoder.moe, &l, rec.grad_step != 0 ? l.part[STORE_G] : NULL, steps, (int)n));
        h = mix(h, l.part[STORE_W], l.part[STORE_R] != NULL ? bytes / 2 : bytes);
        if (l.part[STORE_R] != NULL)
            h = mix(h, l.part[STORE_R], bytes / 2);
        h = mix(h, l.part[STORE_M], bytes); /* bf16: both moments, half the size each */
        if (l.part[STORE_V] != NULL)
            h = mix(h, l.part[STORE_V], bytes);
        const tier_change c = {.dirty = n > 0 ? TIER_STATE : 0, .drop = n > 0 && (l.parts & TIER_G) ? TIER_G : 0, .step = t->finished};
        tier_release(t->tier, &l, TIER_ALL, c);
    }
    return h;
}

const char *test_run_least_memory(const test_run *r, const char *const *sets, char *buf, size_t size)
{
    train_config *c;
    train_plan p;
    int n = 0;
    while (sets != NULL && sets[n] != NULL)
        n++;
    MUST(train_config_load(&c, r->yaml, sets, n));
    MUST(train_plan_make(&p, c, true));
    snprintf(buf, size, "memory.host=%llu", (unsigned long long)((p.smallest + 94) / 95 * 100 + 4096));
    train_config_free(c);
    return buf;
}
