/* Opens a trainer on a fixture or on a small model of its own, in a scratch folder, for the tests of engine/train. */
#ifndef MOE_TESTS_ENGINE_RUN_FIXTURE_H
#define MOE_TESTS_ENGINE_RUN_FIXTURE_H

#include <sys/types.h>

#include "engine/train/commands.h"
#include "tests/fixtures/fixture.h"

typedef struct test_run {
    char dir[512];          /* scratch folder, removed by test_run_close */
    char yaml[600];
    train_config *config;
    run_folder folder;
    trainer_options options; /* io: a simulated disk, the run folder is "run" on it */
    trainer t;
    bool open;
} test_run;

/* A new scratch folder with a data file of `tokens` pseudo-random ids below `vocab`. */
void test_run_make(test_run *r, const char *name, int64_t tokens, int vocab);
/* The YAML of a fixture: model.from its folder and its settings. */
void test_run_fixture_yaml(test_run *r, const fixture *f);
/* The YAML of a small model with odd sizes; `extra` is appended. */
void test_run_small_yaml(test_run *r, const char *extra);

/* Loads the YAML with overrides "a.b=v" (NULL-terminated) and opens the trainer; the run folder keeps what it has. */
moe_err test_run_open(test_run *r, const char *const *sets) MOE_MUST_CHECK;
void test_run_shut(test_run *r);  /* closes the trainer, keeps the folder */
void test_run_close(test_run *r); /* and removes the folder */

/* XXH-like hash of every weight, moment and router bias as of the last finished step, pending updates applied in memory. Closes nothing. */
uint64_t test_run_weights_hash(test_run *r);

/* The least memory that the YAML with these overrides runs in, as "memory.host=..." in buf; returns buf. */
const char *test_run_least_memory(const test_run *r, const char *const *sets, char *buf, size_t size);

/* --- whole runs in a process of their own (run_process.c) --- */

/* What the child does before it trains: limits, mounts. A status > 0 ends it with that status. */
typedef int (*test_before)(const void *arg);
enum { TEST_SKIPPED = 3 }; /* status of a `before` that may not do what it wants here */

/* As `moe-train run` of the YAML with overrides in dir/run; the sentence of an error goes to dir/error.txt. */
pid_t test_process_start(const test_run *r, const char *const *sets, test_before before, const void *arg);
/* Waits; the exit status, 128 + number when a signal ended it. */
int test_process_finish(pid_t pid);
int test_process_run(const test_run *r, const char *const *sets);
/* The run ends with this status and a sentence that holds this text. false: `before` was not permitted. */
bool test_process_fails(const test_run *r, const char *const *sets, test_before before, const void *arg, int status, const char *text);
/* Of the finished run; stops the test when it is not at `step`. */
uint64_t test_process_hash(test_run *r, const char *const *sets, uint64_t step);

/* Criterion: stops the test with the error's sentence. */
#define MUST(call)                                                                          \
    do {                                                                                    \
        const moe_err must_rc = (call);                                                     \
        cr_assert(must_rc == MOE_OK, "%s: %s\n%s", #call, moe_error_text(), moe_error_traces()); \
    } while (0)

#endif
