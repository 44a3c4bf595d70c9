/* What the address and undefined-behaviour sanitizers must find, and the runner must call a failure. Built under them only.
 * Threads: none. Rule: as in cases.c. */
#include <criterion/criterion.h>
#include <limits.h>
#include <stdlib.h>

Test(sanitizer, fail_read_after_free)
{
    volatile int *freed = malloc(sizeof *freed);
    free((void *)freed);
    cr_assert(*freed || !*freed);
}

Test(sanitizer, fail_write_past_the_end)
{
    volatile char *eight = malloc(8);
    volatile int end = 8;
    eight[end] = 1;
    free((void *)eight);
}

Test(sanitizer, fail_leak)
{
    char *volatile lost = malloc(100);
    *lost = 1;
    lost = NULL;
}

Test(sanitizer, fail_overflowing_sum)
{
    volatile int most = INT_MAX;
    most = most + 1;
    cr_assert(most != 0);
}
