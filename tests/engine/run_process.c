/* Whole runs in a process of their own, and what became of them. */
#include <criterion/criterion.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/engine/run_fixture.h"

static void error_path(const test_run *r, char *out, size_t size) { snprintf(out, size, "%s/error.txt", r->dir); }

/* In the child: what moe-train run does. */
static int child_run(const test_run *r, const char *const *sets)
{
    char run[600], path[600];
    train_config *c;
    int n = 0;
    while (sets != NULL && sets[n] != NULL)
        n++;
    snprintf(run, sizeof run, "%s/run", r->dir);
    error_path(r, path, sizeof path);
    moe_err rc = train_config_load(&c, r->yaml, sets, n);
    if (rc == MOE_OK) {
        rc = command_run(c, &(run_options){.run_dir = run, .quiet = true});
        train_config_free(c);
    }
    FILE *f = fopen(path, "w");
    if (f != NULL) {
        fputs(rc == MOE_OK ? "" : moe_error_text(), f);
        fclose(f);
    }
    return (int)rc;
}

pid_t test_process_start(const test_run *r, const char *const *sets, test_before before, const void *arg)
{
    const pid_t pid = fork();
    if (pid == 0) {
        const int status = before != NULL ? before(arg) : 0;
        _exit(status != 0 ? status : child_run(r, sets));
    }
    cr_assert(pid > 0);
    return pid;
}

int test_process_finish(pid_t pid)
{
    int status;
    cr_assert_eq(waitpid(pid, &status, 0), pid);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

int test_process_run(const test_run *r, const char *const *sets) { return test_process_finish(test_process_start(r, sets, NULL, NULL)); }

bool test_process_fails(const test_run *r, const char *const *sets, test_before before, const void *arg, int status, const char *text)
{
    const int got = test_process_finish(test_process_start(r, sets, before, arg));
    if (got == TEST_SKIPPED)
        return false;
    char path[600], sentence[MOE_ERROR_TEXT] = "";
    error_path(r, path, sizeof path);
    FILE *f = fopen(path, "r");
    if (f != NULL) {
        sentence[fread(sentence, 1, sizeof sentence - 1, f)] = '\0';
        fclose(f);
    }
    cr_assert_eq(got, status, "exit status %d, expected %d: %s", got, status, sentence);
    cr_assert(strstr(sentence, text) != NULL, "expected \"%s\" in: %s", text, sentence);
    return true;
}

uint64_t test_process_hash(test_run *r, const char *const *sets, uint64_t step)
{
    MUST(test_run_open(r, sets));
    cr_assert_eq(r->t.finished, step);
    const uint64_t h = test_run_weights_hash(r);
    test_run_shut(r);
    return h;
}
