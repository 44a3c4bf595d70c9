/* Any bytes as a config.json: no crash, no leak; a spec that is taken is valid, its tensors lie inside their sections, and when
 * it can be exported, what is written reads back as the same spec. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "models/formats/hf_private.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void expect(int good, const char *what)
{
    if (!good) {
        fprintf(stderr, "%s: %s\n", what, moe_error_text());
        abort();
    }
}

static void check_table(const model_spec *m)
{
    tensor_info *t;
    int64_t n;
    if ((int64_t)m->E * spec_moe_layers(m) > 1000)
        return;
    expect(spec_tensors(m, &t, &n) == MOE_OK, "the table of a valid spec");
    for (int64_t i = 0; i < n; i++) {
        dense_layout d;
        if (t[i].kind != SECTION_DENSE)
            continue;
        spec_dense_layout(m, t[i].layer, &d);
        expect(t[i].offset <= d.floats && t[i].floats <= d.floats - t[i].offset, "a tensor lies inside its section");
    }
    free(t);
}

/* All groups may be used: no limit, however it was said. */
static void forget_groups(router_rule *r)
{
    if (r->groups_used >= r->groups)
        r->groups = r->groups_used = 1;
}

static void check_round_trip(const model_spec *m)
{
    text_buf t = {0};
    model_spec back, same = *m;
    if (hf_config_text(&t, m, HF_F32) == MOE_OK) {
        expect(hf_config_parse(&back, t.data, t.used, "written") == MOE_OK, "what is written is read");
        if (m->router.topk_first) { /* written as the same weights, normalised */
            same.router.topk_first = false;
            same.router.normalize = true;
        }
        forget_groups(&same.router);
        forget_groups(&back.router);
        if (spec_moe_layers(m) == m->L && strcmp(m->model_type, "olmoe") == 0)
            same.F_dense = same.F;
        expect(memcmp(&same, &back, sizeof same) == 0, "it is the same spec");
    }
    text_free(&t);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    model_spec m;
    if (hf_config_parse(&m, (const char *)data, size, "fuzz") == MOE_OK) {
        expect(spec_validate(&m) == MOE_OK, "a spec that is taken is valid");
        check_table(&m);
        check_round_trip(&m);
    } else {
        expect(moe_error_text()[0] != '\0', "an error has a sentence");
    }
    return 0;
}
