/* Owns the counting and the two ways to show it. What the engine really plans, with its scratch, is engine/serve's; this is the part that follows from
 * the model alone. */
#include "engine/serve/inspect.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/serve/json_text.h"
#include "kernels/qmatmul.h"
#include "memory/budget.h"

static const char *const PARTS[INSPECT_PARTS] = {"embedding", "attention", "norms and biases", "router", "feed-forward", "shared expert", "experts", "output"};

static inspect_part part_of(const tensor_info *t)
{
    if (t->layout == TENSOR_VECTOR)
        return PART_NORMS;
    if (t->kind == SECTION_EMBED || t->kind == SECTION_HEAD)
        return t->kind == SECTION_EMBED ? PART_EMBEDDING : PART_OUTPUT;
    if (t->kind == SECTION_EXPERT)
        return PART_EXPERTS;
    switch (t->role) {
    case ROLE_ROUTER:
        return PART_ROUTER;
    case ROLE_SHARED_GATE:
    case ROLE_SHARED_UP:
    case ROLE_SHARED_DOWN:
    case ROLE_SHARED_SWITCH:
        return PART_SHARED;
    case ROLE_GATE:
    case ROLE_UP:
    case ROLE_DOWN:
        return PART_FFN;
    default:
        return PART_ATTENTION;
    }
}

/* What lies together at rest belongs to each of them in part: gate and up in turn, keys and values of kv_b_proj. */
static uint64_t rest_bytes(const tensor_info *t, const model_extent *e)
{
    const uint64_t all = e->bytes + e->scale_bytes;
    if (e->stored == STORED_HEADS || e->stored == STORED_HEAD_COLUMNS)
        return all * (uint64_t)(e->stored == STORED_HEADS ? e->head_rows : t->cols) / (uint64_t)e->head_step;
    return all / (e->panels ? 1 : (uint64_t)e->row_step);
}

static void count(inspect_report *r, const tensor_info *t, const model_extent *e)
{
    const inspect_part part = part_of(t);
    const numfmt format = e->stored == STORED_HEADS || e->stored == STORED_HEAD_COLUMNS ? e->stored_format : e->format;
    int i = 0;
    while (i < r->rows && (r->row[i].part != part || r->row[i].format != format))
        i++;
    if (i == INSPECT_ROWS)
        return; /* more than every part in every format: cannot be */
    if (i == r->rows)
        r->row[r->rows++] = (inspect_row){.part = part, .format = format};
    r->row[i].tensors++;
    r->row[i].parameters += t->rows * t->cols;
    r->row[i].bytes += rest_bytes(t, e);
}

/* Bytes of a tensor as the engine holds it. */
static uint64_t memory_bytes(const model_spec *m, const tensor_info *t, const model_extent *e)
{
    if (t->layout == TENSOR_HEADS)
        return (uint64_t)m->H * qpanel_bytes(e->format, t->rows / m->H, t->cols);
    if (t->layout == TENSOR_VECTOR)
        return (uint64_t)t->cols * sizeof(float);
    return t->layout == TENSOR_PANELS ? qpanel_bytes(e->format, t->rows, t->cols) : (uint64_t)t->rows * numfmt_row_bytes(e->format, t->cols);
}

static moe_err count_all(inspect_report *r)
{
    tensor_info *table;
    int64_t n;
    uint64_t slot = 0;
    TRY(spec_tensors(model_spec_of(r->m), &table, &n));
    for (int64_t i = 0; i < n; i++) {
        model_extent e;
        model_find(r->m, &table[i], &e);
        count(r, &table[i], &e);
        const uint64_t bytes = memory_bytes(model_spec_of(r->m), &table[i], &e);
        if (table[i].kind != SECTION_EXPERT) {
            r->dense_bytes += bytes;
            continue;
        }
        r->expert_bytes += bytes;
        slot = (table[i].role == ROLE_GATE ? 0 : slot) + bytes;
        if (slot > r->slot_bytes)
            r->slot_bytes = slot;
    }
    free(table);
    return MOE_OK;
}

static int row_order(const void *a, const void *b)
{
    const inspect_row *x = a, *y = b;
    return x->part != y->part ? (int)x->part - (int)y->part : (int)x->format - (int)y->format;
}

moe_err inspect_model(inspect_report *r, const model *m, uint64_t host_bytes)
{
    const model_spec *s = model_spec_of(m);
    *r = (inspect_report){.m = m, .host_bytes = host_bytes};
    if (host_bytes > 0)
        snprintf(r->host_source, sizeof r->host_source, "--host-memory");
    else
        r->host_bytes = budget_detect_host(r->host_source);
    for (int i = 0; i < model_files(m); i++)
        r->file_bytes += model_file_bytes(m, i);
    TRY(count_all(r));
    qsort(r->row, (size_t)r->rows, sizeof *r->row, row_order);
    r->experts = (int64_t)spec_moe_layers(s) * s->E;
    r->kv_bytes = (uint64_t)INSPECT_CONTEXT * 2 * (uint64_t)s->L * (uint64_t)spec_kv_numbers(s);
    r->token_expert_bytes = r->experts == 0 ? 0 : r->expert_bytes / (uint64_t)r->experts * (uint64_t)spec_moe_layers(s) * (uint64_t)s->K;
    r->least_bytes = r->dense_bytes + r->kv_bytes + 2 * r->slot_bytes;
    const uint64_t plan = (uint64_t)(0.95 * (double)r->host_bytes);
    if (plan < r->least_bytes)
        r->experts_fit = -1;
    else if (r->slot_bytes > 0)
        r->experts_fit = (int64_t)((plan - r->dense_bytes - r->kv_bytes) / r->slot_bytes);
    if (r->experts_fit > r->experts)
        r->experts_fit = r->experts;
    return MOE_OK;
}

static const char *kind_name(const model *m)
{
    static const char *const names[] = {[MODEL_HF] = "Hugging Face folder", [MODEL_GGUF] = "GGUF", [MODEL_PACKED] = "packed folder", [MODEL_RUN] = "run folder"};
    return names[model_kind_of(m)];
}

static void print_shape(const inspect_report *r, text_buf *out)
{
    const model_spec *s = model_spec_of(r->m);
    char bytes[TEXT_NUMBER];
    text_printf(out, "model     %s\n", model_name(r->m));
    text_printf(out, "form      %s, %d file%s, %s\n", kind_name(r->m), model_files(r->m), model_files(r->m) == 1 ? "" : "s",
                text_bytes(bytes, (double)r->file_bytes));
    char kept[96];
    if (s->kv_lora_rank > 0)
        snprintf(kept, sizeof kept, "a latent of %d and a key of %d for all of them", s->kv_lora_rank, s->rotary);
    else
        snprintf(kept, sizeof kept, "%d for keys and values", s->Hkv);
    text_printf(out, "family    %s: %d layers, width %d, %d heads of %d (%s), vocabulary %d%s\n", s->model_type, s->L, s->D, s->H, s->hd, kept, s->V,
                s->tied ? ", tied" : "");
    if (r->experts > 0)
        text_printf(out, "experts   %d layers x %d, %d a token, width %d%s\n", spec_moe_layers(s), s->E, s->K, s->F, s->F_shared > 0 ? ", and a shared one" : "");
    text_printf(out, "size      %.2f M parameters, %.2f M in experts, %.2f M active\n", (double)spec_parameters(s) / 1e6,
                (double)(r->experts > 0 ? spec_expert_parameters(s) : 0) / 1e6, (double)spec_active_parameters(s) / 1e6);
    text_printf(out, "context   %d tokens\n", s->max_positions);
    text_printf(out, "text      %s\n\n", model_tokenizer(r->m) != NULL ? model_tokenizer(r->m) : "no tokenizer");
}

static void print_tensors(const inspect_report *r, text_buf *out)
{
    char bytes[TEXT_NUMBER], count_text[TEXT_NUMBER];
    text_printf(out, "  %-18s %-8s %9s %16s %12s\n", "part", "format", "tensors", "parameters", "at rest");
    for (int i = 0; i < r->rows; i++)
        text_printf(out, "  %-18s %-8s %9lld %16s %12s\n", PARTS[r->row[i].part], numfmt_about(r->row[i].format)->name, (long long)r->row[i].tensors,
                    text_count(count_text, r->row[i].parameters), text_bytes(bytes, (double)r->row[i].bytes));
}

static void print_line(text_buf *out, const char *what, uint64_t n, const char *note)
{
    char bytes[TEXT_NUMBER];
    text_printf(out, "  %-34s %12s   %s\n", what, text_bytes(bytes, (double)n), note);
}

static void print_tiers(const inspect_report *r, text_buf *out)
{
    char bytes[TEXT_NUMBER], used[TEXT_NUMBER], note[160];
    text_printf(out, "\nhost memory, of %s (%s), 95 %% of it planned\n", text_bytes(bytes, (double)r->host_bytes), r->host_source);
    print_line(out, "dense part", r->dense_bytes, "resident");
    snprintf(note, sizeof note, "%d tokens of one sequence in bf16", (int)INSPECT_CONTEXT);
    print_line(out, "keys and values", r->kv_bytes, note);
    if (r->experts > 0) {
        snprintf(note, sizeof note, "at %s each; a token uses %s", text_bytes(bytes, (double)r->slot_bytes), 
                 text_bytes(used, (double)r->token_expert_bytes));
        print_line(out, "all experts", r->expert_bytes, note);
    }
    print_line(out, "the least that runs", r->least_bytes, r->experts > 0 ? "dense part, keys and values, two experts" : "before working buffers");
    if (r->experts_fit < 0)
        text_printf(out, "\nIt does not fit: more host memory, a smaller format (quantize --dense) or a shorter context is needed.\n");
    else if (r->experts == 0 || r->experts_fit == r->experts)
        text_add(out, "\nAll of it fits in memory.\n");
    else
        text_printf(out, "\n%lld of %lld experts (%.0f %%) fit in memory beside the rest; the others are read from the disk when they are chosen.\n",
                    (long long)r->experts_fit, (long long)r->experts, 100.0 * (double)r->experts_fit / (double)r->experts);
}

void inspect_print(const inspect_report *r, text_buf *out)
{
    print_shape(r, out);
    print_tensors(r, out);
    print_tiers(r, out);
}

static void add_string(text_buf *out, const char *key, const char *s)
{
    text_printf(out, "\"%s\": ", key);
    if (s == NULL)
        text_add(out, "null");
    else
        json_text_add(out, s, strlen(s));
    text_add(out, ", ");
}

static void add_size(text_buf *out, const char *key, int64_t x) { text_printf(out, "\"%s\": %lld, ", key, (long long)x); }

void inspect_json(const inspect_report *r, text_buf *out)
{
    const model_spec *s = model_spec_of(r->m);
    text_add(out, "{");
    add_string(out, "model", model_name(r->m));
    add_string(out, "form", kind_name(r->m));
    add_string(out, "family", s->model_type);
    add_string(out, "tokenizer", model_tokenizer(r->m));
    const struct {
        const char *key;
        int64_t x;
    } sizes[] = {
        {"layers", s->L}, {"width", s->D}, {"heads", s->H}, {"kv_heads", s->Hkv}, {"head_dim", s->hd}, {"vocabulary", s->V}, {"context", s->max_positions},
        {"moe_layers", spec_moe_layers(s)}, {"experts_per_layer", s->E}, {"experts_per_token", s->K}, {"expert_width", s->F}, {"parameters", spec_parameters(s)},
        {"expert_parameters", r->experts > 0 ? spec_expert_parameters(s) : 0}, {"active_parameters", spec_active_parameters(s)}, {"files", model_files(r->m)},
        {"file_bytes", (int64_t)r->file_bytes}, {"dense_bytes", (int64_t)r->dense_bytes}, {"expert_bytes", (int64_t)r->expert_bytes},
        {"one_expert_bytes", (int64_t)r->slot_bytes}, {"token_expert_bytes", (int64_t)r->token_expert_bytes},
        {"kv_token_bytes", (int64_t)(r->kv_bytes / INSPECT_CONTEXT)}, {"least_bytes", (int64_t)r->least_bytes}, {"host_bytes", (int64_t)r->host_bytes},
        {"experts", r->experts}, {"experts_fit", r->experts_fit},
    };
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        add_size(out, sizes[i].key, sizes[i].x);
    add_string(out, "host_source", r->host_source);
    text_add(out, "\"tensors\": [");
    for (int i = 0; i < r->rows; i++)
        text_printf(out, "%s{\"part\": \"%s\", \"format\": \"%s\", \"tensors\": %lld, \"parameters\": %lld, \"bytes\": %llu}", i ? ", " : "", PARTS[r->row[i].part],
                    numfmt_about(r->row[i].format)->name, (long long)r->row[i].tensors, (long long)r->row[i].parameters, (unsigned long long)r->row[i].bytes);
    text_add(out, "]}\n");
}
