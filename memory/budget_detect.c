#include "memory/budget_detect.h"

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "memory/budget.h"

/* A cgroup mount (mountinfo, proc(5)): which hierarchy, which of its folders is mounted, and where. */
typedef struct mount {
    bool v2;
    char root[1024], point[1024];
} mount;

enum { MOUNTS = 8, LINE = 4096 };

static FILE *open_under(const char *root, const char *path)
{
    char name[LINE];
    if (snprintf(name, sizeof name, "%s%s", root, path) >= (int)sizeof name)
        return NULL;
    return fopen(name, "re");
}

uint64_t budget_proc_value(const char *root, const char *path, const char *key)
{
    FILE *f = open_under(root, path);
    if (f == NULL)
        return BUDGET_NONE;
    char line[LINE];
    uint64_t value = BUDGET_NONE;
    const size_t n = strlen(key);
    while (value == BUDGET_NONE && fgets(line, sizeof line, f) != NULL) {
        unsigned long long kb = 0;
        if (strncmp(line, key, n) == 0 && line[n] == ':' && sscanf(line + n + 1, "%llu", &kb) == 1 && kb < BUDGET_NONE / 1024)
            value = (uint64_t)kb * 1024;
    }
    fclose(f);
    return value;
}

uint64_t budget_meminfo_limit(const char *root)
{
    uint64_t available = budget_proc_value(root, "/proc/meminfo", "MemAvailable");
    if (available == BUDGET_NONE) /* kernels before 3.14 */
        available = budget_proc_value(root, "/proc/meminfo", "MemFree");
    const uint64_t held = budget_proc_value(root, "/proc/self/status", "VmRSS");
    if (available == BUDGET_NONE || held == BUDGET_NONE)
        return available;
    return available + held;
}

/* One number from one file; "max" and v1's near-2^63 mean no limit. */
static uint64_t read_limit(const char *root, const char *dir, const char *file)
{
    char path[LINE], text[64] = "";
    if (snprintf(path, sizeof path, "%s/%s", dir, file) >= (int)sizeof path)
        return BUDGET_NONE;
    FILE *f = open_under(root, path);
    if (f == NULL)
        return BUDGET_NONE;
    const bool got = fgets(text, sizeof text, f) != NULL;
    fclose(f);
    if (!got || text[0] < '0' || text[0] > '9')
        return BUDGET_NONE;
    errno = 0;
    const unsigned long long v = strtoull(text, NULL, 10);
    return errno != 0 || v >= (1ULL << 62) ? BUDGET_NONE : (uint64_t)v;
}

/* mountinfo writes space, tab, newline and backslash as \ooo. */
static void unescape(char *s)
{
    char *to = s;
    for (; *s != '\0'; s++) {
        if (s[0] == '\\' && s[1] >= '0' && s[1] <= '3' && s[2] >= '0' && s[2] <= '7' && s[3] >= '0' && s[3] <= '7') {
            *to++ = (char)((s[1] - '0') * 64 + (s[2] - '0') * 8 + (s[3] - '0'));
            s += 3;
        } else {
            *to++ = *s;
        }
    }
    *to = '\0';
}

/* Is `word` one of the comma-separated words of list? */
static bool has_word(const char *list, const char *word)
{
    const size_t n = strlen(word);
    for (const char *p = list; p != NULL; p = strchr(p, ',')) {
        p += *p == ',';
        if (strncmp(p, word, n) == 0 && (p[n] == ',' || p[n] == '\0' || p[n] == '\n'))
            return true;
    }
    return false;
}

static int find_mounts(const char *root, mount *out)
{
    FILE *f = open_under(root, "/proc/self/mountinfo");
    if (f == NULL)
        return 0;
    char line[LINE];
    int n = 0;
    while (n < MOUNTS && fgets(line, sizeof line, f) != NULL) {
        char type[64], options[1024];
        mount m = {0};
        const char *dash = strstr(line, " - ");
        if (dash == NULL || sscanf(line, "%*s %*s %*s %1023s %1023s", m.root, m.point) != 2 ||
            sscanf(dash + 3, "%63s %*s %1023s", type, options) != 2)
            continue;
        m.v2 = strcmp(type, "cgroup2") == 0;
        if (!m.v2 && !(strcmp(type, "cgroup") == 0 && has_word(options, "memory")))
            continue;
        unescape(m.root);
        unescape(m.point);
        out[n++] = m;
    }
    fclose(f);
    return n;
}

/* The path of this process in a hierarchy, from /proc/self/cgroup: "5:memory:/a/b" (v1), "0::/a/b" (v2). */
static bool find_path(const char *root, bool v2, char *path, size_t size)
{
    FILE *f = open_under(root, "/proc/self/cgroup");
    if (f == NULL)
        return false;
    char line[LINE];
    bool found = false;
    while (!found && fgets(line, sizeof line, f) != NULL) {
        char *names = strchr(line, ':');
        char *where = names == NULL ? NULL : strchr(names + 1, ':');
        if (where == NULL)
            continue;
        *where++ = '\0';
        names++;
        where[strcspn(where, "\n")] = '\0';
        if (v2 ? (names[0] == '\0' && strncmp(line, "0:", 1) == 0) : has_word(names, "memory"))
            found = snprintf(path, size, "%s", where) < (int)size;
    }
    fclose(f);
    return found;
}

/* Walks from the process's own folder up to the mount point. A container often mounts only its own folder (m->root == its path),
 * or sees a path that lies outside of the mount: then the mount point itself is the nearest folder there is. */
static uint64_t walk_up(const char *root, const mount *m, const char *path, char *source)
{
    static const char *const files[2][2] = {{"memory.limit_in_bytes", NULL}, {"memory.max", "memory.high"}};
    const char *inside = path;
    const size_t nroot = strlen(m->root);
    if (strcmp(m->root, "/") != 0) {
        const bool below = strncmp(path, m->root, nroot) == 0 && (path[nroot] == '/' || path[nroot] == '\0');
        inside = below ? path + nroot : "";
    }
    char dir[LINE];
    if (snprintf(dir, sizeof dir, "%s%s", m->point, inside) >= (int)sizeof dir)
        return BUDGET_NONE;
    uint64_t least = BUDGET_NONE;
    for (;;) {
        for (size_t n = strlen(dir); n > 1 && dir[n - 1] == '/'; n--)
            dir[n - 1] = '\0';
        for (int i = 0; i < 2 && files[m->v2][i] != NULL; i++) {
            const uint64_t v = read_limit(root, dir, files[m->v2][i]);
            if (v < least) {
                least = v;
                snprintf(source, BUDGET_SOURCE, "cgroup %s %s", m->v2 ? "v2" : "v1", files[m->v2][i]);
            }
        }
        char *slash = strrchr(dir, '/');
        if (strlen(dir) <= strlen(m->point) || slash == NULL)
            return least;
        *slash = '\0';
    }
}

uint64_t budget_cgroup_limit(const char *root, char *source)
{
    mount mounts[MOUNTS];
    const int n = find_mounts(root, mounts);
    uint64_t least = BUDGET_NONE;
    for (int i = 0; i < n; i++) {
        char path[1024], word[BUDGET_SOURCE] = "";
        if (!find_path(root, mounts[i].v2, path, sizeof path))
            continue;
        const uint64_t v = walk_up(root, &mounts[i], path, word);
        if (v < least) {
            least = v;
            memcpy(source, word, sizeof word);
        }
    }
    return least;
}

uint64_t budget_detect_under(const char *root, uint64_t rlimit_data, uint64_t rlimit_as, char *source)
{
    char word[BUDGET_SOURCE] = "";
    uint64_t least = budget_cgroup_limit(root, word);
    snprintf(source, BUDGET_SOURCE, "%s", word);
    const struct {
        const char *name;
        uint64_t value;
    } others[] = {{"free memory", budget_meminfo_limit(root)}, {"RLIMIT_DATA", rlimit_data}, {"RLIMIT_AS", rlimit_as}};
    for (size_t i = 0; i < sizeof others / sizeof others[0]; i++)
        if (others[i].value < least) {
            least = others[i].value;
            snprintf(source, BUDGET_SOURCE, "%s", others[i].name);
        }
    if (least == BUDGET_NONE)
        snprintf(source, BUDGET_SOURCE, "no limit found");
    return least;
}

static uint64_t resource_limit(int which)
{
    struct rlimit r;
    return getrlimit(which, &r) != 0 || r.rlim_cur == RLIM_INFINITY ? BUDGET_NONE : (uint64_t)r.rlim_cur;
}

uint64_t budget_detect_host(char *source)
{
    return budget_detect_under("", resource_limit(RLIMIT_DATA), resource_limit(RLIMIT_AS), source);
}

static uint64_t own_status(const char *key)
{
    const uint64_t v = budget_proc_value("", "/proc/self/status", key);
    return v == BUDGET_NONE ? 0 : v;
}

uint64_t budget_rss(void) { return own_status("VmRSS"); }
uint64_t budget_peak_rss(void) { return own_status("VmHWM"); }
uint64_t budget_anonymous(void) { return own_status("RssAnon"); }
