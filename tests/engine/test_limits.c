/* Whole runs where the system forbids or lacks something: io_uring, locked memory, memory itself, a writable folder, space on the disk.
 * They end like the undisturbed run, bit for bit, or with the status and the path that tell what was missing.
 * What may not be set up here (mounts, cgroups) is skipped and said. */
#include <criterion/criterion.h>
#include <errno.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "tests/engine/run_fixture.h"

static char host[64];
static const char *const little[] = {"train.steps=8", "checkpoint.every=3", host, NULL};

static void make(test_run *r, const char *name)
{
    test_run_make(r, name, 4096, 61);
    test_run_small_yaml(r, "");
    test_run_least_memory(r, NULL, host, sizeof host);
}

static uint64_t undisturbed(void)
{
    test_run r;
    make(&r, "limits_whole");
    cr_assert_eq(test_process_run(&r, little), 0);
    const uint64_t h = test_process_hash(&r, little, 8);
    test_run_close(&r);
    return h;
}

static void ends_equal(const char *name, test_before before)
{
    const uint64_t expected = undisturbed();
    test_run r;
    make(&r, name);
    const int status = test_process_finish(test_process_start(&r, little, before, NULL));
    if (status == TEST_SKIPPED)
        cr_skip("%s: not permitted here\n", name);
    cr_assert_eq(status, 0, "%s: exit status %d", name, status);
    cr_assert(test_process_hash(&r, little, 8) == expected, "%s: weights differ", name);
    test_run_close(&r);
}

/* --- what a container forbids ----------------------------------------------------------------------------------------------------- */

/* Every io_uring call fails with EPERM, as under Docker's profile. */
static int forbid_io_uring(const void *arg)
{
    (void)arg;
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JGE | BPF_K, __NR_io_uring_setup, 0, 2),
        BPF_JUMP(BPF_JMP | BPF_JGT | BPF_K, __NR_io_uring_register, 1, 0),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    const struct sock_fprog program = {.len = sizeof code / sizeof *code, .filter = code};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) != 0)
        return TEST_SKIPPED;
    return syscall(__NR_io_uring_setup, 1, NULL) == -1 && errno == EPERM ? 0 : TEST_SKIPPED;
}

Test(limits, io_uring_forbidden) { ends_equal("no_io_uring", forbid_io_uring); }

Test(limits, io_uring_forbidden_but_demanded_is_71)
{
    test_run r;
    make(&r, "demanded");
    if (!test_process_fails(&r, (const char *[]){"memory.io=io_uring", NULL}, forbid_io_uring, NULL, 71, "io_uring"))
        cr_skip("no seccomp here\n");
    test_run_close(&r);
}

/* An ordinary user with the usual 64 KiB that may be locked. */
static int lock_little(const void *arg)
{
    (void)arg;
    const struct rlimit limit = {64 << 10, 64 << 10};
    if (setrlimit(RLIMIT_MEMLOCK, &limit) != 0)
        return TEST_SKIPPED;
    struct __user_cap_header_struct head = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct cap[2];
    if (syscall(SYS_capget, &head, cap) != 0)
        return TEST_SKIPPED;
    cap[0].effective &= ~(1u << CAP_IPC_LOCK);
    cap[0].permitted &= ~(1u << CAP_IPC_LOCK);
    return syscall(SYS_capset, &head, cap) == 0 ? 0 : TEST_SKIPPED;
}

Test(limits, memlock_64_KiB) { ends_equal("memlock", lock_little); }

/* --- folders and disks ------------------------------------------------------------------------------------------------------------ */

static int own_mounts(void) { return unshare(CLONE_NEWNS) == 0 && mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) == 0 ? 0 : TEST_SKIPPED; }

static int make_read_only(const void *path)
{
    if (own_mounts() != 0 || mount(path, path, NULL, MS_BIND, NULL) != 0)
        return TEST_SKIPPED;
    return mount(path, path, NULL, MS_BIND | MS_REMOUNT | MS_RDONLY, NULL) == 0 ? 0 : TEST_SKIPPED;
}

static void read_only(const char *name, const char *part, int status, const char *expected_path)
{
    test_run r;
    char path[700], text[800];
    make(&r, name);
    cr_assert_eq(test_process_run(&r, little), 0);
    const uint64_t before = test_process_hash(&r, little, 8);
    snprintf(path, sizeof path, "%s/run%s", r.dir, part);
    snprintf(text, sizeof text, "%s/run/%s", r.dir, expected_path);
    const char *more[] = {"train.steps=12", "checkpoint.every=3", host, NULL};
    if (!test_process_fails(&r, more, make_read_only, path, status, text))
        cr_skip("no mounts may be made here\n");
    cr_assert(test_process_hash(&r, little, 8) == before, "%s: the last checkpoint has changed", name);
    test_run_close(&r);
}

Test(limits, a_run_folder_that_cannot_be_written_is_73) { read_only("ro_run", "", 73, "lock"); }

Test(limits, a_store_that_cannot_be_written_is_74) { read_only("ro_store", "/store", 74, "store/slot-0.bin"); }

Test(limits, a_checkpoint_folder_that_cannot_be_written_is_74) { read_only("ro_checkpoint", "/checkpoint", 74, "checkpoint/"); }

typedef struct small_disk {
    char path[700];
    uint64_t bytes;
} small_disk;

/* A disk of its own for the run folder; in memory, so that it is as small as the test likes. */
static int mount_small_disk(const void *arg)
{
    const small_disk *d = arg;
    char size[64];
    snprintf(size, sizeof size, "size=%llu", (unsigned long long)d->bytes);
    if (own_mounts() != 0 || (mkdir(d->path, 0777) != 0 && errno != EEXIST))
        return TEST_SKIPPED;
    return mount("tmpfs", d->path, "tmpfs", 0, size) == 0 ? 0 : TEST_SKIPPED;
}

static void on_small_disk(const char *name, double dense_parts, int status, const char *text)
{
    test_run r;
    small_disk d;
    make(&r, name);
    MUST(test_run_open(&r, little));
    const train_plan p = r.t.plan;
    test_run_shut(&r);
    snprintf(d.path, sizeof d.path, "%s/run", r.dir);
    store_config s = {.ndirs = 1, .sections = (int32_t)p.sections, .slots = p.store_slots, .spill_bytes = p.spill_bytes};
    for (int i = 0; i < STORE_PARTS; i++)
        s.part_bytes[i] = plan_part_bytes(&p, (store_part)i);
    const uint64_t room = 64 << 10; /* names, configuration, metrics */
    d.bytes = store_disk_bytes(&s) + room + (uint64_t)(dense_parts * 0.5 * (double)p.dense_file_bytes);
    if (!test_process_fails(&r, little, mount_small_disk, &d, status, text))
        cr_skip("no mounts may be made here\n");
    test_run_close(&r);
}

Test(limits, a_disk_too_small_for_the_store_is_78) { on_small_disk("small_disk", -2, 78, "the disk is too small: the store needs"); }

Test(limits, a_disk_without_room_for_the_first_checkpoint_is_74)
{
    on_small_disk("full_disk", 0.5, 74, "checkpoint/dense-0.bin");
}

/* Writes stop in the middle of a request, as on a full disk: the file size limit gives short writes, then EFBIG. */
static int limit_file_size(const void *arg)
{
    const struct rlimit limit = {*(const rlim_t *)arg, RLIM_INFINITY};
    signal(SIGXFSZ, SIG_IGN);
    return setrlimit(RLIMIT_FSIZE, &limit) == 0 ? 0 : TEST_SKIPPED;
}

Test(limits, a_short_write_is_74_and_the_last_checkpoint_opens)
{
    const char *const constant = "optimizer.schedule.kind=constant"; /* the same with 4 steps planned as with 8 */
    const char *const before[] = {"train.steps=4", constant, "checkpoint.every=2", "memory.io=pread", host, NULL};
    const char *const after[] = {"train.steps=8", constant, "checkpoint.every=2", "memory.io=pread", host, NULL};
    test_run r;
    make(&r, "short_write");
    const char *const straight[] = {"train.steps=8", constant, host, NULL};
    cr_assert_eq(test_process_run(&r, straight), 0);
    const uint64_t expected = test_process_hash(&r, straight, 8);
    test_run_close(&r);
    make(&r, "short_write");
    cr_assert_eq(test_process_run(&r, before), 0);
    const rlim_t bytes = (64 << 10) + 512; /* inside one of the first records */
    if (!test_process_fails(&r, after, limit_file_size, &bytes, 74, "File too large"))
        cr_skip("the file size cannot be limited\n");
    cr_assert_eq(test_process_run(&r, after), 0);
    cr_assert(test_process_hash(&r, after, 8) == expected, "weights differ after a short write");
    test_run_close(&r);
}

/* --- memory ----------------------------------------------------------------------------------------------------------------------- */

/* The largest value of a field in metrics.jsonl. */
static uint64_t largest(const test_run *r, const char *field)
{
    char path[600], line[4096], key[64];
    uint64_t most = 0;
    snprintf(path, sizeof path, "%s/run/metrics.jsonl", r->dir);
    snprintf(key, sizeof key, "\"%s\":", field);
    FILE *f = fopen(path, "r");
    cr_assert(f != NULL);
    while (fgets(line, sizeof line, f) != NULL) {
        const char *at = strstr(line, key);
        const uint64_t x = at != NULL ? strtoull(at + strlen(key), NULL, 10) : 0;
        most = x > most ? x : most;
    }
    fclose(f);
    return most;
}

/* moe-train in a cgroup of exactly the least memory that the plan names, rounded up to whole MiB: no kill, the same end. */
static void in_cgroup(const char *name, const char *const *sizes, uint64_t steps)
{
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
    cr_skip("the shadow memory of a sanitizer counts too\n");
#endif
    test_run r;
    char command[4096], told[600], kind[16] = "", least[64];
    make(&r, name);
    cr_assert_eq(test_process_run(&r, sizes), 0);
    const uint64_t expected = test_process_hash(&r, sizes, steps);
    test_run_close(&r);
    make(&r, name);
    test_run_least_memory(&r, sizes, least, sizeof least);
    const long mib = (long)((strtoull(strchr(least, '=') + 1, NULL, 10) + (1 << 20) - 1) >> 20);
    snprintf(told, sizeof told, "%s/report", r.dir);
    int n = snprintf(command, sizeof command, "LIMIT_REPORT=%s bench/demo/limit.sh %ld %s run %s --run-dir %s/run --quiet --set memory.host=null",
                     told, mib, MOE_TRAIN_PROGRAM, r.yaml, r.dir);
    for (int i = 0; sizes[i] != NULL; i++)
        n += snprintf(command + n, sizeof command - (size_t)n, " --set %s", sizes[i]);
    snprintf(command + n, sizeof command - (size_t)n, " 2>%s/log", r.dir);
    const int status = system(command);
    long peak = 0, kills = -1;
    FILE *f = fopen(told, "r");
    cr_assert(f != NULL && fscanf(f, "%15s %ld %ld", kind, &peak, &kills) == 3);
    fclose(f);
    if (strcmp(kind, "rlimit") == 0)
        cr_skip("no cgroup may be made here\n");
    cr_assert(WIFEXITED(status) && WEXITSTATUS(status) == 0, "status %#x in %ld MiB (peak %ld MiB, %ld killed), see %s/log", status, mib, peak,
              kills, r.dir);
    cr_assert_eq(kills, 0);
    cr_assert_leq(largest(&r, "rss_bytes"), (uint64_t)mib << 20);
    cr_assert(test_process_hash(&r, sizes, steps) == expected, "%s: weights differ", name);
    test_run_close(&r);
}

Test(limits, smallest_cgroup) { in_cgroup("cgroup", (const char *[]){"train.steps=6", "checkpoint.every=2", NULL}, 6); }

Test(limits, smallest_cgroup_of_a_larger_model)
{
    in_cgroup("cgroup_larger", (const char *[]){"train.steps=3", "checkpoint.every=1", "model.hidden_size=192", "model.num_hidden_layers=3",
              "model.moe_intermediate_size=256", "model.num_experts=8", "model.vocab_size=2000", "train.seq_len=64",
              "train.tokens_per_step=1024", "train.micro_batch_tokens=512", NULL}, 3);
}
