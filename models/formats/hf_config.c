/* Owns the reading of config.json: JSON -> the values of a family's keys -> a spec. What a key means is the family's
 * (models/families).
 * Threads: pure but for the file.
 * Rule: a key that this program does not know, and that is not null, is refused: it could change the numbers. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "models/family.h"
#include "models/formats/hf_private.h"
#include "models/formats/json_reader.h"

enum {
    MAX_CONFIG = 16 << 20, /* bytes */
    MAX_INTS = 4096
};

/* Keys without influence on the numbers of training on given tokens. (pad_token_id: transformers gives that token's embedding no
 * gradient; here data has no padding, so every token is a token. max_window_layers matters only under use_sliding_window, which
 * is refused; pretraining_tp only splits products; layers that predict further tokens
 * (num_nextn_predict_layers) come after the logits.) */
static const char *const IGNORED[] = {
    "architectures",
    "model_type",
    "transformers_version",
    "torch_dtype",
    "dtype",
    "use_cache",
    "output_router_logits",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "max_window_layers",
    "pretraining_tp",
    "num_nextn_predict_layers",
    "num_mtp_layers",
    "auto_map",
    "aux_loss_alpha",
    "seq_aux",
    "ep_size",
    "_name_or_path",
    "return_dict",
    "output_hidden_states",
    "output_attentions",
    "torchscript",
    "id2label",
    "label2id",
    "problem_type",
    "chunk_size_feed_forward",
    "is_encoder_decoder",
    "_attn_implementation",
    "_experts_implementation",
    "attn_implementation",
    "experts_implementation",
};

moe_err hf_path(char **out, const char *dir, const char *name)
{
    *out = NULL;
    if (asprintf(out, "%s/%s", dir, name) < 0) {
        *out = NULL;
        return moe_fail(MOE_E_OS, "out of memory");
    }
    return MOE_OK;
}

moe_err hf_read_text(const char *path, size_t limit, char **text, size_t *bytes)
{
    struct stat st;
    moe_err rc = MOE_OK;
    *text = NULL;
    *bytes = 0;
    const int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return moe_fail(MOE_E_NOINPUT, "cannot open %s: %s", path, strerror(errno));
    if (fstat(fd, &st) != 0 || !S_ISREG(st.st_mode)) {
        rc = moe_fail(MOE_E_DATA, "%s is not a file", path);
        goto out;
    }
    if ((uint64_t)st.st_size > limit) {
        rc = moe_fail(MOE_E_DATA, "%s has %lld bytes: expected at most %zu", path, (long long)st.st_size, limit);
        goto out;
    }
    *text = malloc((size_t)st.st_size + 1);
    if (*text == NULL) {
        rc = moe_fail(MOE_E_OS, "%s: out of memory for %lld bytes", path, (long long)st.st_size);
        goto out;
    }
    while (*bytes < (size_t)st.st_size) {
        const ssize_t got = read(fd, *text + *bytes, (size_t)st.st_size - *bytes);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0) {
            rc = moe_fail(MOE_E_IO, "cannot read %s: %s", path, got < 0 ? strerror(errno) : "it became shorter");
            free(*text);
            *text = NULL;
            goto out;
        }
        *bytes += (size_t)got;
    }
out:
    close(fd);
    return rc;
}

static moe_err read_ints(json_reader *r, model_value *v)
{
    v->ints = calloc(MAX_INTS, sizeof *v->ints);
    if (v->ints == NULL)
        return moe_fail(MOE_E_OS, "out of memory");
    for (json_event e;;) {
        TRY(json_next(r, &e));
        if (e == JSON_ARRAY_END)
            return MOE_OK;
        if (e != JSON_NUMBER || v->nints == MAX_INTS)
            return json_fail(r, MOE_E_DATA, "expected at most %d whole numbers", (int)MAX_INTS);
        TRY(json_int(r, INT64_MIN, INT64_MAX, &v->ints[v->nints]));
        v->nints++;
    }
}

static moe_err read_value(json_reader *r, const model_key *key, model_value *v)
{
    static const char *const kinds[] = {"a whole number", "a number", "true or false", "an array of whole numbers", "a string"};
    json_event e;
    if (v->set)
        return json_fail(r, MOE_E_DATA, "%s occurs twice", key->name);
    TRY(json_next(r, &e));
    v->set = true;
    v->null = e == JSON_NULL;
    if (v->null)
        return MOE_OK;
    switch (key->kind) {
    case MODEL_INT:
        if (e != JSON_NUMBER)
            break;
        TRY(json_int(r, INT64_MIN, INT64_MAX, &v->integer));
        v->number = (double)v->integer;
        return MOE_OK;
    case MODEL_NUMBER:
        if (e != JSON_NUMBER)
            break;
        return json_double(r, &v->number);
    case MODEL_BOOL:
        if (e != JSON_TRUE && e != JSON_FALSE)
            break;
        v->boolean = e == JSON_TRUE;
        return MOE_OK;
    case MODEL_INTS:
        if (e != JSON_ARRAY)
            break;
        return read_ints(r, v);
    case MODEL_STRING:
        if (e != JSON_STRING)
            break;
        return json_copy(r, &v->string);
    }
    return json_fail(r, MOE_E_CONFIG, "%s is %s: expected %s", key->name, json_event_name(e), kinds[key->kind]);
}

/* What config.json spells in other ways than the key of the family: values that wait for theirs. */
typedef struct spelling {
    const char *object, *name; /* member of rope_parameters (transformers 5) or rope_scaling (4); NULL: a key of its own */
    model_key key;
} spelling;

#define ROPE_MEMBERS(object)                                                                                                         \
    {object, "rope_theta", {"rope_theta", MODEL_NUMBER, "", ""}},                                                                    \
    {object, "rope_type", {"rope_type", MODEL_STRING, "", ""}},                                                                      \
    {object, "type", {"rope_type", MODEL_STRING, "", ""}},                                                                           \
    {object, "factor", {"rope_factor", MODEL_NUMBER, "", ""}},                                                                       \
    {object, "low_freq_factor", {"rope_low_freq_factor", MODEL_NUMBER, "", ""}},                                                     \
    {object, "high_freq_factor", {"rope_high_freq_factor", MODEL_NUMBER, "", ""}},                                                   \
    {object, "original_max_position_embeddings", {"rope_original_max_position_embeddings", MODEL_INT, "", ""}},                      \
    {object, "beta_fast", {"rope_beta_fast", MODEL_NUMBER, "", ""}},                                                                 \
    {object, "beta_slow", {"rope_beta_slow", MODEL_NUMBER, "", ""}},                                                                 \
    {object, "truncate", {"rope_truncate", MODEL_BOOL, "", ""}},                                                                     \
    {object, "attention_factor", {"rope_attention_factor", MODEL_NUMBER, "", ""}},                                                   \
    {object, "mscale", {"rope_mscale", MODEL_NUMBER, "", ""}},                                                                       \
    {object, "mscale_all_dim", {"rope_mscale_all_dim", MODEL_NUMBER, "", ""}},                                                       \
    {object, "partial_rotary_factor", {"partial_rotary_factor", MODEL_NUMBER, "", ""}}

static const spelling SPELLINGS[] = {
    ROPE_MEMBERS("rope_parameters"),
    ROPE_MEMBERS("rope_scaling"),
    {NULL, "num_local_experts", {"num_experts", MODEL_INT, "", ""}},
    {NULL, "n_routed_experts", {"num_experts", MODEL_INT, "", ""}},
    {NULL, "experts_per_token", {"num_experts_per_tok", MODEL_INT, "", ""}},
    {NULL, "initial_context_length", {"rope_original_max_position_embeddings", MODEL_INT, "", ""}},
};

enum { NSPELLINGS = sizeof SPELLINGS / sizeof *SPELLINGS };

/* rope_parameters, rope_scaling: null, or an object whose members are all in SPELLINGS. */
static moe_err read_rope(json_reader *r, const char *name, model_value *other)
{
    json_event e;
    TRY(json_next(r, &e));
    if (e == JSON_NULL)
        return MOE_OK;
    if (e != JSON_OBJECT)
        return json_fail(r, MOE_E_CONFIG, "%s is %s: expected an object or null", name, json_event_name(e));
    for (;;) {
        TRY(json_next(r, &e));
        if (e == JSON_OBJECT_END)
            return MOE_OK;
        int i = 0;
        while (i < NSPELLINGS && (SPELLINGS[i].object == NULL || strcmp(SPELLINGS[i].object, name) != 0 || !json_is(r, SPELLINGS[i].name)))
            i++;
        if (i < NSPELLINGS) {
            TRY(read_value(r, &SPELLINGS[i].key, &other[i]));
            continue;
        }
        const json_reader key = *r;
        TRY(json_next(r, &e));
        if (e != JSON_NULL)
            return json_fail(&key, MOE_E_CONFIG, "%s.%.*s: this scaling of the rotary embedding is not computed", name,
                             (int)(key.raw_bytes < 64 ? key.raw_bytes : 64), key.raw);
    }
}

/* layer_types (transformers 5): attention over everything in every layer, or null; `sliding`, where the family has such layers: their numbers. */
static moe_err read_layer_types(json_reader *r, model_value *sliding)
{
    json_event e;
    TRY(json_next(r, &e));
    if (e == JSON_NULL)
        return MOE_OK;
    if (e != JSON_ARRAY)
        return json_fail(r, MOE_E_CONFIG, "layer_types is %s: expected an array or null", json_event_name(e));
    if (sliding != NULL && sliding->set)
        return json_fail(r, MOE_E_DATA, "layer_types occurs twice");
    if (sliding != NULL)
        *sliding = (model_value){.set = true, .ints = calloc(MODEL_MAX_LAYERS, sizeof *sliding->ints)};
    if (sliding != NULL && sliding->ints == NULL)
        return moe_fail(MOE_E_OS, "out of memory");
    for (int64_t layer = 0;; layer++) {
        TRY(json_next(r, &e));
        if (e == JSON_ARRAY_END && layer > 0)
            return MOE_OK;
        if (e == JSON_ARRAY_END)
            return json_fail(r, MOE_E_CONFIG, "layer_types has no entries: expected one for each layer, or null");
        if (sliding != NULL && layer == MODEL_MAX_LAYERS)
            return json_fail(r, MOE_E_CONFIG, "layer_types has more than %d entries", (int)MODEL_MAX_LAYERS);
        if (sliding != NULL)
            sliding->integer = layer + 1;
        if (sliding != NULL && e == JSON_STRING && json_is(r, "sliding_attention"))
            sliding->ints[sliding->nints++] = layer;
        else if (e != JSON_STRING || !json_is(r, "full_attention"))
            return json_fail(r, MOE_E_CONFIG, "layer_types holds something else than \"full_attention\"%s computed",
                             sliding != NULL ? " and \"sliding_attention\", which are" : ", which alone is");
    }
}

static model_value *value_named(const model_family *f, model_value *values, const char *name)
{
    for (int i = 0; i < f->nkeys; i++)
        if (strcmp(f->keys[i].name, name) == 0)
            return &values[i];
    return NULL;
}

static int find_key(const json_reader *r, const model_family *f)
{
    for (int i = 0; i < f->nkeys; i++)
        if (json_is(r, f->keys[i].name))
            return i;
    return -1;
}

static bool is_ignored(const json_reader *r)
{
    for (size_t i = 0; i < sizeof IGNORED / sizeof *IGNORED; i++)
        if (json_is(r, IGNORED[i]))
            return true;
    return false;
}

/* The value of the key just read. */
static moe_err read_entry(json_reader *r, const model_family *f, model_value *values, model_value *other)
{
    const int i = find_key(r, f);
    if (i >= 0)
        return read_value(r, &f->keys[i], &values[i]);
    if (json_is(r, "rope_parameters"))
        return read_rope(r, "rope_parameters", other);
    if (json_is(r, "rope_scaling"))
        return read_rope(r, "rope_scaling", other);
    if (json_is(r, "layer_types"))
        return read_layer_types(r, value_named(f, values, "sliding_attention_layers"));
    if (json_is(r, "quantization_config"))
        return hf_read_quantization(r);
    for (int k = 0; k < NSPELLINGS; k++)
        if (SPELLINGS[k].object == NULL && json_is(r, SPELLINGS[k].name))
            return read_value(r, &SPELLINGS[k].key, &other[k]);
    if (is_ignored(r))
        return json_skip(r);
    const json_reader key = *r;
    json_event e;
    TRY(json_next(r, &e));
    if (e != JSON_NULL)
        return json_fail(&key, MOE_E_CONFIG,
                         "key \"%.*s\" is not known for %s and might change the numbers; remove it if it does not",
                         (int)(key.raw_bytes < 64 ? key.raw_bytes : 64), key.raw, f->model_type);
    return MOE_OK;
}

static bool same_value(const model_value *a, const model_value *b)
{
    if (a->null || b->null)
        return a->null == b->null;
    if (a->string != NULL && b->string != NULL)
        return strcmp(a->string, b->string) == 0;
    return a->number == b->number && a->boolean == b->boolean;
}

static moe_err differ(const spelling *s, const model_value *found, const model_value *other)
{
    const char *object = s->object != NULL ? s->object : "", *dot = s->object != NULL ? "." : "";
    if (found->string != NULL && other->string != NULL)
        return moe_fail(MOE_E_CONFIG, "%s is \"%.64s\" but %s%s%s is \"%.64s\": expected the same", s->key.name, found->string, object, dot,
                        s->name, other->string);
    return moe_fail(MOE_E_CONFIG, "%s is %g but %s%s%s is %g: expected the same number", s->key.name, found->number, object, dot, s->name,
                    other->number);
}

/* Takes the other spellings over; two at once must say the same. */
static moe_err merge(const model_family *f, model_value *values, model_value *other)
{
    for (int k = 0; k < NSPELLINGS; k++) {
        const spelling *s = &SPELLINGS[k];
        int i = 0;
        while (i < f->nkeys && strcmp(f->keys[i].name, s->key.name) != 0)
            i++;
        if (!other[k].set)
            continue;
        if (i == f->nkeys) {
            if (!other[k].null && other[k].number != 0) /* num_local_experts of a model without experts */
                return moe_fail(MOE_E_CONFIG, "key \"%s\" is not known for %s and might change the numbers; remove it if it does not",
                                s->name, f->model_type);
            continue;
        }
        if (values[i].set && !same_value(&values[i], &other[k]))
            return differ(s, &values[i], &other[k]);
        free(values[i].string);
        values[i] = other[k];
        other[k].string = NULL;
    }
    return MOE_OK;
}

static const char *family_list(char *text, size_t size)
{
    size_t n = 0;
    text[0] = '\0';
    for (int i = 0; model_family_at(i) != NULL && n < size; i++)
        n += (size_t)snprintf(text + n, size - n, "%s%s", i > 0 ? ", " : "", model_family_at(i)->model_type);
    return text;
}

static moe_err find_family(json_reader *r, const model_family **out)
{
    char *type = NULL, known[512];
    *out = NULL;
    TRY(json_expect(r, JSON_OBJECT));
    for (json_event e;;) {
        TRY(json_next(r, &e));
        if (e == JSON_OBJECT_END)
            return json_fail(r, MOE_E_CONFIG, "no model_type: expected one of %s", family_list(known, sizeof known));
        if (json_is(r, "model_type"))
            break;
        TRY(json_skip(r));
    }
    TRY(json_get_string(r, &type));
    *out = model_family_find(type);
    const moe_err rc =
        *out != NULL ? MOE_OK
                     : json_fail(r, MOE_E_CONFIG, "model_type is \"%.64s\": expected one of %s", type, family_list(known, sizeof known));
    free(type);
    return rc;
}

static moe_err read_all(json_reader *r, const model_family *f, model_value *values, model_value *other)
{
    TRY(json_expect(r, JSON_OBJECT));
    for (json_event e;;) {
        TRY(json_next(r, &e));
        if (e == JSON_OBJECT_END)
            break;
        TRY(read_entry(r, f, values, other));
    }
    return json_expect(r, JSON_END);
}

static moe_err build(model_spec *out, const model_family *f, model_value *values, model_value *other)
{
    TRY(merge(f, values, other));
    for (int i = 0; i < f->nkeys; i++)
        if (!values[i].set)
            TRY(model_value_default(&values[i], &f->keys[i]));
    return f->build(out, values);
}

moe_err hf_config_parse(model_spec *out, const char *text, size_t bytes, const char *name)
{
    char sentence[MOE_ERROR_TEXT];
    model_value *values = NULL;
    const model_family *f = NULL;
    model_value other[NSPELLINGS] = {0};
    json_reader r;
    moe_err rc;
    memset(out, 0, sizeof *out);
    json_open(&r, name, text, bytes);
    TRY(find_family(&r, &f));
    values = calloc((size_t)f->nkeys, sizeof *values);
    if (values == NULL)
        return moe_fail(MOE_E_OS, "out of memory");
    json_open(&r, name, text, bytes);
    TRY_GOTO(read_all(&r, f, values, other), rc, out);
    rc = build(out, f, values, other);
    if (rc != MOE_OK) {
        moe_error_take(sentence, sizeof sentence);
        rc = moe_fail(rc, "%s: %.3000s", name, sentence);
    }
out:
    model_values_free(values, f->nkeys);
    model_values_free(other, NSPELLINGS);
    free(values);
    return rc;
}

moe_err hf_config_load(model_spec *out, const char *dir)
{
    char *path = NULL, *text = NULL;
    size_t bytes;
    moe_err rc;
    memset(out, 0, sizeof *out);
    TRY(hf_path(&path, dir, HF_CONFIG));
    TRY_GOTO(hf_read_text(path, MAX_CONFIG, &text, &bytes), rc, out);
    TRY_GOTO(hf_config_parse(out, text, bytes, path), rc, out);
out:
    free(text);
    free(path);
    return rc;
}
