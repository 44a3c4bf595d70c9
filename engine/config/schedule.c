/* The learning rate of a step. Its bits reach the weights: only + - * / and the project's own cosine. */
#include "engine/config/train_config.h"
#include "kernels/math.h"

/* How much of lr - min_lr is left, 1 at the end of the warmup and 0 at the last step. */
static double remaining(const train_config *c, int64_t s)
{
    const double left = (double)(c->steps - s), after_warmup = (double)(c->steps - c->warmup_steps);
    switch (c->schedule) {
    case SCHEDULE_COSINE:
        return 0.5 * (1.0 + moe_cos(0x1.921fb54442d18p+1 * ((double)(s - c->warmup_steps) / after_warmup))); /* pi */
    case SCHEDULE_LINEAR:
        return left / after_warmup;
    case SCHEDULE_WSD:
        return s <= c->steps - c->decay_steps ? 1.0 : left / (double)c->decay_steps;
    case SCHEDULE_CONSTANT:
        break;
    }
    return 1.0;
}

double train_config_lr(const train_config *c, int64_t s)
{
    if (s < c->warmup_steps)
        return c->lr * (double)s / (double)c->warmup_steps;
    if (s == c->warmup_steps || c->schedule == SCHEDULE_CONSTANT)
        return c->lr;
    if (s >= c->steps)
        return c->min_lr;
    const double r = remaining(c, s);
    return r == 1.0 ? c->lr : c->min_lr + (c->lr - c->min_lr) * r;
}
