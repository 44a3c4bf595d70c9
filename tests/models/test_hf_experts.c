/* Experts of Hugging Face folders that lie all in one tensor: FP8 with scales, MXFP4 with gate and up rows in turn, transposed; number by number from
 * their definition, and what does not fit together. Owns nothing beyond a test. One thread. */
#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "kernels/half.h"
#include "kernels/matmul.h"
#include "models/formats/hf.h"
#include "models/formats/safetensors.h"
#include "tests/models/make_spec.h"

enum { E = 3, D = 128, F = 256, MOST = 64 };
#define SIZES "vocab_size=19 hidden_size=128 num_hidden_layers=1 num_attention_heads=2 num_key_value_heads=1 head_dim=8 num_experts=3 " \
              "num_experts_per_tok=2 moe_intermediate_size=256"
#define EXPERTS "model.layers.0.mlp.experts."

static char dir[64];

static void setup(void)
{
    snprintf(dir, sizeof dir, "/tmp/moe-experts-XXXXXX");
    cr_assert_not_null(mkdtemp(dir));
}

static void teardown(void)
{
    char command[128];
    snprintf(command, sizeof command, "rm -rf %s", dir);
    cr_assert_eq(system(command), 0);
}

TestSuite(hf_experts, .init = setup, .fini = teardown);

typedef struct tensors {
    st_declare d[MOST];
    uint8_t *data[MOST];
    size_t bytes[MOST];
    int n;
} tensors;

/* Any bytes; scales and plain numbers are made sane by who asks. */
static uint8_t *add(tensors *f, const char *name, st_dtype dtype, int dims, const int64_t *shape)
{
    size_t bytes = st_dtype_bytes(dtype);
    uint32_t seed = (uint32_t)f->n + 1;
    cr_assert(f->n < MOST);
    f->d[f->n] = (st_declare){.name = name, .dtype = dtype, .dims = dims};
    for (int i = 0; i < dims; i++)
        f->d[f->n].shape[i] = shape[i], bytes *= (size_t)shape[i];
    f->data[f->n] = malloc(bytes);
    for (size_t i = 0; i < bytes; i++)
        seed = seed * 1664525u + 1013904223u, f->data[f->n][i] = (uint8_t)(seed >> 16);
    f->bytes[f->n] = bytes;
    return f->data[f->n++];
}

/* The tensors, and after them all but the experts, zeros. */
static void write_all(const model_spec *m, tensors *f)
{
    tensor_info *t;
    int64_t n;
    char path[128];
    st_writer *w;
    const int own = f->n;
    cr_assert_eq(spec_tensors(m, &t, &n), MOE_OK);
    for (int64_t i = 0; i < n; i++) {
        const bool vector = t[i].layout == TENSOR_VECTOR;
        if (t[i].kind != SECTION_EXPERT)
            memset(add(f, t[i].name, ST_F32, vector ? 1 : 2, (int64_t[2]){vector ? t[i].cols : t[i].rows, t[i].cols}), 0, 4 * (size_t)(t[i].rows * t[i].cols));
    }
    snprintf(path, sizeof path, "%s/model.safetensors", dir);
    remove(path);
    cr_assert_eq(safetensors_create(&w, path, f->d, f->n), MOE_OK, "%s", moe_error_text());
    for (int i = 0; i < f->n; i++)
        cr_assert_eq(safetensors_append(w, f->data[i], f->bytes[i]), MOE_OK);
    cr_assert_eq(safetensors_finish(w), MOE_OK, "%s", moe_error_text());
    safetensors_abandon(w);
    while (f->n > own)
        free(f->data[--f->n]);
    free(t);
}

static void free_all(tensors *f)
{
    while (f->n > 0)
        free(f->data[--f->n]);
}

/* Number k of row r of matrix `which` (gate, up, down) of expert e. */
typedef float (*number_fn)(const tensors *f, int e, int which, int r, int k);

static void check_numbers(const model_spec *m, const tensors *f, number_fn number)
{
    hf_reader *h;
    cr_assert_eq(hf_reader_open(&h, dir, m), MOE_OK, "%s", moe_error_text());
    for (int e = 0; e < E; e++) {
        tensor_info t[3];
        spec_expert_tensors(m, 0, e, t);
        for (int which = 0; which < 3; which++) {
            float *section = calloc(t[which].offset + t[which].floats, sizeof *section);
            const float *at = section + t[which].offset;
            cr_assert_eq(hf_reader_read(h, &t[which], section), MOE_OK, "%s", moe_error_text());
            for (int r = 0; r < t[which].rows; r++)
                for (int k = 0; k < t[which].cols; k++)
                    cr_assert_eq(at[panel_index(r, k, t[which].cols)], number(f, e, which, r, k), "%s [%d, %d]: got %g", t[which].name, r, k,
                                 (double)at[panel_index(r, k, t[which].cols)]);
            free(section);
        }
    }
    hf_reader_close(h);
}

static void refused(const model_spec *m, const char *sentence)
{
    hf_reader *h;
    cr_assert_eq(hf_reader_open(&h, dir, m), MOE_E_DATA, "%s was taken", sentence);
    cr_assert_not_null(strstr(moe_error_text(), sentence), "%s\nlacks: %s", moe_error_text(), sentence);
}

/* Tensors 0 .. 3: gate_up, its scales, down, its scales. */
static float fp8_number(const tensors *f, int e, int which, int r, int k)
{
    const int K = which == 2 ? F : D, R = which == 2 ? D : 2 * F, row = which == 1 ? F + r : r;
    const uint8_t *codes = f->data[which == 2 ? 2 : 0];
    const float *scales = (const float *)(const void *)f->data[which == 2 ? 3 : 1];
    return e4m3_to_float(codes[(e * R + row) * K + k]) * scales[(e * (R / 128) + row / 128) * (K / 128) + k / 128];
}

static void add_fp8(tensors *f)
{
    const int64_t shapes[4][3] = {{E, 2 * F, D}, {E, 2 * F / 128, D / 128}, {E, D, F}, {E, D / 128, F / 128}};
    static const char *const names[] = {EXPERTS "gate_up_proj", EXPERTS "gate_up_proj_scale_inv", EXPERTS "down_proj", EXPERTS "down_proj_scale_inv"};
    for (int i = 0; i < 4; i++) {
        uint8_t *data = add(f, names[i], i % 2 ? ST_F32 : ST_F8_E4M3, 3, shapes[i]);
        for (size_t k = 0; k < f->bytes[i] && i % 2 == 0; k++)
            data[k] &= 0xf7; /* no NaN */
        for (size_t k = 0; k < f->bytes[i] / 4 && i % 2 == 1; k++)
            memcpy(data + 4 * k, &(float){0.01f * (float)(k + 1)}, 4);
    }
}

Test(hf_experts, fp8)
{
    model_spec m;
    tensors f = {.n = 0};
    cr_assert_eq(make_spec(&m, "qwen3_moe", SIZES), MOE_OK, "%s", moe_error_text());
    add_fp8(&f);
    write_all(&m, &f);
    check_numbers(&m, &f, fp8_number);
    f.d[1].shape[0] = 1, f.d[1].shape[1] = E * 2 * F / 128; /* as many, in another shape */
    write_all(&m, &f);
    refused(&m, EXPERTS "gate_up_proj_scale_inv has shape [1, 12, 1]: expected [3, 4, 1]");
    free_all(&f);
}

static float mxfp4_number(const tensors *f, int e, int which, int r, int k)
{
    static const float fp4[16] = {0, 0.5f, 1, 1.5f, 2, 3, 4, 6, -0.0f, -0.5f, -1, -1.5f, -2, -3, -4, -6};
    const int K = which == 2 ? F : D, R = which == 2 ? D : 2 * F, row = which == 2 ? r : 2 * r + which;
    const uint8_t byte = f->data[which == 2 ? 2 : 0][(e * R + row) * (K / 2) + k / 2], scale = f->data[which == 2 ? 3 : 1][(e * R + row) * (K / 32) + k / 32];
    return fp4[k % 2 ? byte >> 4 : byte & 15] * bits_float((uint32_t)scale << 23);
}

static void add_mxfp4(tensors *f)
{
    const int64_t shapes[4][4] = {{E, 2 * F, D / 32, 16}, {E, 2 * F, D / 32}, {E, D, F / 32, 16}, {E, D, F / 32}};
    static const char *const names[] = {EXPERTS "gate_up_proj_blocks", EXPERTS "gate_up_proj_scales", EXPERTS "down_proj_blocks", EXPERTS "down_proj_scales"};
    for (int i = 0; i < 4; i++) {
        uint8_t *data = add(f, names[i], ST_U8, i % 2 ? 3 : 4, shapes[i]);
        for (size_t k = 0; k < f->bytes[i] && i % 2 == 1; k++)
            data[k] = (uint8_t)(110 + data[k] % 30);
    }
}

Test(hf_experts, mxfp4)
{
    model_spec m;
    tensors f = {.n = 0};
    cr_assert_eq(make_spec(&m, "qwen3_moe", SIZES), MOE_OK, "%s", moe_error_text());
    m.names = NAMES_GPT_OSS;
    add_mxfp4(&f);
    write_all(&m, &f);
    check_numbers(&m, &f, mxfp4_number);
    f.d[3].dtype = ST_I8;
    write_all(&m, &f);
    refused(&m, EXPERTS "down_proj_scales has dtype I8: expected U8");
    f.d[3].dtype = ST_U8, f.d[2].dtype = ST_I8;
    write_all(&m, &f);
    refused(&m, EXPERTS "down_proj_blocks has dtype I8: expected U8");
    f.d[2].dtype = ST_U8, f.d[1].shape[1] = F, f.d[1].shape[2] = D / 16;
    write_all(&m, &f);
    refused(&m, EXPERTS "gate_up_proj_scales has shape [3, 256, 8]: expected [3, 512, 4]");
    f.d[1].name = "other";
    write_all(&m, &f);
    refused(&m, EXPERTS "gate_up_proj_blocks is there but " EXPERTS "gate_up_proj_scales, its scales, is missing");
    f.d[0].name = "another";
    write_all(&m, &f);
    refused(&m, "neither " EXPERTS "0.gate_proj.weight nor " EXPERTS "gate_up_proj_blocks is there");
    free_all(&f);
}

static float columns_number(const tensors *f, int e, int which, int r, int k)
{
    const int K = which == 2 ? F : D, R = which == 2 ? D : 2 * F, column = which == 2 ? r : 2 * r + which;
    uint16_t x;
    memcpy(&x, f->data[which == 2 ? 1 : 0] + 2 * ((e * K + k) * R + column), sizeof x);
    return bf16_to_float(x);
}

Test(hf_experts, transposed)
{
    model_spec m;
    tensors f = {.n = 0};
    cr_assert_eq(make_spec(&m, "qwen3_moe", SIZES), MOE_OK, "%s", moe_error_text());
    m.names = NAMES_GPT_OSS;
    for (int i = 0; i < 2; i++) {
        uint8_t *data = add(&f, i ? EXPERTS "down_proj" : EXPERTS "gate_up_proj", ST_BF16, 3, (int64_t[3]){E, i ? F : D, i ? D : 2 * F});
        for (size_t k = 1; k < f.bytes[i]; k += 2)
            data[k] = (uint8_t)(0x3e | (data[k] & 0x81)); /* near one */
    }
    write_all(&m, &f);
    check_numbers(&m, &f, columns_number);
    f.d[1].shape[1] = D, f.d[1].shape[2] = F; /* as the other families have it */
    write_all(&m, &f);
    refused(&m, EXPERTS "down_proj has shape [3, 128, 256]: expected [3, 256, 128]");
    free_all(&f);
}
