/* A run as a Hugging Face folder: dense part from RAM, experts one by one with everything that is pending applied. */
#include <stdlib.h>

#include "engine/train/commands.h"

static moe_err export_expert(trainer *t, hf_writer *w, bool rounded, int moe_layer, int layer, int e)
{
    tensor_info tensor[3];
    spec_expert_tensors(&t->config->model, layer, e, tensor);
    const section_id section = moe_layer * t->config->model.E + e;
    tier_lease l;
    tier_change change = {0};
    moe_err rc;
    TRY(tier_acquire(t->tier, section, moe_forward_parts(&t->decoder.moe, section) | TIER_R, 0, &l));
    if ((l.parts & TIER_M) != 0)
        TRY_GOTO(moe_apply_pending(&t->decoder.moe, &l, &change), rc, done);
    const float *weights = trainer_expert_weights(t, &l, rounded);
    for (int i = 0; i < 3; i++)
        TRY_GOTO(hf_writer_write(w, &tensor[i], weights), rc, done);
done:
    tier_release(t->tier, &l, TIER_ALL, change);
    return rc;
}

/* rounded: experts as the products see them, where that is bf16. */
static moe_err export_tensors(trainer *t, hf_writer *w, bool rounded)
{
    tensor_info *table;
    int64_t n;
    moe_err rc = MOE_OK;
    TRY(spec_tensors(&t->config->model, &table, &n));
    for (int64_t i = 0; i < n && rc == MOE_OK; i++) {
        const tensor_info *x = &table[i];
        const dense_part *d = &t->dense;
        if (x->kind == SECTION_EXPERT) {
            if (i == 0 || table[i - 1].kind != SECTION_EXPERT || table[i - 1].expert != x->expert || table[i - 1].layer != x->layer)
                rc = export_expert(t, w, rounded, spec_moe_index(&t->config->model, x->layer), x->layer, x->expert);
            continue;
        }
        const size_t at = x->kind == SECTION_EMBED ? d->embed : x->kind == SECTION_HEAD ? d->head : d->layer[x->layer];
        rc = hf_writer_write(w, x, d->w + at);
    }
    free(table);
    return rc;
}

moe_err command_export(trainer *t, const char *out, hf_dtype dtype)
{
    hf_writer *w = NULL;
    moe_err rc;
    TRY_GOTO(hf_writer_open(&w, out, &t->config->model, dtype), rc, done);
    TRY_GOTO(export_tensors(t, w, dtype == HF_BF16), rc, done);
    TRY_GOTO(hf_writer_finish(w), rc, done);
done:
    hf_writer_close(w);
    return rc;
}
