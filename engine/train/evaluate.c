/* Held-out loss: a forward pass over windows spread evenly over the held-out text, with nothing kept. Pending updates of the experts it
 * touches are applied on the way, exactly as the next training step would. */
#include <math.h>
#include <string.h>

#include "engine/train/trainer.h"

/* Numbers [first, first + n) of `of` windows that are spread over `all`. */
static moe_err read_windows(trainer *t, int64_t first, int64_t n, int64_t of, int64_t all)
{
    const train_config *c = t->config;
    for (int64_t i = 0; i < n; i++) {
        const int64_t window = (int64_t)((__int128)(first + i) * all / of);
        TRY(dataset_read(t->val, window, c->model.V, t->window));
        memcpy(t->tokens + i * c->seq_len, t->window, (size_t)c->seq_len * sizeof *t->tokens);
        memcpy(t->targets + i * c->seq_len, t->window + 1, (size_t)c->seq_len * sizeof *t->targets);
    }
    return MOE_OK;
}

moe_err trainer_evaluate(trainer *t, int64_t windows, double *loss, int64_t *used)
{
    const int64_t S = t->config->seq_len, all = t->val != NULL ? dataset_windows(t->val) : 0;
    const int64_t n = windows < all ? windows : all, group = t->plan.group_tokens / S;
    *loss = NAN;
    *used = n;
    if (n == 0)
        return MOE_OK;
    balance *const counted = t->decoder.moe.balance;
    t->decoder.moe.balance = NULL; /* the statistics are those of training */
    double sum = 0;
    moe_err rc = MOE_OK;
    for (int64_t first = 0; first < n && rc == MOE_OK; first += group) {
        const int64_t now = n - first < group ? n - first : group;
        TRY_GOTO(read_windows(t, first, now, n, all), rc, done);
        TRY_GOTO(decoder_forward(&t->decoder, t->tokens, now * S, 0, false), rc, done);
        TRY_GOTO(decoder_head(&t->decoder, t->targets, 0, &sum), rc, done);
    }
    *loss = sum / (double)(n * S);
done:
    t->decoder.moe.balance = counted;
    return rc;
}
