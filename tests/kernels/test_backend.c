/* The tables of kernels/backend.c: every entry filled, the choice by name and by processor. Owns nothing. One thread.
 * Rule: what an operation computes is tested beside it; here only that it is there. */
#include <criterion/criterion.h>
#include <string.h>

#include "kernels/tables.h"
#include "tests/kernels/harness.h"

Test(backend, no_operation_is_missing)
{
    for (int i = 0; moe_backend_at(i) != NULL; i++) {
        const moe_backend *b = moe_backend_at(i);
#define FILLED(op, args) cr_assert_not_null(b->op, "%s: %s is NULL", b->name, #op);
        KERNEL_LIST(FILLED)
#undef FILLED
    }
}

/* KERNEL_LIST names each entry of the structure once, so that an operation added to one is not forgotten in the other. */
Test(backend, the_list_of_operations_is_the_structure)
{
#define COUNT(op, args) +1
    cr_assert_eq(sizeof(moe_backend), sizeof(char *) + (0 KERNEL_LIST(COUNT)) * sizeof(matmul_fn));
#undef COUNT
}

Test(backend, the_reference_is_first_and_the_fastest_is_chosen)
{
    int last = 0;
    cr_assert_str_eq(moe_backend_at(0)->name, "ref");
    while (moe_backend_at(last + 1) != NULL)
        last++;
    static const char *const automatic[] = {NULL, "auto"};
    for (int i = 0; i < 2; i++) {
        const moe_backend *found;
        cr_assert_eq(moe_backend_find(&found, automatic[i]), MOE_OK);
        cr_assert_eq(found, moe_backend_at(last));
    }
    for (int i = 0; i <= last; i++) {
        const moe_backend *found;
        cr_assert_eq(moe_backend_find(&found, moe_backend_at(i)->name), MOE_OK);
        cr_assert_eq(found, moe_backend_at(i));
    }
}

Test(backend, an_unknown_name_is_a_sentence_that_says_which_exist)
{
    const moe_backend *found = moe_backend_at(0);
    cr_assert_eq(moe_backend_find(&found, "avx1024"), MOE_E_CONFIG);
    cr_assert_null(found);
    cr_assert_not_null(strstr(moe_error_text(), "\"avx1024\""));
    cr_assert_not_null(strstr(moe_error_text(), "auto, ref"));
}
