/* Private to config: what a train_config keeps besides its values, and the steps of reading one. */
#ifndef MOE_ENGINE_CONFIG_DETAIL_H
#define MOE_ENGINE_CONFIG_DETAIL_H

#include "engine/config/schema.h"
#include "models/family.h"

typedef struct value_state {
    config_origin at; /* ORIGIN_DEFAULT until given             */
    bool bad;         /* given, refused, and a problem was told */
} value_state;

typedef struct config_detail {
    value_state knob[KNOBS_MAX];
    char *data_written, *from_written;  /* the paths before they were made absolute */
    const model_family *family;         /* NULL with model.from */
    config_origin model_type_at;
    model_value *values;                /* [family->nkeys] */
    value_state *value;                 /* [family->nkeys] */
    bool model_ready;                   /* train_config.model is filled */
} config_detail;

/* A value with the whole name of its key. */
typedef struct config_entry {
    char path[160];
    const tree_node *node;
    config_origin at; /* of the key */
} config_entry;

typedef struct config_entries {
    config_entry *item;
    int n, capacity;
} config_entries;

/* Every leaf of `node` under `path` becomes an entry; unknown names become problems. */
moe_err entries_collect(config_entries *list, const char *path, const tree_node *node, config_origin at, problems *p) MOE_MUST_CHECK;

/* "model.hidden_size" and friends; the rest of the entries is not looked at. `section`: where `model:` stands. */
moe_err model_keys_take(train_config *c, const config_entries *list, config_origin section, problems *p) MOE_MUST_CHECK;

/* A model key's value as YAML. */
void model_value_print(const model_key *k, const model_value *v, text_buf *t);
/* "Qwen3MoeConfig": the transformers class whose defaults a family has. */
const char *family_config_class(const model_family *f, char *out, size_t size);

/* The state of a knob by name. */
value_state *config_state(const train_config *c, const char *name);
/* Values that must agree with each other. */
void config_check(const train_config *c, problems *p);

#endif
