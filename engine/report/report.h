/* What people look at while a run goes on and after it: metrics.jsonl, TensorBoard events, the live line or one line a step, the
 * table at the end. Knows no engine: it is handed numbers. A number that is not measured is not printed (NAN: not measured). */
#ifndef MOE_ENGINE_REPORT_REPORT_H
#define MOE_ENGINE_REPORT_REPORT_H

#include <stdbool.h>
#include <stdint.h>

#include "engine/base/error.h"

typedef struct step_metrics {
    int64_t step, tokens;           /* tokens: seen so far, this step included              */
    double loss, aux_loss, z_loss;
    double val_loss;                /* NAN when not evaluated at this step                  */
    double lr, grad_norm;
    double seconds, tokens_per_second;
    uint64_t rss_bytes, ssd_read_bytes, ssd_write_bytes, ssd_read_wasted_bytes; /* of this step (rss: now) */
    double stall_seconds, cache_hit_rate, expert_load_max_over_mean, gflops_per_second;
    double forward_seconds, backward_seconds, update_seconds, checkpoint_seconds, eval_seconds;
    const int64_t *expert_rows;     /* [layers * experts] routed rows of this step, or NULL  */
    int layers, experts;
} step_metrics;

/* What the whole run amounts to, for the table at the end. */
typedef struct run_summary {
    int64_t steps, tokens;
    double seconds;
    struct { const char *name; double seconds; } part[16]; /* where the time went, NULL name ends */
    uint64_t ssd_read_bytes, ssd_write_bytes, ssd_read_wasted_bytes, spill_bytes;
    double stall_seconds, gflops_per_second, peak_gflops; /* peak: measured fma rate of this machine   */
    double ssd_bytes_per_second, ssd_peak_bytes_per_second; /* while busy; what the drive does: measured, or NAN */
    uint64_t peak_rss_bytes, host_limit_bytes;
    double first_loss, last_loss, val_loss;
} run_summary;

typedef struct report report;

/* run_dir/metrics.jsonl, run_dir/experts.bin (expert_rows of every step) and run_dir/events.out.tfevents.*; what they hold after
 * `resume_step` is removed (-1: a new run, all of it). `planned` steps for ETA. quiet: nothing on the terminal.
 * MOE_E_CREATE, MOE_E_IO; MOE_E_DATA when metrics.jsonl is damaged in the middle (a torn last line is not). */
moe_err report_open(report **out, const char *run_dir, int64_t resume_step, int64_t planned, bool quiet) MOE_MUST_CHECK;
moe_err report_step(report *r, const step_metrics *m) MOE_MUST_CHECK;
/* The lines so far survive a power cut. Before a checkpoint is committed, after report_step of its step: then no resume misses a line. */
moe_err report_sync(report *r) MOE_MUST_CHECK;
/* A line of news on stderr that does not tear the live line. */
void report_note(report *r, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void report_summary(report *r, const run_summary *s);
void report_close(report *r);

#endif
