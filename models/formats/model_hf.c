/* Owns the opening of a Hugging Face folder as a model: what hf_reader finds becomes extents; the reader is closed again.
 * Threads: one. */
#include <stdlib.h>
#include <string.h>

#include "models/formats/hf_private.h"
#include "models/formats/model_private.h"

enum { MAX_CONFIG = 16 << 20 }; /* bytes, as hf_config_load */

static moe_err read_config(model *m, const char *dir)
{
    char *path = NULL;
    size_t bytes;
    moe_err rc;
    TRY(hf_path(&path, dir, HF_CONFIG));
    TRY_GOTO(hf_read_text(path, MAX_CONFIG, &m->config, &bytes), rc, out);
    m->config[bytes] = '\0'; /* hf_read_text leaves room */
    TRY_GOTO(hf_config_parse(&m->spec, m->config, bytes, path), rc, out);
out:
    free(path);
    return rc;
}

static moe_err fill_extents(model *m, const hf_reader *r)
{
    tensor_info *table;
    int64_t n;
    moe_err rc;
    TRY(spec_tensors(&m->spec, &table, &n));
    TRY_GOTO(model_make_extents(m, n), rc, out);
    for (int64_t i = 0; i < n; i++) {
        TRY_GOTO(hf_reader_locate(r, &table[i], &m->extent[table[i].id]), rc, out);
    }
out:
    free(table);
    return rc;
}

moe_err model_open_hf(model *m, const char *dir)
{
    hf_reader *r = NULL;
    moe_err rc;
    TRY(read_config(m, dir));
    TRY(hf_reader_open(&r, dir, &m->spec));
    for (int i = 0; i < hf_reader_files(r); i++)
        TRY_GOTO(model_add_file(m, hf_reader_path(r, i)), rc, out);
    TRY_GOTO(fill_extents(m, r), rc, out);
    rc = model_folder_tokenizer(m, dir);
out:
    hf_reader_close(r);
    return rc;
}
