/* Private to report: what stands on stderr while a run goes on. On a terminal one line that is redrawn in place, never longer than the
 * window; elsewhere one line a step. Owns the state of the line; threads: report locks around it. */
#ifndef MOE_ENGINE_REPORT_LIVE_H
#define MOE_ENGINE_REPORT_LIVE_H

#include "engine/base/text.h"
#include "engine/report/report.h"

enum { LIVE_WINDOW = 32 }; /* steps whose mean duration makes the ETA */

typedef struct live {
    bool quiet, terminal, color;
    int64_t planned;
    double stamp[LIVE_WINDOW]; /* when the last steps were reported, seconds */
    int64_t stamps;
    double val_loss;           /* the last one, NAN before */
    text_buf line;             /* what stands there now, "" when nothing does */
} live;

void live_open(live *l, int64_t planned, bool quiet);
void live_step(live *l, const step_metrics *m);
/* A whole line above the live one. */
void live_note(live *l, const char *line);
/* The live line stays as it is; what follows begins below it. */
void live_finish(live *l);
void live_close(live *l);

void live_summary(live *l, const run_summary *s);

#endif
