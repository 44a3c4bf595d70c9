/* A dataset is a list of shards, end to end. Which files belong to a split is decided here (rules in dataset.h), what is in them
 * in shard.c. Holds one file descriptor a shard and no token. Read-only once open, any thread. */
#include "engine/data/dataset.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include <unistd.h>

#include "engine/data/data_info.h"
#include "engine/data/shard.h"

enum { MAX_SHARDS = 65536 };

struct dataset {
    shard *shards;
    int64_t *first; /* [count + 1] position of each shard's first token in the stream */
    int count, seq_len;
    int64_t tokens, windows;
};

/* --- which files --------------------------------------------------------------------------------------------------------------
 */

/* `word` occurs in name between signs or ends: "train" in "fineweb_train_000001.bin", not in "trained.bin". */
static bool has_word(const char *name, const char *word)
{
    const size_t n = strlen(word);
    for (const char *p = strcasestr(name, word); p; p = strcasestr(p + 1, word))
        if ((p == name || !isalnum((unsigned char)p[-1])) && !isalnum((unsigned char)p[n]))
            return true;
    return false;
}

/* train, val or test; "" when the name says none. */
static const char *split_of(const char *name)
{
    static const struct {
        const char *word, *split;
    } words[] = {{"train", "train"}, {"training", "train"}, {"val", "val"},
                 {"valid", "val"},   {"validation", "val"}, {"test", "test"}};
    for (size_t i = 0; i < sizeof words / sizeof words[0]; i++)
        if (has_word(name, words[i].word))
            return words[i].split;
    return "";
}

static int by_name(const void *a, const void *b) { return strcmp(*(char *const *)a, *(char *const *)b); }

typedef struct name_list {
    char **name;
    int n;
} name_list;

static void free_names(name_list *l)
{
    for (int i = 0; i < l->n; i++)
        free(l->name[i]);
    free(l->name);
    *l = (name_list){0};
}

/* Every *.bin of a folder, sorted by name. */
static moe_err list_bins(const char *path, name_list *out)
{
    DIR *dir = opendir(path);
    if (!dir)
        return moe_fail(MOE_E_NOINPUT, "%s: %s", path, strerror(errno));
    moe_err rc = MOE_OK;
    for (struct dirent *e; rc == MOE_OK && (e = readdir(dir));) {
        const size_t n = strlen(e->d_name);
        if (n <= 4 || strcmp(e->d_name + n - 4, ".bin") != 0)
            continue;
        char **name = out->n < MAX_SHARDS ? realloc(out->name, ((size_t)out->n + 1) * sizeof *name) : NULL;
        if (name)
            out->name = name;
        if (!name || !(name[out->n] = strdup(e->d_name)))
            rc = moe_fail(MOE_E_OS, "%s: no memory for its list of files (more than %d?)", path, MAX_SHARDS);
        else
            out->n++;
    }
    closedir(dir);
    if (out->n > 0)
        qsort(out->name, (size_t)out->n, sizeof *out->name, by_name);
    return rc;
}

static moe_err add_shard(dataset *d, const char *dir, const char *name)
{
    char *path = NULL;
    if ((dir ? asprintf(&path, "%s/%s", dir, name) : asprintf(&path, "%s", name)) < 0)
        return moe_fail(MOE_E_OS, "no memory for a path");
    shard *shards = realloc(d->shards, ((size_t)d->count + 1) * sizeof *shards);
    if (shards)
        d->shards = shards;
    const moe_err rc =
        shards ? shard_open(&d->shards[d->count], path) : moe_fail(MOE_E_OS, "no memory for %d shards", d->count + 1);
    free(path);
    d->count += rc == MOE_OK;
    return rc;
}

static moe_err open_folder(dataset *d, const char *path, const char *split)
{
    name_list names = {0};
    bool said = false;
    moe_err rc;
    TRY_GOTO(list_bins(path, &names), rc, done);
    for (int i = 0; i < names.n; i++)
        said = said || *split_of(names.name[i]);
    for (int i = 0; i < names.n; i++) {
        const char *of = said ? split_of(names.name[i]) : "train";
        if (strcmp(of, split) == 0)
            TRY_GOTO(add_shard(d, path, names.name[i]), rc, done);
    }
    if (d->count == 0)
        rc = moe_fail(MOE_E_NOINPUT, "%s: no %s data (expected %s.bin with %s.idx, or .bin shards%s)", path, split, split, split,
                      names.n == 0 ? "; there is no .bin file"
                      : said       ? " with that word in their names"
                                   : "");
done:
    free_names(&names);
    return rc;
}

static moe_err open_files(dataset *d, const char *path, const char *split)
{
    struct stat st;
    char *prefixed = NULL; /* "x" for x.bin: Megatron's way to name a pair */
    if (stat(path, &st) == 0 && S_ISDIR(st.st_mode))
        return open_folder(d, path, split);
    if (asprintf(&prefixed, "%s.bin", path) < 0)
        return moe_fail(MOE_E_OS, "no memory for a path");
    const char *file = stat(path, &st) != 0 && stat(prefixed, &st) == 0 ? prefixed : path;
    const moe_err rc =
        strcmp(split, "train") == 0
            ? add_shard(d, NULL, file)
            : moe_fail(MOE_E_NOINPUT, "%s: a single file is training data; there is no %s data (give the folder with both)", file,
                       split);
    free(prefixed);
    return rc;
}

/* --- the stream ---------------------------------------------------------------------------------------------------------------
 */

static moe_err add_up(dataset *d, const char *path, const char *split, int seq_len)
{
    d->first = calloc((size_t)d->count + 1, sizeof *d->first);
    if (!d->first)
        return moe_fail(MOE_E_OS, "no memory for %d shards", d->count);
    for (int i = 0; i < d->count; i++)
        d->first[i + 1] = d->first[i] + d->shards[i].tokens;
    d->seq_len = seq_len;
    d->tokens = d->first[d->count];
    d->windows = d->tokens > 0 ? (d->tokens - 1) / seq_len : 0;
    if (d->windows == 0)
        return moe_fail(MOE_E_DATA, "%s: %lld tokens of %s data; one window of seq_len %d needs %d", path, (long long)d->tokens,
                        split, seq_len, seq_len + 1);
    return MOE_OK;
}

/* A folder that `prepare` made says in data.json what it holds; another number means that it was interrupted or mixed. */
static moe_err check_info(const dataset *d, const char *path, const char *split)
{
    data_info info;
    char *json = NULL;
    if (asprintf(&json, "%s/data.json", path) < 0)
        return moe_fail(MOE_E_OS, "no memory for a path");
    const bool there = access(json, F_OK) == 0;
    free(json);
    if (!there)
        return MOE_OK;
    TRY(data_info_read(&info, path));
    const int64_t want = strcmp(split, "train") == 0 ? info.train.tokens : info.val.tokens;
    if (want != d->tokens)
        return moe_fail(MOE_E_DATA, "%s: data.json counts %lld %s tokens, the files hold %lld; run prepare again", path,
                        (long long)want, split, (long long)d->tokens);
    return MOE_OK;
}

moe_err dataset_open(dataset **out, const char *path, const char *split, int seq_len)
{
    *out = NULL;
    if (seq_len < 1)
        return moe_fail(MOE_E_CONFIG, "seq_len %d; expected at least 1", seq_len);
    dataset *d = calloc(1, sizeof *d);
    if (!d)
        return moe_fail(MOE_E_OS, "no memory for a dataset");
    moe_err rc;
    TRY_GOTO(open_files(d, path, split), rc, fail);
    TRY_GOTO(add_up(d, path, split, seq_len), rc, fail);
    TRY_GOTO(check_info(d, path, split), rc, fail);
    *out = d;
    return MOE_OK;
fail:
    dataset_close(d);
    return rc;
}

void dataset_close(dataset *d)
{
    if (!d)
        return;
    for (int i = 0; i < d->count; i++)
        shard_close(&d->shards[i]);
    free(d->shards);
    free(d->first);
    free(d);
}

int64_t dataset_windows(const dataset *d) { return d->windows; }

int64_t dataset_tokens(const dataset *d) { return d->tokens; }

/* The shard that holds a position of the stream (the last one that starts at or before it and is not empty there). */
static int find_shard(const dataset *d, int64_t at)
{
    int low = 0, high = d->count;
    while (high - low > 1) {
        const int mid = low + (high - low) / 2;
        if (d->first[mid] <= at)
            low = mid;
        else
            high = mid;
    }
    return low;
}

moe_err dataset_read(dataset *d, int64_t window, int vocab, int32_t *tokens)
{
    if (window < 0 || window >= d->windows)
        return moe_fail(MOE_E_USAGE, "window %lld of %lld", (long long)window, (long long)d->windows);
    int64_t at = window * d->seq_len, left = d->seq_len + 1;
    for (int i = find_shard(d, at); left > 0; i++) {
        const int64_t here = d->first[i + 1] - at < left ? d->first[i + 1] - at : left;
        if (here > 0)
            TRY(shard_read(&d->shards[i], at - d->first[i], here, vocab, tokens));
        tokens += here;
        at += here;
        left -= here;
    }
    return MOE_OK;
}
