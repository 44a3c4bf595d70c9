/* What comes out of a finished run: the held-out loss again, text, a Hugging Face folder that trains on. */
#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "memory/budget.h"
#include "models/text/decode.h"
#include "tests/engine/run_fixture.h"

enum { SEQ = 16 };

/* A small model of bytes, on a text with something to learn. */
static void make(test_run *r, const char *name)
{
    char text[700], out[700];
    test_run_make(r, name, 256, 61);
    const char *files[16];
    char names[16][720];
    for (int i = 0; i < 16; i++) { /* whole documents are held out */
        snprintf(names[i], sizeof names[i], "%s/text-%d.txt", r->dir, i);
        files[i] = names[i];
        FILE *f = fopen(names[i], "w");
        cr_assert(f != NULL);
        for (int k = 0; k < 40; k++)
            fprintf(f, "The cabins of lift %d never stop: %d, %d, and up they go.\n", i, k, k * i);
        fclose(f);
    }
    snprintf(out, sizeof out, "%s/data", r->dir);
    MUST(data_prepare(&(prepare_args){.tokenizer = "bytes", .out = out, .val_fraction = 0.3, .files = files, .nfiles = 16, .quiet = true}));
    snprintf(text, sizeof text, "%s", r->yaml);
    FILE *f = fopen(text, "w");
    cr_assert(f != NULL);
    fprintf(f,
            "model: {model_type: qwen3_moe, vocab_size: 256, hidden_size: 40, num_hidden_layers: 2, num_attention_heads: 4,\n"
            "        num_key_value_heads: 2, head_dim: 12, moe_intermediate_size: 52, num_experts: 7, num_experts_per_tok: 2}\n"
            "data: {path: data/}\n"
            "train: {steps: 7, seq_len: %d, tokens_per_step: 128, micro_batch_tokens: 64, seed: 3}\n"
            "optimizer: {lr: 1.0e-2, schedule: {kind: constant}}\n"
            "memory: {host: 64MiB, buffered: true}\n"
            "eval: {every: 3, windows: 11}\n"
            "run: {threads: 2}\n", SEQ);
    fclose(f);
}

static void run_path(const test_run *r, char out[600]) { snprintf(out, 600, "%s/run", r->dir); }

typedef struct reader {
    trainer t;
    train_config *c;
    run_folder f;
} reader;

static void reader_open(reader *o, const test_run *r, const char *set)
{
    char run[600];
    run_path(r, run);
    MUST(command_open(&o->t, &o->c, &o->f, run, &set, set != NULL));
}

static void reader_close(reader *o)
{
    trainer_close(&o->t);
    train_config_free(o->c);
    run_folder_close(&o->f);
}

/* The last val_loss of metrics.jsonl. */
static double last_val_loss(const test_run *r)
{
    char path[620], line[4096];
    double loss = NAN;
    snprintf(path, sizeof path, "%s/run/metrics.jsonl", r->dir);
    FILE *f = fopen(path, "r");
    cr_assert(f != NULL);
    while (fgets(line, sizeof line, f) != NULL) {
        const char *at = strstr(line, "\"val_loss\":");
        if (at != NULL)
            loss = strtod(at + strlen("\"val_loss\":"), NULL);
    }
    fclose(f);
    return loss;
}

Test(outputs, eval_says_the_last_held_out_loss_again)
{
    test_run r;
    make(&r, "eval");
    cr_assert_eq(test_process_run(&r, NULL), 0);
    const double expected = last_val_loss(&r);
    const char *const sets[] = {NULL, "memory.host=48MiB", "run.threads=1", "run.kernels=ref"};
    for (size_t i = 0; i < sizeof sets / sizeof *sets; i++) {
        reader o;
        double loss, again;
        int64_t used;
        reader_open(&o, &r, sets[i]);
        MUST(trainer_evaluate(&o.t, o.c->eval_windows, &loss, &used));
        cr_assert_eq(used, 11);
        cr_assert(loss == expected, "%s: %.17g, metrics.jsonl has %.17g", sets[i] != NULL ? sets[i] : "as configured", loss, expected);
        MUST(trainer_evaluate(&o.t, o.c->eval_windows, &again, &used));
        cr_assert(again == loss);
        MUST(trainer_evaluate(&o.t, 1 << 30, &again, &used));
        cr_assert_eq(used, dataset_windows(o.t.val));
        reader_close(&o);
    }
    MUST(test_run_open(&r, NULL)); /* reading changed nothing */
    cr_assert_eq(r.t.finished, 7u);
    test_run_close(&r);
}

/* --- text ------------------------------------------------------------------------------------------------------------------------- */

/* In so much memory beyond what the test itself has (more under sanitizers). malloc'ed, with the newline at the end. */
static char *sample(const test_run *r, int mebibytes, const char *set, const sample_options *o)
{
    char run[600], host[64], *text = NULL;
    const char *sets[] = {host, set};
    size_t bytes = 0;
    run_path(r, run);
    snprintf(host, sizeof host, "memory.host=%llu", (unsigned long long)budget_rss() + ((unsigned long long)mebibytes << 20));
    FILE *out = open_memstream(&text, &bytes);
    MUST(command_sample(run, sets, set != NULL ? 2 : 1, o, out));
    fclose(out);
    cr_assert(bytes > 5 && text[bytes - 1] == '\n' && strncmp(text, "The ", 4) == 0, "%s", text);
    return text;
}

Test(outputs, samples_depend_on_the_seed_alone)
{
    test_run r;
    make(&r, "sample");
    cr_assert_eq(test_process_run(&r, NULL), 0);
    sample_options o = {.prompt = "The ", .tokens = 40, .seed = 5, .temperature = 0.9, .top_k = 0};
    char *first = sample(&r, 64, NULL, &o), *again = sample(&r, 40, NULL, &o), *one = sample(&r, 64, "run.threads=1", &o);
    o.seed = 6;
    char *other = sample(&r, 64, NULL, &o);
    cr_assert(strcmp(first, again) == 0 && strcmp(first, one) == 0, "%s%s%s", first, again, one);
    cr_assert_neq(strcmp(first, other), 0);
    char run[600];
    const char *small = "memory.host=8MiB";
    run_path(&r, run);
    cr_assert_eq(command_sample(run, &small, 1, &o, stderr), MOE_E_CONFIG); /* the budget holds for text, too */
    cr_assert(strstr(moe_error_text(), "does not fit into") != NULL, "%s", moe_error_text());
    o.tokens = 1 << 30;
    cr_assert_eq(command_sample(run, NULL, 0, &o, stderr), MOE_E_USAGE);
    cr_assert(strstr(moe_error_text(), "--tokens 1073741824; the model has ") != NULL, "%s", moe_error_text());
    free(first);
    free(again);
    free(one);
    free(other);
    test_run_close(&r);
}

/* What the training decoder finds most likely, token after token. */
Test(outputs, greedy_sampling_is_the_argmax_of_the_training_decoder)
{
    test_run r;
    reader o;
    int32_t tokens[SEQ] = {'T', 'h', 'e', ' '};
    text_buffer want = {0};
    char bytes[SEQ];
    float *logits = malloc(SEQ * 256 * sizeof *logits);
    make(&r, "greedy");
    cr_assert_eq(test_process_run(&r, NULL), 0);
    reader_open(&o, &r, NULL);
    for (int n = 4; n < SEQ; n++) {
        MUST(decoder_forward(&o.t.decoder, tokens, SEQ, 0, false)); /* what follows a token does not reach it */
        MUST(decoder_logits(&o.t.decoder, 0, SEQ, logits));
        for (int v = 1; v < 256; v++)
            tokens[n] = logits[(n - 1) * 256 + v] > logits[(n - 1) * 256 + tokens[n]] ? v : tokens[n];
    }
    reader_close(&o);
    for (int i = 0; i < SEQ; i++)
        bytes[i] = (char)tokens[i];
    MUST(decode_append_lossy(&want, bytes, SEQ));
    char *text = sample(&r, 64, NULL, &(sample_options){.prompt = "The ", .tokens = SEQ - 4, .temperature = 0});
    cr_assert(strlen(text) == want.n + 1 && memcmp(text, want.data, want.n) == 0, "%s: expected %.*s", text, (int)want.n, want.data);
    free(text);
    free(logits);
    text_buffer_free(&want);
    test_run_close(&r);
}

/* --- a Hugging Face folder -------------------------------------------------------------------------------------------------------- */

/* w of a section, with everything pending applied. */
static void expert_weights(trainer *t, section_id s, float *out)
{
    tier_lease l;
    tier_change change = {0};
    MUST(tier_acquire(t->tier, s, moe_forward_parts(&t->decoder.moe, s), 0, &l));
    if ((l.parts & TIER_M) != 0)
        MUST(moe_apply_pending(&t->decoder.moe, &l, &change));
    memcpy(out, l.part[STORE_W], t->decoder.moe.layout.floats * sizeof *out);
    tier_release(t->tier, &l, TIER_ALL, change);
}

static void same_weights(trainer *a, trainer *b)
{
    cr_assert_eq(a->dense.floats, b->dense.floats);
    for (size_t i = 0; i < a->dense.floats; i++)
        cr_assert(a->dense.w[i] == b->dense.w[i], "dense weight %zu: %.9g, exported %.9g", i, (double)a->dense.w[i], (double)b->dense.w[i]);
    const size_t floats = a->decoder.moe.layout.floats;
    float *x = malloc(floats * sizeof *x), *y = malloc(floats * sizeof *y);
    for (section_id s = 0; s < a->plan.sections; s++) {
        expert_weights(a, s, x);
        expert_weights(b, s, y);
        cr_assert(memcmp(x, y, floats * sizeof *x) == 0, "expert %d differs after export", s);
    }
    free(x);
    free(y);
}

/* A second run whose model.from is the exported folder. */
static void make_from(test_run *r, const test_run *first, const char *folder)
{
    *r = (test_run){.folder.lock = -1};
    snprintf(r->dir, sizeof r->dir, "%.480s-from", first->dir);
    mkdir(r->dir, 0777);
    snprintf(r->yaml, sizeof r->yaml, "%.500s/test.yaml", r->dir);
    FILE *f = fopen(r->yaml, "w");
    cr_assert(f != NULL);
    fprintf(f,
            "model: {from: %s}\ndata: {path: %s/data}\n"
            "train: {steps: 9, seq_len: %d, tokens_per_step: 128, micro_batch_tokens: 64}\n"
            "memory: {host: 64MiB, buffered: true}\nrun: {threads: 2}\n", folder, first->dir, SEQ);
    fclose(f);
}

Test(outputs, an_exported_run_trains_on_from_its_folder)
{
    test_run r, from;
    reader o;
    char folder[620];
    make(&r, "export");
    cr_assert_eq(test_process_run(&r, NULL), 0);
    snprintf(folder, sizeof folder, "%s/exported", r.dir);
    reader_open(&o, &r, NULL);
    MUST(command_export(&o.t, folder, HF_F32));
    cr_assert_eq(command_export(&o.t, folder, HF_F32), MOE_E_CREATE);
    cr_assert(strstr(moe_error_text(), folder) != NULL, "%s", moe_error_text());
    reader_close(&o);

    const char *longer[] = {"train.steps=9", NULL};
    make_from(&from, &r, folder);
    MUST(test_run_open(&r, longer));
    MUST(test_run_open(&from, NULL));
    same_weights(&r.t, &from.t);
    for (int i = 0; i < 128; i++) {
        r.t.tokens[i] = from.t.tokens[i] = i;
        r.t.targets[i] = from.t.targets[i] = (i * 7) % 256;
    }
    step_metrics a, b;
    MUST(trainer_step_tokens(&r.t, &a));
    MUST(trainer_step_tokens(&from.t, &b));
    cr_assert(a.loss == b.loss, "loss %.17g in the run, %.17g from its export", a.loss, b.loss);
    cr_assert(a.grad_norm == b.grad_norm);
    test_run_close(&from);
    test_run_close(&r);
}

Test(outputs, a_bf16_export_opens)
{
    test_run r, from;
    reader o;
    char folder[620];
    make(&r, "export16");
    cr_assert_eq(test_process_run(&r, NULL), 0);
    snprintf(folder, sizeof folder, "%s/exported", r.dir);
    reader_open(&o, &r, NULL);
    MUST(command_export(&o.t, folder, HF_BF16));
    make_from(&from, &r, folder);
    MUST(test_run_open(&from, NULL));
    for (size_t i = 0; i < o.t.dense.floats; i++)
        cr_assert(fabsf(o.t.dense.w[i] - from.t.dense.w[i]) <= ldexpf(fabsf(o.t.dense.w[i]), -8), "dense weight %zu", i);
    reader_close(&o);
    test_run_close(&from);
    test_run_close(&r);
}

Test(outputs, a_folder_that_is_no_run_is_66_and_stays_as_it_is)
{
    test_run r;
    train_config *c;
    run_folder f;
    trainer t;
    char lock[620];
    make(&r, "no_run");
    cr_assert_eq(command_open(&t, &c, &f, r.dir, NULL, 0), MOE_E_NOINPUT);
    snprintf(lock, sizeof lock, "%s/lock", r.dir);
    cr_assert(access(lock, F_OK) != 0, "a lock file was left in a folder that is not ours");
    test_run_close(&r);
}
