/* Whole runs in a process of their own: kill -9 at random instants, signals, locks, and what goes wrong with files and settings.
 * MOE_TEST_LONG: 120 kills instead of 12. */
#include <criterion/criterion.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tests/engine/run_fixture.h"

static const char *const whole[] = {"train.steps=12", "checkpoint.every=3", NULL};

static void run_path(const test_run *r, char *out, size_t size) { snprintf(out, size, "%s/run", r->dir); }

static pid_t start(const test_run *r, const char *const *sets) { return test_process_start(r, sets, NULL, NULL); }

static int run(const test_run *r, const char *const *sets) { return test_process_run(r, sets); }

static void expect_failure(const test_run *r, const char *const *sets, int status, const char *text)
{
    (void)test_process_fails(r, sets, NULL, NULL, status, text);
}

static uint64_t final_hash(test_run *r) { return test_process_hash(r, whole, 12); }

static void make(test_run *r, const char *name)
{
    test_run_make(r, name, 4096, 61);
    test_run_small_yaml(r, "");
}

static uint64_t uninterrupted(void)
{
    test_run r;
    make(&r, "whole");
    cr_assert_eq(run(&r, whole), 0);
    const uint64_t h = final_hash(&r);
    test_run_close(&r);
    return h;
}

/* One line for every step, in order, whatever happened on the way. */
static void metrics_are_whole(const test_run *r, int steps)
{
    char path[620], line[4096], key[32];
    int step = 0;
    snprintf(path, sizeof path, "%s/run/metrics.jsonl", r->dir);
    FILE *f = fopen(path, "r");
    cr_assert(f != NULL);
    while (fgets(line, sizeof line, f) != NULL) {
        snprintf(key, sizeof key, "\"step\":%d,", ++step);
        cr_assert(strstr(line, key) != NULL, "metrics.jsonl: line %d is not step %d: %.60s", step, step, line);
    }
    fclose(f);
    cr_assert_eq(step, steps, "metrics.jsonl has %d steps, expected %d", step, steps);
}

/* Kills a run again and again at random instants; whatever survives must end where the uninterrupted run ends. */
static void kill_often(const char *name, const char *const *sets, int kills)
{
    const uint64_t expected = uninterrupted();
    uint32_t x = 99;
    for (int done = 0; done < kills;) {
        test_run r;
        make(&r, name);
        for (int status = 137; status != 0;) {
            const pid_t pid = start(&r, sets);
            x = x * 1664525u + 1013904223u;
            if (done < kills) {
                usleep((x >> 8) % 200000);
                kill(pid, SIGKILL);
            }
            status = test_process_finish(pid);
            done += status == 137;
            cr_assert(status == 0 || status == 137, "exit status %d after %d kills", status, done);
        }
        cr_assert(final_hash(&r) == expected, "%s: weights differ from the uninterrupted run after %d kills", name, done);
        metrics_are_whole(&r, 12);
        test_run_close(&r);
    }
}

static int kills(void) { return getenv("MOE_TEST_LONG") != NULL ? 120 : 12; }

Test(run, killed_at_any_instant) { kill_often("killed", whole, kills()); }

Test(run, killed_in_little_memory)
{
    kill_often("killed_small", (const char *[]){"train.steps=12", "checkpoint.every=2", "memory.host=42MiB", NULL}, kills());
}

Test(run, sigterm_commits_the_last_step_and_leaves_with_75)
{
    const uint64_t expected = uninterrupted();
    test_run r;
    make(&r, "sigterm");
    for (int status = 75, delay = 5; status != 0; delay += 17) {
        const pid_t pid = start(&r, whole);
        usleep((useconds_t)delay * 1000);
        kill(pid, SIGTERM);
        status = test_process_finish(pid);
        cr_assert(status == 0 || status == 75 || status == 128 + SIGTERM, "exit status %d", status);
    }
    cr_assert(final_hash(&r) == expected);
    metrics_are_whole(&r, 12);
    test_run_close(&r);
}

Test(run, a_finished_run_says_so_and_a_locked_one_is_refused)
{
    test_run r;
    make(&r, "finished");
    cr_assert_eq(run(&r, whole), 0);
    cr_assert_eq(run(&r, whole), 0);
    char path[600];
    run_folder f;
    run_path(&r, path, sizeof path);
    MUST(run_folder_open(&f, path, false));
    expect_failure(&r, whole, 75, "another process");
    run_folder_close(&f);
    test_run_close(&r);
}

Test(run, another_model_in_the_folder_is_refused)
{
    test_run r;
    make(&r, "other");
    cr_assert_eq(run(&r, NULL), 0);
    expect_failure(&r, (const char *[]){"model.hidden_size=48", NULL}, 78, "model.hidden_size");
    expect_failure(&r, (const char *[]){"optimizer.weight_decay=0.2", NULL}, 78, "weight_decay");
    cr_assert_eq(run(&r, (const char *[]){"train.steps=8", "optimizer.lr=0.001", "memory.host=64MiB", NULL}), 0);
    test_run_close(&r);
}

Test(run, store_folders_in_another_order_are_refused)
{
    const char *const two[] = {"memory.ssd=[a, b]", NULL}, *const turned[] = {"memory.ssd=[b, a]", "train.steps=8", NULL};
    const char *const one[] = {"memory.ssd=[a]", "train.steps=8", NULL}, *const on[] = {"memory.ssd=[a, b]", "train.steps=8", NULL};
    test_run r;
    make(&r, "two_folders");
    cr_assert_eq(run(&r, two), 0);
    expect_failure(&r, turned, 78, "memory.ssd must name the same folders in order");
    expect_failure(&r, one, 78, "memory.ssd must name the same folders in order");
    cr_assert_eq(run(&r, on), 0);
    test_run_close(&r);
}

Test(run, a_loss_that_is_not_finite_ends_with_70)
{
    test_run r;
    make(&r, "nan");
    cr_assert_eq(run(&r, (const char *[]){"train.steps=2", "checkpoint.every=1", NULL}), 0);
    expect_failure(&r, (const char *[]){"optimizer.lr=9e5", "optimizer.schedule.min_lr=9e5", "train.steps=20", NULL}, 70, "not finite");
    cr_assert_eq(run(&r, (const char *[]){"train.steps=2", NULL}), 0); /* the checkpoint still opens */
    test_run_close(&r);
}

static void store_file(const test_run *r, char *out, size_t size)
{
    char list[700];
    snprintf(list, sizeof list, "ls -S %s/run/store/* | head -1", r->dir);
    FILE *p = popen(list, "r");
    cr_assert(p != NULL && fgets(out, (int)size, p) != NULL);
    pclose(p);
    out[strcspn(out, "\n")] = '\0';
}

Test(run, a_flipped_bit_in_a_record_is_65_and_a_missing_store_file_66)
{
    test_run r;
    char path[1024];
    make(&r, "flipped");
    cr_assert_eq(run(&r, (const char *[]){"memory.host=42MiB", NULL}), 0);
    store_file(&r, path, sizeof path);
    const int fd = open(path, O_RDWR);
    struct stat st;
    cr_assert(fd >= 0 && fstat(fd, &st) == 0);
    for (off_t at = 100; at < st.st_size; at += 4096) {
        unsigned char byte;
        cr_assert_eq(pread(fd, &byte, 1, at), 1);
        byte ^= 0x10;
        cr_assert_eq(pwrite(fd, &byte, 1, at), 1);
    }
    close(fd);
    expect_failure(&r, (const char *[]){"memory.host=42MiB", "train.steps=8", NULL}, 65, "section");
    cr_assert_eq(unlink(path), 0);
    expect_failure(&r, (const char *[]){"train.steps=8", NULL}, 66, path);
    test_run_close(&r);
}

Test(run, what_cannot_work_is_refused_before_it_begins)
{
    test_run r;
    make(&r, "refused");
    expect_failure(&r, (const char *[]){"memory.host=20MiB", NULL}, 78, "does not fit");
    expect_failure(&r, (const char *[]){"data.path=nowhere.bin", NULL}, 66, "nowhere.bin");
    expect_failure(&r, (const char *[]){"model.num_experts=700000", "memory.host=200MiB", NULL}, 78, "");
    expect_failure(&r, (const char *[]){"model.vocab_size=60", NULL}, 65, "60");
    expect_failure(&r, (const char *[]){"memory.ssd=[]", NULL}, 78, "at least one folder");
    expect_failure(&r, (const char *[]){"train.tokens_per_step=1073741824", "train.micro_batch_tokens=1073741824", "model.num_experts_per_tok=4",
                   "memory.host=1000000G", NULL}, 78, "routed rows");
    struct stat st;
    if (stat("/dev/shm", &st) == 0) {
        char ssd[128];
        snprintf(ssd, sizeof ssd, "memory.ssd=[/dev/shm/moe-test-%d]", (int)getpid());
        expect_failure(&r, (const char *[]){ssd, "memory.buffered=false", NULL}, 78, "tmpfs");
        ssd[strlen(ssd) - 1] = '\0';
        rmdir(ssd + strlen("memory.ssd=["));
    }
    test_run_close(&r);
}

Test(run, a_folder_that_cannot_be_made_is_73)
{
    test_run r;
    make(&r, "uncreatable");
    char command[1200];
    snprintf(command, sizeof command, "rm -rf %s/run && echo > %s/run", r.dir, r.dir); /* a file where the folder should be */
    cr_assert_eq(system(command), 0);
    expect_failure(&r, NULL, 73, "run");
    test_run_close(&r);
}
