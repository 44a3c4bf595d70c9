/* moe-train prepare: text -> train.{bin,idx}, val.{bin,idx}, data.json and the tokenizer's files.
 * Validation is the last F of each document of at least 1 MiB (cut between two characters, the parts tokenized apart); smaller
 * documents go there whole with probability F by a hash of their content. When that leaves one of the splits empty, the work is
 * done again with the largest document cut, so that a single small file has validation too (data.json says so). Everything is
 * written under names ending in .tmp and renamed at the end, data.json last. The out folder is locked meanwhile. One thread. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "engine/data/data_info.h"
#include "engine/data/dataset.h"
#include "engine/data/documents.h"

/* What a prepared folder may hold of ours; data.json last. */
static const char *const token_files[] = {"train.bin", "train.idx", "val.bin", "val.idx"};
static const char *const tokenizer_files[] = {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
                                              "chat_template.jinja"};
static const char tokenizer_dir[] = "tokenizer.tmp";

#define COUNT(a) (sizeof(a) / sizeof((a)[0]))

typedef struct prepare {
    const prepare_args *args;
    tokenizer *tok;
    documents docs;
    int lock;      /* descriptor of the out folder */
    bool made_dir; /* it was not there */
    /* progress */
    bool show;
    int64_t total_bytes, done_bytes; /* of all input files; of those behind us */
    double shown;                    /* when, in seconds */
} prepare;

/* --- progress -----------------------------------------------------------------------------------------------------------------
 */

static double seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void show_progress(void *arg, int64_t file_bytes)
{
    prepare *p = arg;
    const double now = seconds();
    if (!p->show || now - p->shown < 0.25)
        return;
    p->shown = now;
    fprintf(stderr, "\rprepare: %.0f of %.0f MiB, %.1f M tokens ", (double)(p->done_bytes + file_bytes) / 1048576,
            (double)p->total_bytes / 1048576, (double)(p->docs.train.writer.tokens + p->docs.val.writer.tokens) / 1e6);
    fflush(stderr);
}

/* --- the out folder -----------------------------------------------------------------------------------------------------------
 */

static bool is_leftover(const char *name)
{
    const size_t n = strlen(name);
    return n > 4 && strcmp(name + n - 4, ".tmp") == 0;
}

/* Empty, ours (data.json is there) or holding only what an interrupted prepare left. */
static moe_err check_out(const char *out)
{
    DIR *dir = opendir(out);
    if (!dir)
        return moe_fail(MOE_E_CREATE, "%s: %s", out, strerror(errno));
    char found[256] = "";
    bool ours = false;
    for (struct dirent *e; (e = readdir(dir));) {
        ours = ours || strcmp(e->d_name, "data.json") == 0;
        if (strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0 && !is_leftover(e->d_name))
            snprintf(found, sizeof found, "%s", e->d_name);
    }
    closedir(dir);
    if (ours || !*found)
        return MOE_OK;
    return moe_fail(MOE_E_CREATE, "%s: is not empty (%s) and was not made by prepare (no data.json); choose another --out", out,
                    found);
}

static moe_err open_out(prepare *p)
{
    const char *out = p->args->out;
    p->made_dir = mkdir(out, 0777) == 0;
    if (!p->made_dir && errno != EEXIST)
        return moe_fail(MOE_E_CREATE, "%s: cannot create the folder: %s", out, strerror(errno));
    p->lock = open(out, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (p->lock < 0)
        return moe_fail(MOE_E_CREATE, "%s: %s", out, strerror(errno));
    if (flock(p->lock, LOCK_EX | LOCK_NB) != 0)
        return moe_fail(MOE_E_TEMP, "%s: another prepare is writing there", out);
    return check_out(out);
}

static void remove_leftovers(const prepare *p)
{
    if (p->lock < 0)
        return;
    char name[64];
    for (size_t i = 0; i < COUNT(token_files); i++) {
        snprintf(name, sizeof name, "%s.tmp", token_files[i]);
        unlinkat(p->lock, name, 0);
    }
    unlinkat(p->lock, "train.sizes.tmp", 0);
    unlinkat(p->lock, "val.sizes.tmp", 0);
    unlinkat(p->lock, "data.json.tmp", 0);
    for (size_t i = 0; i < COUNT(tokenizer_files); i++) {
        snprintf(name, sizeof name, "%s/%s", tokenizer_dir, tokenizer_files[i]);
        unlinkat(p->lock, name, 0);
    }
    unlinkat(p->lock, tokenizer_dir, AT_REMOVEDIR);
}

/* Puts `from` in the place of `to`; a missing `from` removes `to`. */
static moe_err put(const prepare *p, const char *from, const char *to)
{
    if (renameat(p->lock, from, p->lock, to) == 0)
        return MOE_OK;
    if (errno == ENOENT && (unlinkat(p->lock, to, 0) == 0 || errno == ENOENT))
        return MOE_OK;
    return moe_fail(MOE_E_IO, "%s/%s: cannot replace: %s", p->args->out, to, strerror(errno));
}

/* data.json goes last: until then an old one disagrees with the new files, which dataset_open notices. */
static moe_err commit(const prepare *p)
{
    char from[64];
    for (size_t i = 0; i < COUNT(token_files); i++) {
        snprintf(from, sizeof from, "%s.tmp", token_files[i]);
        TRY(put(p, from, token_files[i]));
    }
    for (size_t i = 0; i < COUNT(tokenizer_files); i++) {
        snprintf(from, sizeof from, "%s/%s", tokenizer_dir, tokenizer_files[i]);
        TRY(put(p, from, tokenizer_files[i]));
    }
    unlinkat(p->lock, tokenizer_dir, AT_REMOVEDIR);
    if (fsync(p->lock) != 0)
        return moe_fail(MOE_E_IO, "%s: cannot sync the folder: %s", p->args->out, strerror(errno));
    TRY(put(p, "data.json.tmp", "data.json"));
    return fsync(p->lock) == 0 ? MOE_OK : moe_fail(MOE_E_IO, "%s: cannot sync the folder: %s", p->args->out, strerror(errno));
}

/* --- the work -----------------------------------------------------------------------------------------------------------------
 */

static moe_err check_args(prepare *p)
{
    const prepare_args *a = p->args;
    if (!(a->val_fraction >= 0 && a->val_fraction < 1))
        return moe_fail(MOE_E_USAGE, "--val-fraction %g: expected a number from 0 to below 1", a->val_fraction);
    if (a->nfiles < 1)
        return moe_fail(MOE_E_USAGE, "prepare needs at least one text file");
    for (int i = 0; i < a->nfiles; i++) {
        struct stat st;
        if (stat(a->files[i], &st) != 0 || access(a->files[i], R_OK) != 0)
            return moe_fail(MOE_E_NOINPUT, "%s: %s", a->files[i], strerror(errno));
        if (!S_ISREG(st.st_mode))
            return moe_fail(MOE_E_NOINPUT, "%s: not a regular file", a->files[i]);
        p->total_bytes += st.st_size;
    }
    return MOE_OK;
}

static moe_err read_all(prepare *p, int64_t cut_number)
{
    documents *d = &p->docs;
    *d = (documents){.val_fraction = p->args->val_fraction,
                     .cut_number = cut_number,
                     .largest = -1,
                     .progress = show_progress,
                     .progress_arg = p};
    TRY(split_output_open(&d->train, p->tok, p->args->out, "train"));
    TRY(split_output_open(&d->val, p->tok, p->args->out, "val"));
    p->done_bytes = 0;
    for (int i = 0; i < p->args->nfiles; i++) {
        struct stat st;
        TRY(documents_read(d, p->args->files[i]));
        p->done_bytes += stat(p->args->files[i], &st) == 0 ? st.st_size : 0;
    }
    if (d->number == 0)
        return moe_fail(MOE_E_DATA, "%s%s: no text in %d file%s", p->args->files[0], p->args->nfiles > 1 ? ", ..." : "",
                        p->args->nfiles, p->args->nfiles > 1 ? "s" : "");
    return MOE_OK;
}

static void close_outputs(prepare *p)
{
    split_output_close(&p->docs.train);
    split_output_close(&p->docs.val);
}

static moe_err make_splits(prepare *p)
{
    documents *d = &p->docs;
    const bool want_val = p->args->val_fraction > 0;
    TRY(read_all(p, -1));
    if (d->train.writer.tokens == 0 || (want_val && d->val.writer.tokens == 0)) {
        const int64_t largest = d->largest;
        close_outputs(p);
        TRY(read_all(p, largest));
        if (d->train.writer.tokens == 0 || d->val.writer.tokens == 0)
            return moe_fail(MOE_E_DATA,
                            "%s%s: too little text (%lld bytes in the largest of %lld documents) to keep %g of it for validation",
                            p->args->files[0], p->args->nfiles > 1 ? ", ..." : "", (long long)d->largest_bytes,
                            (long long)d->number, p->args->val_fraction);
    }
    TRY(split_output_finish(&d->train));
    if (want_val)
        return split_output_finish(&d->val);
    if (unlinkat(p->lock, "val.bin.tmp", 0) != 0)
        return moe_fail(MOE_E_IO, "%s/val.bin.tmp: %s", p->args->out, strerror(errno));
    return MOE_OK;
}

/* Mean -ln p of o's tokens, p from the counts of train with one added to every id (so that an id train never saw has a price). */
static double entropy(const split_output *o, const split_output *train, int vocab)
{
    const double all = (double)train->writer.tokens + vocab;
    double sum = 0;
    for (int i = 0; i < vocab; i++)
        if (o->count[i] > 0)
            sum -= (double)o->count[i] * log((double)(train->count[i] + 1) / all);
    return o->writer.tokens > 0 ? sum / (double)o->writer.tokens : 0;
}

static data_split_info describe(const split_output *o, const split_output *train, int vocab)
{
    return (data_split_info){o->writer.tokens, o->writer.documents, o->bytes, entropy(o, train, vocab)};
}

static moe_err write_info(prepare *p)
{
    const int vocab = tokenizer_vocab(p->tok);
    const documents *d = &p->docs;
    data_info info = {
        .vocab = vocab,
        .eos = tokenizer_eos(p->tok),
        .val_fraction = p->args->val_fraction,
        .largest_cut = d->cut_number >= 0,
        .train = describe(&d->train, &d->train, vocab),
        .val = describe(&d->val, &d->train, vocab),
    };
    strcpy(info.tokenizer, tokenizer_is_bytes(p->tok) ? "bytes" : "bpe");
    return data_info_write(&info, p->args->out, "data.json.tmp", d->train.writer.type == TOKEN_U16 ? "uint16" : "int32",
                           p->args->files, p->args->nfiles);
}

static moe_err write_tokenizer(prepare *p)
{
    char *dir = NULL;
    if (asprintf(&dir, "%s/%s", p->args->out, tokenizer_dir) < 0)
        return moe_fail(MOE_E_OS, "no memory for a path");
    const moe_err rc = mkdir(dir, 0777) == 0 ? tokenizer_save(p->tok, dir)
                                             : moe_fail(MOE_E_CREATE, "%s: cannot create: %s", dir, strerror(errno));
    free(dir);
    return rc;
}

static moe_err run(prepare *p)
{
    TRY(check_args(p));
    TRY(tokenizer_open(&p->tok, p->args->tokenizer));
    TRY(open_out(p));
    remove_leftovers(p);
    TRY(make_splits(p));
    TRY(write_tokenizer(p));
    TRY(write_info(p));
    return commit(p);
}

moe_err data_prepare(const prepare_args *a)
{
    prepare p = {.args = a, .lock = -1, .show = !a->quiet && isatty(STDERR_FILENO)};
    const moe_err rc = run(&p);
    if (p.shown > 0)
        fprintf(stderr, "\r%60s\r", "");
    close_outputs(&p);
    if (rc != MOE_OK && rc != MOE_E_TEMP)
        remove_leftovers(&p);
    if (p.lock >= 0)
        close(p.lock);
    if (rc != MOE_OK && p.made_dir)
        rmdir(a->out);
    tokenizer_close(p.tok);
    return rc;
}
