/* Where the experts lie at rest, and how one that has been read is laid out in its slot: panels of gate, up, down, one after the other.
 * Owns the table of places. land runs on the compute thread, shared out.
 * Rule: the three matrices of a layer have the same formats in all its experts (they are multiplied together). */
#include <stdlib.h>
#include <xxh_x86dispatch.h>

#include "engine/serve/serve_private.h"

/* Packed: one record, panels as they are in memory. In place: the bytes of three matrices and of their scales; gate and up may share theirs, which
 * are then read once. */
struct expert_place {
    expert_range range[EXPERT_RANGES]; /* of a run folder: the parts that an expert is made of */
    uint32_t id[3];             /* of gate, up, down in the model's table  */
    int8_t rows[3], scales[3];  /* which range holds them; scales -1: none */
    bool packed;
    size_t used;                /* of a record: its panels                 */
    uint64_t sum;
};

static moe_err check_formats(const serve_layer *l, const tensor_info *t, int i, numfmt found)
{
    if (l->expert_format[i] == found)
        return MOE_OK;
    return moe_fail(MOE_E_CONFIG, "%s is stored as %s, the same matrix of expert 0 as %s; expected one format in a layer", t->name,
                    numfmt_about(found)->name, numfmt_about(l->expert_format[i])->name);
}

/* Number of this range, which is new or already there. */
static int8_t add_range(struct expert_place *p, int file, uint64_t offset, uint64_t bytes)
{
    int8_t i = 0;
    while (p->range[i].bytes > 0 && (p->range[i].file != file || p->range[i].offset != offset || p->range[i].bytes != bytes))
        i++;
    p->range[i] = (expert_range){file, offset, (size_t)bytes};
    return i;
}

static moe_err place_expert(serve *s, int layer, int expert, struct expert_place *p)
{
    serve_layer *l = &s->dense.layer[layer];
    tensor_info info[3];
    model_record record;
    spec_expert_tensors(s->spec, layer, expert, info);
    const bool packed = model_find_record(s->c.model, layer, expert, &record);
    const model_experts *const made = model_expert_source(s->c.model);
    size_t at = 0;
    for (int i = 0; i < 3; i++) {
        model_extent e;
        model_find(s->c.model, &info[i], &e);
        if (expert == 0)
            l->expert_format[i] = e.format;
        TRY(check_formats(l, &info[i], i, e.format));
        l->expert_at[i] = at;
        at += qpanel_bytes(e.format, info[i].rows, info[i].cols);
        if (packed || made != NULL)
            continue;
        p->id[i] = info[i].id;
        p->rows[i] = add_range(p, e.file, e.offset, e.bytes);
        p->scales[i] = e.scale_bytes > 0 ? add_range(p, e.scale_file, e.scale_offset, e.scale_bytes) : -1;
    }
    if (packed) {
        *p = (struct expert_place){.range = {{record.file, record.offset, record.bytes}}, .packed = true, .used = record.used, .sum = record.sum};
        at = record.bytes;
    }
    if (made != NULL) {
        model_range part[MODEL_RANGES];
        const int n = made->ranges(made->user, layer, expert, part);
        for (int i = 0; i < n; i++)
            p->range[i] = (expert_range){part[i].file, part[i].offset, part[i].bytes};
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

static moe_err land(void *user, expert_id id, void *const raw[EXPERT_RANGES], void *slot)
{
    const serve *s = user;
    const struct expert_place *p = &s->place[id];
    const model_spec *m = s->spec;
    const serve_layer *l = s->dense.layer;
    while (l->moe != (int)(id / (expert_id)m->E))
        l++;
    const model_experts *const made = model_expert_source(s->c.model);
    if (made != NULL)
        return made->land(made->user, s->c.stream, (int)(l - s->dense.layer), (int)(id % (expert_id)m->E), raw, slot);
    static const char *const names[] = {"gate projection", "up projection", "down projection"};
    for (int i = 0; i < 3; i++) {
        const tensor_info info = {.id = p->id[i]};
        model_extent e;
        model_find(s->c.model, &info, &e);
        const int rows = i == 2 ? m->D : m->F;
        const model_source from = {.at = &e, .path = s->path[e.file], .name = names[i], .cols = i == 2 ? m->F : m->D, .stored = raw[p->rows[i]],
                                   .scales = p->scales[i] >= 0 ? raw[p->scales[i]] : NULL};
        TRY(serve_pack(s->c.stream, &(pack_args){.panels = (char *)slot + l->expert_at[i], .from = &from, .N = rows, .n = rows}));
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
    const bool packed = s->place != NULL && s->place[0].packed;
    return (expert_cache_config){
        .io = s->c.io, .files = s->path, .nfiles = model_files(s->c.model), .layers = spec_moe_layers(s->spec), .experts = s->spec->E,
        .slot_bytes = s->slot_bytes, .host_bytes = host_bytes, .policy = s->c.policy, .ranges = find_ranges,
        .land = packed ? NULL : land, .check = packed ? check_record : NULL, .user = s,
    };
}
