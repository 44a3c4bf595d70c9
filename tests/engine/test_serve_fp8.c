/* A folder in FP8 with block scales (tests/fixtures/serve/qwen3_moe_fp8): the same bits in place, packed, in the least memory, in any pieces and on
 * every instruction set; the commands on it; and what is wrong with such folders is refused. */
#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "engine/serve/model_commands.h"
#include "models/formats/packed.h"
#include "models/formats/safetensors.h"
#include "tests/engine/serve_harness.h"

#define FIXTURE "tests/fixtures/serve/qwen3_moe_fp8"
enum { N = 70, TENSORS = 128 };

static char dir[64];

static void setup(void)
{
    snprintf(dir, sizeof dir, "/tmp/moe-fp8-XXXXXX");
    cr_assert_not_null(mkdtemp(dir));
}

static void teardown(void)
{
    char command[128];
    snprintf(command, sizeof command, "rm -rf %s", dir);
    cr_assert_eq(system(command), 0);
}

TestSuite(serve_fp8, .init = setup, .fini = teardown);

static const char *inside(const char *name)
{
    static char path[2][128];
    static int i;
    i = !i;
    snprintf(path[i], sizeof path[i], "%s/%s", dir, name);
    return path[i];
}

Test(serve_fp8, the_same_bits_however_it_is_read)
{
    int V;
    const packed_options as_is = {.experts = PACKED_AS_IS, .dense = PACKED_AS_IS};
    model *m;
    float *want = test_serve_logits_of(FIXTURE, (test_serve_options){.chunk = N}, N, N, &V);
    test_serve_expect("the reference", FIXTURE, (test_serve_options){.backend = "ref", .threads = 1}, N, 33, want, V);
    test_serve_expect("avx2", FIXTURE, (test_serve_options){.backend = "avx2", .threads = 3}, N, 64, want, V);
    test_serve_expect("the least memory, one at a time", FIXTURE, (test_serve_options){.least = true}, N, 1, want, V);
    MUST(model_open(&m, FIXTURE));
    MUST(packed_write(m, inside("packed"), &as_is));
    model_close(m);
    test_serve_expect("packed", inside("packed"), (test_serve_options){0}, N, 64, want, V);
    test_serve_expect("packed, the least memory", inside("packed"), (test_serve_options){.least = true}, N, 9, want, V);
    free(want);
}

Test(serve_fp8, the_commands_know_it)
{
    static char printed[1 << 16];
    const struct {
        const char *name, *experts;
        packed_options o;
    } made[] = {{"pack", "f8_e4m3", {.experts = PACKED_AS_IS, .dense = PACKED_AS_IS}},
                {"bf16", "bf16", {.experts = NUM_BF16, .dense = NUM_BF16}},
                {"q8_0", "q8_0", {.experts = NUM_Q8_0, .dense = PACKED_AS_IS}}};
    FILE *out = fmemopen(printed, sizeof printed, "w");
    MUST(command_inspect(FIXTURE, 0, false, out));
    fclose(out);
    const char *row = strstr(printed, "experts            f8_e4m3"); /* 9 matrices of 256 x 128 and two scales each */
    cr_assert(row != NULL && strstr(row, "294,912") != NULL && strstr(row, "288.1 KiB") != NULL, "%s", printed);
    for (size_t i = 0; i < sizeof made / sizeof *made; i++) {
        char line[64];
        out = fmemopen(printed, sizeof printed, "w");
        MUST(command_pack(FIXTURE, inside(made[i].name), &made[i].o, out));
        MUST(command_inspect(inside(made[i].name), 0, false, out));
        fclose(out);
        snprintf(line, sizeof line, "experts            %s", made[i].experts);
        cr_assert_not_null(strstr(printed, line), "%s", printed);
        int V;
        free(test_serve_logits_of(inside(made[i].name), (test_serve_options){0}, N, 64, &V));
    }
}

/* The same numbers as fp32 give the same bits; as F8_E4M3 rows with scales of their own they are near. */
Test(serve_fp8, any_model_becomes_fp8)
{
    int V;
    double off = 0, size = 0;
    model *m;
    const packed_options f32 = {.experts = NUM_F32, .dense = NUM_F32}, back = {.experts = NUM_F8_E4M3, .dense = PACKED_AS_IS};
    MUST(model_open(&m, FIXTURE));
    MUST(packed_write(m, inside("f32"), &f32));
    model_close(m);
    float *exact = test_serve_logits_of(FIXTURE, (test_serve_options){0}, N, 64, &V);
    test_serve_expect("as fp32", inside("f32"), (test_serve_options){0}, N, 64, exact, V);
    MUST(model_open(&m, inside("f32")));
    MUST(packed_write(m, inside("f8"), &back));
    model_close(m);
    float *near = test_serve_logits_of(inside("f8"), (test_serve_options){0}, N, 64, &V);
    for (int i = 0; i < N * V; i++) {
        off += ((double)near[i] - (double)exact[i]) * ((double)near[i] - (double)exact[i]);
        size += (double)exact[i] * (double)exact[i];
    }
    fprintf(stderr, "rounded to f8_e4m3 once more: %.3g\n", sqrt(off / size));
    cr_assert(off > 0 && off < 0.01 * size, "%.3g", sqrt(off / size)); /* three bits behind the leading one: 2^-5 of a weight on average; logits of wrong rows are 1.4 away */
    free(exact), free(near);
}

/* What is done to one tensor of the fixture when it is written anew. */
typedef struct change {
    const char *name;
    bool drop;
    int dtype;        /* 0: as it is */
    int64_t shape[2]; /* 0: as it is */
    int64_t at;       /* from this byte on .. */
    const void *bytes;
    size_t n; /* .. so many bytes */
    const char *more; /* one more tensor after it, F32 of this shape, zeros */
    int64_t more_shape[2];
} change;

typedef struct folder {
    st_declare d[TENSORS];
    uint8_t *data[TENSORS];
    size_t bytes[TENSORS];
    int n;
} folder;

static void add(folder *f, const char *name, int dtype, int dims, const int64_t *shape, const void *data, size_t bytes)
{
    cr_assert(f->n < TENSORS);
    f->d[f->n] = (st_declare){.name = strdup(name), .dtype = (st_dtype)dtype, .dims = dims, .shape = {shape[0], dims > 1 ? shape[1] : 0}};
    f->data[f->n] = calloc(bytes, 1);
    if (data != NULL)
        memcpy(f->data[f->n], data, bytes);
    f->bytes[f->n++] = bytes;
}

static void add_changed(folder *f, const safetensors *s, const st_tensor *t, const change *c)
{
    uint8_t *data = malloc(t->bytes);
    const int dtype = c->dtype != 0 ? c->dtype : t->dtype;
    int64_t shape[2] = {t->shape[0], t->dims > 1 ? t->shape[1] : 1};
    MUST(safetensors_read(s, t, 0, data, t->bytes));
    for (int i = 0; i < 2; i++)
        shape[i] = c->shape[i] > 0 ? c->shape[i] : shape[i];
    if (c->n > 0)
        memcpy(data + c->at, c->bytes, c->n);
    if (!c->drop)
        add(f, t->name, dtype, t->dims, shape, data, (size_t)(shape[0] * shape[1]) * st_dtype_bytes((st_dtype)dtype));
    if (c->more != NULL)
        add(f, c->more, ST_F32, 2, c->more_shape, NULL, (size_t)(c->more_shape[0] * c->more_shape[1]) * sizeof(float));
    free(data);
}

/* The fixture in one file, changed, as inside("changed"). */
static const char *write_changed(const change *c, int changes)
{
    static const char *const shards[] = {FIXTURE "/model-00001-of-00002.safetensors", FIXTURE "/model-00002-of-00002.safetensors"};
    static char path[128];
    char command[512], file[256];
    folder f = {.n = 0};
    st_writer *w;
    snprintf(path, sizeof path, "%s", inside("changed"));
    snprintf(command, sizeof command, "rm -rf %s && mkdir %s && cp " FIXTURE "/config.json %s", path, path, path);
    cr_assert_eq(system(command), 0);
    for (int i = 0; i < 2; i++) {
        safetensors *s;
        MUST(safetensors_open(&s, shards[i]));
        for (int64_t k = 0; k < safetensors_count(s); k++) {
            const st_tensor *t = safetensors_at(s, k);
            int at = 0;
            while (at < changes && strcmp(c[at].name, t->name) != 0)
                at++;
            add_changed(&f, s, t, at < changes ? &c[at] : &(change){0});
        }
        safetensors_close(s);
    }
    snprintf(file, sizeof file, "%s/model.safetensors", path);
    MUST(safetensors_create(&w, file, f.d, f.n));
    for (int i = 0; i < f.n; i++)
        MUST(safetensors_append(w, f.data[i], f.bytes[i]));
    MUST(safetensors_finish(w));
    safetensors_abandon(w);
    for (int i = 0; i < f.n; i++)
        free((char *)f.d[i].name), free(f.data[i]);
    return path;
}

#define UP "model.layers.0.mlp.experts.1.up_proj.weight"
#define O "model.layers.1.self_attn.o_proj.weight"

Test(serve_fp8, folders_that_are_wrong_are_refused)
{
    static const struct {
        change c;
        const char *sentence;
    } cases[] = {
        {{.name = UP "_scale_inv", .drop = true}, UP " is there but " UP "_scale_inv, its scales, is missing"},
        {{.name = UP "_scale_inv", .shape = {1, 2}}, UP "_scale_inv has shape [1, 2]: expected [2, 1]"},
        {{.name = UP "_scale_inv", .dtype = ST_U32}, UP "_scale_inv has dtype U32: expected F32"},
        {{.name = UP, .dtype = ST_U8}, UP " has dtype U8: expected F32, F16, BF16 or F8_E4M3"},
        {{.name = UP, .dtype = ST_F8_E5M2}, UP " has dtype F8_E5M2: expected F32, F16, BF16 or F8_E4M3"},
        {{.name = O, .more = O "_scale_inv", .more_shape = {1, 2}}, O "_scale_inv is not a tensor of this qwen3_moe model"},
        {{.name = O, .dtype = ST_F8_E4M3, .more = O "_scale_inv", .more_shape = {1, 2}}, O " has rows of 192: expected a multiple of 128, a block of f8_e4m3"},
    };
    model *m;
    MUST(model_open(&m, write_changed(NULL, 0)));
    model_close(m);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        cr_assert_eq(model_open(&m, write_changed(&cases[i].c, 1)), MOE_E_DATA, "%s was taken", cases[i].sentence);
        cr_assert_not_null(strstr(moe_error_text(), cases[i].sentence), "%s\nlacks: %s", moe_error_text(), cases[i].sentence);
    }
}

static const uint32_t NOT_A_NUMBER = 0x7fc00000u;
static const uint8_t NO_CODE = 0x7f;

Test(serve_fp8, dense_numbers_that_are_none_end_the_opening)
{
    const struct {
        change c;
        const char *sentence;
    } cases[] = {
        {{.name = "model.layers.1.self_attn.q_proj.weight_scale_inv", .at = 4, .bytes = &NOT_A_NUMBER, .n = 4}, "q_proj.weight: the scale of rows 128 to 255, columns 0 to 127 is"},
        {{.name = "model.layers.0.self_attn.v_proj.weight", .at = 128 * 47 + 5, .bytes = &NO_CODE, .n = 1}, "v_proj.weight[47, 5] is not a number (code 0x7f of E4M3)"},
    };
    for (int i = 0; i < 2; i++) {
        test_serve t;
        serve *s;
        model *m;
        test_serve_open(&t, FIXTURE, (test_serve_options){0});
        MUST(model_open(&m, write_changed(&cases[i].c, 1)));
        t.c.model = m;
        cr_assert_eq(serve_open(&s, &t.c), MOE_E_DATA);
        cr_assert(strstr(moe_error_text(), cases[i].sentence) != NULL && strstr(moe_error_text(), "changed/model.safetensors") != NULL, "%s", moe_error_text());
        model_close(m);
        test_serve_close(&t);
    }
}

Test(serve_fp8, expert_numbers_that_are_none_end_the_sequence)
{
    static const float infinite = INFINITY, negative = -1.0f;
    const change all[] = {{.name = "model.layers.0.mlp.experts.0.gate_proj.weight_scale_inv", .bytes = &infinite, .n = 4},
                          {.name = UP "_scale_inv", .bytes = &negative, .n = 4},
                          {.name = "model.layers.0.mlp.experts.2.down_proj.weight", .at = 1000, .bytes = &NO_CODE, .n = 1}};
    const packed_options as_is = {.experts = PACKED_AS_IS, .dense = PACKED_AS_IS};
    const char *path = write_changed(all, 3);
    test_serve t;
    int32_t token[N];
    int sequence;
    test_serve_open(&t, path, (test_serve_options){.chunk = N});
    test_serve_tokens(&t, token, N, 5);
    MUST(serve_sequence_begin(t.s, &sequence));
    serve_span span = {.sequence = sequence, .token = token, .n = N};
    MUST(serve_step(t.s, &span, 1, NULL));
    cr_assert_eq(span.rc, MOE_E_DATA);
    cr_assert(strstr(span.text, "of layer 0") != NULL && (strstr(span.text, "the scale of rows 0 to 127") != NULL || strstr(span.text, "is not a number") != NULL), "%s", span.text);
    cr_assert_eq(packed_write(t.model, inside("packed"), &as_is), MOE_E_DATA);
    cr_assert_not_null(strstr(moe_error_text(), "experts.0.gate_proj.weight: the scale of rows 0 to 127, columns 0 to 127 is inf"), "%s", moe_error_text());
    test_serve_close(&t);
}
