/* Private to report: the files of a run folder that people and scripts read.
 *   metrics.jsonl            one object a step
 *   experts.bin              rows routed to every expert, for the heat map: 32-byte header, then one record a step (see experts_header)
 *   events.out.tfevents.*    TensorBoard
 * Each line or record is one write at the end of its file. One thread. Rule: what is at or before the resumed step stays, byte for
 * byte; what is after it goes, together with a last line that a crash tore. */
#ifndef MOE_ENGINE_REPORT_FILES_H
#define MOE_ENGINE_REPORT_FILES_H

#include "engine/base/text.h"
#include "engine/report/report.h"

/* An open file that only grows. */
typedef struct log_file {
    int fd; /* -1: closed */
    char *path;
} log_file;

/* One write; when the disk is full the file is cut back to what it was. MOE_E_IO. */
moe_err log_append(log_file *f, const void *bytes, size_t n) MOE_MUST_CHECK;
/* fdatasync: with a checkpoint the lines before it must survive a power cut too. */
moe_err log_sync(log_file *f) MOE_MUST_CHECK;
void log_close(log_file *f);

moe_err metrics_open(log_file *f, const char *run_dir, int64_t resume_step) MOE_MUST_CHECK;
moe_err metrics_step(log_file *f, const step_metrics *m) MOE_MUST_CHECK;

typedef struct experts_header {
    char magic[8];           /* EXPERTS_MAGIC                                                  */
    uint32_t layers, experts;
    uint64_t reserved[2];    /* 0                                                              */
} experts_header;            /* then records: uint64 step, uint32 rows[layers * experts]; all little-endian */
_Static_assert(sizeof(experts_header) == 32, "experts.bin is read by bench/plot.py");
#define EXPERTS_MAGIC "MOEROWS1"

typedef struct experts_log {
    log_file file;
    uint32_t layers, experts; /* 0: no header yet */
} experts_log;

moe_err experts_open(experts_log *l, const char *run_dir, int64_t resume_step) MOE_MUST_CHECK;
moe_err experts_step(experts_log *l, const step_metrics *m) MOE_MUST_CHECK;

/* A new event file; TensorBoard drops what older ones hold after the resumed step. */
moe_err events_open(log_file *f, const char *run_dir, int64_t resume_step) MOE_MUST_CHECK;
moe_err events_step(log_file *f, const step_metrics *m) MOE_MUST_CHECK;

#endif
