/* Runs the tests of one program, each in a process of its own, one after the other. The macros are criterion/criterion.h of this
 * folder. Owns: main(), the verdicts, the time limits. Does not own: what is tested. Threads: none in the parent, so a child may
 * start its own under the thread sanitizer too. Rule: exit status 0 only if at least one test ran or was skipped with a reason,
 * and none failed. */
#include <errno.h>
#include <fcntl.h>
#include <fnmatch.h>
#include <getopt.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "tests/runner/criterion/criterion.h"
#include "tests/runner/criterion/redirect.h"

/* What a child tells its parent, in memory they share. */
struct outcome {
    atomic_int failed; /* assertions */
    atomic_bool skipped, finished;
    char reason[512]; /* of skipping */
};

enum verdict { PASSED, FAILED, CRASHED, SKIPPED, VERDICTS };

static struct runner_test *first_test, **last_test = &first_test;
static struct runner_suite *first_suite;
static struct outcome *outcome;
static int report_fd; /* standard error as it was when the program started: a test may redirect its own */
static jmp_buf end_of_test;
static _Thread_local bool on_test_thread;
static FILE *redirected[3]; /* by file descriptor */

void runner_add_test(struct runner_test *t) { *last_test = t, last_test = &t->next; }

void runner_add_suite(struct runner_suite *s) { s->next = first_suite, first_suite = s; }

static void say(const char *file, int line, const char *what, const char *format, va_list args)
{
    char text[32768]; /* some messages carry a whole screen */
    vsnprintf(text, sizeof text, format, args);
    if (file != NULL)
        dprintf(report_fd, "[----] %s:%d: failed: %s%s%s\n", file, line, what, *text ? "\n         " : "", text);
    else
        dprintf(report_fd, "[----] %s", text);
}

static _Noreturn void stop_test(void)
{
    if (on_test_thread)
        longjmp(end_of_test, 1);
    _exit(1);
}

void runner_failed(const char *file, int line, const char *expression, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    say(file, line, expression, format, args);
    va_end(args);
    atomic_fetch_add(&outcome->failed, 1);
}

void runner_failed_and_stop(const char *file, int line, const char *expression, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    say(file, line, expression, format, args);
    va_end(args);
    atomic_fetch_add(&outcome->failed, 1);
    stop_test();
}

void runner_skip(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    vsnprintf(outcome->reason, sizeof outcome->reason, format, args);
    va_end(args);
    outcome->reason[strcspn(outcome->reason, "\n")] = '\0';
    outcome->skipped = true;
    stop_test();
}

void runner_log(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    say(NULL, 0, "", format, args);
    va_end(args);
}

/* --- the streams of a test --- */

static void redirect(int fd, FILE *stream)
{
    fflush(stream);
    redirected[fd] = tmpfile();
    if (redirected[fd] == NULL || dup2(fileno(redirected[fd]), fd) < 0)
        runner_failed_and_stop(__FILE__, __LINE__, "redirection", "file descriptor %d: %s", fd, strerror(errno));
}

/* Its own open file: reading moves no place where the test writes. */
static FILE *open_redirected(int fd)
{
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    FILE *f = redirected[fd] != NULL ? fopen(path, "r") : NULL;
    if (f == NULL)
        runner_failed_and_stop(__FILE__, __LINE__, "redirected", "file descriptor %d was not redirected", fd);
    return f;
}

void cr_redirect_stdout(void) { redirect(STDOUT_FILENO, stdout); }
void cr_redirect_stderr(void) { redirect(STDERR_FILENO, stderr); }
FILE *cr_get_redirected_stdout(void) { return open_redirected(STDOUT_FILENO); }
FILE *cr_get_redirected_stderr(void) { return open_redirected(STDERR_FILENO); }

/* --- one test --- */

static const struct runner_options *suite_options(const struct runner_test *t)
{
    static const struct runner_options none;
    for (const struct runner_suite *s = first_suite; s != NULL; s = s->next)
        if (strcmp(s->name, t->suite) == 0)
            return &s->options;
    return &none;
}

static void call_unless_null(void (*f)(void))
{
    if (f != NULL)
        f();
}

static void begin_and_call(const struct runner_test *t, void *param)
{
    call_unless_null(suite_options(t)->init);
    call_unless_null(t->options.init);
    t->call(param);
}

static void end(const struct runner_test *t)
{
    call_unless_null(t->options.fini);
    call_unless_null(suite_options(t)->fini);
}

static _Noreturn void child(const struct runner_test *t, void *param)
{
    on_test_thread = true;
    if (setjmp(end_of_test) == 0)
        begin_and_call(t, param);
    if (setjmp(end_of_test) == 0) /* after a failure too: what init made is taken away */
        end(t);
    outcome->finished = true;
    exit(outcome->failed ? 1 : 0);
}

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Waits for the child's end, but leaves it a zombie, so that its process group keeps its number. false: it ran out of time. */
static bool wait_for(pid_t pid, double seconds)
{
    const double end = seconds > 0 ? now() + seconds : 1e18;
    sigset_t ended;
    sigemptyset(&ended);
    sigaddset(&ended, SIGCHLD);
    for (;;) {
        siginfo_t info = {0};
        if (waitid(P_PID, (id_t)pid, &info, WEXITED | WNOHANG | WNOWAIT) == 0 && info.si_pid == pid)
            return true;
        double left = end - now();
        if (left <= 0)
            return false;
        left = left < 3600 ? left : 3600;
        sigtimedwait(&ended, NULL, &(struct timespec){(time_t)left, (long)(1e9 * (left - (double)(time_t)left))});
    }
}

static enum verdict judge(const struct runner_test *t, bool in_time, double limit, int status, char *why, size_t why_bytes)
{
    const struct runner_options *o = &t->options, *suite = suite_options(t);
    const int want_signal = o->signal ? o->signal : suite->signal, want_exit = o->exit_code ? o->exit_code : suite->exit_code;
    *why = '\0';
    if (!in_time) {
        snprintf(why, why_bytes, "stopped after %g seconds", limit);
        return FAILED;
    }
    if (outcome->failed) {
        snprintf(why, why_bytes, "%d failed", outcome->failed);
        return FAILED;
    }
    if (WIFSIGNALED(status)) {
        if (WTERMSIG(status) == want_signal)
            return PASSED;
        snprintf(why, why_bytes, "signal %d, %s", WTERMSIG(status), strsignal(WTERMSIG(status)));
        return CRASHED;
    }
    if (outcome->skipped) {
        snprintf(why, why_bytes, "%s", outcome->reason);
        return SKIPPED;
    }
    if (want_signal != 0)
        snprintf(why, why_bytes, "no signal, expected %d, %s", want_signal, strsignal(want_signal));
    else if (WEXITSTATUS(status) != want_exit)
        snprintf(why, why_bytes, "exit status %d, expected %d (a sanitizer's report above?)", WEXITSTATUS(status), want_exit);
    else if (!outcome->finished && want_exit == 0)
        snprintf(why, why_bytes, "left with exit status 0 before its end");
    return *why ? FAILED : PASSED;
}

static enum verdict run_test(const struct runner_test *t, void *param, double default_limit)
{
    static const char *const label[VERDICTS] = {[PASSED] = "PASS", [FAILED] = "FAIL", [CRASHED] = "CRASH", [SKIPPED] = "SKIP"};
    const double own = t->options.timeout > 0 ? t->options.timeout : suite_options(t)->timeout;
    const double limit = own > 0 ? own : default_limit;
    *outcome = (struct outcome){0};
    const double start = now();
    fflush(NULL);
    const pid_t pid = fork();
    if (pid == 0) {
        setpgid(0, 0);
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        sigset_t none;
        sigemptyset(&none);
        sigprocmask(SIG_SETMASK, &none, NULL);
        child(t, param);
    }
    if (pid < 0) {
        dprintf(report_fd, "[FAIL] %s::%s: fork: %s\n", t->suite, t->name, strerror(errno));
        return FAILED;
    }
    setpgid(pid, pid); /* whoever is first */
    const bool in_time = wait_for(pid, limit);
    kill(-pid, SIGKILL); /* what the test left running, too */
    int status;
    waitpid(pid, &status, 0);
    char why[600];
    const enum verdict v = judge(t, in_time, limit, status, why, sizeof why);
    dprintf(report_fd, "[%s] %s::%s: (%.2fs)%s%s\n", label[v], t->suite, t->name, now() - start, *why ? " " : "", why);
    return v;
}

/* --- the program --- */

static int usage(const char *program, int rc)
{
    dprintf(rc ? STDERR_FILENO : STDOUT_FILENO,
            "Usage: %s [--filter SUITE/NAME] [--timeout SECONDS] [--list]\n"
            "  --filter PATTERN   run the tests that match, as in 'cache/*'\n"
            "  --timeout SECONDS  for tests that set none (default: no limit)\n"
            "  --list             show the tests and run none\n",
            program);
    return rc;
}

static void run_all(const char *filter, double limit, bool list, int counts[VERDICTS])
{
    for (const struct runner_test *t = first_test; t != NULL; t = t->next) {
        char name[256];
        snprintf(name, sizeof name, "%s/%s", t->suite, t->name);
        if (filter != NULL && fnmatch(filter, name, FNM_EXTMATCH) != 0)
            continue;
        if (list) {
            printf("%s%s%s\n", name, t->options.description ? ": " : "", t->options.description ? t->options.description : "");
            continue;
        }
        if (t->options.disabled || suite_options(t)->disabled) {
            dprintf(report_fd, "[SKIP] %s::%s: disabled\n", t->suite, t->name);
            counts[SKIPPED]++;
            continue;
        }
        if (t->params == NULL) {
            counts[run_test(t, NULL, limit)]++;
            continue;
        }
        struct criterion_test_params p = t->params();
        for (size_t i = 0; i < p.length; i++)
            counts[run_test(t, (char *)p.params + i * p.size, limit)]++;
        if (p.cleanup != NULL)
            p.cleanup(&p);
    }
}

int main(int argc, char **argv)
{
    static const struct option options[] = {{"filter", required_argument, NULL, 'f'},
                                            {"timeout", required_argument, NULL, 't'},
                                            {"list", no_argument, NULL, 'l'},
                                            {"help", no_argument, NULL, 'h'},
                                            {0}};
    const char *filter = NULL;
    double limit = 0;
    bool list = false;
    for (int c; (c = getopt_long(argc, argv, "", options, NULL)) != -1;) {
        char *end = NULL;
        if (c == 'f')
            filter = optarg;
        else if (c == 'l')
            list = true;
        else if (c == 't' && (limit = strtod(optarg, &end), *end == '\0' && limit > 0))
            continue;
        else
            return usage(argv[0], c == 'h' ? 0 : 64);
    }
    report_fd = fcntl(STDERR_FILENO, F_DUPFD_CLOEXEC, 3);
    outcome = mmap(NULL, sizeof *outcome, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    sigset_t ended;
    sigemptyset(&ended);
    sigaddset(&ended, SIGCHLD);
    if (optind != argc || report_fd < 0 || outcome == MAP_FAILED || signal(SIGCHLD, SIG_DFL) == SIG_ERR ||
        sigprocmask(SIG_BLOCK, &ended, NULL) != 0)
        return usage(argv[0], 64);
    int counts[VERDICTS] = {0};
    run_all(filter, limit, list, counts);
    if (list)
        return 0;
    const int tested = counts[PASSED] + counts[FAILED] + counts[CRASHED];
    dprintf(report_fd, "[====] Synthesis: Tested: %d | Passing: %d | Failing: %d | Crashing: %d | Skipped: %d\n", tested,
            counts[PASSED], counts[FAILED], counts[CRASHED], counts[SKIPPED]);
    if (tested + counts[SKIPPED] == 0)
        dprintf(report_fd, "%s: no test matches '%s'\n", argv[0], filter ? filter : "*");
    return counts[FAILED] + counts[CRASHED] > 0 || tested + counts[SKIPPED] == 0;
}
