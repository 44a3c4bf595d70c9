/* The part of Criterion's interface that the tests use, for builds in which Criterion cannot run (thread sanitizer, machines
 * without it). Owns: the macros and the list of tests. Does not own: printing and processes (tests/runner/runner.c). Threads: an
 * assertion may fail on any thread; on another one than the test's it ends the test's process at once. Rule: a message is a
 * string literal with its arguments, as Criterion wants it too. What is not here is not pretended (tests/CMakeLists.txt). */
#ifndef MOE_TESTS_RUNNER_CRITERION_H
#define MOE_TESTS_RUNNER_CRITERION_H

#include <math.h>
#include <stdbool.h>
#include <stddef.h>
#include <string.h>

struct criterion_test_params {
    size_t size; /* bytes of one parameter */
    void *params;
    size_t length;
    void (*cleanup)(struct criterion_test_params *);
};

/* Written in a test as .init = f, .timeout = 20 ...; a suite's init runs before and its fini after those of the test. */
struct runner_options {
    int first_; /* so that a list without options is a valid initializer */
    void (*init)(void), (*fini)(void);
    int signal, exit_code; /* how the test must end, 0 and 0: by itself */
    double timeout;        /* seconds, 0: none */
    bool disabled;
    const char *description; /* shown by --list */
};

struct runner_test {
    const char *suite, *name, *file;
    int line;
    void (*call)(void *param);
    struct criterion_test_params (*params)(void); /* NULL: the test has no parameter */
    struct runner_options options;
    struct runner_test *next;
};

struct runner_suite {
    const char *name;
    struct runner_options options;
    struct runner_suite *next;
};

void runner_add_test(struct runner_test *t);
void runner_add_suite(struct runner_suite *s);
void runner_failed(const char *file, int line, const char *expression, const char *format, ...)
    __attribute__((format(printf, 4, 5)));
void runner_failed_and_stop(const char *file, int line, const char *expression, const char *format, ...)
    __attribute__((format(printf, 4, 5), noreturn));
void runner_skip(const char *format, ...) __attribute__((format(printf, 1, 2), noreturn));
void runner_log(const char *format, ...) __attribute__((format(printf, 1, 2)));

#define RUNNER_REGISTER(id, kind, ...)                                                                                           \
    static struct runner_##kind id##_##kind = {__VA_ARGS__};                                                                     \
    __attribute__((constructor)) static void id##_register(void) { runner_add_##kind(&id##_##kind); }

#define RUNNER_TEST(suite_, name_, parameters_, ...)                                                                             \
    RUNNER_REGISTER(suite_##_##name_, test, .suite = #suite_, .name = #name_, .file = __FILE__, .line = __LINE__,                \
                    .call = suite_##_##name_##_call, .params = parameters_, .options = {0, ##__VA_ARGS__})

#define Test(suite_, name_, ...)                                                                                                 \
    static void suite_##_##name_##_impl(void);                                                                                   \
    static void suite_##_##name_##_call(void *param) { (void)param, suite_##_##name_##_impl(); }                                 \
    RUNNER_TEST(suite_, name_, NULL, ##__VA_ARGS__)                                                                              \
    static void suite_##_##name_##_impl(void)

#define ParameterizedTestParameters(suite_, name_) static struct criterion_test_params suite_##_##name_##_params(void)
#define ParameterizedTest(param_, suite_, name_, ...)                                                                            \
    static void suite_##_##name_##_impl(param_);                                                                                 \
    static void suite_##_##name_##_call(void *param) { suite_##_##name_##_impl(param); }                                         \
    RUNNER_TEST(suite_, name_, suite_##_##name_##_params, ##__VA_ARGS__)                                                         \
    static void suite_##_##name_##_impl(param_)
#define cr_make_param_array(type, array, ...) ((struct criterion_test_params){sizeof(type), (array), __VA_ARGS__})

#define TestSuite(suite_, ...)                                                                                                   \
    RUNNER_REGISTER(runner_suite_##suite_, suite, .name = #suite_, .options = {0, ##__VA_ARGS__})                                \
    struct runner_suite

#define RUNNER_ASSERT(condition, text, ...)                                                                                      \
    ((condition) ? (void)0 : runner_failed_and_stop(__FILE__, __LINE__, text, "" __VA_ARGS__))
#define RUNNER_EXPECT(condition, text, ...) ((condition) ? (void)0 : runner_failed(__FILE__, __LINE__, text, "" __VA_ARGS__))

#define cr_assert(c, ...)          RUNNER_ASSERT(c, #c, __VA_ARGS__)
#define cr_expect(c, ...)          RUNNER_EXPECT(c, #c, __VA_ARGS__)
#define cr_assert_not(c, ...)      RUNNER_ASSERT(!(c), "!(" #c ")", __VA_ARGS__)
#define cr_expect_not(c, ...)      RUNNER_EXPECT(!(c), "!(" #c ")", __VA_ARGS__)
#define cr_assert_null(p, ...)     RUNNER_ASSERT((p) == NULL, #p " == NULL", __VA_ARGS__)
#define cr_expect_null(p, ...)     RUNNER_EXPECT((p) == NULL, #p " == NULL", __VA_ARGS__)
#define cr_assert_not_null(p, ...) RUNNER_ASSERT((p) != NULL, #p " != NULL", __VA_ARGS__)
#define cr_expect_not_null(p, ...) RUNNER_EXPECT((p) != NULL, #p " != NULL", __VA_ARGS__)
#define cr_assert_fail(...)        RUNNER_ASSERT(false, "this line is not reached", __VA_ARGS__)
#define cr_expect_fail(...)        RUNNER_EXPECT(false, "this line is not reached", __VA_ARGS__)
#define cr_fail(...)               cr_assert_fail(__VA_ARGS__)

#define cr_assert_eq(a, b, ...)  RUNNER_ASSERT((a) == (b), #a " == " #b, __VA_ARGS__)
#define cr_expect_eq(a, b, ...)  RUNNER_EXPECT((a) == (b), #a " == " #b, __VA_ARGS__)
#define cr_assert_neq(a, b, ...) RUNNER_ASSERT((a) != (b), #a " != " #b, __VA_ARGS__)
#define cr_expect_neq(a, b, ...) RUNNER_EXPECT((a) != (b), #a " != " #b, __VA_ARGS__)
#define cr_assert_lt(a, b, ...)  RUNNER_ASSERT((a) < (b), #a " < " #b, __VA_ARGS__)
#define cr_expect_lt(a, b, ...)  RUNNER_EXPECT((a) < (b), #a " < " #b, __VA_ARGS__)
#define cr_assert_leq(a, b, ...) RUNNER_ASSERT((a) <= (b), #a " <= " #b, __VA_ARGS__)
#define cr_expect_leq(a, b, ...) RUNNER_EXPECT((a) <= (b), #a " <= " #b, __VA_ARGS__)
#define cr_assert_gt(a, b, ...)  RUNNER_ASSERT((a) > (b), #a " > " #b, __VA_ARGS__)
#define cr_expect_gt(a, b, ...)  RUNNER_EXPECT((a) > (b), #a " > " #b, __VA_ARGS__)
#define cr_assert_geq(a, b, ...) RUNNER_ASSERT((a) >= (b), #a " >= " #b, __VA_ARGS__)
#define cr_expect_geq(a, b, ...) RUNNER_EXPECT((a) >= (b), #a " >= " #b, __VA_ARGS__)

#define cr_assert_str_eq(a, b, ...) RUNNER_ASSERT(strcmp(a, b) == 0, #a " is " #b, __VA_ARGS__)
#define cr_expect_str_eq(a, b, ...) RUNNER_EXPECT(strcmp(a, b) == 0, #a " is " #b, __VA_ARGS__)
#define cr_assert_str_neq(a, b, ...) RUNNER_ASSERT(strcmp(a, b) != 0, #a " is not " #b, __VA_ARGS__)
#define cr_expect_str_neq(a, b, ...) RUNNER_EXPECT(strcmp(a, b) != 0, #a " is not " #b, __VA_ARGS__)
#define cr_assert_str_empty(a, ...) RUNNER_ASSERT((a)[0] == 0, #a " is empty", __VA_ARGS__)
#define cr_expect_str_empty(a, ...) RUNNER_EXPECT((a)[0] == 0, #a " is empty", __VA_ARGS__)
#define cr_assert_str_not_empty(a, ...) RUNNER_ASSERT((a)[0] != 0, #a " is not empty", __VA_ARGS__)
#define cr_expect_str_not_empty(a, ...) RUNNER_EXPECT((a)[0] != 0, #a " is not empty", __VA_ARGS__)
#define cr_assert_arr_eq(a, b, bytes, ...) RUNNER_ASSERT(memcmp(a, b, bytes) == 0, #a " has the bytes of " #b, __VA_ARGS__)
#define cr_expect_arr_eq(a, b, bytes, ...) RUNNER_EXPECT(memcmp(a, b, bytes) == 0, #a " has the bytes of " #b, __VA_ARGS__)
#define cr_assert_arr_neq(a, b, bytes, ...) RUNNER_ASSERT(memcmp(a, b, bytes) != 0, #a " has not the bytes of " #b, __VA_ARGS__)
#define cr_expect_arr_neq(a, b, bytes, ...) RUNNER_EXPECT(memcmp(a, b, bytes) != 0, #a " has not the bytes of " #b, __VA_ARGS__)
#define cr_assert_float_eq(a, b, eps, ...) RUNNER_ASSERT(fabs((a) - (b)) <= (eps), #a " is " #b " within " #eps, __VA_ARGS__)
#define cr_expect_float_eq(a, b, eps, ...) RUNNER_EXPECT(fabs((a) - (b)) <= (eps), #a " is " #b " within " #eps, __VA_ARGS__)
#define cr_assert_float_neq(a, b, eps, ...) RUNNER_ASSERT(!(fabs((a) - (b)) <= (eps)), #a " is not " #b " within " #eps, __VA_ARGS__)
#define cr_expect_float_neq(a, b, eps, ...) RUNNER_EXPECT(!(fabs((a) - (b)) <= (eps)), #a " is not " #b " within " #eps, __VA_ARGS__)

#define cr_skip(...)      runner_skip("" __VA_ARGS__)
#define cr_skip_test(...) runner_skip("" __VA_ARGS__)
#define cr_log_info(...)  runner_log(__VA_ARGS__)

#endif
