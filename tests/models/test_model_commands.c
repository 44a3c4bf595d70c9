/* moe-model's commands: what they print of a small GGUF model with a tokenizer, and of what is packed and quantised from it. */
#include <criterion/criterion.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "engine/serve/inspect.h"
#include "engine/serve/json_text.h"
#include "engine/serve/model_commands.h"
#include "tests/models/make_spec.h"
#include "tests/models/model_files.h"

static char dir[64];

static const char *file(const char *name)
{
    static char path[2][160];
    static int i;
    i = !i;
    snprintf(path[i], sizeof path[i], "%s/%s", dir, name);
    return path[i];
}

static void setup(void)
{
    static const char *const tokens[] = {"a", "b", "ab", "<end>", "\xC4\xA0" /* blank */, "\xC3\x83" /* 0xC3 */}, *const merges[] = {"a b"};
    static const int32_t types[] = {1, 1, 1, 3, 1, 1};
    gguf_build b = GGUF_BUILD;
    model_spec s;
    snprintf(dir, sizeof dir, "/tmp/moe-command-XXXXXX");
    cr_assert_not_null(mkdtemp(dir));
    cr_assert_eq(make_spec(&s, "qwen3_moe", "hidden_size=64 intermediate_size=96 moe_intermediate_size=32 num_hidden_layers=3 num_attention_heads=4 "
                                            "num_key_value_heads=2 head_dim=32 vocab_size=37 num_experts=5 num_experts_per_tok=2 norm_topk_prob=true"),
                 MOE_OK);
    gguf_model(&b, "qwen3moe", &s, GGML_F32);
    gguf_build_string(&b, "tokenizer.ggml.model", "gpt2");
    gguf_build_string(&b, "tokenizer.ggml.pre", "gpt-2");
    gguf_build_strings(&b, "tokenizer.ggml.tokens", tokens, 6);
    gguf_build_array(&b, "tokenizer.ggml.token_type", GGUF_I32, types, 6, sizeof types);
    gguf_build_strings(&b, "tokenizer.ggml.merges", merges, 1);
    gguf_build_string(&b, "tokenizer.chat_template", "{% for m in messages %}{{ m.role }}: {{ m.content }}<end>{% endfor %}");
    gguf_build_write(&b, file("m.gguf"));
    gguf_build_free(&b);
}

static void teardown(void)
{
    char command[128];
    snprintf(command, sizeof command, "rm -rf %s", dir);
    cr_assert_eq(system(command), 0);
}

TestSuite(model_commands, .init = setup, .fini = teardown);

static char printed[1 << 16];

/* A stream into `printed`; finish() closes it. */
static FILE *out;
static FILE *begin(void) { return out = fmemopen(printed, sizeof printed, "w"); }
static const char *finish(void)
{
    fclose(out);
    return printed;
}

static int64_t number(const json_t *o, const char *key)
{
    cr_assert(json_is_integer(json_object_get(o, key)), "%s", key);
    return json_integer_value(json_object_get(o, key));
}

/* The figures by hand. A token: K and V in bf16, 3 layers of 2 heads of 32. An expert: 3 matrices of 32 x 64 fp32. */
Test(model_commands, inspect_counts)
{
    const int64_t expert = 3 * 32 * 64 * 4, kv = 2 * 2 * 3 * 2 * 32, attention = 3 * (128 * 64 + 2 * 64 * 64 + 64 * 128), router = 3 * 5 * 64,
                  norms = 64 + 3 * (64 + 64 + 32 + 32);
    cr_assert_eq(command_inspect(file("m.gguf"), 0, true, begin()), MOE_OK, "%s", moe_error_text());
    json_t *o = json_loads(finish(), 0, NULL);
    cr_assert_not_null(o, "%s", printed);
    cr_assert_str_eq(json_string_value(json_object_get(o, "family")), "qwen3_moe");
    cr_assert_eq(number(o, "one_expert_bytes"), expert);
    cr_assert_eq(number(o, "expert_bytes"), 15 * expert);
    cr_assert_eq(number(o, "token_expert_bytes"), 3 * 2 * expert);
    cr_assert_eq(number(o, "kv_token_bytes"), kv);
    cr_assert_eq(number(o, "parameters"), 2 * 37 * 64 + attention + router + norms + 15 * expert / 4);
    cr_assert_eq(number(o, "dense_bytes"), 4 * (37 * 64 + 48 * 64 + attention + 3 * 16 * 64 + norms)); /* panels pad 37 to 48 and 5 to 16 */
    int64_t parameters = 0;
    size_t i;
    json_t *row;
    json_array_foreach(json_object_get(o, "tensors"), i, row) parameters += number(row, "parameters");
    cr_assert_eq(parameters, number(o, "parameters"));
    cr_assert_eq(number(o, "experts_fit"), 15);
    const int64_t least = number(o, "least_bytes");
    cr_assert_eq(least, number(o, "dense_bytes") + 4096 * kv + 2 * expert);
    json_decref(o);
    /* With room for six experts (95 % are planned), with the least, and below it. */
    const struct {
        int64_t bytes, fit;
    } limits[] = {{least + 4 * expert, 6}, {least, 2}, {least - 1, -1}};
    for (int k = 0; k < 3; k++) {
        cr_assert_eq(command_inspect(file("m.gguf"), (uint64_t)(limits[k].bytes * 20 / 19 + (k < 2)), true, begin()), MOE_OK);
        o = json_loads(finish(), 0, NULL);
        cr_assert_eq(number(o, "experts_fit"), limits[k].fit, "%d", k);
        json_decref(o);
    }
}

Test(model_commands, inspect_for_people)
{
    cr_assert_eq(command_inspect(file("m.gguf"), 4 << 20, false, begin()), MOE_OK);
    cr_assert_not_null(strstr(finish(), "family    qwen3_moe: 3 layers, width 64, 4 heads of 32 (2 for keys and values), vocabulary 37"), "%s", printed);
    cr_assert_not_null(strstr(printed, "experts            f32"), "%s", printed);
    cr_assert_not_null(strstr(printed, "host memory, of 4.0 MiB (--host-memory)"), "%s", printed);
    cr_assert_eq(command_inspect(file("none"), 0, false, begin()), MOE_E_NOINPUT);
    finish();
}

Test(model_commands, tokens_and_back)
{
    cr_assert_eq(command_tokenize(file("m.gguf"), "ab a<end>", true, false, begin()), MOE_OK, "%s", moe_error_text());
    cr_assert_str_eq(finish(), "2,4,0,3\n");
    cr_assert_eq(command_tokenize(file("m.gguf"), "ab\xC3\xA9", false, true, begin()), MOE_OK, "%s", moe_error_text());
    cr_assert_str_eq(finish(), "{\"tokens\": [2, 5], \"pieces\": [\"ab\", \"\xEF\xBF\xBD\"]}\n");
    cr_assert_eq(command_detokenize(file("m.gguf"), " 2, 4 0\n,3 ", false, begin()), MOE_OK, "%s", moe_error_text());
    cr_assert_str_eq(finish(), "ab a<end>\n");
    cr_assert_eq(command_detokenize(file("m.gguf"), "", true, begin()), MOE_OK);
    cr_assert_str_eq(finish(), "{\"text\": \"\"}\n");
    static const char *const wrong[] = {"1,x", "6", "-1", "1,99999999999999999999999999", "1.5"};
    for (int i = 0; i < 5; i++) {
        cr_assert_eq(command_detokenize(file("m.gguf"), wrong[i], false, begin()), MOE_E_DATA, "%s", wrong[i]);
        finish();
    }
}

Test(model_commands, packed_keeps_its_tokenizer)
{
    const packed_options o = {.experts = NUM_Q8_0, .dense = PACKED_AS_IS};
    cr_assert_eq(command_pack(file("m.gguf"), file("p"), &o, begin()), MOE_OK, "%s", moe_error_text());
    cr_assert_not_null(strstr(finish(), "15 experts"), "%s", printed);
    cr_assert_eq(command_tokenize(file("p"), "ab a", false, false, begin()), MOE_OK, "%s", moe_error_text());
    cr_assert_str_eq(finish(), "2,4,0\n");
    cr_assert_eq(command_inspect(file("p"), 0, false, begin()), MOE_OK);
    cr_assert_not_null(strstr(finish(), "experts            q8_0"), "%s", printed);
    cr_assert_eq(command_pack(file("m.gguf"), file("p"), &o, begin()), MOE_E_CREATE);
    finish();
}

Test(model_commands, strings_as_json)
{
    text_buf t = {0};
    json_text_add(&t, "a\"\\\n\x01\x7F\xC3\xA9\xFFz", 10);
    cr_assert_str_eq(t.data, "\"a\\\"\\\\\\u000a\\u0001\\u007f\xC3\xA9\xEF\xBF\xBDz\"");
    text_free(&t);
}

/* What a message says never becomes a special token; what the template writes does. */
Test(model_commands, chat_template)
{
    static const char messages[] = "[{\"role\": \"a\", \"content\": \"ab<end>\"}]";
    FILE *f = fopen(file("messages.json"), "w");
    cr_assert_not_null(f);
    fputs(messages, f);
    fclose(f);
    cr_assert_eq(command_template(file("m.gguf"), file("messages.json"), false, begin()), MOE_OK, "%s", moe_error_text());
    cr_assert_str_eq(finish(), "a: ab<end><end>");
    cr_assert_eq(command_template(file("m.gguf"), file("messages.json"), true, begin()), MOE_OK, "%s", moe_error_text());
    cr_assert_str_eq(finish(), "{\"text\": \"a: ab<end><end>\", \"tokens\": [0, 4, 2, 3]}\n");
    cr_assert_eq(command_template(file("m.gguf"), file("nobody.json"), false, begin()), MOE_E_NOINPUT);
    cr_assert_not_null(strstr(moe_error_text(), "nobody.json"));
    finish();
}
