/* Dispatch, gather and combine (kernels/dispatch.h): the rules of the permutation, every backend against the definition bit by bit,
 * wrong ids. Owns nothing beyond a test. One thread. Rule: comparisons are memcmp unless a bound is derived. */
#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/kernels/harness.h"

typedef struct routing {
    int64_t T;
    int E, K;
    int32_t *ids, *offset, *row_token, *row_slot, *row_of;
} routing;

static int32_t *ints(size_t n)
{
    int32_t *x = malloc((n + 1) * sizeof *x); /* one more: never malloc(0), and a guard */
    cr_assert_not_null(x);
    memset(x, 0x5a, (n + 1) * sizeof *x);
    return x;
}

static routing routing_new(int64_t T, int E, int K)
{
    const size_t N = (size_t)T * (size_t)K;
    return (routing){T, E, K, ints(N), ints((size_t)E + 1), ints(N), ints(N), ints(N)};
}

static void routing_free(routing *r) { free(r->ids), free(r->offset), free(r->row_token), free(r->row_slot), free(r->row_of); }

static moe_err routing_run(const moe_backend *b, moe_stream *s, routing *r)
{
    return b->dispatch(&(dispatch_args){.ids = r->ids,
                                        .offset = r->offset,
                                        .row_token = r->row_token,
                                        .row_slot = r->row_slot,
                                        .row_of = r->row_of,
                                        .T = r->T,
                                        .E = r->E,
                                        .K = r->K},
                       s);
}

static void routing_check(const char *where, const routing *r)
{
    const int32_t N = (int32_t)(r->T * r->K);
    cr_assert(r->offset[0] == 0 && r->offset[r->E] == N, "%s: offsets from %d to %d", where, r->offset[0], r->offset[r->E]);
    for (int e = 0; e < r->E; e++)
        for (int32_t row = r->offset[e]; row < r->offset[e + 1]; row++) {
            const int32_t slot = r->row_slot[row];
            cr_assert(slot >= 0 && slot < N, "%s: row %d has slot %d", where, row, slot);
            cr_assert_eq(r->ids[slot], e, "%s: row %d of expert %d was routed to %d", where, row, e, r->ids[slot]);
            cr_assert_eq(r->row_token[row], slot / r->K, "%s: token of row %d", where, row);
            cr_assert_eq(r->row_of[slot], row, "%s: row of slot %d", where, slot);
            cr_assert(row == r->offset[e] || r->row_token[row - 1] < r->row_token[row], "%s: row %d is not in token order", where,
                      row);
        }
}

static void permutation(const moe_backend *b, moe_stream *s, const char *where, void *ctx)
{
    (void)ctx;
    for (const test_shape *p = test_shapes; p->name != NULL; p++) {
        routing r = routing_new(test_tokens(p), p->E, p->K);
        int32_t *want = ints((size_t)p->E + 1);
        test_route(p, r.ids, want, 3);
        cr_assert_eq(routing_run(b, s, &r), MOE_OK);
        routing_check(where, &r);
        test_same_bytes(where, r.offset, want, sizeof *want * ((size_t)p->E + 1));
        free(want);
        routing_free(&r);
    }
    static const struct {
        int64_t T;
        int E, K;
    } large[] = {{20000, 128, 4}, {50001, 1, 1}, {9000, 6, 6}, {100, 1000, 1}};
    for (size_t i = 0; i < sizeof large / sizeof large[0]; i++) { /* several blocks of tokens */
        routing r = routing_new(large[i].T, large[i].E, large[i].K);
        for (int64_t t = 0; t < r.T; t++)
            for (int k = 0; k < r.K; k++)
                r.ids[t * r.K + k] = (int32_t)((test_bits(5, (uint64_t)t) % (uint64_t)r.E + (uint64_t)k) % (uint64_t)r.E);
        cr_assert_eq(routing_run(b, s, &r), MOE_OK);
        routing_check(where, &r);
        routing_free(&r);
    }
}

Test(dispatch, permutation) { test_each_backend(permutation, NULL); }

/* With a capacity: the first rows of each set in token order, against plain counting. */
static void capacity(const moe_backend *b, moe_stream *s, const char *where, void *ctx)
{
    static const struct {
        int64_t T, set;
        int E, K;
        int32_t capacity;
    } cases[] = {{40, 8, 5, 2, 2}, {33, 16, 3, 3, 7}, {20000, 512, 16, 4, 100}, {7, 7, 4, 1, 1}, {12, 4, 2, 1, 100}};
    (void)ctx;
    for (size_t c = 0; c < sizeof cases / sizeof cases[0]; c++) {
        routing r = routing_new(cases[c].T, cases[c].E, cases[c].K);
        for (int64_t t = 0; t < r.T; t++)
            for (int k = 0; k < r.K; k++)
                r.ids[t * r.K + k] = (int32_t)((test_bits(6, (uint64_t)t) % 3 + (uint64_t)k) % (uint64_t)r.E);
        cr_assert_eq(b->dispatch(&(dispatch_args){.ids = r.ids, .offset = r.offset, .row_token = r.row_token, .row_slot = r.row_slot,
                                                  .row_of = r.row_of, .T = r.T, .E = r.E, .K = r.K, .capacity = cases[c].capacity,
                                                  .set_tokens = cases[c].set}, s), MOE_OK);
        int32_t row = 0;
        for (int e = 0; e < r.E; e++) {
            cr_assert_eq(r.offset[e], row, "%s: case %zu, expert %d begins at %d", where, c, e, r.offset[e]);
            for (int64_t t = 0, taken = 0; t < r.T; t++) {
                taken = t % cases[c].set == 0 ? 0 : taken;
                for (int k = 0; k < r.K; k++) {
                    const int64_t slot = t * r.K + k;
                    if (r.ids[slot] != e)
                        continue;
                    const bool kept = taken++ < cases[c].capacity;
                    cr_assert_eq(r.row_of[slot], kept ? row : -1, "%s: case %zu, token %lld, choice %d", where, c, (long long)t, k);
                    if (kept) {
                        cr_assert(r.row_token[row] == t && r.row_slot[row] == slot, "%s: case %zu, row %d", where, c, row);
                        row++;
                    }
                }
            }
        }
        cr_assert_eq(r.offset[r.E], row);
        routing_free(&r);
    }
}

Test(dispatch, capacity_drops_what_comes_too_late) { test_each_backend(capacity, NULL); }

static void dropped(const moe_backend *b, moe_stream *s, const char *where, void *ctx)
{
    const float rows[2 * 3] = {1, 2, 3, 10, 20, 30}, weight[4] = {0.5f, 2, 4, 8};
    const int32_t row_of[4] = {1, -1, -1, 0};
    float out[2 * 3];
    (void)ctx;
    cr_assert_eq(b->combine(&(combine_args){.out = out, .rows = rows, .row_of = row_of, .weight = weight, .T = 2, .K = 2, .D = 3}, s), MOE_OK);
    const float want[2 * 3] = {5, 10, 15, 8, 16, 24};
    test_same_bytes(where, out, want, sizeof want);
}

Test(dispatch, combine_leaves_dropped_choices_out) { test_each_backend(dropped, NULL); }

/* The first wrong id is named, the same on every backend, and nothing is written. */
static void wrong_id(const moe_backend *b, moe_stream *s, const char *where, void *ctx)
{
    static const int32_t bad[] = {-1, 8, INT32_MAX, INT32_MIN};
    (void)ctx;
    for (int i = 0; i < 4; i++) {
        routing r = routing_new(20000, 8, 2), untouched = routing_new(20000, 8, 2);
        for (int64_t j = 0; j < r.T * r.K; j++)
            r.ids[j] = (int32_t)(j % 8);
        r.ids[1234 * 2 + 1] = bad[i];
        r.ids[19000 * 2] = -7;
        cr_assert_eq(routing_run(b, s, &r), MOE_E_DATA, "%s", where);
        char want[64];
        snprintf(want, sizeof want, "token 1234, choice 1: expert %d ", (int)bad[i]);
        cr_assert_not_null(strstr(moe_error_text(), want), "%s: \"%s\" does not say \"%s\"", where, moe_error_text(), want);
        test_same_bytes(where, r.row_of, untouched.row_of, 40000 * sizeof *r.row_of);
        test_same_bytes(where, r.row_slot, untouched.row_slot, 40000 * sizeof *r.row_slot);
        test_same_bytes(where, r.offset, untouched.offset, 9 * sizeof *r.offset);
        routing_free(&r), routing_free(&untouched);
    }
}

Test(dispatch, wrong_id_is_named) { test_each_backend(wrong_id, NULL); }

static void too_many_rows(const moe_backend *b, moe_stream *s, const char *where, void *ctx)
{
    (void)ctx;
    cr_assert_eq(b->dispatch(&(dispatch_args){.T = INT32_MAX / 2 + 1, .E = 4, .K = 2}, s), MOE_E_CONFIG, "%s", where);
}

Test(dispatch, too_many_rows) { test_each_backend(too_many_rows, NULL); }

static void combine_case(const moe_backend *b, moe_stream *s, const char *where, const test_shape *p, bool weighted, int base)
{
    const int T = test_tokens(p);
    const size_t N = (size_t)T * (size_t)p->K, D = (size_t)p->D;
    routing r = routing_new(T, p->E, p->K);
    test_route(p, r.ids, r.offset, 4);
    cr_assert_eq(routing_run(test_reference(), test_stream(), &r), MOE_OK);
    float *src = test_new_filled((size_t)T * (D + 2), 1), *rows = test_new(N * D, false),
          *out = test_new_filled((size_t)T * D, 2);
    float *weight = test_new_filled(N, 3), *other = test_new_filled((size_t)T * D, 4), *want = test_new(N * D, false);
    const gather_args g = {.dst = rows, .src = src, .row_token = r.row_token, .ld = D + 2, .n = (int64_t)N, .D = p->D};
    cr_assert_eq(b->gather(&g, s), MOE_OK);
    for (size_t i = 0; i < N; i++)
        test_same(where, rows + i * D, src + (size_t)r.row_token[i] * (D + 2), 1, D, D);
    const float *add = base == 0 ? NULL : base == 1 ? other : out;
    for (size_t t = 0; t < (size_t)T; t++)
        for (size_t d = 0; d < D; d++) {
            float sum = 0.0f;
            for (size_t slot = t * (size_t)p->K; slot < (t + 1) * (size_t)p->K; slot++)
                sum = fmaf(weighted ? weight[slot] : 1.0f, rows[(size_t)r.row_of[slot] * D + d], sum);
            want[t * D + d] = add != NULL ? add[t * D + d] + sum : sum;
        }
    const combine_args c = {.out = out,
                            .base = add,
                            .rows = rows,
                            .row_of = r.row_of,
                            .weight = weighted ? weight : NULL,
                            .T = T,
                            .K = p->K,
                            .D = p->D};
    cr_assert_eq(b->combine(&c, s), MOE_OK);
    test_same(where, out, want, (size_t)T, D, D);
    test_free(src), test_free(rows), test_free(out), test_free(weight), test_free(other), test_free(want);
    routing_free(&r);
}

static void gather_combine(const moe_backend *b, moe_stream *s, const char *where, void *ctx)
{
    (void)ctx;
    for (const test_shape *p = test_shapes; p->name != NULL; p++)
        for (int base = 0; base < 3; base++) { /* none, another array, out itself */
            combine_case(b, s, where, p, true, base);
            combine_case(b, s, where, p, false, base);
        }
}

Test(dispatch, gather_then_combine) { test_each_backend(gather_combine, NULL); }
