#include "experts/step_log.h"

#include <stdlib.h>
#include <string.h>

static moe_err reserve(step_log *log, uint64_t n)
{
    if (n <= log->capacity)
        return MOE_OK;
    if (n > SIZE_MAX / 2 / sizeof *log->step)
        return moe_fail(MOE_E_DATA, "step log: %llu steps are too many", (unsigned long long)n);
    const uint64_t capacity = n < 64 ? 64 : n + n / 2;
    adamw_step *grown = realloc(log->step, capacity * sizeof *grown);
    if (grown == NULL)
        return moe_fail(MOE_E_OS, "step log: out of memory for %llu steps", (unsigned long long)capacity);
    log->step = grown;
    log->capacity = capacity;
    return MOE_OK;
}

moe_err step_log_append(step_log *log, const adamw_step *s)
{
    if (log->n > 0 && log->step[log->n - 1].step + 1 != s->step)
        return moe_fail(MOE_E_DATA, "step log: step %llu after step %llu", (unsigned long long)s->step,
                        (unsigned long long)log->step[log->n - 1].step);
    TRY(reserve(log, log->n + 1));
    log->step[log->n++] = *s;
    return MOE_OK;
}

moe_err step_log_load(step_log *log, const adamw_step *steps, uint64_t n)
{
    log->n = 0;
    TRY(reserve(log, n));
    if (n > 0)
        memcpy(log->step, steps, n * sizeof *steps);
    log->n = n;
    return MOE_OK;
}

void step_log_trim(step_log *log, uint64_t oldest)
{
    uint64_t gone = 0;
    while (gone < log->n && log->step[gone].step <= oldest)
        gone++;
    if (gone == 0)
        return;
    log->n -= gone;
    memmove(log->step, log->step + gone, log->n * sizeof *log->step);
}

const adamw_step *step_log_after(const step_log *log, uint64_t from, uint64_t *n)
{
    *n = 0;
    if (log->n == 0 || log->step[0].step > from + 1)
        return NULL;
    const uint64_t skip = from + 1 - log->step[0].step;
    if (skip >= log->n)
        return NULL;
    *n = log->n - skip;
    return log->step + skip;
}

void step_log_free(step_log *log)
{
    free(log->step);
    *log = (step_log){0};
}
