/* The safetensors format: what is written is read; every damaged header is an error with a reason, never a crash (run under ASan
 * in the debug preset); 16-bit numbers widen and round exactly. */
#include <criterion/criterion.h>
#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "models/formats/safetensors.h"

static const char GOOD[] =
    "{\"__metadata__\":{\"format\":\"pt\"},\"b\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[4,28]},"
    "\"a\":{\"data_offsets\":[0,4],\"shape\":[2],\"dtype\":\"BF16\"},\"empty\":{\"dtype\":\"I8\",\"shape\":[0,7],"
    "\"data_offsets\":[28,28]},\"scalar\":{\"dtype\":\"U8\",\"shape\":[],\"data_offsets\":[28,29]}}   ";

Test(safetensors, header)
{
    st_tensor *t;
    int64_t n;
    cr_assert_eq(safetensors_parse(&t, &n, GOOD, strlen(GOOD), 29, "t"), MOE_OK, "%s", moe_error_text());
    cr_assert_eq(n, 4);
    cr_assert(strcmp(t[0].name, "a") == 0 && t[0].dtype == ST_BF16 && t[0].dims == 1 && t[0].shape[0] == 2 && t[0].bytes == 4);
    cr_assert(strcmp(t[1].name, "b") == 0 && t[1].dims == 2 && t[1].shape[1] == 3 && t[1].begin == 4 && t[1].elements == 6);
    cr_assert(strcmp(t[2].name, "empty") == 0 && t[2].bytes == 0);
    cr_assert(strcmp(t[3].name, "scalar") == 0 && t[3].dims == 0 && t[3].elements == 1);
    free(t);
    for (size_t cut = 0; cut < strlen(GOOD) - 3; cut++) {
        char *text = malloc(cut + 1); /* exactly so many bytes: ASan sees one too many */
        memcpy(text, GOOD, cut);
        cr_assert_neq(safetensors_parse(&t, &n, text, cut, 29, "t"), MOE_OK, "cut at %zu", cut);
        cr_assert_null(t);
        free(text);
    }
}

#define ONE(dtype, shape, offsets) "{\"a\":{\"dtype\":\"" dtype "\",\"shape\":" shape ",\"data_offsets\":" offsets "}}"
#define TWO(x, y)                                                                                                                \
    "{\"" x "\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]},\"" y                                                    \
    "\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":"

Test(safetensors, damaged_headers)
{
    static const struct {
        const char *text, *reason;
        uint64_t data;
    } cases[] = {
        {"", "begin", 0},
        {" {}", "begin", 0},
        {"[]", "begin", 0},
        {"{} x", "after the value", 0},
        {"{}", "the file ends", 1},
        {ONE("U8", "[4]", "[0,4]"), "the file ends", 5},
        {ONE("U8", "[4]", "[1,5]"), "a hole", 5},
        {ONE("U8", "[4]", "[0,5]"), "occupies 5", 5},
        {ONE("U8", "[4]", "[0,4]"), "inside the", 3},
        {ONE("U8", "[4]", "[4,0]"), "inside the", 4},
        {ONE("U8", "[4]", "[-1,3]"), "", 4},
        {ONE("U8", "[-4]", "[0,4]"), "", 4},
        {ONE("U8", "[4.0]", "[0,4]"), "", 4},
        {ONE("U8", "4", "[0,4]"), "", 4},
        {ONE("U8", "[[4]]", "[0,4]"), "", 4},
        {ONE("U8", "[4]", "[0]"), "", 4},
        {ONE("U8", "[4]", "[0,4,4]"), "", 4},
        {ONE("U7", "[4]", "[0,4]"), "dtype", 4},
        {ONE("F32", "[1]", "[0,2]"), "occupies 2", 2},
        {ONE("F32", "[4611686018427387904]", "[0,0]"), "occupies 0", 0}, /* 4 * 2^62 = 0 in 64 bits */
        {ONE("U8", "[4294967296,4294967296]", "[0,0]"), "2^63", 0},
        {ONE("U8", "[9223372036854775807,2,0]", "[0,0]"), "2^63", 0},
        {ONE("U8", "[1,1,1,1,1,1,1,1,1]", "[0,1]"), "dimensions", 1},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[4]}}", "lacks data_offsets", 4},
        {"{\"a\":{\"dtype\":\"U8\",\"data_offsets\":[0,4]}}", "lacks shape", 4},
        {"{\"a\":{\"shape\":[4],\"data_offsets\":[0,4]}}", "lacks dtype", 4},
        {"{\"a\":{\"dtype\":\"U8\",\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]}}", "a second", 4},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4],\"more\":1}}", "more", 4},
        {"{\"a\":1}", "", 0},
        {"{\"\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]}}", "name", 0},
        {"{\"a\\u0000b\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]}}", "NUL", 0},
        {"{\"__metadata__\":{\"a\":1}}", "", 0},
        {"{\"__metadata__\":[]}", "", 0},
        {TWO("a", "b") "[2,6]}}", "overlap", 6},
        {TWO("a", "b") "[5,9]}}", "a hole", 9},
        {TWO("a", "b") "[0,4]}}", "overlap", 4},
        {TWO("a", "a") "[4,8]}}", "two tensors are named a", 8},
        {TWO("a", "\\u0061") "[4,8]}}", "two tensors are named a", 8},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        st_tensor *t;
        int64_t n;
        cr_assert_eq(safetensors_parse(&t, &n, cases[i].text, strlen(cases[i].text), cases[i].data, "t"), MOE_E_DATA, "%s",
                     cases[i].text);
        cr_assert_null(t);
        cr_assert_not_null(strstr(moe_error_text(), cases[i].reason), "%s: %s", cases[i].text, moe_error_text());
    }
}

static void write_file(const char *path, const void *data, size_t n)
{
    const int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    cr_assert_eq(write(fd, data, n), (ssize_t)n);
    close(fd);
}

Test(safetensors, files)
{
    char path[] = "/tmp/moe-safetensors-XXXXXX";
    unsigned char bytes[512] = {0};
    const size_t header = strlen(GOOD);
    safetensors *s;
    close(mkstemp(path));
    bytes[0] = (unsigned char)header, bytes[1] = (unsigned char)(header >> 8);
    memcpy(bytes + 8, GOOD, header);
    const float six[6] = {1, -2, 0.5f, 1e-40f, INFINITY, -0.0f};
    const uint16_t two[2] = {0x3F80, 0xC000};
    memcpy(bytes + 8 + header, two, 4);
    memcpy(bytes + 8 + header + 4, six, 24);
    for (size_t cut = 0; cut < 8 + header + 29; cut++) {
        write_file(path, bytes, cut);
        cr_assert_eq(safetensors_open(&s, path), MOE_E_DATA, "cut at %zu", cut);
        cr_assert_null(s);
    }
    write_file(path, bytes, 8 + header + 30);
    cr_assert_eq(safetensors_open(&s, path), MOE_E_DATA, "a byte too many");
    write_file(path, bytes, 8 + header + 29);
    cr_assert_eq(safetensors_open(&s, path), MOE_OK, "%s", moe_error_text());
    float x[6];
    cr_assert_eq(safetensors_read_f32(s, safetensors_find(s, "b"), 0, 6, x), MOE_OK);
    cr_assert_eq(memcmp(x, six, sizeof six), 0);
    cr_assert_eq(safetensors_read_f32(s, safetensors_find(s, "b"), 2, 4, x), MOE_OK);
    cr_assert_eq(memcmp(x, six + 2, 16), 0);
    cr_assert_eq(safetensors_read_f32(s, safetensors_find(s, "a"), 0, 2, x), MOE_OK);
    cr_assert(x[0] == 1.0f && x[1] == -2.0f);
    cr_assert_eq(safetensors_read_f32(s, safetensors_find(s, "a"), 1, 2, x), MOE_E_DATA, "beyond the tensor");
    cr_assert_eq(safetensors_read_f32(s, safetensors_find(s, "scalar"), 0, 1, x), MOE_E_DATA, "U8 is no weight");
    cr_assert_eq(safetensors_read(s, safetensors_find(s, "b"), 20, x, 5), MOE_E_DATA);
    cr_assert_null(safetensors_find(s, "c"));
    safetensors_close(s);
    memset(bytes, 0xFF, 8); /* a header of 2^64 - 1 bytes */
    write_file(path, bytes, 8 + header + 29);
    cr_assert_eq(safetensors_open(&s, path), MOE_E_DATA);
    unlink(path);
    cr_assert_eq(safetensors_open(&s, path), MOE_E_NOINPUT);
    cr_assert_eq(safetensors_open(&s, "/tmp"), MOE_E_DATA, "a folder");
}

Test(safetensors, writer)
{
    char dir[] = "/tmp/moe-safetensors-XXXXXX", path[64];
    const st_declare d[] = {{"x.weight", ST_F32, 2, {2, 2}}, {"quo\"te\\", ST_BF16, 1, {3}}, {"none", ST_F32, 2, {0, 5}}};
    const float x[4] = {1, 2, 3, 4};
    const uint16_t y[3] = {1, 2, 3};
    st_writer *w;
    safetensors *s;
    cr_assert_not_null(mkdtemp(dir));
    snprintf(path, sizeof path, "%s/t.safetensors", dir);
    cr_assert_eq(safetensors_create(&w, path, d, 3), MOE_OK, "%s", moe_error_text());
    cr_assert_eq(safetensors_append(w, x, sizeof x), MOE_OK);
    cr_assert_eq(safetensors_finish(w), MOE_E_DATA, "bytes are missing");
    cr_assert_eq(safetensors_append(w, y, 8), MOE_E_DATA, "more than declared");
    cr_assert_eq(safetensors_append(w, y, 6), MOE_OK);
    cr_assert_eq(safetensors_finish(w), MOE_OK);
    safetensors_abandon(w);
    cr_assert_eq(safetensors_open(&s, path), MOE_OK, "%s", moe_error_text());
    cr_assert_eq(safetensors_count(s), 3);
    float back[4];
    cr_assert_eq(safetensors_read_f32(s, safetensors_find(s, "x.weight"), 0, 4, back), MOE_OK);
    cr_assert_eq(memcmp(back, x, sizeof x), 0);
    cr_assert_not_null(safetensors_find(s, "quo\"te\\"));
    safetensors_close(s);
    cr_assert_eq(safetensors_create(&w, path, d, 3), MOE_E_CREATE, "the file exists");
    cr_assert_eq(access(path, F_OK), 0, "and stays");
    unlink(path);
    cr_assert_eq(safetensors_create(&w, path, d, 3), MOE_OK);
    safetensors_abandon(w);
    cr_assert_neq(access(path, F_OK), 0, "an unfinished file goes");
    rmdir(dir);
}

Test(safetensors, halves)
{
    for (uint32_t i = 0; i < 65536; i++) {
        _Float16 h;
        const uint16_t x = (uint16_t)i;
        memcpy(&h, &x, sizeof h);
        const float expected = (float)h, got = st_f32_from_f16(x);
        cr_assert(isnan(expected) ? isnan(got) : memcmp(&got, &expected, sizeof got) == 0, "f16 %04x", i);
        const float wide = st_f32_from_bf16(x);
        cr_assert(isnan(wide) ? isnan(st_f32_from_bf16(st_bf16_from_f32(wide))) : st_bf16_from_f32(wide) == x, "bf16 %04x", i);
    }
}

/* Nearest by comparing the distances to both neighbours in double; a tie goes to the even one. */
Test(safetensors, bf16_rounds_to_nearest_even)
{
    uint32_t bits = 12345;
    for (int i = 0; i < 200000; i++) {
        bits = bits * 1664525 + 1013904223;
        uint32_t x = i % 3 == 0 ? (bits & 0xFFFF0000) | 0x8000 : bits;
        float f;
        memcpy(&f, &x, sizeof f);
        if (!isfinite(f))
            continue;
        const uint16_t low = (uint16_t)(x >> 16), high = (uint16_t)(low + 1), got = st_bf16_from_f32(f);
        const double d_low = fabs((double)f - st_f32_from_bf16(low)), d_high = fabs((double)st_f32_from_bf16(high) - f);
        const uint16_t expected = d_low < d_high ? low : d_high < d_low ? high : low & 1 ? high : low;
        if (isfinite(st_f32_from_bf16(high)))
            cr_assert_eq(got, expected, "%08x -> %04x, expected %04x", x, got, expected);
    }
    cr_assert_eq(st_bf16_from_f32(3.4e38f), 0x7F80, "beyond the largest: infinity");
}
