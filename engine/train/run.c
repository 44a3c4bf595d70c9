/* The training loop: steps, evaluation, checkpoints, signals, reporting. */
#include <errno.h>
#include <math.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "engine/base/clock.h"
#include "engine/plan/machine.h"
#include "engine/train/commands.h"
#include "memory/budget.h"

static atomic_int stop_signals; /* a handler runs on any thread */

/* The first signal asks for a stop at the next safe point; the second leaves at once: the last checkpoint on disk stands. */
static void on_signal(int number)
{
    (void)number;
    if (++stop_signals > 1)
        _exit(MOE_E_TEMP);
}

static void catch_signals(void)
{
    struct sigaction a = {.sa_handler = on_signal};
    sigemptyset(&a.sa_mask);
    sigaction(SIGTERM, &a, NULL);
    sigaction(SIGINT, &a, NULL);
    signal(SIGPIPE, SIG_IGN);
    stop_signals = 0;
}

typedef struct run_state {
    trainer t;
    report *report;
    double started;
    double forward, backward, update, evaluation, checkpoint, checkpoint_pause;
    uint64_t last_checkpoint;
    run_summary sum;
    trainer_counters first;
    int64_t steps_done;
    int threads;
} run_state;

static moe_err save_config(const trainer *t)
{
    char *text = NULL, *path = NULL;
    moe_err rc;
    TRY_GOTO(train_config_print(t->config, &text), rc, done);
    TRY_GOTO(run_folder_path(t->folder, "config.yaml", &path), rc, done);
    TRY_GOTO(io_replace_file(t->io, path, text, strlen(text)), rc, done);
done:
    free(text);
    free(path);
    return rc;
}

/* The metrics of every step it covers are on disk before the checkpoint is; its pause is told by the next step. */
static moe_err checkpoint_now(run_state *r)
{
    TRY(report_sync(r->report));
    const double t0 = moe_seconds();
    TRY(trainer_checkpoint(&r->t));
    r->checkpoint_pause = moe_seconds() - t0;
    r->checkpoint += r->checkpoint_pause;
    r->last_checkpoint = r->t.finished;
    return MOE_OK;
}

static moe_err evaluate_now(run_state *r, step_metrics *m)
{
    const double t0 = moe_seconds();
    int64_t used;
    TRY(trainer_evaluate(&r->t, r->t.config->eval_windows, &m->val_loss, &used));
    m->eval_seconds = moe_seconds() - t0;
    r->evaluation += m->eval_seconds;
    if (isfinite(m->val_loss))
        r->sum.val_loss = m->val_loss;
    return MOE_OK;
}

static void add_up(run_state *r, const step_metrics *m)
{
    if (r->steps_done++ == 0)
        r->sum.first_loss = m->loss;
    r->sum.last_loss = m->loss;
    r->forward += m->forward_seconds;
    r->backward += m->backward_seconds;
    r->update += m->update_seconds;
    r->sum.gflops_per_second += m->gflops_per_second * m->seconds;
}

static moe_err one_step(run_state *r)
{
    const train_config *c = r->t.config;
    step_metrics m;
    TRY(trainer_step(&r->t, &m));
    const bool last = (int64_t)r->t.finished == c->steps;
    moe_err stopped = MOE_OK;
    if ((c->eval_every > 0 && (int64_t)r->t.finished % c->eval_every == 0) || last)
        stopped = evaluate_now(r, &m);
    if (stopped != MOE_OK && stopped != MOE_E_TEMP)
        return stopped;
    m.checkpoint_seconds = r->checkpoint_pause;
    r->checkpoint_pause = 0;
    add_up(r, &m);
    TRY(report_step(r->report, &m)); /* the step is finished, also when a signal cut its evaluation short */
    TRY(stopped);
    if ((c->checkpoint_every > 0 && (int64_t)r->t.finished % c->checkpoint_every == 0) || last)
        TRY(checkpoint_now(r));
    return MOE_OK;
}

static void sum_up(run_state *r)
{
    trainer *t = &r->t;
    run_summary *s = &r->sum;
    trainer_counters now;
    trainer_count(t, &now);
    const decoder_times *d = &t->decoder.times;
    const moe_times *x = &t->decoder.moe.times;
    s->seconds = moe_seconds() - r->started;
    s->steps = r->steps_done;
    s->tokens = r->steps_done * t->config->tokens_per_step;
    s->stall_seconds = now.stall - r->first.stall;
    const double known = d->attention + d->ffn + d->head + d->embedding + x->router + x->experts + x->update + r->evaluation + r->checkpoint;
    int i = 0;
    s->part[i].name = "experts (stalls included)", s->part[i++].seconds = x->experts;
    s->part[i].name = "attention", s->part[i++].seconds = d->attention;
    s->part[i].name = "router and dispatch", s->part[i++].seconds = x->router;
    s->part[i].name = "dense FFN, norms", s->part[i++].seconds = d->ffn;
    s->part[i].name = "head and loss", s->part[i++].seconds = d->head;
    s->part[i].name = "embedding", s->part[i++].seconds = d->embedding;
    s->part[i].name = "AdamW of experts", s->part[i++].seconds = x->update;
    s->part[i].name = "evaluation", s->part[i++].seconds = r->evaluation;
    s->part[i].name = "checkpoints", s->part[i++].seconds = r->checkpoint;
    s->part[i].name = "the rest", s->part[i++].seconds = s->seconds > known ? s->seconds - known : 0;
    s->ssd_read_bytes = now.read - r->first.read;
    s->ssd_write_bytes = now.write - r->first.write;
    s->ssd_read_wasted_bytes = now.wasted - r->first.wasted;
    s->spill_bytes = now.spilled - r->first.spilled;
    const double busy = now.busy - r->first.busy, steps = r->forward + r->backward + r->update;
    const double through_store = (double)(s->ssd_read_bytes + s->ssd_write_bytes - t->dense_written);
    s->ssd_bytes_per_second = busy > 0.2 ? through_store / busy : NAN; /* too little to be a rate otherwise */
    s->ssd_peak_bytes_per_second = NAN;
    s->gflops_per_second = steps > 0 ? s->gflops_per_second / steps : NAN;
    s->peak_gflops = NAN;
    r->threads = t->plan.threads;
    s->peak_rss_bytes = budget_peak_rss();
    s->host_limit_bytes = t->plan.limit;
}

/* What this machine does now, for comparison; a failure only leaves the figure out. After everything else is closed: it needs memory. */
static void measure_machine(run_state *r, const train_config *c, const run_folder *f)
{
    moe_pool *pool = NULL;
    io *disk = NULL;
    const moe_backend *be;
    char note[512];
    double flops, read, write;
    if (moe_backend_find(&be, c->backend) == MOE_OK && moe_pool_open(&pool, r->threads, KERNEL_SCRATCH_BYTES) == MOE_OK) {
        moe_stream s = {.pool = pool};
        if (machine_product_rate(be, &s, &flops) == MOE_OK)
            r->sum.peak_gflops = flops / 1e9;
    }
    const bool moved = r->sum.ssd_read_bytes + r->sum.ssd_write_bytes > 0;
    if (moved && io_open(&disk, c->io, note) == MOE_OK) {
        if (machine_disk_rate(disk, f->path, (size_t)128 << 20, c->buffered, &read, &write) == MOE_OK)
            r->sum.ssd_peak_bytes_per_second = 2 / (1 / read + 1 / write); /* half read, half written */
        io_close(disk);
    }
    moe_pool_close(pool);
}

static moe_err train_loop(run_state *r)
{
    const train_config *c = r->t.config;
    while ((int64_t)r->t.finished < c->steps) {
        const moe_err rc = stop_signals ? MOE_E_TEMP : one_step(r);
        if (rc == MOE_E_TEMP && stop_signals) {
            if (r->t.finished > r->last_checkpoint)
                TRY(checkpoint_now(r));
            return moe_fail(MOE_E_TEMP, "stopped by a signal at step %llu; the same command continues from there",
                            (unsigned long long)r->t.finished);
        }
        TRY(rc);
    }
    return MOE_OK;
}

static moe_err run_opened(run_state *r, const run_options *o)
{
    trainer *t = &r->t;
    TRY(save_config(t));
    TRY(report_open(&r->report, t->folder->path, t->resumed ? (int64_t)t->finished : -1, t->config->steps, o->quiet));
    if (t->io_note[0] != '\0')
        report_note(r->report, "%s", t->io_note);
    if (t->val_note[0] != '\0')
        report_note(r->report, "%s", t->val_note);
    if (t->checkpoint_note[0] != '\0')
        report_note(r->report, "%s", t->checkpoint_note);
    if ((int64_t)t->finished >= t->config->steps) {
        report_note(r->report, "%s: finished, %llu steps done", t->folder->path, (unsigned long long)t->finished);
        return MOE_OK;
    }
    if (t->resumed)
        report_note(r->report, "%s: continues after step %llu", t->folder->path, (unsigned long long)t->finished);
    r->last_checkpoint = t->resumed ? t->finished : 0;
    trainer_count(t, &r->first);
    r->started = moe_seconds();
    r->sum.val_loss = NAN;
    const moe_err rc = train_loop(r);
    if (r->steps_done > 0)
        sum_up(r);
    return rc;
}

moe_err command_run(train_config *c, const run_options *o)
{
    run_folder folder;
    run_state *r = calloc(1, sizeof *r);
    char path[4096];
    moe_err rc;
    if (r == NULL)
        return moe_fail(MOE_E_OS, "out of memory");
    snprintf(path, sizeof path, "runs/%s", c->name);
    catch_signals();
    TRY_GOTO(run_folder_open(&folder, o->run_dir != NULL ? o->run_dir : path, true), rc, free_state);
    TRY_GOTO(trainer_open(&r->t, c, &folder, (trainer_options){.mode = TRAINER_RUN, .fresh = o->fresh, .stop = &stop_signals}), rc, close_folder);
    rc = run_opened(r, o);
    char text[MOE_ERROR_TEXT];
    moe_error_take(text, sizeof text);
    trainer_close(&r->t);
    if (r->steps_done > 0 && !o->quiet) {
        if (rc == MOE_OK)
            measure_machine(r, c, &folder);
        report_summary(r->report, &r->sum);
    }
    report_close(r->report);
    if (rc != MOE_OK)
        rc = moe_error_set(rc, text);
close_folder:
    run_folder_close(&folder);
free_state:
    free(r);
    return rc;
}

moe_err command_open(trainer *t, train_config **c, run_folder *f, const char *run_dir, const char *const *sets, int nsets)
{
    char *path = NULL;
    moe_err rc;
    *c = NULL;
    *t = (trainer){0};
    TRY(run_folder_open(f, run_dir, false));
    TRY_GOTO(run_folder_path(f, "config.yaml", &path), rc, fail);
    TRY_GOTO(train_config_load(c, path, sets, nsets), rc, fail);
    TRY_GOTO(trainer_open(t, *c, f, (trainer_options){.mode = TRAINER_READ}), rc, fail);
    free(path);
    return MOE_OK;
fail:
    free(path);
    train_config_free(*c);
    *c = NULL;
    run_folder_close(f);
    return rc;
}
