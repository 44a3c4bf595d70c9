/* Model families as data: the config keys a family has (names of its Hugging Face config.json, defaults of its transformers config
 * class) and how they become a model_spec. Used for the YAML `model:` mapping and for config.json alike. One row per family in
 * family.c; one small file per family in families/. */
#ifndef MOE_MODELS_FAMILY_H
#define MOE_MODELS_FAMILY_H

#include "models/spec.h"

typedef enum model_value_kind { MODEL_INT, MODEL_NUMBER, MODEL_BOOL, MODEL_INTS, MODEL_STRING } model_value_kind;

typedef struct model_key {
    const char *name;       /* as in config.json                                                     */
    model_value_kind kind;
    const char *fallback;   /* the default as YAML text: "2048", "1e-6", "false", "[]", "null"       */
    const char *help;       /* one line, with the unit where there is one                            */
} model_key;

/* One parsed value. `null` may be legal (head_dim: null means hidden_size / heads). */
typedef struct model_value {
    bool set;               /* given by the user or the file (else the default was filled in)        */
    bool null;
    bool boolean;
    int64_t integer;
    double number;          /* also set for integers                                                 */
    int64_t *ints;          /* MODEL_INTS, malloc'ed; `integer` of sliding_attention_layers: layers that layer_types speaks of */
    int nints;
    char *string;           /* MODEL_STRING, malloc'ed                                               */
} model_value;

typedef struct model_family {
    const char *model_type;
    const char *architecture; /* "Qwen3MoeForCausalLM": config.json's architectures[0]               */
    const model_key *keys;
    int nkeys;
    int class_keys;         /* the first ones, which the config class has; the others train what it lacks, all off by default */
    /* values[i] belongs to keys[i]; MOE_E_CONFIG names the key. The result is validated (spec_validate). */
    moe_err (*build)(model_spec *out, const model_value *values);
    const char *served_only; /* why moe-train refuses it, as the end of a sentence; NULL: it trains it */
} model_family;

/* NULL when unknown. */
const model_family *model_family_find(const char *model_type);
/* The i-th family, NULL past the end. */
const model_family *model_family_at(int i);
/* Parses a default's text. MOE_E_CONFIG when it is not of the key's kind (a bug in the table). */
moe_err model_value_default(model_value *out, const model_key *key) MOE_MUST_CHECK;
void model_values_free(model_value *values, int n); /* the contents, not the array */

#endif
