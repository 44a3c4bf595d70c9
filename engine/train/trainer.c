/* A trainer's life: what it is made of is opened in the order in which one part needs another, and closed in reverse; its checkpoints. */
#include "engine/train/trainer.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/base/clock.h"
#include "kernels/halves.h"
#include "memory/budget.h"

/* Initial or imported weights of a section. */
static moe_err fill_weights(trainer *t, section_id section, float *buf)
{
    const model_spec *spec = &t->config->model;
    tensor_info tensor[3];
    int layer = -1;
    for (int l = 0, i = 0; l < spec->L && layer < 0; l++)
        if (spec->moe_layer[l] && i++ == section / spec->E)
            layer = l;
    spec_expert_tensors(spec, layer, section % spec->E, tensor);
    for (int i = 0; i < 3; i++) {
        if (t->from != NULL) {
            TRY(hf_reader_read(t->from, &tensor[i], buf));
            continue;
        }
        const random_normal_args a = {
            .w = buf + tensor[i].offset, .key = {t->config->seed, tensor[i].id, 0}, .N = tensor[i].rows, .K = tensor[i].cols,
            .std = (float)tensor[i].init_std, .panels = true,
        };
        TRY(t->be->random_normal(&a, &t->stream));
    }
    return MOE_OK;
}

/* What part of a section holds before it was ever written: weights, whole or a half of them, or zero moments. */
static moe_err fill_part(void *user, section_id section, store_part part, float *buf)
{
    trainer *t = user;
    memset(buf, 0, plan_part_bytes(&t->plan, part));
    if (part != STORE_W && part != STORE_R)
        return MOE_OK;
    if (t->wide == NULL)
        return fill_weights(t, section, buf);
    uint16_t *half = (uint16_t *)(void *)buf;
    memset(t->wide, 0, t->plan.part_bytes);
    TRY(fill_weights(t, section, t->wide));
    halves_split(part == STORE_W ? half : NULL, part == STORE_R ? half : NULL, t->wide, t->decoder.moe.layout.floats);
    return MOE_OK;
}

const float *trainer_expert_weights(trainer *t, const tier_lease *l, bool rounded)
{
    if (t->wide == NULL)
        return l->part[STORE_W];
    const void *near = l->part[STORE_W], *rest = rounded ? NULL : l->part[STORE_R];
    halves_join(t->wide, near, rest, t->decoder.moe.layout.floats);
    return t->wide;
}

static moe_err open_machine(trainer *t)
{
    const train_config *c = t->config;
    TRY(comm_open(&t->comm, "self"));
    TRY(moe_backend_find(&t->be, c->backend));
    TRY(moe_pool_open(&t->pool, t->plan.threads, KERNEL_SCRATCH_BYTES));
    t->stream.pool = t->pool;
    return t->borrowed_io ? MOE_OK : io_open(&t->io, c->io, t->io_note);
}

/* The echo of the configuration travels in the checkpoint; on resume it must agree. */
static moe_err check_echo(const trainer *t, const manifest *m)
{
    char *saved = strndup(m->state, m->state_bytes), *now = NULL;
    if (saved == NULL)
        return moe_fail(MOE_E_OS, "out of memory");
    moe_err rc;
    TRY_GOTO(train_config_echo(t->config, &now), rc, done);
    TRY_GOTO(train_config_compare_echo(saved, now), rc, done);
done:
    free(saved);
    free(now);
    return rc;
}

static moe_err open_checkpoint(trainer *t, bool fresh, const manifest **latest)
{
    char *dir;
    TRY(run_folder_path(t->folder, "checkpoint", &dir));
    const moe_err rc = checkpoint_open(&t->checkpoint, t->io, dir, t->config->checkpoint_keep, !t->config->buffered, latest, t->checkpoint_note);
    free(dir);
    TRY(rc);
    if (*latest == NULL && t->mode == TRAINER_READ)
        return moe_fail(MOE_E_NOINPUT, "%s: no checkpoint in this run folder", t->folder->path);
    if (*latest == NULL)
        return MOE_OK;
    if (fresh)
        return moe_fail(MOE_E_CREATE, "%s: there is a checkpoint of step %llu already, and --resume never was given", t->folder->path,
                        (unsigned long long)(*latest)->step);
    if (memcmp((*latest)->uuid, t->folder->uuid, sizeof t->folder->uuid) != 0)
        return moe_fail(MOE_E_CONFIG, "%s: the checkpoint belongs to another run (its uuid differs from the folder's)", t->folder->path);
    TRY(check_echo(t, *latest));
    if ((*latest)->sections != t->plan.sections)
        return moe_fail(MOE_E_DATA, "%s: the checkpoint has %d expert sections, the model has %lld", t->folder->path, (*latest)->sections,
                        (long long)t->plan.sections);
    t->finished = (*latest)->step;
    t->resumed = true;
    return MOE_OK;
}

static moe_err open_store(trainer *t, bool create)
{
    const train_config *c = t->config;
    const int n = c->ssd_count;
    int made = 0;
    moe_err rc = MOE_OK;
    char **dirs = calloc((size_t)n + 1, sizeof *dirs);
    if (dirs == NULL)
        return moe_fail(MOE_E_OS, "out of memory for %d store folders", n);
    for (; made < n; made++) {
        TRY_GOTO(run_folder_path(t->folder, c->ssd[made], &dirs[made]), rc, done);
        for (size_t last = strlen(dirs[made]); last > 1 && dirs[made][last - 1] == '/'; last--)
            dirs[made][last - 1] = '\0';
    }
    store_config s = {
        .io = t->io, .dirs = (const char *const *)dirs, .ndirs = n, .sections = (int32_t)t->plan.sections, .slots = t->plan.store_slots,
        .spill_bytes = t->mode == TRAINER_RUN ? t->plan.spill_bytes : 0, .create = create, .buffered = c->buffered, .depth = c->io_depth,
    };
    memcpy(s.uuid, t->folder->uuid, sizeof s.uuid);
    for (int p = 0; p < STORE_PARTS; p++)
        s.part_bytes[p] = plan_part_bytes(&t->plan, (store_part)p);
    TRY_GOTO(store_open(&t->store, &s), rc, done);
done:
    for (int i = 0; i < made; i++)
        free(dirs[i]);
    free(dirs);
    return rc;
}

/* Small parts need more of them in flight to fill the drive. */
static int prefetch_depth(const train_config *c, size_t part_bytes)
{
    if (c->prefetch_depth >= 0)
        return c->prefetch_depth;
    if (part_bytes == 0) /* a model without experts */
        return 0;
    const size_t fit = ((size_t)16 << 20) / part_bytes;
    return fit < 8 ? 8 : fit > 64 ? 64 : (int)fit;
}

static moe_err open_tiers(trainer *t, const manifest *latest)
{
    const train_config *c = t->config;
    const train_plan *p = &t->plan;
    tier_config tc = {
        .store = t->store, .checkpoint = t->checkpoint, .layers = p->layers, .experts = c->model.E, .host_bytes = p->tier, .policy = c->policy,
        .lfu_threshold = c->lfu_threshold, .lfu_decay = c->lfu_decay, .prefetch_depth = prefetch_depth(c, p->part_bytes),
        .read_only = t->mode == TRAINER_READ, .records = latest != NULL ? latest->records : NULL, .fill = fill_part, .user = t,
    };
    for (int i = 0; i < STORE_PARTS; i++)
        tc.part_bytes[i] = plan_part_bytes(p, (store_part)i);
    if (p->half_bytes > 0 && p->layers > 0) {
        void *wide;
        TRY(budget_alloc(&wide, p->part_bytes, "weights of an expert"));
        t->wide = wide;
    }
    if (p->layers > 0)
        TRY(tier_open(&t->tier, &tc));
    if (t->tier != NULL)
        tier_set_step(t->tier, t->finished);
    if (t->mode == TRAINER_RUN)
        TRY(stash_open(&t->stash, p->spills ? t->store : NULL, p->stash, p->spill_bytes));
    return MOE_OK;
}

static moe_err open_dense(trainer *t, const manifest *latest)
{
    TRY(dense_open(&t->dense, &t->config->model, t->config->seq_len, true));
    if (latest == NULL)
        return t->from != NULL ? dense_import(&t->dense, t->from) : dense_init(&t->dense, t->be, &t->stream, t->config->seed);
    if (latest->dense_bytes != dense_state_bytes(&t->dense))
        return moe_fail(MOE_E_DATA, "%s: the checkpoint's dense part has %llu bytes, the model has %zu", t->folder->path,
                        (unsigned long long)latest->dense_bytes, dense_state_bytes(&t->dense));
    TRY(checkpoint_read_dense(t->checkpoint, t->dense.w, latest->dense_bytes));
    return step_log_load(&t->log, latest->log, latest->log_steps);
}

static moe_err open_decoder(trainer *t)
{
    const decoder_config d = {
        .be = t->be, .stream = &t->stream, .spec = &t->config->model, .dense = &t->dense, .tier = t->tier, .stash = t->stash, .log = &t->log,
        .balance = t->mode == TRAINER_RUN ? &t->balance : NULL, .seq_len = t->config->seq_len, .max_tokens = t->plan.group_tokens,
        .piece_tokens = t->plan.piece_tokens, .expert_rows = t->plan.expert_rows, .logits_bytes = t->plan.logits_bytes, .stop = t->stop,
        .bf16_moments = t->config->moments == MOMENTS_BF16, .seed = t->config->seed,
        .bf16_weights = t->config->expert_weights == WEIGHTS_BF16,
    };
    return decoder_open(&t->decoder, &d);
}

static moe_err open_data(trainer *t)
{
    const train_config *c = t->config;
    if (t->mode == TRAINER_RUN)
        TRY(dataset_open(&t->train, c->data_path, "train", c->seq_len));
    const moe_err rc = dataset_open(&t->val, c->data_path, "val", c->seq_len);
    if (rc == MOE_E_NOINPUT || rc == MOE_E_DATA) /* trains all the same, but says so */
        snprintf(t->val_note, sizeof t->val_note, "no held-out loss: %.900s", moe_error_text());
    else
        TRY(rc);
    const size_t T = (size_t)c->tokens_per_step;
    t->tokens = malloc(T * sizeof *t->tokens);
    t->targets = malloc(T * sizeof *t->targets);
    t->window = malloc(((size_t)c->seq_len + 1) * sizeof *t->window);
    t->dense_squares = calloc((size_t)c->model.L + 2, sizeof *t->dense_squares);
    t->expert_rows = calloc((size_t)t->plan.sections + 1, sizeof *t->expert_rows);
    if (t->tokens == NULL || t->targets == NULL || t->window == NULL || t->dense_squares == NULL || t->expert_rows == NULL)
        return moe_fail(MOE_E_OS, "out of memory for the tokens of a step");
    return MOE_OK;
}

moe_err trainer_open(trainer *t, const train_config *c, run_folder *folder, trainer_options o)
{
    *t = (trainer){.config = c, .mode = o.mode, .folder = folder, .stop = o.stop, .io = o.io, .borrowed_io = o.io != NULL};
    const manifest *latest = NULL;
    moe_err rc;
    TRY_GOTO(train_plan_make(&t->plan, c, o.mode == TRAINER_RUN), rc, fail);
    budget_set_limit(t->plan.limit);
    TRY_GOTO(open_machine(t), rc, fail);
    TRY_GOTO(open_checkpoint(t, o.fresh, &latest), rc, fail);
    if (c->model_from != NULL)
        TRY_GOTO(hf_reader_open(&t->from, c->model_from, &c->model), rc, fail);
    TRY_GOTO(open_data(t), rc, fail);
    TRY_GOTO(open_dense(t, latest), rc, fail);
    TRY_GOTO(open_store(t, latest == NULL), rc, fail);
    TRY_GOTO(open_tiers(t, latest), rc, fail);
    TRY_GOTO(balance_open(&t->balance, train_plan_balance(&t->plan, c)), rc, fail);
    TRY_GOTO(open_decoder(t), rc, fail);
    trainer_count(t, &t->counted);
    return MOE_OK;
fail:
    trainer_close(t);
    return rc;
}

void trainer_close(trainer *t)
{
    decoder_close(&t->decoder);
    stash_close(t->stash);
    tier_close(t->tier);
    budget_free(t->wide);
    store_close(t->store);
    checkpoint_close(t->checkpoint);
    if (!t->borrowed_io)
        io_close(t->io);
    dense_close(&t->dense);
    balance_close(&t->balance);
    step_log_free(&t->log);
    hf_reader_close(t->from);
    dataset_close(t->train);
    dataset_close(t->val);
    moe_pool_close(t->pool);
    comm_close(t->comm);
    free(t->tokens);
    free(t->targets);
    free(t->window);
    free(t->dense_squares);
    free(t->expert_rows);
    *t = (trainer){0};
}

static uint64_t oldest_state(const record *r, int64_t n, uint64_t finished)
{
    uint64_t oldest = finished;
    for (int64_t i = 0; i < n; i++)
        oldest = r[i].step < oldest ? r[i].step : oldest;
    return oldest;
}

moe_err trainer_checkpoint(trainer *t)
{
    const record *records = NULL;
    if (t->tier != NULL) {
        TRY(tier_flush(t->tier));
        records = tier_catalog(t->tier);
    }
    step_log_trim(&t->log, oldest_state(records, t->plan.sections, t->finished));
    char *echo;
    TRY(train_config_echo(t->config, &echo));
    const manifest m = {
        .step = t->finished, .sections = (int32_t)t->plan.sections, .records = (record *)records, .log_steps = t->log.n, .log = t->log.step,
        .dense_bytes = dense_state_bytes(&t->dense), .state = echo, .state_bytes = strlen(echo),
    };
    manifest named = m;
    memcpy(named.uuid, t->folder->uuid, sizeof named.uuid);
    const moe_err rc = checkpoint_commit(t->checkpoint, t->store, &named, t->dense.w);
    free(echo);
    t->dense_written += rc == MOE_OK ? m.dense_bytes : 0;
    return rc;
}

void trainer_count(trainer *t, trainer_counters *out)
{
    store_stats s;
    tier_stats r = {0};
    stash_stats a = {0};
    store_get_stats(t->store, &s);
    if (t->tier != NULL)
        tier_get_stats(t->tier, &r);
    if (t->stash != NULL)
        stash_get_stats(t->stash, &a);
    *out = (trainer_counters){
        .read = s.read_bytes, .write = s.write_bytes + t->dense_written, .wasted = r.wasted_read_bytes, .hits = r.hits, .misses = r.misses,
        .spilled = a.spilled_bytes, .stall = r.stall_seconds + a.stall_seconds, .busy = s.busy_seconds,
    };
}
