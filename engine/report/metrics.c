/* metrics.jsonl. */
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "engine/report/files.h"

/* --- resume --------------------------------------------------------------------------------------------------------------- */

static bool step_of(const char *line, size_t n, int64_t *step)
{
    json_t *o = json_loadb(line, n, JSON_REJECT_DUPLICATES, NULL);
    const json_t *s = json_object_get(o, "step");
    const bool ok = json_is_integer(s);
    *step = ok ? json_integer_value(s) : 0;
    json_decref(o);
    return ok;
}

/* How many bytes from the beginning stay: whole lines up to `last`. *tidy: the file ends right there. A line that is no object
 * with a step is what a crash leaves at the very end; anywhere else the file was damaged. */
static moe_err find_cut(FILE *f, const char *path, int64_t last, long *keep, bool *tidy)
{
    char *line = NULL;
    size_t capacity = 0;
    ssize_t n;
    long number = 0, broken = 0;
    bool cutting = false;
    *keep = 0;
    while ((n = getline(&line, &capacity, f)) > 0) {
        int64_t step;
        number++;
        if (broken) {
            free(line);
            return moe_fail(MOE_E_DATA,
                            "%s:%ld: expected a JSON object with a \"step\"; move the file away to go on without its history",
                            path, broken);
        }
        if (line[n - 1] != '\n' || !step_of(line, (size_t)n, &step))
            broken = number;
        else if (step > last)
            cutting = true;
        else if (!cutting)
            *keep += n;
    }
    *tidy = !cutting && !broken;
    free(line);
    return ferror(f) ? moe_fail(MOE_E_IO, "cannot read %s: %s", path, strerror(errno)) : MOE_OK;
}

static moe_err copy_head(FILE *from, const char *path, const char *tmp, long keep)
{
    FILE *to = fopen(tmp, "wbe");
    if (!to)
        return moe_fail(MOE_E_CREATE, "cannot create %s: %s", tmp, strerror(errno));
    char block[65536];
    bool ok = fseek(from, 0, SEEK_SET) == 0;
    while (ok && keep > 0) {
        const size_t want = keep < (long)sizeof block ? (size_t)keep : sizeof block;
        ok = fread(block, 1, want, from) == want && fwrite(block, 1, want, to) == want;
        keep -= (long)want;
    }
    ok = ok && fflush(to) == 0 && fdatasync(fileno(to)) == 0;
    ok = fclose(to) == 0 && ok;
    ok = ok && rename(tmp, path) == 0;
    if (ok)
        return MOE_OK;
    const int error = errno;
    unlink(tmp);
    return moe_fail(MOE_E_IO, "cannot rewrite %s: %s", path, strerror(error));
}

static moe_err remove_after(const char *path, int64_t last)
{
    FILE *f = fopen(path, "rbe");
    if (!f)
        return errno == ENOENT ? MOE_OK : moe_fail(MOE_E_IO, "cannot read %s: %s", path, strerror(errno));
    long keep = 0;
    bool tidy = true;
    moe_err rc = find_cut(f, path, last, &keep, &tidy);
    if (rc == MOE_OK && !tidy) {
        text_buf tmp = {0};
        text_printf(&tmp, "%s.tmp", path);
        rc = tmp.failed ? moe_fail(MOE_E_OS, "out of memory") : copy_head(f, path, tmp.data, keep);
        text_free(&tmp);
    }
    fclose(f);
    return rc;
}

moe_err metrics_open(log_file *f, const char *run_dir, int64_t resume_step)
{
    text_buf t = {0};
    *f = (log_file){.fd = -1};
    text_printf(&t, "%s/metrics.jsonl", run_dir);
    TRY(text_take(&t, &f->path));
    if (resume_step >= 0)
        TRY(remove_after(f->path, resume_step));
    f->fd = open(f->path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | (resume_step < 0 ? O_TRUNC : 0), 0666);
    return f->fd >= 0 ? MOE_OK : moe_fail(MOE_E_CREATE, "cannot create %s: %s", f->path, strerror(errno));
}

/* --- one line ------------------------------------------------------------------------------------------------------------- */

/* A number that was not measured: null where readers count on the key, else no key. */
static void put(text_buf *t, const char *key, double x, bool always)
{
    char s[TEXT_NUMBER];
    if (isfinite(x))
        text_printf(t, ",\"%s\":%s", key, text_double(s, x));
    else if (always)
        text_printf(t, ",\"%s\":null", key);
}

static void put_bytes(text_buf *t, const char *key, uint64_t x) { text_printf(t, ",\"%s\":%llu", key, (unsigned long long)x); }

moe_err metrics_step(log_file *f, const step_metrics *m)
{
    text_buf t = {0};
    text_printf(&t, "{\"step\":%lld,\"tokens\":%lld", (long long)m->step, (long long)m->tokens);
    put(&t, "loss", m->loss, true);
    put(&t, "aux_loss", m->aux_loss, true);
    put(&t, "z_loss", m->z_loss, true);
    put(&t, "val_loss", m->val_loss, false);
    put(&t, "lr", m->lr, true);
    put(&t, "grad_norm", m->grad_norm, true);
    put(&t, "tokens_per_second", m->tokens_per_second, true);
    put_bytes(&t, "rss_bytes", m->rss_bytes);
    put_bytes(&t, "ssd_read_bytes", m->ssd_read_bytes);
    put_bytes(&t, "ssd_write_bytes", m->ssd_write_bytes);
    put_bytes(&t, "ssd_read_wasted_bytes", m->ssd_read_wasted_bytes);
    put(&t, "stall_seconds", m->stall_seconds, true);
    put(&t, "cache_hit_rate", m->cache_hit_rate, true);
    put(&t, "expert_load_max_over_mean", m->expert_load_max_over_mean, true);
    put(&t, "gflops_per_second", m->gflops_per_second, true);
    put(&t, "seconds", m->seconds, true);
    put(&t, "forward_seconds", m->forward_seconds, false);
    put(&t, "backward_seconds", m->backward_seconds, false);
    put(&t, "update_seconds", m->update_seconds, false);
    put(&t, "checkpoint_seconds", m->checkpoint_seconds, false);
    put(&t, "eval_seconds", m->eval_seconds, false);
    text_add(&t, "}\n");
    const moe_err rc = t.failed ? moe_fail(MOE_E_OS, "out of memory for a line of %s", f->path) : log_append(f, t.data, t.used);
    text_free(&t);
    return rc;
}
