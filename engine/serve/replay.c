/* Replays of routing traces: the policies through memory/cache_policy.h, the optimum by looking ahead. Owns nothing between
 * calls. Threads: pure functions. Rule: the order of accesses is that of replay.h; the figures of published traces depend on it.
 */
#include "engine/serve/replay.h"

#include <stdlib.h>
#include <string.h>

#include "memory/cache_policy.h"

static int64_t first_counted(const trace *t) { return t->tokens / 4; }

static moe_err check_size(const trace *t)
{
    if (t->layers > CACHE_EXPERTS_MAX / t->experts)
        return moe_fail(MOE_E_DATA, "the trace has %d layers of %d experts; expected at most %d in all", t->layers, t->experts,
                        CACHE_EXPERTS_MAX);
    return MOE_OK;
}

/* --- policies ----------------------------------------------------------------------------------------------------------------
 */

typedef struct replay {
    cache_policy *policy;
    uint8_t *resident; /* [layers * experts] */
    int64_t used, slots;
} replay;

/* True: it was there. */
static bool access_one(replay *r, expert_id id)
{
    const bool hit = r->resident[id] != 0;
    expert_id victim;
    if (!hit && r->used == r->slots && cache_policy_victim(r->policy, true, &victim)) {
        cache_policy_leave(r->policy, victim);
        r->resident[victim] = 0;
        r->used--;
    }
    if (!hit) {
        r->resident[id] = 1;
        r->used++;
        cache_policy_enter(r->policy, id);
    }
    cache_policy_touch(r->policy, id);
    return hit;
}

static void run(replay *r, const trace *t, replay_count *out)
{
    const int64_t cells = t->tokens * t->layers, counted = first_counted(t) * t->layers;
    for (int64_t cell = 0; cell < cells; cell++) {
        const int layer = (int)(cell % t->layers);
        const int32_t *expert = t->expert + t->begin[cell];
        const int n = (int)(t->begin[cell + 1] - t->begin[cell]);
        cache_policy_choose(r->policy, layer, expert, n);
        for (int i = 0; i < n; i++) {
            const bool hit = access_one(r, (expert_id)layer * (expert_id)t->experts + (expert_id)expert[i]);
            out->accesses += cell >= counted;
            out->hits += hit && cell >= counted;
        }
    }
}

moe_err replay_policy(const trace *t, int64_t slots, const char *policy, replay_count *out)
{
    *out = (replay_count){0};
    TRY(check_size(t));
    replay r = {.slots = slots, .resident = calloc((size_t)t->layers * (size_t)t->experts, 1)};
    moe_err rc;
    if (r.resident == NULL) {
        rc = moe_fail(MOE_E_OS, "replay: out of memory");
        goto out;
    }
    TRY_GOTO(cache_policy_open(&r.policy, policy, t->layers, t->experts), rc, out);
    run(&r, t, out);
out:
    cache_policy_close(r.policy);
    free(r.resident);
    return rc;
}

/* --- the optimum -------------------------------------------------------------------------------------------------------------
 */

/* A tree of maxima over all experts: the next use of each that is resident, NOT_HERE of the others. */
typedef struct ahead {
    int64_t *tree; /* [2 * leaves]  node i has the larger of 2i and 2i + 1 */
    int64_t leaves;
} ahead;

enum { NOT_HERE = -1 };

static void ahead_set(ahead *a, int64_t id, int64_t next)
{
    int64_t i = a->leaves + id;
    a->tree[i] = next;
    for (i /= 2; i > 0; i /= 2) {
        const int64_t left = a->tree[2 * i], right = a->tree[2 * i + 1];
        a->tree[i] = left > right ? left : right;
    }
}

static int64_t ahead_farthest(const ahead *a)
{
    int64_t i = 1;
    while (i < a->leaves)
        i = 2 * i + (a->tree[2 * i] < a->tree[2 * i + 1]);
    return i - a->leaves;
}

/* next[i]: the access that wants the same expert after access i; INT64_MAX - its id (all different) when there is none. */
static void look_ahead(const trace *t, const int32_t *id, int64_t *seen, int64_t *next)
{
    const int64_t n = (int64_t)t->layers * t->experts;
    for (int64_t e = 0; e < n; e++)
        seen[e] = INT64_MAX - e;
    for (int64_t i = t->accesses - 1; i >= 0; i--) {
        next[i] = seen[id[i]];
        seen[id[i]] = i;
    }
}

static void all_ids(const trace *t, int32_t *id)
{
    const int64_t cells = t->tokens * t->layers;
    for (int64_t cell = 0; cell < cells; cell++)
        for (int64_t i = t->begin[cell]; i < t->begin[cell + 1]; i++)
            id[i] = (int32_t)(cell % t->layers) * t->experts + t->expert[i];
}

moe_err replay_optimum(const trace *t, int64_t slots, replay_count *out)
{
    *out = (replay_count){0};
    TRY(check_size(t));
    const int64_t n = (int64_t)t->layers * t->experts;
    ahead a = {.leaves = 1};
    while (a.leaves < n)
        a.leaves *= 2;
    a.tree = malloc((size_t)(2 * a.leaves) * sizeof *a.tree);
    int32_t *id = malloc((size_t)t->accesses * sizeof *id);
    int64_t *next = malloc((size_t)t->accesses * sizeof *next), *seen = malloc((size_t)n * sizeof *seen);
    moe_err rc = MOE_OK;
    if (a.tree == NULL || id == NULL || next == NULL || seen == NULL) {
        rc = moe_fail(MOE_E_OS, "replay: out of memory");
        goto out;
    }
    for (int64_t i = 0; i < 2 * a.leaves; i++)
        a.tree[i] = NOT_HERE;
    all_ids(t, id);
    look_ahead(t, id, seen, next);
    const int64_t counted = t->begin[first_counted(t) * t->layers];
    int64_t used = 0;
    for (int64_t i = 0; i < t->accesses; i++) {
        const bool hit = a.tree[a.leaves + id[i]] != NOT_HERE;
        if (!hit && used == slots) {
            ahead_set(&a, ahead_farthest(&a), NOT_HERE);
            used--;
        }
        used += !hit;
        ahead_set(&a, id[i], next[i]);
        out->accesses += i >= counted;
        out->hits += hit && i >= counted;
    }
out:
    free(a.tree);
    free(id);
    free(next);
    free(seen);
    return rc;
}

/* --- the command -------------------------------------------------------------------------------------------------------------
 */

enum { ROWS_MAX = 8 };

typedef struct row {
    const char *name;
    replay_count count;
} row;

static double percent(const replay_count *c) { return c->accesses == 0 ? 0.0 : 100.0 * (double)c->hits / (double)c->accesses; }

/* How much of the way from lru to the optimum; 0 where there is none. */
static double gap_closed(double rate, double lru, double optimum)
{
    return optimum > lru ? 100.0 * (rate - lru) / (optimum - lru) : 0.0;
}

/* The policies asked for, lru always, the optimum last. */
static moe_err run_rows(const trace *t, int64_t slots, const char *policy, row rows[ROWS_MAX], int *n)
{
    *n = 0;
    if (policy != NULL && policy[0] != '\0') { /* an unknown name fails before anything runs */
        cache_policy *probe;
        TRY(cache_policy_open(&probe, policy, 1, 1));
        cache_policy_close(probe);
    }
    const bool all = policy == NULL || policy[0] == '\0';
    for (int i = 0; cache_policy_name(i) != NULL && *n < ROWS_MAX - 1; i++) {
        const char *name = cache_policy_name(i);
        if (!all && strcmp(name, policy) != 0 && strcmp(name, "lru") != 0)
            continue;
        rows[*n].name = name;
        TRY(replay_policy(t, slots, name, &rows[*n].count));
        (*n)++;
    }
    rows[*n].name = "optimum";
    TRY(replay_optimum(t, slots, &rows[*n].count));
    (*n)++;
    return MOE_OK;
}

static double rate_of(const row *rows, int n, const char *name)
{
    for (int i = 0; i < n; i++)
        if (strcmp(rows[i].name, name) == 0)
            return percent(&rows[i].count);
    return 0.0;
}

static void print_json(FILE *out, const trace *t, int64_t slots, const row *rows, int n)
{
    const double lru = rate_of(rows, n, "lru"), optimum = rate_of(rows, n, "optimum");
    fprintf(out,
            "{\"tokens\": %lld, \"layers\": %d, \"experts\": %d, \"accesses\": %lld, \"slots\": %lld, \"counted\": %lld, "
            "\"policies\": [",
            (long long)t->tokens, t->layers, t->experts, (long long)t->accesses, (long long)slots,
            (long long)rows[0].count.accesses);
    for (int i = 0; i < n; i++)
        fprintf(out, "%s{\"name\": \"%s\", \"hits\": %lld, \"hit_percent\": %.3f, \"gap_closed_percent\": %.2f}",
                i == 0 ? "" : ", ", rows[i].name, (long long)rows[i].count.hits, percent(&rows[i].count),
                gap_closed(percent(&rows[i].count), lru, optimum));
    fprintf(out, "]}\n");
}

static void print_table(FILE *out, const trace *t, int64_t slots, const row *rows, int n)
{
    const double lru = rate_of(rows, n, "lru"), optimum = rate_of(rows, n, "optimum");
    fprintf(out, "%lld tokens, %d layers of %d experts, %lld slots for %lld; hits of the last %lld accesses\n",
            (long long)t->tokens, t->layers, t->experts, (long long)slots, (long long)t->layers * t->experts,
            (long long)rows[0].count.accesses);
    fprintf(out, "%-10s %8s %14s\n", "policy", "hits %", "of the gap %");
    for (int i = 0; i < n; i++)
        fprintf(out, "%-10s %8.2f %14.1f\n", rows[i].name, percent(&rows[i].count),
                gap_closed(percent(&rows[i].count), lru, optimum));
}

moe_err command_replay(const char *path, int64_t slots, const char *policy, bool json, FILE *out)
{
    if (slots < 1)
        return moe_fail(MOE_E_USAGE, "--slots %lld; expected at least 1", (long long)slots);
    trace t;
    TRY(trace_read(&t, path));
    row rows[ROWS_MAX] = {0};
    int n;
    moe_err rc;
    TRY_GOTO(run_rows(&t, slots, policy, rows, &n), rc, out);
    (json ? print_json : print_table)(out, &t, slots, rows, n);
out:
    trace_free(&t);
    return rc;
}
