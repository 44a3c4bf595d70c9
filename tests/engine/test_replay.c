/* Routing traces and what caches hit on them: the three readers with good and bad files, the replay against figures of others,
 * the default policy against its targets. */
#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <zstd.h>

#include "engine/serve/replay.h"
#include "memory/cache_policy.h"

#define OK(call) cr_assert_eq((call), MOE_OK, "%s", moe_error_text())

/* --- readers -----------------------------------------------------------------------------------------------------------------
 */

static void expect_bad(const void *data, size_t n, const char *part)
{
    trace t;
    const moe_err rc = trace_parse(&t, "f", data, n);
    cr_expect(rc == MOE_E_DATA && strstr(moe_error_text(), part) != NULL, "%d \"%s\"; expected \"%s\"", rc, moe_error_text(),
              part);
    cr_expect(t.begin == NULL && t.expert == NULL);
    trace_free(&t);
}

static void expect_bad_text(const char *text, const char *part) { expect_bad(text, strlen(text), part); }

static void expect_list(const trace *t, int64_t token, int layer, int n, const int32_t *ids)
{
    const int64_t cell = token * t->layers + layer;
    cr_assert_eq(t->begin[cell + 1] - t->begin[cell], n, "token %ld layer %d has %ld", token, layer,
                 t->begin[cell + 1] - t->begin[cell]);
    for (int i = 0; i < n; i++)
        cr_expect_eq(t->expert[t->begin[cell] + i], ids[i]);
}

Test(trace, json_lines)
{
    static const char text[] = "{\"tok\": 1, \"layers\": [[3, 1], []]}\r\n\n{\"more\": [1, {}], \"layers\": [[0], [2, 2, 1]]}";
    trace t;
    OK(trace_parse(&t, "f", text, strlen(text)));
    cr_assert(t.tokens == 2 && t.layers == 2 && t.experts == 4 && t.accesses == 5);
    expect_list(&t, 0, 0, 2, (int32_t[]){1, 3});
    expect_list(&t, 0, 1, 0, NULL);
    expect_list(&t, 1, 0, 1, (int32_t[]){0});
    expect_list(&t, 1, 1, 2, (int32_t[]){1, 2});
    trace_free(&t);
    expect_bad_text("{\"layers\": [[1]]}\n{\"layers\": [[1], [2]]}\n", "f:2: 2 layers; the tokens before have 1");
    expect_bad_text("{\"layers\": [[1]]}\n{\"layers\": [[1]", "f:2");
    expect_bad_text("{\"layers\": [[65536]]}", "f:1");
    expect_bad_text("{\"layers\": [[-1]]}", "f:1");
    expect_bad_text("{\"layers\": [[1.5]]}", "f:1");
    expect_bad_text("{\"layers\": [1]}", "expected a list of ids");
    expect_bad_text("{\"layers\": [[\"a\"]]}", "expected ids");
    expect_bad_text("{\"layers\": [[1]], \"layers\": [[1]]}", "twice");
    expect_bad_text("{\"tok\": 1}", "no \"layers\"");
    expect_bad_text("{\"layers\": []}", "no choice of an expert");
}

Test(trace, csv)
{
    static const char text[] =
        "# a "
        "comment\nturn,phase,step,layer,slot,expert,weight\n0,0,0,0,0,9,0.5\n0,1,5,0,0,7,0.5\n0,1,5,0,1,2,0.5\n0,1,5,2,0,1,0.5\n"
        "0,1,6,0,0,3,1e-3\n1,1,6,0,0,4,0.5\n";
    trace t;
    OK(trace_parse(&t, "f", text, strlen(text)));
    cr_assert(t.tokens == 3 && t.layers == 3 && t.experts == 8 && t.accesses == 5);
    expect_list(&t, 0, 0, 2, (int32_t[]){2, 7});
    expect_list(&t, 0, 1, 0, NULL);
    expect_list(&t, 0, 2, 1, (int32_t[]){1});
    expect_list(&t, 1, 0, 1, (int32_t[]){3});
    expect_list(&t, 2, 0, 1, (int32_t[]){4});
    trace_free(&t);
    expect_bad_text("phase,step,layer\n1,0,0\n", "no column \"expert\"");
    expect_bad_text("phase,phase,step,layer,expert\n", "twice");
    expect_bad_text("phase,step,layer,expert\n1,0,0\n", "f:2: 3 columns; expected 4");
    expect_bad_text("phase,step,layer,expert\n1,0,0,1,1\n", "more than 4 columns");
    expect_bad_text("phase,step,layer,expert\n1,0,4096,1\n", "\"4096\" for layer");
    expect_bad_text("phase,step,layer,expert\n1,0,0,-1\n", "\"-1\" for expert");
    expect_bad_text("phase,step,layer,expert\n1,0,0,99999999999\n", "for expert");
    expect_bad_text("phase,step,layer,expert\n1,0,0,\n", "columns");
    expect_bad_text("phase,step,layer,expert\n1,0,1,1\n1,0,0,1\n", "f:3: layer 0 after layer 1");
    expect_bad_text("phase,step,layer,expert\n0,0,0,1\n", "no choice of an expert");
}

Test(trace, binary)
{
    static const int32_t good[] = {2, 2, 2, 0, 5, 3, 1, 0, 2, 2, 7, 1};
    trace t;
    OK(trace_parse(&t, "f", good, sizeof good));
    cr_assert(t.tokens == 2 && t.layers == 2 && t.experts == 8 && t.accesses == 7);
    expect_list(&t, 0, 0, 2, (int32_t[]){3, 5});
    expect_list(&t, 1, 0, 1, (int32_t[]){2});
    expect_list(&t, 1, 1, 2, (int32_t[]){1, 7});
    trace_free(&t);
    static const struct {
        int32_t word[6];
        size_t bytes;
        const char *part;
    } bad[] = {
        {{2, 2, 2, 0}, 16, "16 bytes; 2 layers, 2 tokens and 2 experts make 48"},
        {{1, 1, 1, 0, 5}, 12, "a header of 16"},
        {{0, 1, 1, 0, 5}, 20, "a header of 0 layers"},
        {{1, -1, 1, 0, 5}, 20, "-1 tokens"},
        {{4096, 1 << 24, 65536, 0, 5}, 20, "a header of 4096 layers"},
        {{1, 1, 1, 0, -5}, 20, "expert -5"},
        {{1, 1, 1, 0, 1 << 16}, 20, "expert 65536"},
        {{1, 1, 1, 0, 5}, 19, "19 bytes"},
        {{1, 1, 1, 0, 5, 6}, 24, "24 bytes"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
        expect_bad(bad[i].word, bad[i].bytes, bad[i].part);
}

Test(trace, what_is_no_trace)
{
    expect_bad_text("", "not a routing trace");
    expect_bad_text("\xfd"
                    "7zXZ\x01rest",
                    "unpack it with xz");
    trace t;
    cr_expect_eq(trace_read(&t, "/nonexistent/trace"), MOE_E_NOINPUT);
    cr_expect_eq(trace_read(&t, "/"), MOE_E_NOINPUT, "%s", moe_error_text());
}

/* --- hit rates ---------------------------------------------------------------------------------------------------------------
 */

static void load(trace *t, const char *name)
{
    char path[256];
    snprintf(path, sizeof path, "tests/fixtures/traces/%s.trace.zst", name);
    FILE *f = fopen(path, "rb");
    cr_assert(f != NULL, "%s", path);
    static char packed[1 << 17], data[1 << 20];
    const size_t n = fread(packed, 1, sizeof packed, f);
    fclose(f);
    const size_t bytes = ZSTD_decompress(data, sizeof data, packed, n);
    cr_assert(!ZSTD_isError(bytes), "%s: %s", path, ZSTD_getErrorName(bytes));
    OK(trace_parse(t, path, data, bytes));
}

static double rate(const trace *t, int64_t slots, const char *policy)
{
    replay_count c;
    OK(strcmp(policy, "optimum") == 0 ? replay_optimum(t, slots, &c) : replay_policy(t, slots, policy, &c));
    return 100.0 * (double)c.hits / (double)c.accesses;
}

/* lru and optimum: figures of another program. closes: how much of the gap between them the default has to close at least. */
static const struct {
    const char *trace;
    int slots;
    double lru, optimum, closes;
} figures[] = {
    {"olmoe-299", 64, 0.0, 41.7, 0.5},        {"olmoe-299", 128, 32.7, 61.3, 0.3},      {"olmoe-299", 256, 58.0, 78.3, 0.15},
    {"olmoe-299", 512, 80.6, 93.0, 0.2},      {"qwen3-30b-a3b", 384, 37.4, 63.8, 0.2},  {"qwen3-30b-a3b", 768, 58.4, 80.2, 0.2},
    {"qwen3-30b-a3b", 1536, 84.0, 93.5, 0.1}, {"qwen3-30b-a3b", 3072, 96.4, 96.4, 0.0}, {"olmoe", 512, 64.0, 86.1, 1.0 / 3},
    {"qwen3moe", 1536, 87.9, 95.8, 0.25},
};

Test(replay, the_published_figures_and_the_targets)
{
    for (size_t i = 0; i < sizeof figures / sizeof figures[0]; i++) {
        trace t;
        load(&t, figures[i].trace);
        const double lru = rate(&t, figures[i].slots, "lru"), optimum = rate(&t, figures[i].slots, "optimum");
        const double ours = rate(&t, figures[i].slots, "");
        cr_expect(fabs(lru - figures[i].lru) <= 0.2 && fabs(optimum - figures[i].optimum) <= 0.2,
                  "%s, %d slots: lru %.2f, optimum %.2f; expected %.1f, %.1f", figures[i].trace, figures[i].slots, lru, optimum,
                  figures[i].lru, figures[i].optimum);
        cr_expect(ours >= lru + figures[i].closes * (optimum - lru) && ours <= optimum + 1e-9,
                  "%s, %d slots: %.2f between lru %.2f and optimum %.2f", figures[i].trace, figures[i].slots, ours, lru, optimum);
        trace_free(&t);
    }
}

/* What the optimum is, by trying every victim: slow, and right by definition. */
static int most_hits(const trace *t, int64_t slots, int64_t from, uint32_t resident)
{
    int best = -1;
    if (from == t->accesses)
        return 0;
    int64_t cell = 0;
    while (t->begin[cell + 1] <= from)
        cell++;
    const uint32_t bit = 1u << ((int)(cell % t->layers) * t->experts + t->expert[from]);
    if (resident & bit)
        return (cell >= t->tokens / 4 * t->layers) + most_hits(t, slots, from + 1, resident);
    if (__builtin_popcount(resident) < slots)
        return most_hits(t, slots, from + 1, resident | bit);
    for (uint32_t left = resident; left != 0; left &= left - 1) {
        const int hits = most_hits(t, slots, from + 1, (resident & ~(left & -left)) | bit);
        best = hits > best ? hits : best;
    }
    return best;
}

Test(replay, the_optimum_is_what_trying_everything_finds)
{
    uint32_t x = 1;
    for (int round = 0; round < 60; round++) {
        int32_t word[4 + 12] = {2, 6, 1, 0}; /* 12 accesses */
        for (int i = 0; i < 12; i++) {
            x = x * 1664525u + 1013904223u;
            word[4 + i] = (int32_t)(x >> 24) % 3;
        }
        trace t;
        OK(trace_parse(&t, "t", word, sizeof word));
        for (int64_t slots = 1; slots <= 4; slots++) {
            replay_count c;
            OK(replay_optimum(&t, slots, &c));
            const int best = most_hits(&t, slots, 0, 0);
            cr_expect_eq(c.hits, best, "round %d, %ld slots: %ld hits; trying everything finds %d", round, slots, c.hits, best);
            for (int i = 0; cache_policy_name(i) != NULL; i++) {
                OK(replay_policy(&t, slots, cache_policy_name(i), &c));
                cr_expect(c.hits <= best && c.accesses == 10, "%s: %ld hits of %ld", cache_policy_name(i), c.hits, c.accesses);
            }
        }
        trace_free(&t);
    }
}

/* --- the command -------------------------------------------------------------------------------------------------------------
 */

static void write_file(char path[64], const void *data, size_t n)
{
    strcpy(path, "/tmp/moe-test-trace-XXXXXX");
    const int fd = mkstemp(path);
    cr_assert(fd >= 0);
    FILE *f = fdopen(fd, "wb");
    cr_assert(fwrite(data, 1, n, f) == n && fclose(f) == 0);
}

Test(replay, the_command)
{
    static const int32_t word[] = {1, 4, 1, 0, 0, 1, 0, 2};
    char path[64];
    write_file(path, word, sizeof word);
    char *text = NULL;
    size_t n = 0;
    FILE *out = open_memstream(&text, &n);
    OK(command_replay(path, 2, "lru", true, out));
    fclose(out);
    cr_expect_str_eq(
        text, "{\"tokens\": 4, \"layers\": 1, \"experts\": 3, \"accesses\": 4, \"slots\": 2, \"counted\": 3, \"policies\": "
              "[{\"name\": \"lru\", \"hits\": 1, \"hit_percent\": 33.333, \"gap_closed_percent\": 0.00}, "
              "{\"name\": \"optimum\", \"hits\": 1, \"hit_percent\": 33.333, \"gap_closed_percent\": 0.00}]}\n");
    free(text);
    out = open_memstream(&text, &n);
    OK(command_replay(path, 2, NULL, false, out));
    fclose(out);
    for (int i = 0; cache_policy_name(i) != NULL; i++)
        cr_expect(strstr(text, cache_policy_name(i)) != NULL, "%s lacks %s", text, cache_policy_name(i));
    free(text);
    cr_expect_eq(command_replay(path, 0, NULL, false, stdout), MOE_E_USAGE);
    cr_expect_eq(command_replay(path, 2, "mru", false, stdout), MOE_E_CONFIG);
    cr_expect(strstr(moe_error_text(), "learned, lru, lfu") != NULL, "%s", moe_error_text());
    remove(path);
}
