/* Values that are right one by one and wrong together. */
#include <string.h>

#include "engine/config/detail.h"

static bool good(const train_config *c, const char *name) { return !config_state(c, name)->bad; }

static config_origin at(const train_config *c, const char *name) { return config_state(c, name)->at; }

static void check_batch(const train_config *c, problems *p)
{
    const bool seq = good(c, "train.seq_len"), step = good(c, "train.tokens_per_step"),
               micro = good(c, "train.micro_batch_tokens");
    const bool micro_given = at(c, "train.micro_batch_tokens").kind != ORIGIN_DEFAULT;
    if (seq && step && c->tokens_per_step % c->seq_len)
        problems_add(p, at(c, "train.tokens_per_step"), "train.tokens_per_step",
                     "expected a multiple of train.seq_len (%d), got %lld", c->seq_len, (long long)c->tokens_per_step);
    if (seq && micro && micro_given && c->micro_batch_tokens % c->seq_len)
        problems_add(p, at(c, "train.micro_batch_tokens"), "train.micro_batch_tokens",
                     "expected a multiple of train.seq_len (%d), got %lld", c->seq_len, (long long)c->micro_batch_tokens);
    if (step && micro && micro_given && c->tokens_per_step % c->micro_batch_tokens)
        problems_add(p, at(c, "train.micro_batch_tokens"), "train.micro_batch_tokens",
                     "expected a divisor of train.tokens_per_step (%lld), got %lld", (long long)c->tokens_per_step,
                     (long long)c->micro_batch_tokens);
    if (seq && c->detail->model_ready && c->model.max_positions > 0 && c->seq_len > c->model.max_positions)
        problems_add(p, at(c, "train.seq_len"), "train.seq_len", "expected at most model.max_position_embeddings (%d), got %d",
                     c->model.max_positions, c->seq_len);
}

static void check_schedule(const train_config *c, problems *p)
{
    char lr[TEXT_NUMBER], min[TEXT_NUMBER];
    const bool steps = good(c, "train.steps"), warmup = good(c, "optimizer.schedule.warmup_steps");
    const bool decay = good(c, "optimizer.schedule.decay_steps"),
               wsd = good(c, "optimizer.schedule.kind") && c->schedule == SCHEDULE_WSD;
    if (steps && warmup && c->warmup_steps > c->steps)
        problems_add(p, at(c, "optimizer.schedule.warmup_steps"), "optimizer.schedule.warmup_steps",
                     "expected at most train.steps (%lld), got %lld", (long long)c->steps, (long long)c->warmup_steps);
    if (wsd && decay && c->decay_steps < 1)
        problems_add(p, at(c, "optimizer.schedule.kind"), "optimizer.schedule.decay_steps",
                     "expected the length of the decay (kind wsd), got %s",
                     at(c, "optimizer.schedule.decay_steps").kind == ORIGIN_DEFAULT ? "nothing" : "0");
    else if (wsd && decay && steps && warmup && c->warmup_steps <= c->steps && c->decay_steps > c->steps - c->warmup_steps)
        problems_add(p, at(c, "optimizer.schedule.decay_steps"), "optimizer.schedule.decay_steps",
                     "expected at most train.steps - warmup_steps (%lld), got %lld", (long long)(c->steps - c->warmup_steps),
                     (long long)c->decay_steps);
    if (good(c, "optimizer.lr") && good(c, "optimizer.schedule.min_lr") && c->min_lr > c->lr)
        problems_add(p, at(c, "optimizer.schedule.min_lr"), "optimizer.schedule.min_lr",
                     "expected at most optimizer.lr (%s), got %s", text_double(lr, c->lr), text_double(min, c->min_lr));
}

static void check_balance(const train_config *c, problems *p)
{
    if (good(c, "balance.bias_update_rate") && c->bias_update_rate > 0 && c->detail->model_ready && !c->model.correction_bias)
        problems_add(p, at(c, "balance.bias_update_rate"), "balance.bias_update_rate",
                     "expected 0: the model's router has no correction bias (model.use_correction_bias: true adds one)");
}

static void check_memory(const train_config *c, problems *p)
{
    if (good(c, "memory.ssd") && c->ssd_count == 0)
        problems_add(p, at(c, "memory.ssd"), "memory.ssd", "expected at least one folder, got []");
    for (int i = 0; good(c, "memory.ssd") && i < c->ssd_count; i++)
        for (int j = 0; j < i; j++)
            if (strcmp(c->ssd[i], c->ssd[j]) == 0)
                problems_add(p, at(c, "memory.ssd"), "memory.ssd", "expected each folder once, got \"%s\" twice", c->ssd[i]);
}

void config_check(const train_config *c, problems *p)
{
    check_batch(c, p);
    check_schedule(c, p);
    check_balance(c, p);
    check_memory(c, p);
}
