/* GGUF files made here: what is in them is found, every cut and every lie is refused with a sentence that names it, split files are one. */
#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "models/formats/gguf.h"
#include "models/formats/gguf_private.h"
#include "models/formats/gguf_writer.h"
#include "tests/models/gguf_build.h"

static char dir[64];

static void setup(void)
{
    snprintf(dir, sizeof dir, "/tmp/moe-gguf-XXXXXX");
    cr_assert_not_null(mkdtemp(dir));
}

static void teardown(void)
{
    char command[128];
    snprintf(command, sizeof command, "rm -rf %s", dir);
    cr_assert_eq(system(command), 0);
}

TestSuite(gguf, .init = setup, .fini = teardown);

static const char *file(const char *name)
{
    static char path[2][160];
    static int i;
    i = !i;
    snprintf(path[i], sizeof path[i], "%s/%s", dir, name);
    return path[i];
}

/* A small file with one of everything. */
static void fill(gguf_build *b)
{
    static const char *const words[] = {"a", "", "bcd"};
    static const int32_t types[] = {1, -3, 6};
    static const float x[6] = {0, 1, 2, 3, 4, 5};
    uint8_t blocks[3 * 34];
    for (size_t i = 0; i < sizeof blocks; i++)
        blocks[i] = (uint8_t)i;
    gguf_build_string(b, "general.architecture", "llama");
    gguf_build_u32(b, "n.u32", 4000000000u);
    gguf_build_key(b, "n.i8", GGUF_I8, &(int8_t){-7}, 1);
    gguf_build_key(b, "n.i16", GGUF_I16, &(int16_t){-700}, 2);
    gguf_build_key(b, "n.u64", GGUF_U64, &(uint64_t){UINT64_MAX}, 8);
    gguf_build_key(b, "n.f64", GGUF_F64, &(double){0.1}, 8);
    gguf_build_f32(b, "n.f32", 1.5f);
    gguf_build_f32(b, "n.nan", __builtin_nanf(""));
    gguf_build_bool(b, "n.yes", true);
    gguf_build_strings(b, "words", words, 3);
    gguf_build_array(b, "types", GGUF_I32, types, 3, sizeof types);
    gguf_build_tensor(b, "x", GGML_F32, 2, (uint64_t[]){3, 2}, x, sizeof x);
    gguf_build_tensor(b, "q", GGML_Q8_0, 3, (uint64_t[]){32, 1, 3}, blocks, sizeof blocks);
}

Test(gguf, everything_is_found)
{
    gguf_build b = GGUF_BUILD;
    gguf *g;
    const gguf_value *v;
    const char *s;
    size_t n, at = 0;
    int64_t i;
    double x;
    bool yes;
    fill(&b);
    gguf_build_write(&b, file("a.gguf"));
    cr_assert(gguf_is(file("a.gguf")));
    cr_assert_eq(gguf_open(&g, file("a.gguf")), MOE_OK, "%s", moe_error_text());
    cr_assert_eq(gguf_count(g), 2);
    cr_assert_eq(gguf_keys(g), (int64_t)b.nkeys);
    const gguf_tensor *q = gguf_tensor_find(g, "q"), *f = gguf_tensor_find(g, "x");
    cr_assert_null(gguf_tensor_find(g, "y"));
    cr_assert(q->dims == 3 && q->shape[0] == 32 && q->shape[1] == 1 && q->shape[2] == 3 && q->shape[3] == 1 && q->format == NUM_Q8_0 && q->bytes == 102);
    cr_assert(f->dims == 2 && f->bytes == 24 && f->format == NUM_F32 && f->begin % 32 == 0 && q->begin == f->begin + 32);
    cr_assert_eq(gguf_file_bytes(g, 0), q->begin + 102);
    cr_assert(gguf_get_int(g, "n.u32", 0, UINT32_MAX, &i) == MOE_OK && i == 4000000000);
    cr_assert(gguf_get_int(g, "n.i8", -10, 10, &i) == MOE_OK && i == -7);
    cr_assert(gguf_get_int(g, "n.i16", -1000, 10, &i) == MOE_OK && i == -700);
    cr_assert_eq(gguf_get_int(g, "n.u64", INT64_MIN, INT64_MAX, &i), MOE_E_DATA);
    cr_assert_eq(gguf_get_int(g, "n.f32", 0, 9, &i), MOE_E_DATA);
    cr_assert_not_null(strstr(moe_error_text(), "key n.f32 is float32: expected an integer"), "%s", moe_error_text());
    cr_assert_eq(gguf_get_int(g, "none", 0, 9, &i), MOE_E_DATA);
    cr_assert_eq(gguf_get_int(g, "n.i8", 0, 9, &i), MOE_E_DATA);
    cr_assert_not_null(strstr(moe_error_text(), "n.i8 is -7: expected 0 to 9"), "%s", moe_error_text());
    cr_assert(gguf_get_number(g, "n.f64", &x) == MOE_OK && x == 0.1);
    cr_assert(gguf_get_number(g, "n.f32", &x) == MOE_OK && x == 1.5);
    cr_assert_eq(gguf_get_number(g, "n.nan", &x), MOE_E_DATA);
    cr_assert(gguf_get_bool(g, "n.yes", &yes) == MOE_OK && yes);
    cr_assert(gguf_get_string(g, "general.architecture", &s, &n) == MOE_OK && n == 5 && memcmp(s, "llama", 5) == 0);
    cr_assert_eq(gguf_get_string(g, "words", &s, &n), MOE_E_DATA);
    cr_assert_eq(gguf_get_array(g, "words", GGUF_STRING, &v), MOE_OK);
    cr_assert_eq(v->n, 3);
    cr_assert(gguf_next_string(v, &at, &s, &n) && n == 1 && *s == 'a');
    cr_assert(gguf_next_string(v, &at, &s, &n) && n == 0);
    cr_assert(gguf_next_string(v, &at, &s, &n) && n == 3 && memcmp(s, "bcd", 3) == 0);
    cr_assert(!gguf_next_string(v, &at, &s, &n));
    cr_assert(gguf_get_array(g, "types", GGUF_I32, &v) == MOE_OK && gguf_item_int(v, 1) == -3);
    gguf_close(g);
    gguf_build_free(&b);
}

/* Parses bytes as a file of their own length; the sentence of the error, "" for none. */
static const char *verdict(const text_buf *t, uint64_t file_bytes)
{
    gguf_header h;
    bool more;
    const moe_err rc = gguf_parse(&h, t->data, t->used, file_bytes, "F", &more);
    if (rc == MOE_OK) {
        gguf_header_free(&h);
        return more ? "more" : "";
    }
    cr_assert_eq(rc, MOE_E_DATA);
    cr_assert(h.key == NULL && h.tensor == NULL && h.names == NULL);
    return moe_error_text();
}

Test(gguf, every_cut_is_noticed)
{
    gguf_build b = GGUF_BUILD;
    text_buf t = {0};
    fill(&b);
    gguf_build_bytes(&b, &t);
    const size_t whole = t.used;
    cr_assert_str_empty(verdict(&t, whole));
    for (t.used = 0; t.used < whole; t.used++) {
        cr_assert_str_not_empty(verdict(&t, t.used), "cut after %zu bytes", t.used);
        const bool metadata = t.used < 4 + 4 + 8 + 8 + b.keys.used + b.infos.used;
        cr_assert_str_eq(verdict(&t, whole), metadata ? "more" : "", "%zu bytes of the file", t.used);
    }
    gguf_build_free(&b);
    text_free(&t);
}

static void expect(const gguf_build *b, const char *sentence)
{
    text_buf t = {0};
    gguf_build_bytes(b, &t);
    const char *found = verdict(&t, t.used);
    cr_assert_not_null(strstr(found, sentence), "expected \"%s\", found \"%s\"", sentence, found);
    text_free(&t);
}

Test(gguf, lies_are_refused)
{
    static const float x[64];
    static const struct {
        const char *name, *sentence;
        uint64_t shape[4], offset;
        uint32_t type, dims;
    } tensors[] = {
        {"t", "t has 0 dimensions", {1}, 0, GGML_F32, 0},
        {"t", "t has 5 dimensions", {1, 1, 1, 1}, 0, GGML_F32, 5},
        {"t", "dimension 1 is 0", {2, 0}, 0, GGML_F32, 2},
        {"t", "dimension 0 is -1", {UINT64_MAX}, 0, GGML_F32, 1},
        {"t", "a product below 2^63", {1u << 31, 1u << 31, 2}, 0, GGML_F32, 3},
        {"t", "more than a file of", {1u << 31, 1u << 30}, 0, GGML_F32, 2},
        {"t", "has type Q2_K: F32, F16", {256}, 0, 10, 1},
        {"t", "rows of 128: expected a multiple of 256, a block of Q6_K", {128}, 0, GGML_Q6_K, 1},
        {"t", "has type 77", {256}, 0, 77, 1},
        {"t", "has type 4: ggml has no such type", {256}, 0, 4, 1},
        {"t", "rows of 33: expected a multiple of 32", {33}, 0, GGML_Q4_0, 1},
        {"t", "expected a multiple of 32", {4}, 8, GGML_F32, 1},
        {"t", "the file ends", {4}, 4096, GGML_F32, 1},
        {"t", "the file ends", {4}, UINT64_MAX - 31, GGML_F32, 1},
        {"a", "two tensors are named a", {4}, 64, GGML_F32, 1},
        {"t", "a and t overlap", {4}, 0, GGML_F32, 1},
        {"", "a tensor's name of 0 bytes", {4}, 64, GGML_F32, 1},
    };
    for (size_t i = 0; i < sizeof tensors / sizeof *tensors; i++) {
        gguf_build b = GGUF_BUILD;
        gguf_build_tensor(&b, "a", GGML_F32, 1, (uint64_t[]){4}, x, sizeof x);
        gguf_build_info(&b, tensors[i].name, tensors[i].type, tensors[i].dims, tensors[i].shape, tensors[i].offset);
        expect(&b, tensors[i].sentence);
        gguf_build_free(&b);
    }
}

Test(gguf, wrong_keys_are_refused)
{
    static const struct {
        uint32_t type;
        const char *sentence, *value;
        size_t bytes;
    } keys[] = {
        {13, "value type 13", "", 0},
        {GGUF_BOOL, "a bool is 2", "\2", 1},
        {GGUF_ARRAY, "array of arrays", "\x9\0\0\0\1\0\0\0\0\0\0\0", 12},
        {GGUF_ARRAY, "uint64 in a file", "\xA\0\0\0\0\0\0\0\0\0\0\x40", 12},
        {GGUF_ARRAY, "strings in a file", "\x8\0\0\0\0\0\0\0\0\0\0\x40", 12},
        {GGUF_STRING, "the file ends", "\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF", 8},
    };
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
        gguf_build b = GGUF_BUILD;
        gguf_build_key(&b, "k", keys[i].type, keys[i].value, keys[i].bytes);
        expect(&b, keys[i].sentence);
        gguf_build_free(&b);
    }
    gguf_build b = GGUF_BUILD;
    gguf_build_u32(&b, "k", 1);
    gguf_build_u32(&b, "k", 1);
    expect(&b, "key k occurs twice");
    gguf_build_u32(&b, "general.alignment", 24);
    expect(&b, "general.alignment is 24");
    b.nkeys = UINT64_C(1) << 60;
    expect(&b, "keys and 0 tensors in a file");
    b.nkeys = 0, b.version = 1;
    expect(&b, "GGUF version 1: expected 2 or 3");
    b.version = 0x03000000;
    expect(&b, "big-endian");
    gguf_build_free(&b);
}

Test(gguf, version_2_and_other_alignments)
{
    static const float x[2];
    gguf_build b = {.version = 2, .alignment = 128};
    gguf *g;
    gguf_build_u32(&b, "general.alignment", 128);
    gguf_build_tensor(&b, "a", GGML_F32, 1, (uint64_t[]){2}, x, sizeof x);
    gguf_build_tensor(&b, "b", GGML_F32, 1, (uint64_t[]){2}, x, sizeof x);
    gguf_build_write(&b, file("a.gguf"));
    cr_assert_eq(gguf_open(&g, file("a.gguf")), MOE_OK, "%s", moe_error_text());
    cr_assert(gguf_tensor_find(g, "a")->begin % 128 == 0 && gguf_tensor_find(g, "b")->begin == gguf_tensor_find(g, "a")->begin + 128);
    gguf_close(g);
    gguf_build_free(&b);
}

/* More metadata than the first read takes. */
Test(gguf, long_metadata)
{
    gguf_build b = GGUF_BUILD;
    gguf *g;
    const gguf_value *v;
    uint8_t *big = calloc(5, 1 << 20);
    gguf_build_array(&b, "big", GGUF_U8, big, 5 << 20, 5 << 20);
    gguf_build_u32(&b, "behind", 9);
    gguf_build_write(&b, file("a.gguf"));
    cr_assert_eq(gguf_open(&g, file("a.gguf")), MOE_OK, "%s", moe_error_text());
    cr_assert(gguf_get_array(g, "big", GGUF_U8, &v) == MOE_OK && v->n == 5 << 20);
    cr_assert_not_null(gguf_find(g, "behind"));
    gguf_close(g);
    gguf_build_free(&b);
    free(big);
}

static void write_part(int no, int count, const char *tensor, const char *name, uint32_t all)
{
    static const float x[2];
    gguf_build b = GGUF_BUILD;
    if (no == 0)
        gguf_build_string(&b, "general.architecture", "llama");
    gguf_build_key(&b, "split.no", GGUF_U16, &(uint16_t){(uint16_t)no}, 2);
    gguf_build_key(&b, "split.count", GGUF_U16, &(uint16_t){(uint16_t)count}, 2);
    gguf_build_key(&b, "split.tensors.count", GGUF_I32, &all, 4);
    if (tensor != NULL)
        gguf_build_tensor(&b, tensor, GGML_F32, 1, (uint64_t[]){2}, x, sizeof x);
    gguf_build_write(&b, file(name));
    gguf_build_free(&b);
}

Test(gguf, split_files)
{
    gguf *g;
    write_part(0, 3, NULL, "m-00001-of-00003.gguf", 2);
    write_part(1, 3, "b", "m-00002-of-00003.gguf", 2);
    write_part(2, 3, "a", "m-00003-of-00003.gguf", 2);
    cr_assert_eq(gguf_open(&g, file("m-00001-of-00003.gguf")), MOE_OK, "%s", moe_error_text());
    cr_assert_eq(gguf_files(g), 3);
    cr_assert_str_eq(gguf_path(g, 2), file("m-00003-of-00003.gguf"));
    cr_assert(gguf_tensor_find(g, "a")->file == 2 && gguf_tensor_find(g, "b")->file == 1);
    gguf_close(g);

    cr_assert_eq(gguf_open(&g, file("m-00002-of-00003.gguf")), MOE_E_NOINPUT);
    cr_assert_not_null(strstr(moe_error_text(), "name its first file"), "%s", moe_error_text());
    write_part(2, 3, "b", "m-00003-of-00003.gguf", 2);
    cr_assert_eq(gguf_open(&g, file("m-00001-of-00003.gguf")), MOE_E_DATA);
    cr_assert_not_null(strstr(moe_error_text(), "both hold a tensor b"), "%s", moe_error_text());
    write_part(2, 3, NULL, "m-00003-of-00003.gguf", 2);
    cr_assert_eq(gguf_open(&g, file("m-00001-of-00003.gguf")), MOE_E_DATA);
    cr_assert_not_null(strstr(moe_error_text(), "split.tensors.count is 2: expected 1"), "%s", moe_error_text());
    write_part(1, 3, "a", "m-00003-of-00003.gguf", 2);
    cr_assert_eq(gguf_open(&g, file("m-00001-of-00003.gguf")), MOE_E_DATA);
    cr_assert_not_null(strstr(moe_error_text(), "split.no is 1: expected 2 to 2"), "%s", moe_error_text());
    unlink(file("m-00003-of-00003.gguf"));
    cr_assert_eq(gguf_open(&g, file("m-00001-of-00003.gguf")), MOE_E_NOINPUT);
    write_part(0, 3, "a", "wrong.gguf", 2);
    cr_assert_eq(gguf_open(&g, file("wrong.gguf")), MOE_E_DATA);
    cr_assert_not_null(strstr(moe_error_text(), "expected a name that ends with -00001-of-00003.gguf"), "%s", moe_error_text());
}

Test(gguf, what_is_no_gguf_file)
{
    gguf *g;
    cr_assert_eq(gguf_open(&g, file("none")), MOE_E_NOINPUT);
    cr_assert_eq(gguf_open(&g, dir), MOE_E_DATA);
    FILE *f = fopen(file("text"), "we");
    fputs("GGML and more than that, but not a GGUF file", f);
    fclose(f);
    cr_assert(!gguf_is(file("text")) && !gguf_is(file("none")) && !gguf_is(dir));
    cr_assert_eq(gguf_open(&g, file("text")), MOE_E_DATA);
    cr_assert_not_null(strstr(moe_error_text(), "does not begin with \"GGUF\""), "%s", moe_error_text());
}

Test(gguf, a_subset_keeps_its_values)
{
    static const char *const prefixes[] = {"words", "n.f", NULL};
    gguf_build b = GGUF_BUILD;
    text_buf t = {0};
    gguf *g;
    gguf_header h;
    bool more;
    fill(&b);
    gguf_build_write(&b, file("a.gguf"));
    cr_assert_eq(gguf_open(&g, file("a.gguf")), MOE_OK);
    cr_assert_eq(gguf_subset(g, prefixes, &t), MOE_OK);
    cr_assert_eq(gguf_parse(&h, t.data, t.used, t.used, "subset", &more), MOE_OK, "%s", moe_error_text());
    cr_assert(!more && h.keys == 4 && h.tensors == 0);
    cr_assert_str_eq(h.key[0].key, "general.architecture");
    cr_assert_str_eq(h.key[3].key, "words");
    cr_assert(h.key[3].array && h.key[3].n == 3 && h.key[3].bytes == gguf_find(g, "words")->bytes);
    cr_assert_eq(memcmp(h.key[3].data, gguf_find(g, "words")->data, h.key[3].bytes), 0);
    gguf_header_free(&h);
    text_free(&t);
    gguf_close(g);
    gguf_build_free(&b);
}
