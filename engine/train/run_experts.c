/* An expert of a run folder: which bytes are read, and what is made of them. The order of the work is moe_apply_pending's (experts/): one real
 * gradient where it is pending, then the steps without.
 * Owns nothing. The compute thread. */
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "engine/train/run_private.h"
#include "kernels/halves.h"

static uint64_t finished(const run_source *s) { return s->manifest->step; }

/* Is the state older than the checkpoint? */
static bool is_behind(const run_source *s, const record *r) { return r->step < finished(s); }

static model_range part_range(const run_source *s, section_id section, int slot, store_part first, store_part last)
{
    uint64_t begin, end;
    int dir;
    store_where(&s->store, section, last, &dir, &end);
    store_where(&s->store, section, first, &dir, &begin);
    return (model_range){s->file[dir * s->slots + slot], begin, (size_t)(end - begin) + s->store.part_bytes[last]};
}

int run_expert_ranges(void *user, int layer, int expert, model_range range[MODEL_RANGES])
{
    const run_source *s = user;
    const section_id section = run_section(s, layer, expert);
    const record *r = &s->manifest->records[section];
    int n = 0;
    if (r->slot >= 0)
        range[n++] = part_range(s, section, r->slot, STORE_W, is_behind(s, r) ? STORE_V : STORE_R);
    if (r->grad_slot >= 0 && r->grad_step > 0)
        range[n++] = part_range(s, section, r->grad_slot, STORE_G, STORE_G);
    if (n == 0)
        range[n++] = (model_range){0, 0, IO_ALIGN}; /* never written, nothing pending: what is read is not looked at */
    return n;
}

static moe_err check_part(const run_source *s, section_id section, const void *data, store_part part)
{
    const uint64_t expected = s->manifest->records[section].sum[part];
    const size_t bytes = s->store.part_bytes[part];
    const uint64_t found = bytes > 0 ? XXH3_64bits(data, bytes) : expected;
    if (found == expected)
        return MOE_OK;
    return moe_fail(MOE_E_DATA, "%s: part %c of expert section %d is damaged: its checksum is %016llx, the checkpoint of step %llu says %016llx", s->folder.path,
                    STORE_LETTERS[part], section, (unsigned long long)found, (unsigned long long)finished(s), (unsigned long long)expected);
}

/* What the section held before it was ever written. */
static moe_err initial_weights(const run_source *s, moe_stream *stream, int layer, int expert, float *panels)
{
    tensor_info t[3];
    spec_expert_tensors(&s->config->model, layer, expert, t);
    memset(panels, 0, s->layout.floats * sizeof *panels);
    for (int i = 0; i < 3; i++) {
        const random_normal_args a = {.w = panels + t[i].offset, .key = {s->config->seed, t[i].id, 0}, .N = t[i].rows, .K = t[i].cols,
                                      .std = (float)t[i].init_std, .panels = true};
        TRY(s->from != NULL ? hf_reader_read(s->from, &t[i], panels) : s->be->random_normal(&a, stream));
    }
    return MOE_OK;
}

/* The steps after the section's state. MOE_E_DATA: the log does not reach back to it. */
static moe_err find_steps(const run_source *s, section_id section, const adamw_step **steps, int *n)
{
    const manifest *m = s->manifest;
    const record *r = &m->records[section];
    const uint64_t first = m->log_steps > 0 ? m->log[0].step : 0, missing = finished(s) - r->step;
    if (missing > m->log_steps || first > r->step + 1 || missing > INT32_MAX)
        return moe_fail(MOE_E_DATA, "%s: expert section %d stands at step %llu, but the step log does not reach back to it", s->folder.path, section,
                        (unsigned long long)r->step);
    if (r->grad_step != 0 && (r->grad_step != r->step + 1 || r->grad_slot < 0))
        return moe_fail(MOE_E_DATA, "%s: expert section %d stands at step %llu, and a gradient of step %llu is pending on it", s->folder.path, section,
                        (unsigned long long)r->step, (unsigned long long)r->grad_step);
    *steps = m->log + (m->log_steps - missing);
    *n = (int)missing;
    return MOE_OK;
}

/* moments: parts m and v as on disk, one after the other. */
static moe_err update(const run_source *s, moe_stream *stream, section_id section, float *panels, void *moments, const float *grad)
{
    const size_t n = s->layout.floats;
    const adamw_step *steps = NULL;
    int nsteps = 0;
    TRY(find_steps(s, section, &steps, &nsteps));
    if (s->config->moments == MOMENTS_F32) {
        const adamw_args a = {.w = {.w = panels}, .m = moments, .v = (float *)((char *)moments + s->store.part_bytes[STORE_M]), .grad = grad,
                              .steps = steps, .nsteps = nsteps, .n = n, .decay = true};
        return s->be->adamw(&a, stream);
    }
    uint16_t *m = moments;
    const adamw_bf16_args a = {.w = {.w = panels}, .m = m, .v = m + n, .grad = grad, .steps = steps, .nsteps = nsteps, .n = n, .decay = true,
                               .seed = s->config->seed, .section = (uint32_t)section};
    return s->be->adamw_bf16(&a, stream);
}

/* The weights as they stand on disk; *moments: what follows them in the record. */
static moe_err stored_weights(const run_source *s, section_id section, char *raw, float *panels, void **moments)
{
    const size_t *bytes = s->store.part_bytes;
    const void *rest = raw + bytes[STORE_W];
    *moments = raw + bytes[STORE_W] + bytes[STORE_R];
    TRY(check_part(s, section, raw, STORE_W));
    TRY(check_part(s, section, rest, STORE_R));
    if (bytes[STORE_R] > 0)
        halves_join(panels, (const uint16_t *)(const void *)raw, rest, s->layout.floats);
    else
        memcpy(panels, raw, s->layout.floats * sizeof *panels);
    return MOE_OK;
}

moe_err run_expert_land(void *user, moe_stream *stream, int layer, int expert, void *const raw[MODEL_RANGES], float *panels)
{
    run_source *s = user;
    const section_id section = run_section(s, layer, expert);
    const record *r = &s->manifest->records[section];
    const bool behind = is_behind(s, r), stored = r->slot >= 0;
    void *moments = NULL, *zeros = NULL;
    const float *grad = r->grad_slot >= 0 && r->grad_step > 0 ? raw[stored ? 1 : 0] : NULL;
    stream = stream != NULL ? stream : &s->stream;
    TRY(stored ? stored_weights(s, section, raw[0], panels, &moments) : initial_weights(s, stream, layer, expert, panels));
    if (!behind)
        return MOE_OK;
    if (stored) {
        TRY(check_part(s, section, moments, STORE_M));
        TRY(check_part(s, section, (const char *)moments + s->store.part_bytes[STORE_M], STORE_V));
    } else {
        moments = zeros = calloc(1, s->store.part_bytes[STORE_M] + s->store.part_bytes[STORE_V]);
        if (zeros == NULL)
            return moe_fail(MOE_E_OS, "moments of an expert: out of memory");
    }
    moe_err rc = grad != NULL ? check_part(s, section, grad, STORE_G) : MOE_OK;
    if (rc == MOE_OK)
        rc = update(s, stream, section, panels, moments, grad);
    free(zeros);
    return rc;
}
