/* What the thread sanitizer must find, and the runner must call a failure. Built under it only.
 * Threads: two that race. Rule: as in cases.c. */
#include <criterion/criterion.h>
#include <pthread.h>

static long sum;

static void *add(void *unused)
{
    (void)unused;
    for (int i = 0; i < 1000; i++)
        sum++;
    return NULL;
}

Test(sanitizer, fail_data_race)
{
    pthread_t thread;
    cr_assert_eq(pthread_create(&thread, NULL, add, NULL), 0);
    add(NULL);
    pthread_join(thread, NULL);
    cr_assert(sum > 0);
}
