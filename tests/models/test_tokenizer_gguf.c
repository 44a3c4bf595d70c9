/* The tokenizers of tests/fixtures/text once more, as GGUF metadata: the same ids as from their tokenizer.json for every case; every way of cutting
 * words (tokenizer.ggml.pre) and SentencePiece's vocabularies against the reference (tests/fixtures/text/make_gguf.py); what a GGUF file alone
 * can say (ends, missing bytes, types), and metadata that is wrong. */
#include <criterion/criterion.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "models/text/tokenizer.h"
#include "tests/models/gguf_build.h"

#define FIXTURES "tests/fixtures/text/"

static char dir[64];

static void setup(void)
{
    snprintf(dir, sizeof dir, "/tmp/moe-tok-XXXXXX");
    cr_assert_not_null(mkdtemp(dir));
}

static void teardown(void)
{
    char command[128];
    snprintf(command, sizeof command, "rm -rf %s", dir);
    cr_assert_eq(system(command), 0);
}

TestSuite(tokenizer_gguf, .init = setup, .fini = teardown);

static const char *file(const char *name)
{
    static char path[2][160];
    static int i;
    i = !i;
    snprintf(path[i], sizeof path[i], "%s/%s", dir, name);
    return path[i];
}

enum { MOST = 2048 };

typedef struct vocabulary {
    const char *token[MOST], *merge[MOST];
    char *owned[MOST];
    int32_t type[MOST];
    size_t tokens, merges;
    json_t *json;
} vocabulary;

/* tokenizer.json as convert_hf_to_gguf writes it: control and user-defined tokens are the added ones. */
static void read_vocabulary(vocabulary *v, const char *name)
{
    char path[256];
    const char *text;
    json_t *x;
    size_t i;
    memset(v, 0, sizeof *v);
    snprintf(path, sizeof path, FIXTURES "%s", name);
    v->json = json_load_file(path, 0, NULL);
    cr_assert_not_null(v->json);
    json_t *model = json_object_get(v->json, "model");
    json_object_foreach(json_object_get(model, "vocab"), text, x)
    {
        const size_t id = (size_t)json_integer_value(x);
        cr_assert_lt(id, MOST);
        v->token[id] = text;
        v->type[id] = 1;
        v->tokens = id + 1 > v->tokens ? id + 1 : v->tokens;
    }
    json_array_foreach(json_object_get(v->json, "added_tokens"), i, x)
    {
        const size_t id = (size_t)json_integer_value(json_object_get(x, "id"));
        v->token[id] = json_string_value(json_object_get(x, "content"));
        v->type[id] = json_is_true(json_object_get(x, "special")) ? 3 : 4;
        v->tokens = id + 1 > v->tokens ? id + 1 : v->tokens;
    }
    for (i = 0; i < v->tokens; i++)
        if (v->token[i] == NULL) {
            v->token[i] = "[PAD]";
            v->type[i] = 5;
        }
    json_array_foreach(json_object_get(model, "merges"), i, x)
    {
        char *merge = NULL;
        if (json_is_string(x))
            merge = strdup(json_string_value(x));
        else
            cr_assert_gt(asprintf(&merge, "%s %s", json_string_value(json_array_get(x, 0)), json_string_value(json_array_get(x, 1))), 0);
        v->merge[v->merges] = v->owned[v->merges] = merge;
        v->merges++;
    }
}

static void free_vocabulary(vocabulary *v)
{
    for (size_t i = 0; i < v->merges; i++)
        free(v->owned[i]);
    json_decref(v->json);
}

static void build(gguf_build *b, const vocabulary *v, const char *pre)
{
    gguf_build_string(b, "general.architecture", "llama");
    gguf_build_string(b, "tokenizer.ggml.model", "gpt2");
    gguf_build_string(b, "tokenizer.ggml.pre", pre);
    gguf_build_strings(b, "tokenizer.ggml.tokens", v->token, v->tokens);
    gguf_build_array(b, "tokenizer.ggml.token_type", GGUF_I32, v->type, v->tokens, v->tokens * 4);
    gguf_build_strings(b, "tokenizer.ggml.merges", v->merge, v->merges);
}

static void expect_same(const tokenizer *a, const tokenizer *b, const char *text, bool specials)
{
    token_ids x = {0}, y = {0};
    cr_assert_eq(tokenizer_encode(a, text, strlen(text), specials, &x), MOE_OK, "%s", moe_error_text());
    cr_assert_eq(tokenizer_encode(b, text, strlen(text), specials, &y), MOE_OK, "%s", moe_error_text());
    cr_assert(x.n == y.n && (x.n == 0 || memcmp(x.id, y.id, x.n * sizeof *x.id) == 0), "specials %d: %s", specials, text);
    for (size_t i = 0; i < x.n; i++) {
        const char *s, *t;
        size_t n, m;
        cr_assert(tokenizer_piece(a, x.id[i], &s, &n) == MOE_OK && tokenizer_piece(b, x.id[i], &t, &m) == MOE_OK);
        cr_assert(n == m && memcmp(s, t, n) == 0);
    }
    free(x.id), free(y.id);
}

Test(tokenizer_gguf, same_ids_as_tokenizer_json)
{
    static const char *const pairs[][2] = {{"qwen", "qwen2"}, {"o200k", "gpt-4o"}, {"gpt2", "smollm"}};
    for (int i = 0; i < 3; i++) {
        vocabulary v;
        gguf_build b = GGUF_BUILD;
        tokenizer *json, *meta, *saved;
        char path[256], line[1 << 16];
        int cases = 0;
        snprintf(path, sizeof path, "%s/tokenizer.json", pairs[i][0]);
        read_vocabulary(&v, path);
        build(&b, &v, pairs[i][1]);
        gguf_build_write(&b, file("t.gguf"));
        snprintf(path, sizeof path, FIXTURES "%s", pairs[i][0]);
        cr_assert_eq(tokenizer_open(&json, path), MOE_OK, "%s", moe_error_text());
        cr_assert_eq(tokenizer_open(&meta, file("t.gguf")), MOE_OK, "%s", moe_error_text());
        cr_assert_eq(tokenizer_vocab(meta), (int)v.tokens);
        cr_assert_eq(tokenizer_save(meta, dir), MOE_OK, "%s", moe_error_text());
        cr_assert_eq(tokenizer_open(&saved, dir), MOE_OK, "%s", moe_error_text());
        FILE *f = fopen(FIXTURES "cases.jsonl", "re");
        while (fgets(line, sizeof line, f) != NULL) {
            json_t *c = json_loads(line, JSON_ALLOW_NUL, NULL);
            const char *text = json_string_value(json_object_get(c, "text"));
            if (text != NULL && strstr(text, "<mask>") == NULL) { /* lstrip and rstrip are not in the metadata */
                for (int specials = 0; specials < 2; specials++) {
                    expect_same(json, meta, text, specials);
                    expect_same(json, saved, text, specials);
                }
                cases++;
            }
            json_decref(c);
        }
        fclose(f);
        cr_assert_gt(cases, 100);
        for (int32_t id = 0; id < tokenizer_vocab(json); id++)
            cr_assert_eq(tokenizer_is_special(json, id), tokenizer_is_special(meta, id), "%d", id);
        tokenizer_close(json);
        tokenizer_close(meta);
        tokenizer_close(saved);
        gguf_build_free(&b);
        free_vocabulary(&v);
    }
}

/* Calls check for every line of a .jsonl file; how many there were. */
static int each_line(const char *path, void (*check)(void *arg, json_t *c), void *arg)
{
    static char line[1 << 16];
    int lines = 0;
    FILE *f = fopen(path, "re");
    cr_assert_not_null(f, "%s", path);
    for (; fgets(line, sizeof line, f) != NULL; lines++) {
        json_t *c = json_loads(line, JSON_ALLOW_NUL, NULL);
        cr_assert_not_null(c, "%s: line %d", path, lines + 1);
        check(arg, c);
        json_decref(c);
    }
    fclose(f);
    return lines;
}

static void expect_ids(const tokenizer *t, const json_t *c, const char *what)
{
    const json_t *text = json_object_get(c, "text"), *want = json_object_get(c, "ids");
    token_ids got = {0};
    size_t k = 0;
    cr_assert_eq(tokenizer_encode(t, json_string_value(text), json_string_length(text), false, &got), MOE_OK, "%s", moe_error_text());
    while (k < got.n && k < json_array_size(want) && got.id[k] == json_integer_value(json_array_get(want, k)))
        k++;
    cr_expect(k == got.n && k == json_array_size(want), "%s: \"%s\": %zu ids, expected %zu; number %zu is %d, expected %d", what, json_string_value(text), got.n,
              json_array_size(want), k, k < got.n ? got.id[k] : -1, (int)json_integer_value(json_array_get(want, k)));
    free(got.id);
}

typedef struct words {
    vocabulary v;
    tokenizer *t;
    char pre[32];
} words;

static void check_words(void *arg, json_t *c)
{
    words *w = arg;
    const char *pre = json_string_value(json_object_get(c, "pre"));
    if (strcmp(w->pre, pre) != 0) {
        gguf_build b = GGUF_BUILD;
        snprintf(w->pre, sizeof w->pre, "%s", pre);
        build(&b, &w->v, pre);
        gguf_build_write(&b, file("t.gguf"));
        gguf_build_free(&b);
        tokenizer_close(w->t);
        cr_assert_eq(tokenizer_open(&w->t, file("t.gguf")), MOE_OK, "%s", moe_error_text());
    }
    expect_ids(w->t, c, pre);
}

/* The vocabulary's tokens cross every border, so that a wrong cut shows. */
Test(tokenizer_gguf, words_are_cut_as_the_name_says)
{
    words w = {0};
    read_vocabulary(&w.v, "gguf/words.json");
    cr_assert_gt(each_line(FIXTURES "gguf/words.jsonl", check_words, &w), 1000);
    tokenizer_close(w.t);
    free_vocabulary(&w.v);
}

static void check_pieces(void *arg, json_t *c)
{
    tokenizer *const *t = arg;
    const bool plain = strcmp(json_string_value(json_object_get(c, "file")), "spm_plain") == 0;
    const json_t *ids = json_object_get(c, "ids"), *text = json_object_get(c, "decoded");
    int32_t id[4096];
    text_buffer out = {0};
    const size_t n = json_array_size(ids);
    cr_assert_leq(n, 4096);
    expect_ids(t[plain], c, plain ? "spm_plain" : "spm");
    for (size_t i = 0; i < n; i++)
        id[i] = (int32_t)json_integer_value(json_array_get(ids, i));
    cr_assert_eq(text_buffer_reserve(&out, 1), MOE_OK);
    cr_assert_eq(tokenizer_decode(t[plain], id, n, false, &out), MOE_OK);
    if (!plain) /* sentencepiece writes " \u2047 " for the unknown token, Hugging Face and llama.cpp its name */
        cr_expect(out.n == json_string_length(text) && memcmp(out.data, json_string_value(text), out.n) == 0, "\"%.*s\", expected \"%s\"", (int)out.n, out.data,
                  json_string_value(text));
    text_buffer_free(&out);
}

Test(tokenizer_gguf, ids_and_texts_of_sentencepiece)
{
    tokenizer *t[2];
    cr_assert_eq(tokenizer_open(&t[0], FIXTURES "gguf/spm.gguf"), MOE_OK, "%s", moe_error_text());
    cr_assert_eq(tokenizer_open(&t[1], FIXTURES "gguf/spm_plain.gguf"), MOE_OK, "%s", moe_error_text());
    cr_assert_gt(each_line(FIXTURES "gguf/spm.jsonl", check_pieces, t), 300);
    tokenizer_close(t[0]);
    tokenizer_close(t[1]);
}

static void expect_encoded(const tokenizer *t, const char *text, bool specials, const char *pieces)
{
    token_ids ids = {0};
    char got[256] = "";
    cr_assert_eq(tokenizer_encode_whole(t, text, strlen(text), specials, &ids), MOE_OK, "%s", moe_error_text());
    for (size_t i = 0; i < ids.n; i++)
        snprintf(got + strlen(got), sizeof got - strlen(got), "%d ", ids.id[i]);
    cr_expect_str_eq(got, pieces, "%s", text);
    free(ids.id);
}

/* A hand-made vocabulary: what begins and ends a text, tokens inside of it, bytes, and what plain text can never become. */
Test(tokenizer_gguf, tokens_of_sentencepiece)
{
    static const char *const tokens[] = {"<unk>", "<s>", "</s>", "<0x41>", "<0x0A>", "\u2581", "a", "b", "\u2581a", "ab", "<t>", "s", "<", ">", "<s", "bb"};
    static const int32_t types[] = {2, 3, 3, 6, 6, 1, 1, 1, 1, 1, 4, 1, 1, 1, 1, 5};
    static const float scores[] = {0, 0, 0, 0, 0, -9, -9, -9, -1, -1, 0, -9, -9, -9, -3, 0};
    gguf_build b = GGUF_BUILD;
    tokenizer *t;
    gguf_build_string(&b, "tokenizer.ggml.model", "llama");
    gguf_build_strings(&b, "tokenizer.ggml.tokens", tokens, 16);
    gguf_build_array(&b, "tokenizer.ggml.token_type", GGUF_I32, types, 16, sizeof types);
    gguf_build_array(&b, "tokenizer.ggml.scores", GGUF_F32, scores, 16, sizeof scores);
    gguf_build_write(&b, file("t.gguf"));
    cr_assert_eq(tokenizer_open(&t, file("t.gguf")), MOE_OK, "%s", moe_error_text());
    cr_assert(tokenizer_bos(t) == 1 && tokenizer_eos(t) == 2);
    expect_encoded(t, "ab", false, "1 8 7 ");              /* equal scores: the leftmost */
    expect_encoded(t, "bab", false, "1 5 7 9 ");
    expect_encoded(t, "<s>a", true, "1 1 8 ");             /* a space in front of what follows a token, too */
    expect_encoded(t, "<s>a", false, "1 5 14 13 6 ");
    expect_encoded(t, "a<t>a <t>", false, "1 8 10 8 5 10 ");
    expect_encoded(t, "A\nbb", false, "1 5 3 4 7 7 ");     /* bytes; an unused token never comes out */
    expect_encoded(t, "aXYa", false, "1 8 0 6 ");          /* a run of unknown characters is one token */
    expect_encoded(t, "<0x41>", false, "1 5 12 0 13 ");
    tokenizer_close(t);
    gguf_build_bool(&b, "tokenizer.ggml.add_eos_token", true);
    gguf_build_bool(&b, "tokenizer.ggml.add_bos_token", false);
    gguf_build_bool(&b, "tokenizer.ggml.add_space_prefix", false);
    gguf_build_write(&b, file("t.gguf"));
    cr_assert_eq(tokenizer_open(&t, file("t.gguf")), MOE_OK, "%s", moe_error_text());
    cr_assert_eq(tokenizer_bos(t), -1);
    expect_encoded(t, "ab a", false, "9 8 2 ");
    tokenizer_close(t);
    gguf_build_free(&b);
}

Test(tokenizer_gguf, ends)
{
    vocabulary v;
    gguf_build b = GGUF_BUILD;
    tokenizer *t;
    read_vocabulary(&v, "qwen/tokenizer.json");
    build(&b, &v, "qwen2");
    gguf_build_u32(&b, "tokenizer.ggml.eos_token_id", 7);
    gguf_build_u32(&b, "tokenizer.ggml.bos_token_id", 9);
    gguf_build_write(&b, file("t.gguf"));
    cr_assert_eq(tokenizer_open(&t, file("t.gguf")), MOE_OK);
    cr_assert(tokenizer_eos(t) == 7 && tokenizer_bos(t) == -1);
    tokenizer_close(t);
    gguf_build_bool(&b, "tokenizer.ggml.add_bos_token", true);
    gguf_build_write(&b, file("t.gguf"));
    cr_assert_eq(tokenizer_open(&t, file("t.gguf")), MOE_OK);
    cr_assert_eq(tokenizer_bos(t), 9);
    tokenizer_close(t);
    gguf_build_free(&b);
    free_vocabulary(&v);
}

/* SmolLM2's vocabulary lacks 21 bytes: they are left out, and their neighbours merge. */
Test(tokenizer_gguf, bytes_that_are_no_token)
{
    static const char *const tokens[] = {"a", "b", "ab", "aab"}, *const merges[] = {"a b", "a ab"};
    gguf_build b = GGUF_BUILD;
    tokenizer *t;
    token_ids ids = {0};
    char text[1001];
    gguf_build_string(&b, "tokenizer.ggml.model", "gpt2");
    gguf_build_string(&b, "tokenizer.ggml.pre", "gpt-2");
    gguf_build_strings(&b, "tokenizer.ggml.tokens", tokens, 4);
    gguf_build_strings(&b, "tokenizer.ggml.merges", merges, 2);
    gguf_build_write(&b, file("t.gguf"));
    cr_assert_eq(tokenizer_open(&t, file("t.gguf")), MOE_OK, "%s", moe_error_text());
    cr_assert_eq(tokenizer_encode(t, "xaxxabx zz zy b", 15, false, &ids), MOE_OK);
    cr_assert(ids.n == 2 && ids.id[0] == 3 && ids.id[1] == 1);
    for (int i = 0; i < 1000; i++)
        text[i] = "axb"[i % 3];
    text[1000] = '\0';
    ids.n = 0;
    cr_assert_eq(tokenizer_encode(t, text, 1000, false, &ids), MOE_OK);
    cr_assert(ids.n == 334 && ids.id[0] == 2 && ids.id[332] == 2 && ids.id[333] == 0);
    ids.n = 0;
    memset(text, 'x', 1000);
    cr_assert(tokenizer_encode(t, text, 1000, false, &ids) == MOE_OK && ids.n == 0);
    free(ids.id);
    tokenizer_close(t);
    gguf_build_free(&b);
}

static void refuse(gguf_build *b, const char *sentence)
{
    tokenizer *t;
    gguf_build_write(b, file("t.gguf"));
    cr_assert_neq(tokenizer_open(&t, file("t.gguf")), MOE_OK, "%s", sentence);
    cr_assert_null(t);
    cr_assert_not_null(strstr(moe_error_text(), sentence), "expected \"%s\", found \"%s\"", sentence, moe_error_text());
    cr_assert_not_null(strstr(moe_error_text(), "t.gguf"), "%s", moe_error_text());
    gguf_build_free(b);
    *b = (gguf_build)GGUF_BUILD;
}

Test(tokenizer_gguf, wrong_metadata)
{
    static const char *const tokens[] = {"a", "b", "ab"}, *const twice[] = {"a", "a"}, *const broken[] = {"\xFF"};
    static const char *const unknown[] = {"a c"}, *const alone[] = {"ab"}, *const three[] = {"a b ab"};
    static const int32_t types[] = {1, 1, 6};
    gguf_build b = GGUF_BUILD;
    refuse(&b, "key tokenizer.ggml.model is missing");
    gguf_build_string(&b, "tokenizer.ggml.model", "t5");
    refuse(&b, "tokenizer.ggml.model is \"t5\": only \"gpt2\"");
    gguf_build_string(&b, "tokenizer.ggml.model", "gpt2");
    refuse(&b, "key tokenizer.ggml.pre is missing");
    gguf_build_string(&b, "tokenizer.ggml.model", "gpt2");
    gguf_build_string(&b, "tokenizer.ggml.pre", "klingon");
    refuse(&b, "tokenizer.ggml.pre is \"klingon\": expected one of gpt-2 phi-2");
    const struct {
        const char *const *tokens, *const *merges;
        size_t ntokens, types;
        uint32_t eos;
        const char *sentence;
    } cases[] = {
        {twice, alone, 2, 0, 0, "piece \"a\" has two ids"},
        {broken, alone, 1, 0, 0, "token 0 is not valid UTF-8"},
        {tokens, unknown, 3, 0, 0, "merge 0: \"c\" is not in the vocabulary"},
        {tokens, alone, 3, 0, 0, "merge 0 is \"ab\": expected two parts"},
        {tokens, three, 3, 0, 0, "merge 0 is \"a b ab\": expected two parts"},
        {tokens, NULL, 3, 2, 0, "token_type has 2 items: expected 3"},
        {tokens, NULL, 3, 3, 0, "token 2 has type 6: expected 1 to 5"},
        {tokens, NULL, 3, 0, 3, "eos_token_id is 3: expected 0 to 2"},
        {tokens, NULL, 0, 0, 0, "eos_token_id is 0"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        gguf_build_string(&b, "tokenizer.ggml.model", "gpt2");
        gguf_build_string(&b, "tokenizer.ggml.pre", "gpt-2");
        gguf_build_strings(&b, "tokenizer.ggml.tokens", cases[i].tokens, cases[i].ntokens);
        gguf_build_strings(&b, "tokenizer.ggml.merges", cases[i].merges, cases[i].merges != NULL);
        if (cases[i].types > 0)
            gguf_build_array(&b, "tokenizer.ggml.token_type", GGUF_I32, types, cases[i].types, 4 * cases[i].types);
        gguf_build_u32(&b, "tokenizer.ggml.eos_token_id", cases[i].eos);
        refuse(&b, cases[i].sentence);
    }
}

Test(tokenizer_gguf, wrong_scores)
{
    static const char *const tokens[] = {"<unk>", "a"};
    static const float scores[] = {0, 0.0f / 0.0f};
    for (int i = 0; i < 3; i++) {
        gguf_build b = GGUF_BUILD;
        gguf_build_string(&b, "tokenizer.ggml.model", "llama");
        gguf_build_strings(&b, "tokenizer.ggml.tokens", tokens, 2);
        if (i > 0)
            gguf_build_array(&b, "tokenizer.ggml.scores", GGUF_F32, scores, (uint64_t)i, (size_t)i * 4);
        refuse(&b, i == 0 ? "key tokenizer.ggml.scores is missing" : i == 1 ? "scores has 1 items: expected 2" : "the score of token 1 is not a number");
    }
}
