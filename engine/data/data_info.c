/* data.json through jansson: small, ours, and read by people. Unknown keys are left alone, missing ones are errors.
 * One thread. */
#include "engine/data/data_info.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static moe_err parse_split(const json_t *root, const char *name, const char *path, data_split_info *out)
{
    json_int_t tokens, documents, bytes;
    const json_t *o = json_object_get(root, name);
    if (json_unpack((json_t *)o, "{s:I, s:I, s:I, s:F}", "tokens", &tokens, "documents", &documents, "bytes", &bytes,
                    "unigram_entropy_nats", &out->entropy) != 0 ||
        tokens < 0)
        return moe_fail(MOE_E_DATA, "%s: \"%s\" is not what prepare writes", path, name);
    out->tokens = tokens;
    out->documents = documents;
    out->bytes = bytes;
    return MOE_OK;
}

static moe_err parse_info(data_info *out, const json_t *root, const char *path)
{
    const char *type = NULL;
    json_t *eos = NULL;
    if (json_unpack((json_t *)root, "{s:{s:s, s:i, s:o}, s:{s:F}}", "tokenizer", "type", &type, "vocab_size", &out->vocab,
                    "eos_token_id", &eos, "settings", "val_fraction", &out->val_fraction) != 0 ||
        out->vocab < 1 || strlen(type) >= sizeof out->tokenizer)
        return moe_fail(MOE_E_DATA, "%s: not what prepare writes", path);
    strcpy(out->tokenizer, type);
    out->largest_cut = json_is_true(json_object_get(json_object_get(root, "settings"), "largest_document_cut"));
    out->eos = json_is_integer(eos) ? (int32_t)json_integer_value(eos) : -1;
    TRY(parse_split(root, "train", path, &out->train));
    return parse_split(root, "val", path, &out->val);
}

moe_err data_info_read(data_info *out, const char *dir)
{
    char *path = NULL;
    json_error_t error;
    *out = (data_info){0};
    if (asprintf(&path, "%s/data.json", dir) < 0)
        return moe_fail(MOE_E_OS, "no memory for a path");
    json_t *root = NULL;
    moe_err rc;
    if (access(path, F_OK) != 0)
        rc = moe_fail(MOE_E_NOINPUT, "%s: %s", path, strerror(errno));
    else if (!(root = json_load_file(path, JSON_REJECT_DUPLICATES, &error)))
        rc = moe_fail(MOE_E_DATA, "%s:%d:%d: %s", path, error.line, error.column, error.text);
    else
        rc = parse_info(out, root, path);
    json_decref(root);
    free(path);
    return rc;
}

static json_t *pack_split(const data_split_info *s)
{
    return json_pack("{s:I, s:I, s:I, s:f}", "tokens", (json_int_t)s->tokens, "documents", (json_int_t)s->documents, "bytes",
                     (json_int_t)s->bytes, "unigram_entropy_nats", s->entropy);
}

static moe_err write_synced(const char *path, const char *text)
{
    FILE *f = fopen(path, "we");
    if (!f)
        return moe_fail(MOE_E_CREATE, "%s: cannot create: %s", path, strerror(errno));
    const bool written = fputs(text, f) >= 0 && fputc('\n', f) != EOF && fflush(f) == 0 && fsync(fileno(f)) == 0;
    const int error = errno;
    if (fclose(f) == 0 && written)
        return MOE_OK;
    return moe_fail(MOE_E_IO, "%s: cannot write: %s", path, strerror(error));
}

moe_err data_info_write(const data_info *i, const char *dir, const char *name, const char *dtype, const char *const *files,
                        int nfiles)
{
    json_t *list = json_array();
    for (int k = 0; k < nfiles; k++) {
        json_t *file = json_string(files[k]); /* NULL: the name is not UTF-8 */
        json_array_append_new(list, file ? file : json_string("?"));
    }
    json_t *eos = i->eos >= 0 ? json_integer(i->eos) : json_null();
    json_t *root = json_pack("{s:s, s:{s:s, s:i, s:o}, s:s, s:o, s:o, s:{s:f, s:b, s:o}}", "program", "moe-train " MOE_VERSION,
                             "tokenizer", "type", i->tokenizer, "vocab_size", i->vocab, "eos_token_id", eos, "dtype", dtype,
                             "train", pack_split(&i->train), "val", pack_split(&i->val), "settings", "val_fraction",
                             i->val_fraction, "largest_document_cut", i->largest_cut, "files", list);
    char *text = root ? json_dumps(root, JSON_INDENT(2)) : NULL, *path = NULL;
    const moe_err rc = text && asprintf(&path, "%s/%s", dir, name) >= 0 ? write_synced(path, text)
                                                                        : moe_fail(MOE_E_OS, "no memory for data.json");
    free(path);
    free(text);
    json_decref(root);
    return rc;
}
