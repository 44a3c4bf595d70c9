/* moe-serve as a user starts it: what goes to stdout, what to stderr, and the exit status. */
#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

typedef struct outcome {
    char out[1 << 14];
    int status;
} outcome;

/* Runs moe-serve with these words in a shell; stderr follows stdout when `both`. */
static void run(outcome *o, const char *words, bool both)
{
    char command[4096];
    snprintf(command, sizeof command, "%s %s 2>%s", MOE_SERVE_PROGRAM, words, both ? "&1" : "/dev/null");
    FILE *f = popen(command, "r");
    cr_assert_not_null(f);
    o->out[fread(o->out, 1, sizeof o->out - 1, f)] = '\0';
    const int status = pclose(f);
    o->status = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static void expect(const char *words, int status, const char *text)
{
    static outcome o;
    run(&o, words, true);
    cr_assert_eq(o.status, status, "%s: exit status %d, expected %d: %s", words, o.status, status, o.out);
    cr_assert_not_null(strstr(o.out, text), "%s: \"%s\" is not in: %s", words, text, o.out);
}

Test(serve_cli, help_and_mistakes)
{
    expect("--help", 0, "replay");
    expect("--version", 0, "moe-serve");
    expect("", 64, "moe-serve");
    expect("replya x", 64, "replay");
    expect("replay --help", 0, "--slots");
    expect("replay", 64, "TRACE");
    expect("replay /nonexistent", 64, "--slots");
    expect("replay /nonexistent --slots 4", 66, "/nonexistent");
    expect("replay tests/fixtures/traces/README.md --slots 4", 65, "README.md");
}

Test(serve_cli, replay_of_a_small_trace)
{
    static outcome o;
    char path[] = "/tmp/moe_serve_trace_XXXXXX", words[256];
    const int fd = mkstemp(path);
    cr_assert_geq(fd, 0);
    FILE *f = fdopen(fd, "w");
    for (int t = 0; t < 8; t++) /* two experts in turn: one slot never hits, two always do after the first quarter */
        fprintf(f, "{\"tok\": %d, \"layers\": [[%d]]}\n", t, t % 2);
    fclose(f);
    snprintf(words, sizeof words, "replay %s --slots 2 --policy lru --json", path);
    run(&o, words, false);
    cr_assert_eq(o.status, 0, "%s", o.out);
    cr_assert_eq(o.out[0], '{', "%s", o.out);
    cr_assert_not_null(strstr(o.out, "lru"), "%s", o.out);
    snprintf(words, sizeof words, "replay %s --slots 2 --policy best", path);
    expect(words, 78, "lru");
    unlink(path);
}
