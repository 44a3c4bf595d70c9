/* What the host tier may hold: limits read from made-up /proc and cgroup files, and the blocks that are counted. */
#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "memory/budget.h"
#include "memory/budget_detect.h"
#include "memory/io.h"
#include "tests/memory/scratch.h"

#define OK(call)                                                                                                                 \
    do {                                                                                                                         \
        const moe_err ok_rc = (call);                                                                                            \
        cr_assert(ok_rc == MOE_OK, "%s: %s", #call, moe_error_text());                                                           \
    } while (0)

static scratch root;

static void setup(void) { scratch_make(&root); }
static void teardown(void) { scratch_remove(&root); }

/* Writes root/path, making the folders on the way. */
static void put(const char *path, const char *text)
{
    char name[1024];
    snprintf(name, sizeof name, "%s%s", root.path, path);
    for (char *p = name + strlen(root.path) + 1; *p != '\0'; p++)
        if (*p == '/') {
            *p = '\0';
            mkdir(name, 0700);
            *p = '/';
        }
    FILE *f = fopen(name, "w");
    cr_assert(f != NULL, "%s", name);
    fputs(text, f);
    fclose(f);
}

TestSuite(budget, .init = setup, .fini = teardown);

Test(budget, cgroup_v1_the_least_of_every_level)
{
    char source[BUDGET_SOURCE] = "";
    put("/proc/self/cgroup", "9:name=systemd:/\n5:cpu,memory:/a/b\n0::/\n");
    put("/proc/self/mountinfo", "32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n35 31 0:32 / /sys/fs/cgroup/memory "
                                "rw,relatime - cgroup cgroup rw,cpu,memory\n");
    put("/sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
    put("/sys/fs/cgroup/memory/a/memory.limit_in_bytes", "1000000000\n");
    put("/sys/fs/cgroup/memory/a/b/memory.limit_in_bytes", "2000000000\n");
    cr_assert_eq(budget_cgroup_limit(root.path, source), 1000000000u);
    cr_assert_str_eq(source, "cgroup v1 memory.limit_in_bytes");
}

Test(budget, cgroup_v2_max_and_high)
{
    char source[BUDGET_SOURCE] = "";
    put("/proc/self/cgroup", "0::/user.slice/job\n");
    put("/proc/self/mountinfo", "41 31 0:38 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n");
    put("/sys/fs/cgroup/user.slice/memory.max", "max\n");
    put("/sys/fs/cgroup/user.slice/job/memory.max", "4000000000\n");
    put("/sys/fs/cgroup/user.slice/job/memory.high", "3000000000\n");
    cr_assert_eq(budget_cgroup_limit(root.path, source), 3000000000u);
    cr_assert_str_eq(source, "cgroup v2 memory.high");
}

Test(budget, both_versions_a_container_and_an_escaped_path)
{
    char source[BUDGET_SOURCE] = "";
    put("/proc/self/cgroup", "4:memory:/docker/abc/inner\n0::/elsewhere\n");
    put("/proc/self/mountinfo", "35 31 0:32 /docker/abc /cg\\040mem rw - cgroup cgroup rw,memory\n"
                                "41 31 0:38 /docker/abc /cg2 rw - cgroup2 cgroup2 rw\n");
    put("/cg mem/memory.limit_in_bytes", "500000000\n");
    put("/cg mem/inner/memory.limit_in_bytes", "400000000\n");
    put("/cg2/memory.max", "300000000\n"); /* the path lies outside of what is mounted: the mount point counts */
    cr_assert_eq(budget_cgroup_limit(root.path, source), 300000000u);
    cr_assert_str_eq(source, "cgroup v2 memory.max");
    put("/cg2/memory.max", "max\n");
    cr_assert_eq(budget_cgroup_limit(root.path, source), 400000000u);
}

Test(budget, no_cgroup_no_proc_nonsense)
{
    char source[BUDGET_SOURCE] = "";
    cr_assert_eq(budget_cgroup_limit(root.path, source), BUDGET_NONE);
    cr_assert_eq(budget_detect_under(root.path, BUDGET_NONE, BUDGET_NONE, source), BUDGET_NONE);
    cr_assert_str_eq(source, "no limit found");
    put("/proc/self/cgroup", "nonsense\n:::\n4:memory\n\n");
    put("/proc/self/mountinfo", "nonsense - \n - cgroup\n1 2 3 - cgroup cgroup memory\n");
    put("/proc/meminfo", "MemAvailable: lots\n");
    cr_assert_eq(budget_cgroup_limit(root.path, source), BUDGET_NONE);
    cr_assert_eq(budget_meminfo_limit(root.path), BUDGET_NONE);
}

Test(budget, the_least_limit_wins_and_is_named)
{
    char source[BUDGET_SOURCE] = "";
    put("/proc/meminfo", "MemTotal: 9000 kB\nMemFree: 100 kB\nMemAvailable:    5000 kB\n");
    put("/proc/self/status", "Name: x\nVmRSS:\t 1000 kB\n");
    cr_assert_eq(budget_detect_under(root.path, BUDGET_NONE, BUDGET_NONE, source), 6000u * 1024);
    cr_assert_str_eq(source, "free memory");
    cr_assert_eq(budget_detect_under(root.path, 4096000, BUDGET_NONE, source), 4096000u);
    cr_assert_str_eq(source, "RLIMIT_DATA");
    cr_assert_eq(budget_detect_under(root.path, 4096000, 4095000, source), 4095000u);
    cr_assert_str_eq(source, "RLIMIT_AS");
}

Test(budget, this_machine_has_an_answer)
{
    char source[BUDGET_SOURCE] = "";
    cr_assert(budget_detect_host(source) > 0);
    cr_assert(source[0] != '\0');
    cr_assert(budget_rss() > 0 && budget_peak_rss() >= budget_rss() / 2 && budget_anonymous() <= budget_peak_rss());
}

Test(budget, blocks_are_counted_aligned_zeroed_and_refused)
{
    budget_set_limit(8 << 20);
    void *a, *b, *c;
    OK(budget_alloc(&a, 1, "one byte"));
    cr_assert_eq(budget_used(), IO_ALIGN);
    OK(budget_alloc(&b, (4 << 20) + 5, "big"));
    cr_assert((uintptr_t)a % IO_ALIGN == 0 && (uintptr_t)b % (2 << 20) == 0);
    for (size_t i = 0; i < (4 << 20) + 5; i += 4093)
        cr_assert_eq(((char *)b)[i], 0);
    memset(b, 1, (4 << 20) + 5);
    cr_assert_eq(budget_alloc(&c, 4 << 20, "too big"), MOE_E_CONFIG);
    cr_assert(c == NULL && strstr(moe_error_text(), "too big needs 4.0 MiB") != NULL, "%s", moe_error_text());
    cr_assert_eq(budget_alloc(&c, SIZE_MAX - 100, "absurd"), MOE_E_CONFIG);
    budget_free(b);
    OK(budget_alloc(&c, 4 << 20, "fits now"));
    budget_free(a);
    budget_free(c);
    budget_free(NULL);
    cr_assert_eq(budget_used(), 0);
}
