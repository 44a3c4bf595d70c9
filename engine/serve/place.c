/* Where the experts lie at rest, and how one that has been read is laid out in its slot: panels of gate, up, down, one after the other.
 * Owns the table of places. land runs on the compute thread, shared out.
 * Rule: the three matrices of a layer have the same formats in all its experts (they are multiplied together). */
#include <stdlib.h>
#include <xxh_x86dispatch.h>

#include "engine/serve/serve_private.h"

/* Packed: one record, panels as they are in memory. In place: three matrices. */
struct expert_place {
    expert_range range[EXPERT_RANGES];
    size_t row_bytes[EXPERT_RANGES]; /* 0: a record of panels   */
    size_t used;                     /* of a record: its panels */
    uint64_t sum;
};

static moe_err check_formats(const serve_layer *l, const tensor_info *t, int i, numfmt found)
{
    if (l->expert_format[i] == found)
        return MOE_OK;
    return moe_fail(MOE_E_CONFIG, "%s is stored as %s, the same matrix of expert 0 as %s; expected one format in a layer", t->name,
                    numfmt_about(found)->name, numfmt_about(l->expert_format[i])->name);
}

static moe_err place_expert(serve *s, int layer, int expert, struct expert_place *p)
{
    serve_layer *l = &s->dense.layer[layer];
    tensor_info info[3];
    model_record record;
    spec_expert_tensors(s->spec, layer, expert, info);
    const bool packed = model_find_record(s->c.model, layer, expert, &record);
    size_t at = 0;
    for (int i = 0; i < 3; i++) {
        model_extent e;
        model_find(s->c.model, &info[i], &e);
        if (expert == 0)
            l->expert_format[i] = e.format;
        TRY(check_formats(l, &info[i], i, e.format));
        l->expert_at[i] = at;
        at += qpanel_bytes(e.format, info[i].rows, info[i].cols);
        p->range[i] = (expert_range){e.file, e.offset, (size_t)e.bytes};
        p->row_bytes[i] = e.row_bytes;
    }
    if (packed) {
        *p = (struct expert_place){.range = {{record.file, record.offset, record.bytes}}, .used = record.used, .sum = record.sum};
        at = record.bytes;
    }
    s->slot_bytes = at > s->slot_bytes ? at : s->slot_bytes;
    return MOE_OK;
}

moe_err serve_experts_place(serve *s)
{
    const size_t n = (size_t)spec_moe_layers(s->spec) * (size_t)s->spec->E;
    if (n == 0)
        return MOE_OK;
    s->place = calloc(n, sizeof *s->place);
    if (s->place == NULL)
        return moe_fail(MOE_E_OS, "places of %zu experts: out of memory", n);
    for (int layer = 0; layer < s->spec->L; layer++)
        for (int e = 0; s->spec->moe_layer[layer] && e < s->spec->E; e++)
            TRY(place_expert(s, layer, e, &s->place[(size_t)s->dense.layer[layer].moe * (size_t)s->spec->E + (size_t)e]));
    return MOE_OK;
}

static int find_ranges(void *user, expert_id id, expert_range range[EXPERT_RANGES])
{
    const struct expert_place *p = &((const serve *)user)->place[id];
    int n = 0;
    while (n < EXPERT_RANGES && p->range[n].bytes > 0) {
        range[n] = p->range[n];
        n++;
    }
    return n;
}

static moe_err land(void *user, expert_id id, const void *const raw[EXPERT_RANGES], void *slot)
{
    const serve *s = user;
    const struct expert_place *p = &s->place[id];
    const model_spec *m = s->spec;
    const serve_layer *l = s->dense.layer;
    while (l->moe != (int)(id / (expert_id)m->E))
        l++;
    for (int i = 0; i < 3; i++) {
        const pack_args a = {.panels = (char *)slot + l->expert_at[i], .rows = raw[i], .row_bytes = p->row_bytes[i], .format = l->expert_format[i],
                             .N = i == 2 ? m->D : m->F, .K = i == 2 ? m->F : m->D, .n = i == 2 ? m->D : m->F};
        serve_pack(s->c.stream, &a);
    }
    return MOE_OK;
}

static moe_err check_record(void *user, expert_id id, const void *slot)
{
    const struct expert_place *p = &((const serve *)user)->place[id];
    if (XXH3_64bits(slot, p->used) == p->sum)
        return MOE_OK;
    return moe_fail(MOE_E_DATA, "the record is damaged: its checksum is not that of the manifest; pack the model again");
}

expert_cache_config serve_cache_config(serve *s, uint64_t host_bytes)
{
    const bool packed = s->place != NULL && s->place[0].row_bytes[0] == 0;
    return (expert_cache_config){
        .io = s->c.io, .files = s->path, .nfiles = model_files(s->c.model), .layers = spec_moe_layers(s->spec), .experts = s->spec->E,
        .slot_bytes = s->slot_bytes, .host_bytes = host_bytes, .policy = s->c.policy, .ranges = find_ranges,
        .land = packed ? NULL : land, .check = packed ? check_record : NULL, .user = s,
    };
}
