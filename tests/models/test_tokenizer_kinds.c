/* Small tokenizers of every kind (tests/fixtures/text/make_kinds.py) against Hugging Face: ids, ids with the post-processor's tokens, decoded
 * texts, and every assigned code point; pieces one by one; long runs; what is damaged. */
#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "models/formats/json_reader.h"
#include "models/text/tokenizer.h"
#include "models/text/utf8.h"

#define KINDS "tests/fixtures/text/kinds/"

static const char *const names[] = {"llama", "mistral", "clip",    "bpe_prefix", "xlmr",    "t5",
                                    "unigram_whole", "bert", "bert_cased", "roberta",    "scripts", "cuts"};
enum { NAMES = sizeof names / sizeof names[0], MOST_IDS = 4096, BLOCK = 8192, TOGETHER = 32 };

typedef struct id_list {
    int32_t id[MOST_IDS];
    size_t n;
    bool there;
} id_list;

typedef struct kind_case {
    char tokenizer[32];
    text_buffer text, decoded, skipped;
    id_list ids, whole, decode;
    int64_t block;
    char hash[17];
} kind_case;

static tokenizer *open_kind(const char *name)
{
    char path[256];
    tokenizer *t = NULL;
    snprintf(path, sizeof path, KINDS "%s.json", name);
    cr_assert_eq(tokenizer_open(&t, path), MOE_OK, "%s", moe_error_text());
    return t;
}

static void read_text(json_reader *r, text_buffer *b)
{
    cr_assert_eq(json_expect(r, JSON_STRING), MOE_OK);
    cr_assert_eq(text_buffer_reserve(b, r->raw_bytes + 1), MOE_OK);
    b->n = json_decode(r, b->data);
}

static void read_name(json_reader *r, char *out, size_t size)
{
    cr_assert_eq(json_expect(r, JSON_STRING), MOE_OK);
    snprintf(out, size, "%.*s", (int)r->raw_bytes, r->raw);
}

static void read_ids(json_reader *r, id_list *l)
{
    l->there = true;
    cr_assert_eq(json_expect(r, JSON_ARRAY), MOE_OK);
    for (json_event e;;) {
        int64_t id;
        cr_assert_eq(json_next(r, &e), MOE_OK);
        if (e == JSON_ARRAY_END)
            return;
        cr_assert_eq(json_int(r, 0, 1 << 20, &id), MOE_OK);
        cr_assert_lt(l->n, MOST_IDS);
        l->id[l->n++] = (int32_t)id;
    }
}

static void read_case(kind_case *c, const char *line, size_t n)
{
    json_reader r;
    json_event e;
    json_open(&r, "case", line, n);
    cr_assert_eq(json_expect(&r, JSON_OBJECT), MOE_OK);
    while (json_next(&r, &e) == MOE_OK && e == JSON_KEY) {
        if (json_is(&r, "tokenizer"))
            read_name(&r, c->tokenizer, sizeof c->tokenizer);
        else if (json_is(&r, "hash"))
            read_name(&r, c->hash, sizeof c->hash);
        else if (json_is(&r, "block"))
            cr_assert_eq(json_get_int(&r, 0, 1000, &c->block), MOE_OK);
        else if (json_is(&r, "text") || json_is(&r, "decoded") || json_is(&r, "skipped"))
            read_text(&r, json_is(&r, "text") ? &c->text : json_is(&r, "decoded") ? &c->decoded : &c->skipped);
        else
            read_ids(&r, json_is(&r, "ids") ? &c->ids : json_is(&r, "whole") ? &c->whole : &c->decode);
    }
}

static void each_case(const char *file, const char *name, void (*check)(const tokenizer *t, const kind_case *c))
{
    char *line = NULL;
    size_t room = 0;
    int cases = 0;
    FILE *f = fopen(file, "r");
    tokenizer *t = open_kind(name);
    cr_assert_not_null(f);
    for (ssize_t n; (n = getline(&line, &room, f)) > 0;) {
        kind_case *c = calloc(1, sizeof *c);
        read_case(c, line, (size_t)n);
        if (strcmp(c->tokenizer, name) == 0) {
            check(t, c);
            cases++;
        }
        text_buffer_free(&c->text);
        text_buffer_free(&c->decoded);
        text_buffer_free(&c->skipped);
        free(c);
    }
    cr_assert_gt(cases, 20, "%s: %d cases", name, cases);
    free(line);
    fclose(f);
    tokenizer_close(t);
}

static void expect_ids(const kind_case *c, const char *what, const token_ids *got, const id_list *want)
{
    size_t k = 0;
    while (k < got->n && k < want->n && got->id[k] == want->id[k])
        k++;
    cr_expect(k == got->n && k == want->n, "%s, %s of \"%.*s\": %zu ids, expected %zu; number %zu is %d, expected %d", c->tokenizer, what, (int)c->text.n,
              c->text.data, got->n, want->n, k, k < got->n ? got->id[k] : -1, k < want->n ? want->id[k] : -1);
}

static void check_ids(const tokenizer *t, const kind_case *c)
{
    token_ids ids = {0};
    cr_assert_eq(tokenizer_encode(t, c->text.data, c->text.n, false, &ids), MOE_OK, "%s", moe_error_text());
    expect_ids(c, "plain", &ids, &c->ids);
    ids.n = 0;
    cr_assert_eq(tokenizer_encode_whole(t, c->text.data, c->text.n, true, &ids), MOE_OK, "%s", moe_error_text());
    if (c->whole.there)
        expect_ids(c, "whole", &ids, &c->whole);
    free(ids.id);
}

static void check_decoded(const tokenizer *t, const kind_case *c)
{
    const text_buffer *skipped = c->skipped.data ? &c->skipped : &c->decoded;
    text_buffer text = {0};
    for (int skip = 0; skip < 2; skip++) {
        const text_buffer *want = skip ? skipped : &c->decoded;
        text.n = 0;
        cr_assert_eq(text_buffer_reserve(&text, 1), MOE_OK);
        cr_assert_eq(tokenizer_decode(t, c->decode.id, c->decode.n, skip, &text), MOE_OK, "%s", moe_error_text());
        cr_expect(text.n == want->n && memcmp(text.data, want->data, text.n) == 0, "%s, skip %d: \"%.*s\", expected \"%.*s\"", c->tokenizer, skip, (int)text.n,
                  text.data, (int)want->n, want->data);
    }
    text_buffer_free(&text);
}

static uint64_t add_hash(uint64_t h, const token_ids *ids)
{
    for (size_t i = 0; i < ids->n; i++)
        for (int b = 0; b < 4; b++)
            h = (h ^ ((uint32_t)ids->id[i] >> 8 * b & 0xFF)) * UINT64_C(0x100000001B3);
    return h;
}

static void check_points(const tokenizer *t, const kind_case *c)
{
    char text[TOGETHER * 16], got[17];
    token_ids ids = {0};
    uint64_t hash = UINT64_C(0xCBF29CE484222325);
    size_t n = 0, count = 0;
    for (uint32_t cp = (uint32_t)c->block * BLOCK, end = cp + BLOCK; cp < end; cp++) {
        if (!(cp >= 0xD800 && cp < 0xE000)) {
            text[n++] = ' ';
            text[n++] = 'a';
            n += utf8_encode(text + n, cp);
            text[n++] = 'b';
            n += utf8_encode(text + n, cp);
            n += utf8_encode(text + n, cp);
            count++;
        }
        if (count < TOGETHER && cp + 1 < end)
            continue;
        ids.n = 0;
        cr_assert_eq(tokenizer_encode(t, text, n, true, &ids), MOE_OK, "%s", moe_error_text());
        hash = add_hash(hash, &ids);
        n = count = 0;
    }
    snprintf(got, sizeof got, "%016lx", hash);
    cr_expect_str_eq(got, c->hash, "%s: code points from U+%04X", c->tokenizer, (unsigned)c->block * BLOCK);
    free(ids.id);
}

Test(tokenizer_kinds, ids_of_hugging_face)
{
    for (int k = 0; k < NAMES; k++)
        each_case(KINDS "cases.jsonl", names[k], check_ids);
}

Test(tokenizer_kinds, texts_of_hugging_face)
{
    for (int k = 0; k < NAMES; k++)
        each_case(KINDS "cases.jsonl", names[k], check_decoded);
}

Test(tokenizer_kinds, every_code_point)
{
    for (int k = 0; k < NAMES; k++)
        each_case(KINDS "points.jsonl", names[k], check_points);
}

Test(tokenizer_kinds, a_megabyte_of_one_letter)
{
    static char text[1 << 20];
    for (int k = 0; k < NAMES; k++) {
        tokenizer *t = open_kind(names[k]);
        for (int letter = 0; letter < 3; letter++) {
            token_ids ids = {0};
            memset(text, "a <"[letter], sizeof text);
            cr_assert_eq(tokenizer_encode(t, text, sizeof text, true, &ids), MOE_OK, "%s: %s", names[k], moe_error_text());
            free(ids.id);
        }
        tokenizer_close(t);
    }
}

Test(tokenizer_kinds, pieces_one_by_one)
{
    static const char text[] = "The experts of the model";
    for (int k = 0; k < 2; k++) { /* a space is left out in front of the first */
        tokenizer *t = open_kind(names[k]);
        token_ids ids = {0};
        char back[64] = "";
        cr_assert_eq(tokenizer_encode(t, text, sizeof text - 1, false, &ids), MOE_OK);
        for (size_t i = 0; i < ids.n; i++) {
            const char *bytes;
            size_t n;
            cr_assert_eq(i == 0 ? tokenizer_first_piece(t, ids.id[i], &bytes, &n) : tokenizer_piece(t, ids.id[i], &bytes, &n), MOE_OK);
            strncat(back, bytes, n);
        }
        cr_expect_str_eq(back, text);
        cr_expect_eq(tokenizer_bos(t), 1);
        free(ids.id);
        tokenizer_close(t);
    }
}
