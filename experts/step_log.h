/* The step log: learning rate, clip coefficient and AdamW constants of every step that some expert may still have to replay.
 * Consecutive steps; the last is the last finished step. Part of every checkpoint, so that a replay reads the log, never the config. */
#ifndef MOE_EXPERTS_STEP_LOG_H
#define MOE_EXPERTS_STEP_LOG_H

#include "kernels/adamw.h"

typedef struct step_log {
    adamw_step *step; /* [n] consecutive */
    uint64_t n, capacity;
} step_log;

moe_err step_log_append(step_log *log, const adamw_step *s) MOE_MUST_CHECK; /* s->step must be the last one's + 1 */
moe_err step_log_load(step_log *log, const adamw_step *steps, uint64_t n) MOE_MUST_CHECK;
/* Forgets steps <= oldest: nothing stands below it any more. */
void step_log_trim(step_log *log, uint64_t oldest);
/* The steps after `from`, n of them up to the last; NULL (and a bug) when the log begins later than that. */
const adamw_step *step_log_after(const step_log *log, uint64_t from, uint64_t *n);
void step_log_free(step_log *log);

#endif
