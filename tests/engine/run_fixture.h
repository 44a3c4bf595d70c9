/* Opens a trainer on a fixture or on a small model of its own, in a scratch folder, for the tests of engine/train. */
#ifndef MOE_TESTS_ENGINE_RUN_FIXTURE_H
#define MOE_TESTS_ENGINE_RUN_FIXTURE_H

#include "engine/train/commands.h"
#include "tests/fixtures/fixture.h"

typedef struct test_run {
    char dir[512];          /* scratch folder, removed by test_run_close */
    char yaml[600];
    train_config *config;
    run_folder folder;
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

/* Criterion: stops the test with the error's sentence. */
#define MUST(call)                                                                          \
    do {                                                                                    \
        const moe_err must_rc = (call);                                                     \
        cr_assert(must_rc == MOE_OK, "%s: %s\n%s", #call, moe_error_text(), moe_error_traces()); \
    } while (0)

#endif
