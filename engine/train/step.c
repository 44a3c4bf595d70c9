/* One optimizer step: windows -> forward, head, backward of every group -> norm and clip -> the step log, the dense update. Expert
 * updates are deferred to the next touch, or were made on speculation and are now kept or taken back. */
#include <math.h>
#include <string.h>

#include "engine/base/clock.h"
#include "engine/train/trainer.h"
#include "memory/budget.h"

enum { CLIP_MEMORY = 16 }; /* steps over which "clipped recently" is judged */

static moe_err read_step(trainer *t, uint64_t step)
{
    const train_config *c = t->config;
    const int64_t windows = c->tokens_per_step / c->seq_len, all = dataset_windows(t->train);
    for (int64_t i = 0; i < windows; i++) {
        const int64_t n = (int64_t)(step - 1) * windows + i;
        TRY(dataset_read(t->train, dataset_shuffled(all, c->seed, n), c->model.V, t->window));
        memcpy(t->tokens + i * c->seq_len, t->window, (size_t)c->seq_len * sizeof *t->tokens);
        memcpy(t->targets + i * c->seq_len, t->window + 1, (size_t)c->seq_len * sizeof *t->targets);
    }
    return MOE_OK;
}

/* Speculation pays when the disk, not the processor, bounds forward, and recent steps were not clipped: a clipped step is redone. */
static bool wants_speculation(const trainer *t)
{
    if (!t->plan.can_speculate || t->plan.groups > 1 || t->tier == NULL)
        return false;
    if (t->config->update == UPDATE_SPECULATIVE)
        return true;
    const uint64_t n = t->log.n < CLIP_MEMORY ? t->log.n : CLIP_MEMORY;
    uint64_t clipped = 0;
    for (uint64_t i = t->log.n - n; i < t->log.n; i++)
        clipped += t->log.step[i].clip < 1;
    return n >= 4 && clipped * 8 <= n;
}

static adamw_step plain_step(const trainer *t, uint64_t step)
{
    const train_config *c = t->config;
    return (adamw_step){
        .step = step, .lr = train_config_lr(c, (int64_t)step), .beta1 = c->beta1, .beta2 = c->beta2, .eps = c->eps,
        .weight_decay = c->weight_decay, .clip = 1,
    };
}

/* Norm of the whole gradient: double sums of the sections, in section order (embedding, then layer by layer, then head). */
static moe_err gradient_norm(trainer *t, double *norm)
{
    const model_spec *m = &t->config->model;
    TRY(dense_gradient_squares(&t->dense, t->be, &t->stream, t->dense_squares));
    double sum = t->dense_squares[0];
    for (int l = 0; l < m->L; l++) {
        sum += t->dense_squares[1 + l];
        const int moe = spec_moe_index(m, l);
        for (int e = 0; moe >= 0 && e < m->E; e++)
            sum += t->decoder.moe.grad_squares[(size_t)moe * (size_t)m->E + (size_t)e];
    }
    sum += t->dense_squares[1 + m->L];
    TRY(t->comm->ops->sum_doubles(t->comm, &sum, 1)); /* each rank holds sections of its own */
    *norm = sqrt(sum);
    return MOE_OK;
}

/* The dense gradient and the loss are sums over the ranks' tokens. */
static moe_err reduce_over_ranks(trainer *t, double *loss_sum)
{
    TRY(t->comm->ops->sum_doubles(t->comm, loss_sum, 1));
    if (t->dense.tied_g != NULL)
        TRY(t->comm->ops->sum_floats(t->comm, t->dense.tied_g, t->dense.embed_layout.floats));
    return t->comm->ops->sum_floats(t->comm, t->dense.g, t->dense.floats);
}

static moe_err run_groups(trainer *t, uint64_t step, const adamw_step *speculate, double *loss_sum, step_metrics *out)
{
    const train_config *c = t->config;
    const int64_t G = t->plan.group_tokens;
    const float scale = (float)(1.0 / (double)c->tokens_per_step);
    for (int64_t first = 0; first < c->tokens_per_step; first += G) {
        const double t0 = moe_seconds();
        TRY(decoder_forward(&t->decoder, t->tokens + first, G, first, true));
        const double t1 = moe_seconds();
        out->forward_seconds += t1 - t0;
        TRY(decoder_head(&t->decoder, t->targets + first, scale, loss_sum));
        if (!isfinite(*loss_sum))
            return moe_fail(MOE_E_NUMERIC, "step %llu: the loss is not finite (%g); the last checkpoint is untouched", (unsigned long long)step,
                            *loss_sum);
        TRY(decoder_backward(&t->decoder, step, speculate));
        out->backward_seconds += moe_seconds() - t1;
    }
    return MOE_OK;
}

static moe_err finish_step(trainer *t, const adamw_step *plain, bool speculated, double norm)
{
    const train_config *c = t->config;
    adamw_step done = *plain;
    if (c->clip_norm > 0 && norm + 1e-6 > c->clip_norm)
        done.clip = c->clip_norm / (norm + 1e-6);
    TRY(step_log_append(&t->log, &done));
    const moe_err rc = speculated ? tier_speculate_resolve(t->tier, done.clip == 1) : MOE_OK;
    if (rc != MOE_OK) {
        t->log.n--; /* the step did not happen */
        return rc;
    }
    t->finished = done.step;
    if (t->tier != NULL)
        tier_set_step(t->tier, t->finished);
    TRY(dense_update(&t->dense, t->be, &t->stream, &done));
    const model_spec *m = &c->model;
    for (int l = 0; l < m->L && c->bias_update_rate != 0; l++)
        if (t->dense.layout[l].router_bias >= 0)
            balance_update_bias(&t->balance, spec_moe_index(m, l), c->bias_update_rate,
                                t->dense.w + t->dense.layer[l] + t->dense.layout[l].router_bias);
    return MOE_OK;
}

/* Back to the last finished step: gradients of the abandoned one are forgotten. */
static void abandon_step(trainer *t, bool speculated)
{
    decoder_abandon(&t->decoder);
    if (t->tier == NULL)
        return;
    if (speculated && tier_speculate_resolve(t->tier, false) != MOE_OK)
        return; /* the store failed: the caller's error says so, and the checkpoint on disk stands */
    tier_abandon(t->tier);
}

static void fill_metrics(trainer *t, step_metrics *out, double loss_sum, double norm)
{
    const train_config *c = t->config;
    trainer_counters now;
    const trainer_counters *before = &t->counted;
    trainer_count(t, &now);
    out->step = (int64_t)t->finished;
    out->tokens = (int64_t)t->finished * c->tokens_per_step;
    out->loss = loss_sum / (double)c->tokens_per_step;
    out->aux_loss = balance_aux(&t->balance);
    out->z_loss = balance_z(&t->balance);
    out->val_loss = NAN;
    out->lr = t->log.step[t->log.n - 1].lr;
    out->grad_norm = norm;
    out->tokens_per_second = (double)c->tokens_per_step / out->seconds;
    out->rss_bytes = budget_rss();
    out->ssd_read_bytes = now.read - before->read;
    out->ssd_write_bytes = now.write - before->write;
    out->ssd_read_wasted_bytes = now.wasted - before->wasted;
    out->stall_seconds = now.stall - before->stall;
    const uint64_t hits = now.hits - before->hits, asked = hits + now.misses - before->misses;
    out->cache_hit_rate = asked > 0 ? (double)hits / (double)asked : NAN;
    out->expert_load_max_over_mean = balance_max_over_mean(&t->balance, t->expert_rows);
    out->gflops_per_second = (t->plan.flops_forward + t->plan.flops_backward) / out->seconds / 1e9;
    out->expert_rows = t->plan.layers > 0 ? t->expert_rows : NULL;
    out->layers = t->plan.layers;
    out->experts = c->model.E;
    t->counted = now;
}

static moe_err attempt_step(trainer *t, const adamw_step *plain, bool speculate, double *loss_sum, double *norm, step_metrics *out)
{
    TRY(run_groups(t, plain->step, speculate ? plain : NULL, loss_sum, out));
    const double t0 = moe_seconds();
    TRY(reduce_over_ranks(t, loss_sum));
    TRY(gradient_norm(t, norm));
    if (!isfinite(*norm))
        return moe_fail(MOE_E_NUMERIC, "step %llu: the gradient norm is not finite (%g); the last checkpoint is untouched",
                        (unsigned long long)plain->step, *norm);
    TRY(finish_step(t, plain, speculate, *norm));
    out->update_seconds = moe_seconds() - t0;
    return MOE_OK;
}

moe_err trainer_step(trainer *t, step_metrics *out)
{
    TRY(read_step(t, t->finished + 1));
    return trainer_step_tokens(t, out);
}

moe_err trainer_step_tokens(trainer *t, step_metrics *out)
{
    const double t0 = moe_seconds(), update0 = t->decoder.moe.times.update;
    const uint64_t step = t->finished + 1;
    *out = (step_metrics){.val_loss = NAN};
    dense_zero_gradients(&t->dense);
    balance_begin_step(&t->balance);
    if (t->plan.layers > 0)
        memset(t->decoder.moe.grad_squares, 0, (size_t)t->plan.sections * sizeof *t->decoder.moe.grad_squares);
    const adamw_step plain = plain_step(t, step);
    const bool speculate = wants_speculation(t);
    if (speculate)
        tier_speculate_begin(t->tier, step);

    double loss_sum = 0, norm = NAN;
    const moe_err rc = attempt_step(t, &plain, speculate, &loss_sum, &norm, out);
    if (rc != MOE_OK) {
        char text[MOE_ERROR_TEXT];
        moe_error_take(text, sizeof text);
        abandon_step(t, speculate);
        return moe_error_set(rc, text);
    }
    const double now = moe_seconds();
    out->update_seconds += t->decoder.moe.times.update - update0;
    out->seconds = now - t0;
    fill_metrics(t, out, loss_sum, norm);
    return MOE_OK;
}
