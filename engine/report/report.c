#include "engine/report/report.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

#include "engine/report/files.h"
#include "engine/report/live.h"

struct report {
    log_file metrics, events;
    experts_log experts;
    live live;
    pthread_mutex_t lock; /* of live: notes come from any thread */
};

moe_err report_open(report **out, const char *run_dir, int64_t resume_step, int64_t planned, bool quiet)
{
    moe_err rc = MOE_OK;
    *out = NULL;
    report *r = calloc(1, sizeof *r);
    if (!r)
        return moe_fail(MOE_E_OS, "out of memory for the report");
    r->metrics.fd = r->events.fd = r->experts.file.fd = -1;
    pthread_mutex_init(&r->lock, NULL);
    live_open(&r->live, planned, quiet);
    TRY_GOTO(metrics_open(&r->metrics, run_dir, resume_step), rc, failed);
    TRY_GOTO(experts_open(&r->experts, run_dir, resume_step), rc, failed);
    TRY_GOTO(events_open(&r->events, run_dir, resume_step), rc, failed);
    *out = r;
    return MOE_OK;
failed:
    report_close(r);
    return rc;
}

moe_err report_step(report *r, const step_metrics *m)
{
    TRY(metrics_step(&r->metrics, m));
    TRY(experts_step(&r->experts, m));
    TRY(events_step(&r->events, m));
    pthread_mutex_lock(&r->lock);
    live_step(&r->live, m);
    pthread_mutex_unlock(&r->lock);
    return MOE_OK;
}

moe_err report_sync(report *r)
{
    TRY(log_sync(&r->metrics));
    return log_sync(&r->experts.file);
}

void report_note(report *r, const char *fmt, ...)
{
    text_buf t = {0};
    va_list ap;
    va_start(ap, fmt);
    text_vprintf(&t, fmt, ap);
    va_end(ap);
    pthread_mutex_lock(&r->lock);
    if (!t.failed && t.used)
        live_note(&r->live, t.data);
    pthread_mutex_unlock(&r->lock);
    text_free(&t);
}

void report_summary(report *r, const run_summary *s)
{
    pthread_mutex_lock(&r->lock);
    live_summary(&r->live, s);
    pthread_mutex_unlock(&r->lock);
}

void report_close(report *r)
{
    if (!r)
        return;
    live_close(&r->live);
    log_close(&r->metrics);
    log_close(&r->experts.file);
    log_close(&r->events);
    pthread_mutex_destroy(&r->lock);
    free(r);
}
