/* The configuration: the example of the README loads as it stands, every problem is told at once with its place, what is printed
 * reads back as the same, and the resume rules. */
#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "engine/config/train_config.h"

static const char EXAMPLE[] =
    "model: {model_type: qwen3_moe, vocab_size: 256, hidden_size: 512, num_hidden_layers: 8, num_attention_heads: 8, num_key_value_heads: 2, head_dim: 64,\n"
    "        moe_intermediate_size: 1024, num_experts: 32, num_experts_per_tok: 2, norm_topk_prob: true}\n"
    "data: {path: data/}\n"
    "train: {steps: 200, seq_len: 512, tokens_per_step: 8192, micro_batch_tokens: 4096, seed: 1}\n"
    "optimizer: {lr: 3.0e-4, betas: [0.9, 0.95], eps: 1.0e-8, weight_decay: 0.1, clip_norm: 1.0, schedule: {kind: cosine, warmup_steps: 20, min_lr: 3.0e-5}}\n"
    "memory: {host: 1536MiB, ssd: [store/]}\n"
    "checkpoint: {every: 50, keep: 1}\n"
    "eval: {every: 50, windows: 64}\n";

/* The least that loads, in block style; tests add to it. */
#define SMALL                                                                                                                              \
    "model:\n  model_type: qwen3_moe\n  vocab_size: 256\n  hidden_size: 64\n  num_hidden_layers: 2\n  num_attention_heads: 4\n"            \
    "  num_key_value_heads: 2\n  head_dim: 16\n  moe_intermediate_size: 32\n  num_experts: 4\n  num_experts_per_tok: 2\n"
#define SMALL_TRAIN "train: {steps: 100, seq_len: 64, tokens_per_step: 256}\n"
#define SMALL_ALL SMALL "data: {path: d}\n" SMALL_TRAIN

static train_config *parse_with(const char *text, const char *const *sets, int nsets)
{
    train_config *c;
    const moe_err rc = train_config_parse(&c, text, strlen(text), "conf/small.yaml", sets, nsets);
    cr_assert_eq(rc == MOE_OK, c != NULL);
    return c;
}

static train_config *parse(const char *text) { return parse_with(text, NULL, 0); }

#define SETS(...) parse_with(SMALL_ALL, (const char *const[]){__VA_ARGS__}, (int)(sizeof((const char *[]){__VA_ARGS__}) / sizeof(char *)))

static void expect_text(const char *text, const char *expected)
{
    train_config *c = parse(text);
    cr_expect_null(c, "loads: %s", text);
    cr_expect_str_eq(moe_error_text(), expected);
    train_config_free(c);
}

Test(config, example_loads_as_it_is)
{
    train_config *c = parse(EXAMPLE);
    cr_assert_not_null(c, "%s", moe_error_text());
    cr_expect_str_eq(c->name, "small");
    cr_expect_eq(c->model.D, 512);
    cr_expect_eq(c->model.E, 32);
    cr_expect_eq(c->model.F, 1024);
    cr_expect(c->model.router.normalize);
    cr_expect_eq(c->steps, 200);
    cr_expect_eq(c->tokens_per_step, 8192);
    cr_expect_eq(c->micro_batch_tokens, 4096);
    cr_expect_eq(c->lr, 3e-4);
    cr_expect_eq(c->beta1, 0.9);
    cr_expect_eq(c->beta2, 0.95);
    cr_expect_eq(c->eps, 1e-8);
    cr_expect_eq(c->schedule, SCHEDULE_COSINE);
    cr_expect_eq(c->warmup_steps, 20);
    cr_expect_eq(c->min_lr, 3e-5);
    cr_expect_eq(c->host_bytes, 1536ull << 20);
    cr_assert_eq(c->ssd_count, 1);
    cr_expect_str_eq(c->ssd[0], "store/");
    cr_expect_eq(c->checkpoint_every, 50);
    cr_expect_eq(c->eval_windows, 64);
    cr_expect_eq(c->aux_coef, c->model.aux_coef);
    char here[4096], expected[8192];
    snprintf(expected, sizeof expected, "%s/conf/data/", getcwd(here, sizeof here));
    cr_expect_str_eq(c->data_path, expected);
    train_config_free(c);
}

Test(config, json_works_unchanged)
{
    train_config *c = parse("{\n\t\"model\": {\"model_type\":\"qwen3_moe\",\"vocab_size\":256,\"hidden_size\":64,\"num_hidden_layers\":2,"
                            "\"num_attention_heads\":4,\"num_key_value_heads\":2,\"head_dim\":16,\"num_experts\":4,\"num_experts_per_tok\":2,\"mlp_only_layers\":[]},\n"
                            "\t\"data\":{\"path\":\"d\\u00e4\\/x\"},\n\t\"train\":{\"steps\":1e2,\"seq_len\":64,\"tokens_per_step\":256}\n}\n");
    cr_expect_null(c);
    cr_expect_str_eq(moe_error_text(),
                     "conf/small.yaml:4:19: train.steps: expected a whole number from 1 to 1000000000 (optimizer steps), got \"1e2\"");
    c = parse("{\"model\":{\"model_type\":\"qwen3_moe\",\"vocab_size\":256,\"hidden_size\":64,\"num_hidden_layers\":2,\"num_attention_heads\":4,"
              "\"num_key_value_heads\":2,\"head_dim\":16,\"num_experts\":4,\"num_experts_per_tok\":2},\"data\":{\"path\":\"d\\u00e4\\/x\\uD83D\\uDE00\\\\uD83D\"},"
              "\"train\":{\"steps\":100,\"seq_len\":64,\"tokens_per_step\":256},\"optimizer\":{\"lr\":1E-3,\"betas\":[0.9,0.99]},"
              "\"memory\":{\"host\":null,\"buffered\":true}}");
    cr_assert_not_null(c, "%s", moe_error_text());
    cr_expect(strstr(c->data_path, "/conf/d\xc3\xa4/x\xf0\x9f\x98\x80\\uD83D"), "%s", c->data_path);
    cr_expect_eq(c->beta2, 0.99);
    cr_expect_eq(c->host_bytes, 0);
    cr_expect(c->buffered);
    train_config_free(c);
}

Test(config, every_problem_at_once_with_its_place)
{
    expect_text(SMALL "  hiden_size: 3\n"
                      "data: {path: d}\n"
                      "train:\n  stpes: 5\n  seq_len: 10k\n  tokens_per_step: 250\n  lr: 1\n"
                      "optimizer: {lr: fast, betas: [0.9], schedule: {kind: cosin}}\n"
                      "memory: {host: lots, ssd: [a, a], prefetch: yes}\n"
                      "chekpoint: {every: 5}\n"
                      "eval: 7\n",
                "conf/small.yaml:12:3: model.hiden_size: unknown key; did you mean model.hidden_size?\n"
                "conf/small.yaml:14:1: train.steps: expected a whole number from 1 to 1000000000 (optimizer steps), got nothing (required: length of the run)\n"
                "conf/small.yaml:15:3: train.stpes: unknown key; did you mean train.steps?\n"
                "conf/small.yaml:16:12: train.seq_len: expected a whole number from 1 to 16777216 (tokens), got \"10k\"\n"
                "conf/small.yaml:18:3: train.lr: unknown key; did you mean optimizer.lr?\n"
                "conf/small.yaml:19:17: optimizer.lr: expected a number > 0, got \"fast\"\n"
                "conf/small.yaml:19:30: optimizer.betas: expected a list of two numbers >= 0 and < 1, got a list\n"
                "conf/small.yaml:19:54: optimizer.schedule.kind: expected cosine, linear, constant or wsd, got \"cosin\"\n"
                "conf/small.yaml:20:16: memory.host: expected a size of at least 1MiB, like 1536MiB, 8G or a number of bytes, got \"lots\"\n"
                "conf/small.yaml:20:27: memory.ssd: expected each folder once, got \"a\" twice\n"
                "conf/small.yaml:20:45: memory.prefetch: expected a whole number from -1 to 1024 (reads), got \"yes\"\n"
                "conf/small.yaml:21:1: chekpoint: unknown key; did you mean checkpoint?\n"
                "conf/small.yaml:22:7: eval: expected a mapping of keys, got \"7\"");
}

Test(config, an_empty_file_names_what_is_required)
{
    train_config *c = parse("# nothing\n");
    cr_expect_null(c);
    const char *const missing[] = {"model.model_type", "data.path", "train.steps", "train.seq_len", "train.tokens_per_step"};
    for (size_t i = 0; i < sizeof missing / sizeof missing[0]; i++)
        cr_expect(strstr(moe_error_text(), missing[i]), "%s in: %s", missing[i], moe_error_text());
}

Test(config, strict_scalars)
{
    static const char *const bad[] = {
        "train.seed=-1", "train.seed=1_000", "train.seed=18446744073709551616", "train.steps=\"200\"", "train.steps=2.0", "optimizer.lr=.inf",
        "optimizer.lr=0", "optimizer.lr=[1]", "optimizer.lr=", "balance.per_layer=yes", "balance.per_layer=1", "memory.ssd=[1, [2]]", "memory.ssd=[]",
        "memory.ssd={a: b}", "data.path=", "data.path=[a]", "memory.host=10k", "memory.host=-1G", "memory.host=1.5", "eval.windows=0",
        "checkpoint.keep=0", "run.kernels=sse", "model.hidden_size=64.0", "model.norm_topk_prob=1", "model.mlp_only_layers=[a]",
        "train=5", "nonsense", "=5", "train.steps", "model.=5", "train.steps.x=5", "a.b.c=1", "optimizer.betas=[0.9, 1.0]"};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        train_config *c = SETS(bad[i]);
        char begins[128];
        snprintf(begins, sizeof begins, "--set %s: ", bad[i]);
        cr_expect_null(c, "accepted: %s", bad[i]);
        cr_expect_eq(strncmp(moe_error_text(), begins, strlen(begins)), 0, "%s", moe_error_text());
        train_config_free(c);
    }
    static const char *const fine[] = {"train.seed=0xff", "train.seed=18446744073709551615", "optimizer.lr=1", "optimizer.lr=1e-4",
                                       "balance.per_layer=True", "memory.ssd=one", "memory.ssd=[1, b]", "memory.host=null",
                                       "memory.host=1.5G", "memory.host=\"2 GiB\"", "data.path=2024", "train={seed: 3, steps: 7}", "eval=",
                                       "model.head_dim=32", "optimizer.betas=[0, 0]", "model.rope_theta=10000"};
    for (size_t i = 0; i < sizeof fine / sizeof fine[0]; i++) {
        train_config *c = SETS(fine[i]);
        cr_expect_not_null(c, "%s: %s", fine[i], moe_error_text());
        train_config_free(c);
    }
}

Test(config, what_belongs_together)
{
    static const char *const bad[][2] = {
        {"train.tokens_per_step=100", "expected a multiple of train.seq_len (64), got 100"},
        {"train.micro_batch_tokens=96", "expected a multiple of train.seq_len (64), got 96"},
        {"train.micro_batch_tokens=192", "expected a divisor of train.tokens_per_step (256), got 192"},
        {"train.micro_batch_tokens=512", "expected a divisor of train.tokens_per_step (256), got 512"},
        {"optimizer.schedule.warmup_steps=101", "expected at most train.steps (100), got 101"},
        {"optimizer.schedule.kind=wsd", "optimizer.schedule.decay_steps: expected the length of the decay (kind wsd), got nothing"},
        {"optimizer.schedule={kind: wsd, decay_steps: 60, warmup_steps: 50}", "expected at most train.steps - warmup_steps (50), got 60"},
        {"optimizer.schedule.min_lr=0.5", "expected at most optimizer.lr (0.001), got 0.5"},
        {"model.max_position_embeddings=32", "train.seq_len: expected at most model.max_position_embeddings (32), got 64"},
        {"balance.bias_update_rate=0.001", "expected 0: the model's router has no correction bias"},
        {"memory.ssd=[x, y, x]", "expected each folder once, got \"x\" twice"},
        {"model.num_experts_per_tok=9", "num_experts_per_tok"},
        {"model.hidden_act=gelu", "model.hidden_act is \"gelu\""},
        {"model.model_type=qwen3moe", "got \"qwen3moe\"; did you mean qwen3_moe?"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        train_config *c = SETS(bad[i][0]);
        cr_expect_null(c, "accepted: %s", bad[i][0]);
        cr_expect(strstr(moe_error_text(), bad[i][1]), "%s: %s", bad[i][0], moe_error_text());
        train_config_free(c);
    }
}

Test(config, yaml_that_is_refused)
{
    static const char *const bad[][2] = {
        {"a: &x 1\nb: *x\n", "conf/small.yaml:1:4: anchors (&) and tags (!) are not supported"},
        {"a: !!int 5\n", "anchors (&) and tags (!)"},
        {"a: *x\n", "conf/small.yaml:1:4: aliases (*)"},
        {"a: 1\n---\nb: 2\n", "conf/small.yaml:2:1: expected one document"},
        {"data: {path: a}\ndata: {path: b}\n", "conf/small.yaml:2:1: data: expected each key once, it is already at conf/small.yaml:1:1"},
        {"data: {path: a", "conf/small.yaml:2:1: not YAML: while parsing a flow mapping"},
        {"data: {path: \"\\0\"}", "expected text, got a NUL character"},
        {"[[[[[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]]]]]", "nested too deep"},
        {"? [a, b]\n: 1\n", "expected a key, got a list or a mapping"},
        {"data:\n\tpath: x\n", "conf/small.yaml:2:1: not YAML"},
        {"train.steps: 5\n", "train.steps: unknown key; a key is one word, its section is the mapping around it"},
        {"- 1\n", "expected a mapping of keys, got a list"},
        {"a: \xff\n", "expected UTF-8 text"},
        {"\"da\\e[31mta\": 1\n", "da?[31mta: unknown key"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        cr_expect_null(parse(bad[i][0]));
        cr_expect(strstr(moe_error_text(), bad[i][1]), "%s -> %s", bad[i][0], moe_error_text());
    }
}

Test(config, many_problems_are_cut_at_a_line)
{
    char text[32768] = "";
    for (int i = 0; i < 400; i++)
        snprintf(text + strlen(text), sizeof text - strlen(text), "unheard_of_%d: 1\n", i);
    cr_expect_null(parse(text));
    const char *more = strstr(moe_error_text(), "\n... and ");
    cr_assert_not_null(more);
    cr_expect_lt(strlen(moe_error_text()), MOE_ERROR_TEXT);
    cr_expect_eq(strncmp(moe_error_text(), "conf/small.yaml:1:1: ", 21), 0);
}

Test(config, sets_apply_in_order)
{
    train_config *c = SETS("train.steps=5", "train.steps=7", "optimizer.schedule={kind: linear, warmup_steps: 2}", "optimizer.schedule.warmup_steps=3",
                           "model.num_experts=8", "memory.ssd=[a, b]", "memory.ssd=[c]");
    cr_assert_not_null(c, "%s", moe_error_text());
    cr_expect_eq(c->steps, 7);
    cr_expect_eq(c->schedule, SCHEDULE_LINEAR);
    cr_expect_eq(c->warmup_steps, 3);
    cr_expect_eq(c->model.E, 8);
    cr_assert_eq(c->ssd_count, 1);
    cr_expect_str_eq(c->ssd[0], "c");
    train_config_free(c);
}

Test(config, missing_keys_take_the_class_defaults)
{
    train_config *c = parse("model: {model_type: qwen3_moe}\ndata: {path: d}\n" SMALL_TRAIN);
    cr_assert_not_null(c, "%s", moe_error_text());
    cr_expect_eq(c->model.V, 151936);
    cr_expect_eq(c->model.E, 128);
    cr_expect_eq(c->model.aux_coef, 0.001);
    cr_expect_eq(c->aux_coef, 0.001);
    cr_expect_eq(c->micro_batch_tokens, 256);
    train_config_free(c);
}

/* The line that begins so ends so. */
static void expect_line(const char *text, const char *begin, const char *end)
{
    const char *at = strstr(text, begin);
    cr_assert_not_null(at, "no \"%s\" in:\n%s", begin, text);
    at += strlen(begin);
    at += strspn(at, " ");
    cr_expect(strncmp(at, end, strlen(end)) == 0 && at[strlen(end)] == '\n', "%s: %.80s", begin, at);
}

Test(config, print_shows_origins_and_reads_back)
{
    train_config *c = SETS("optimizer.lr=1e-08", "data.path=\"/a \\\"b\\u2028/\\u00e4: #x\"", "memory.host=1537MiB", "memory.ssd=[\"no\", \"1\", a/b]",
                           "optimizer.betas=[0.9, 0.999999]");
    cr_assert_not_null(c, "%s", moe_error_text());
    char *text, *again;
    cr_assert_eq(train_config_print(c, &text), MOE_OK);
    expect_line(text, "  hidden_size: 64", "# conf/small.yaml:4");
    expect_line(text, "  max_position_embeddings: 32768", "# default of Qwen3MoeConfig");
    expect_line(text, "  first_k_dense_replace: 0", "# default, unknown to Qwen3MoeConfig");
    expect_line(text, "  lr: 1.0e-08", "# --set");
    expect_line(text, "  host: 1537MiB", "# --set");
    expect_line(text, "  micro_batch_tokens: 256", "# default: train.tokens_per_step");
    expect_line(text, "  schedule:\n    kind: constant", "# default");
    train_config *back = parse(text);
    cr_assert_not_null(back, "%s\n%s", moe_error_text(), text);
    cr_expect_str_eq(back->data_path, c->data_path);
    cr_expect_str_eq(back->ssd[0], "no");
    cr_expect_str_eq(back->ssd[1], "1");
    cr_expect_eq(back->lr, 1e-8);
    cr_expect_eq(back->host_bytes, c->host_bytes);
    cr_expect_eq(memcmp(&back->model, &c->model, sizeof c->model), 0);
    cr_assert_eq(train_config_echo(c, &again), MOE_OK);
    free(again);
    free(text);
    train_config_free(back);
    train_config_free(c);
}

Test(config, resume_rules)
{
    static const char *const may[] = {"memory.host=1G", "memory.ssd=[x]", "memory.policy=lru", "checkpoint.every=3", "checkpoint.keep=2", "eval.every=2",
                                      "eval.windows=3", "run.threads=3", "run.kernels=ref", "train.steps=1000", "optimizer.lr=0.5",
                                      "optimizer.schedule={kind: cosine, warmup_steps: 3, min_lr: 1.0e-9}"};
    static const char *const must_not[][3] = {
        {"train.seed=2", "train.seed: the run was started with 1, the configuration now says 2\n", ""},
        {"train.tokens_per_step=512", "train.tokens_per_step: the run was started with 256, the configuration now says 512\n",
         "train.micro_batch_tokens: the run was started with 256, the configuration now says 512\n"},
        {"model.num_experts=8", "model.num_experts: the run was started with 4, the configuration now says 8\n", ""},
        {"data.path=e", "data.path: the run was started with d, the configuration now says e\n", ""},
        {"optimizer.weight_decay=0", "optimizer.weight_decay: the run was started with 0.01, the configuration now says 0.0\n", ""},
        {"balance.scope=global", "balance.scope: the run was started with micro, the configuration now says global\n", ""},
        {"optimizer.update=deferred", "optimizer.update: the run was started with auto, the configuration now says deferred\n", ""},
    };
    train_config *c = parse(SMALL_ALL);
    char *saved, *now;
    cr_assert_eq(train_config_echo(c, &saved), MOE_OK);
    for (size_t i = 0; i < sizeof may / sizeof may[0]; i++) {
        train_config *d = SETS(may[i]);
        cr_assert_eq(train_config_echo(d, &now), MOE_OK);
        cr_expect_eq(train_config_compare_echo(saved, now), MOE_OK, "%s: %s", may[i], moe_error_text());
        free(now);
        train_config_free(d);
    }
    for (size_t i = 0; i < sizeof must_not / sizeof must_not[0]; i++) {
        train_config *d = SETS(must_not[i][0]);
        cr_assert_eq(train_config_echo(d, &now), MOE_OK);
        cr_expect_eq(train_config_compare_echo(saved, now), MOE_E_CONFIG);
        cr_expect(strstr(moe_error_text(), must_not[i][1]) && strstr(moe_error_text(), must_not[i][2]), "%s", moe_error_text());
        free(now);
        train_config_free(d);
    }
    train_config *moved;
    cr_assert_eq(train_config_parse(&moved, SMALL_ALL, strlen(SMALL_ALL), "/elsewhere/small.yaml", NULL, 0), MOE_OK);
    cr_assert_eq(train_config_echo(moved, &now), MOE_OK);
    cr_expect_eq(train_config_compare_echo(saved, now), MOE_OK, "a project that moved: %s", moe_error_text());
    free(now);
    train_config_free(moved);
    char *printed;
    cr_assert_eq(train_config_print(c, &printed), MOE_OK);
    cr_assert_eq(train_config_parse(&moved, printed, strlen(printed), "/run/folder/config.yaml", NULL, 0), MOE_OK);
    cr_assert_eq(train_config_echo(moved, &now), MOE_OK);
    cr_expect_eq(train_config_compare_echo(saved, now), MOE_OK, "a configuration saved in the run folder: %s", moe_error_text());
    free(now);
    free(printed);
    train_config_free(moved);
    cr_expect_eq(train_config_compare_echo("", "balance.capacity_factor = 0.0\n"), MOE_OK, "a key that is newer than the run, at its default");
    cr_expect_eq(train_config_compare_echo("", "balance.capacity_factor = 1.5\n"), MOE_E_CONFIG);
    cr_expect_eq(train_config_compare_echo("", saved), MOE_E_CONFIG);
    cr_expect_eq(train_config_compare_echo(saved, ""), MOE_E_CONFIG);
    free(saved);
    train_config_free(c);
}

Test(config, files)
{
    train_config *c;
    cr_expect_eq(train_config_load(&c, "/nonexistent/a.yaml", NULL, 0), MOE_E_NOINPUT);
    cr_expect_null(c);
    cr_expect_eq(train_config_load(&c, "/", NULL, 0), MOE_E_NOINPUT);
    const char *set = "model.from=/nonexistent";
    cr_expect_eq(train_config_parse(&c, "data: {path: d}\n" SMALL_TRAIN, strlen("data: {path: d}\n" SMALL_TRAIN), "x.yaml", &set, 1), MOE_E_NOINPUT);
    cr_expect_eq(strncmp(moe_error_text(), "--set model.from=/nonexistent: model.from: ", 43), 0, "%s", moe_error_text());
    c = SETS("model.from=/nonexistent");
    cr_expect_null(c);
    cr_expect(strstr(moe_error_text(), "conf/small.yaml:2:3: model.model_type: expected no other model key beside model.from"), "%s",
              moe_error_text());
}

Test(config, a_family_that_is_only_served)
{
    train_config *c;
    static const char text[] = "data: {path: d}\n" SMALL_TRAIN, named[] = "data: {path: d}\nmodel: {model_type: gpt_oss}\n" SMALL_TRAIN;
    const char *set = "model.from=tests/fixtures/serve/gpt_oss";
    cr_expect_eq(train_config_parse(&c, text, strlen(text), "x.yaml", &set, 1), MOE_E_CONFIG);
    cr_expect(strstr(moe_error_text(), "gpt_oss/config.json: model_type is gpt_oss, which is served, not trained: the gradients of attention sinks"), "%s",
              moe_error_text());
    cr_expect_eq(train_config_parse(&c, named, strlen(named), "x.yaml", NULL, 0), MOE_E_CONFIG);
    cr_expect(strstr(moe_error_text(), "x.yaml:2:21: model.model_type: gpt_oss models are served, not trained: the gradients of"), "%s", moe_error_text());
}

Test(config, goes_on_from_a_folder)
{
    static const char model[] = "{\"architectures\": [\"Qwen3MoeForCausalLM\"], \"model_type\": \"qwen3_moe\", \"vocab_size\": 256, \"hidden_size\": 64, "
                                "\"num_hidden_layers\": 2, \"num_attention_heads\": 4, \"num_key_value_heads\": 2, \"head_dim\": 16, "
                                "\"moe_intermediate_size\": 32, \"num_experts\": 4, \"num_experts_per_tok\": 2, \"router_aux_loss_coef\": 0.25}";
    char dir[] = "/tmp/moe-config-XXXXXX", path[128], *text, *echo, *again;
    cr_assert_not_null(mkdtemp(dir));
    snprintf(path, sizeof path, "%s/m", dir);
    cr_assert_eq(mkdir(path, 0777), 0);
    snprintf(path, sizeof path, "%s/m/config.json", dir);
    FILE *f = fopen(path, "w");
    fputs(model, f);
    fclose(f);
    snprintf(path, sizeof path, "%s/x.yaml", dir);
    static const char yaml[] = "model: {from: m}\ndata: {path: d}\n" SMALL_TRAIN;
    train_config *c, *back;
    cr_assert_eq(train_config_parse(&c, yaml, strlen(yaml), path, NULL, 0), MOE_OK, "%s", moe_error_text());
    cr_expect_eq(c->model.E, 4);
    cr_expect_eq(c->aux_coef, 0.25);
    cr_assert_eq(train_config_print(c, &text), MOE_OK);
    cr_expect(strstr(text, "# its config.json: qwen3_moe, vocab_size 256, hidden_size 64, 2 layers"), "%s", text);
    cr_assert_eq(train_config_parse(&back, text, strlen(text), "/elsewhere/y.yaml", NULL, 0), MOE_OK, "%s", moe_error_text());
    cr_assert_eq(train_config_echo(c, &echo), MOE_OK);
    cr_assert_eq(train_config_echo(back, &again), MOE_OK);
    cr_expect_eq(train_config_compare_echo(echo, again), MOE_OK, "%s", moe_error_text());
    char *experts = strstr(again, "model.from.num_experts = 4");
    cr_assert_not_null(experts);
    experts[strlen("model.from.num_experts = ")] = '8';
    cr_expect_eq(train_config_compare_echo(echo, again), MOE_E_CONFIG, "another config.json in the folder");
    free(text);
    free(echo);
    free(again);
    train_config_free(c);
    train_config_free(back);
    snprintf(path, sizeof path, "%s/m/config.json", dir);
    unlink(path);
    snprintf(path, sizeof path, "%s/m", dir);
    rmdir(path);
    rmdir(dir);
}

Test(config, sizes)
{
    static const struct {
        const char *text;
        uint64_t bytes;
    } good[] = {{"0", 0}, {"100000", 100000}, {"1536MiB", 1536ull << 20}, {"8G", 8ull << 30}, {"8g", 8ull << 30}, {"1K", 1024}, {"1KB", 1000},
                {"10GB", 10000000000}, {"2T", 2ull << 40}, {"1.5GiB", 3ull << 29}, {"1.5 GiB", 3ull << 29}, {"7B", 7}, {"16383P", 16383ull << 50}};
    static const char *const bad[] = {"", "G", "1X", "1GiBs", "-1", "1e3", "1.5", "16384P", "20000P", "1 ", "1  G", "0x10", "1..5G", "1,5G", "18446744073709551616"};
    uint64_t bytes;
    for (size_t i = 0; i < sizeof good / sizeof good[0]; i++) {
        cr_expect_eq(size_parse(good[i].text, &bytes), MOE_OK, "%s", good[i].text);
        cr_expect_eq(bytes, good[i].bytes, "%s: %llu", good[i].text, (unsigned long long)bytes);
    }
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
        cr_expect_eq(size_parse(bad[i], &bytes), MOE_E_CONFIG, "%s", bad[i]);
}

Test(config, learning_rates_at_the_borders)
{
    train_config c = {.lr = 3e-4, .min_lr = 3e-5, .steps = 100, .warmup_steps = 10, .decay_steps = 20};
    for (int kind = SCHEDULE_COSINE; kind <= SCHEDULE_WSD; kind++) {
        c.schedule = kind;
        cr_expect_eq(train_config_lr(&c, 1), 3e-4 * 1 / 10);
        cr_expect_eq(train_config_lr(&c, 5), 3e-4 * 5 / 10);
        cr_expect_eq(train_config_lr(&c, 10), 3e-4);
        cr_expect_eq(train_config_lr(&c, 100), kind == SCHEDULE_CONSTANT ? 3e-4 : 3e-5);
        cr_expect_eq(train_config_lr(&c, 101), kind == SCHEDULE_CONSTANT ? 3e-4 : 3e-5);
        for (int64_t s = 11; s <= 100; s++)
            cr_expect_leq(train_config_lr(&c, s), train_config_lr(&c, s - 1));
    }
    c.schedule = SCHEDULE_COSINE;
    cr_expect_float_eq(train_config_lr(&c, 55), (3e-4 + 3e-5) / 2, 1e-18);
    c.schedule = SCHEDULE_LINEAR;
    cr_expect_eq(train_config_lr(&c, 55), 3e-5 + (3e-4 - 3e-5) * 0.5);
    c.schedule = SCHEDULE_WSD;
    cr_expect_eq(train_config_lr(&c, 80), 3e-4);
    cr_expect_eq(train_config_lr(&c, 90), 3e-5 + (3e-4 - 3e-5) * 0.5);
    c.warmup_steps = 0;
    c.schedule = SCHEDULE_LINEAR;
    cr_expect_eq(train_config_lr(&c, 1), 3e-5 + (3e-4 - 3e-5) * (99.0 / 100.0));
    c.warmup_steps = c.steps;
    cr_expect_eq(train_config_lr(&c, 100), 3e-4);
    c = (train_config){.lr = 1, .steps = 1, .schedule = SCHEDULE_COSINE};
    cr_expect_eq(train_config_lr(&c, 1), 0);
}

Test(config, the_document_is_current)
{
    char *text, *page = calloc(1, 1 << 20);
    cr_assert_eq(train_config_document(&text), MOE_OK);
    FILE *f = fopen("docs/config.md", "r");
    cr_assert_not_null(f, "docs/config.md is missing; make it: cmake --build BUILD --target docs");
    cr_assert_lt(fread(page, 1, (1 << 20) - 1, f), (1 << 20) - 1);
    fclose(f);
    cr_expect(strcmp(text, page) == 0, "docs/config.md is not current; make it again: cmake --build BUILD --target docs");
    free(page);
    free(text);
}
