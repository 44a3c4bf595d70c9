/* Tests that end in every way there is, most of them badly: tests/runner/test_runner.sh runs each alone and looks at the exit
 * status. Built twice, with the runner of this folder and with Criterion: both must give the same verdicts. Threads: one case
 * fails on a thread of its own. Rule: a case is named after the verdict it must get (pass_, fail_). */
#include <criterion/criterion.h>
#include <criterion/parameterized.h>
#include <criterion/redirect.h>
#include <math.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static int made;

static void make(void) { made++; }
static void farewell(void) { fprintf(stderr, "fini after %d\n", made); }

TestSuite(fixture, .init = make);

Test(fixture, pass_both_inits, .init = make, .timeout = 20) { cr_assert_eq(made, 2); }
Test(fixture, fail_and_fini_still_runs, .fini = farewell)
{
    made += 40;
    cr_assert_fail("a reason to end early");
}

Test(plain, pass_every_assertion)
{
    cr_assert(1 < 2);
    cr_expect(made == 0, "a message that is not shown: %d", made);
    cr_assert_not(made);
    cr_assert_null(NULL);
    cr_assert_not_null("x");
    cr_assert_eq(2 * 2, 4);
    cr_assert_neq(2 * 2, 5, "%s", "text");
    cr_expect_lt(1, 2);
    cr_expect_leq(2, 2);
    cr_expect_gt(3, 2);
    cr_expect_geq(3, 3);
    cr_expect_str_eq("a", "a");
    cr_expect_str_neq("a", "b");
    cr_expect_str_empty("");
    cr_expect_arr_eq("abc", "abd", 2);
    cr_expect_float_eq(0.1 + 0.2, 0.3, 1e-15);
}

Test(plain, fail_assert) { cr_assert_eq(made, 1, "made is %d", made); }
Test(plain, fail_expect_and_go_on)
{
    cr_expect_str_eq("a", "b");
    made = 1;
}
Test(plain, fail_float) { cr_expect_float_eq(0.1, NAN, 1.0); }
Test(plain, fail_assert_fail) { cr_assert_fail("never reached"); }

/* The assertion ends the test: what follows would make it a crash that is expected. */
Test(plain, fail_stops_at_the_assertion, .signal = SIGSEGV)
{
    cr_assert(made);
    raise(SIGSEGV);
}

static void *fails(void *unused)
{
    (void)unused;
    cr_expect(made, "on another thread");
    return NULL;
}

Test(plain, fail_on_another_thread)
{
    pthread_t thread;
    cr_assert_eq(pthread_create(&thread, NULL, fails, NULL), 0);
    pthread_join(thread, NULL);
}

Test(process, fail_crash) { raise(SIGKILL); } /* not SIGSEGV: a sanitizer makes that an exit status */
Test(process, pass_expected_signal, .signal = SIGKILL) { raise(SIGKILL); }
Test(process, fail_expected_signal_that_does_not_come, .signal = SIGKILL) { made = 1; }
Test(process, fail_exit) { exit(3); }
Test(process, pass_expected_exit, .exit_code = 3) { exit(3); }
Test(process, fail_timeout, .timeout = 0.3) { sleep(20); }
Test(process, pass_skip) { cr_skip_test("for a reason: %d\n", made); }
Test(process, pass_disabled, .disabled = true) { cr_assert(made); }

/* A test sees the state of the program's start, whatever ran before. */
Test(state, pass_one) { cr_assert_eq(made++, 0); }
Test(state, pass_two) { cr_assert_eq(made++, 0); }

ParameterizedTestParameters(parameter, pass_each)
{
    static int values[] = {1, 2, 3};
    return cr_make_param_array(int, values, 3);
}
ParameterizedTest(int *value, parameter, pass_each) { cr_assert(*value >= 1 && *value <= 3); }

ParameterizedTestParameters(parameter, fail_one_of_three)
{
    static int values[] = {1, 2, 3};
    return cr_make_param_array(int, values, 3);
}
ParameterizedTest(int *value, parameter, fail_one_of_three) { cr_assert_neq(*value, 3); }

Test(streams, pass_read_back, .init = cr_redirect_stdout)
{
    cr_redirect_stderr();
    printf("out %d", 1);
    fprintf(stderr, "err");
    fflush(stdout);
    fflush(stderr);
    char text[16] = {0};
    cr_assert_eq(fread(text, 1, 5, cr_get_redirected_stdout()), 5);
    cr_expect_str_eq(text, "out 1");
    memset(text, 0, sizeof text);
    cr_assert_eq(fread(text, 1, 3, cr_get_redirected_stderr()), 3);
    cr_expect_str_eq(text, "err");
}
