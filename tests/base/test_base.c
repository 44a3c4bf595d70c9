/* Errors and the thread pool. */
#include <criterion/criterion.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "engine/base/error.h"
#include "engine/base/pool.h"

static moe_err leaf(int broken) { return broken ? moe_fail(MOE_E_DATA, "file.bin: expected %d, got %d", 7, broken) : MOE_OK; }

static moe_err middle(int broken)
{
    TRY(leaf(broken));
    return MOE_OK;
}

static moe_err top(int broken)
{
    moe_err rc;
    TRY_GOTO(middle(broken), rc, done);
done:
    return rc;
}

Test(error, the_sentence_of_the_leaf_with_the_way_up)
{
    cr_assert_eq(top(0), MOE_OK);
    cr_assert_eq(top(3), MOE_E_DATA);
    cr_assert_str_eq(moe_error_text(), "file.bin: expected 7, got 3");
    const char *first = strstr(moe_error_traces(), "leaf(broken)");
    cr_assert(first != NULL && strstr(first, "middle(broken)") != NULL, "traces: %s", moe_error_traces());
    char text[64];
    moe_error_take(text, sizeof text);
    cr_assert_eq(moe_fail(MOE_E_IO, "another"), MOE_E_IO);
    cr_assert_eq(moe_error_set(MOE_E_DATA, text), MOE_E_DATA);
    cr_assert_str_eq(moe_error_text(), "file.bin: expected 7, got 3");
    cr_assert_str_eq(moe_error_traces(), "");
}

Test(error, long_sentences_are_cut)
{
    char *big = malloc(3 * MOE_ERROR_TEXT);
    memset(big, 'x', 3 * MOE_ERROR_TEXT - 1);
    big[3 * MOE_ERROR_TEXT - 1] = '\0';
    cr_assert_eq(moe_fail(MOE_E_OS, "%s", big), MOE_E_OS);
    cr_assert_eq(strlen(moe_error_text()), (size_t)MOE_ERROR_TEXT - 1);
    for (int i = 0; i < 200; i++)
        moe_error_trace(MOE_E_OS, "some_call_with_a_long_name(argument)", "file.c", i);
    cr_assert(strlen(moe_error_traces()) < MOE_ERROR_TEXT);
    free(big);
}

typedef struct visit {
    atomic_int *seen;
    int threads;
    moe_pool *pool;
    atomic_int wrong;
} visit;

static void visit_piece(void *ctx, int64_t begin, int64_t end, int worker)
{
    visit *v = ctx;
    char *scratch = moe_pool_scratch(v->pool, worker);
    volatile float tiny = 1e-38f;
    if (worker < 0 || worker >= v->threads || (uintptr_t)scratch % 64 != 0 || tiny * 1e-5f != 0)
        atomic_fetch_add(&v->wrong, 1); /* the last: denormals are flushed on every worker */
    scratch[0] = (char)worker;
    scratch[moe_pool_scratch_bytes(v->pool) - 1] = (char)worker;
    for (int64_t i = begin; i < end; i++)
        atomic_fetch_add(&v->seen[i], 1);
}

Test(pool, every_index_exactly_once)
{
    static const struct {
        int64_t n, grain;
    } loops[] = {{0, 1}, {1, 1}, {1, 100}, {1000, 1}, {1000, 7}, {1001, 1000}, {5000, 64}};
    for (int threads = 1; threads <= 4; threads++) {
        visit v = {.threads = threads};
        cr_assert_eq(moe_pool_open(&v.pool, threads, 10000), MOE_OK);
        cr_assert_eq(moe_pool_threads(v.pool), threads);
        for (int round = 0; round < 50; round++)
            for (size_t i = 0; i < sizeof loops / sizeof *loops; i++) {
                v.seen = calloc((size_t)loops[i].n + 1, sizeof *v.seen);
                moe_pool_for(v.pool, loops[i].n, loops[i].grain, visit_piece, &v);
                for (int64_t j = 0; j < loops[i].n; j++)
                    cr_assert_eq(v.seen[j], 1, "%d threads: index %lld was visited %d times", threads, (long long)j, v.seen[j]);
                free(v.seen);
            }
        cr_assert_eq(v.wrong, 0);
        moe_pool_close(v.pool);
    }
}

Test(pool, what_cannot_be_is_refused)
{
    moe_pool *p;
    cr_assert_eq(moe_pool_open(&p, 0, 0), MOE_E_CONFIG);
    cr_assert_null(p);
    cr_assert_eq(moe_pool_open(&p, 5000, 0), MOE_E_CONFIG);
    cr_assert_eq(moe_pool_open(&p, 1, SIZE_MAX / 2), MOE_E_OS);          /* refused before it is multiplied */
    cr_assert_eq(moe_pool_open(&p, 1, (size_t)1 << 50), MOE_E_OS); /* refused by the kernel */
    cr_assert_null(p);
    moe_pool_close(NULL);
}
