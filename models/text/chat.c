/* Finding the template and the names of special tokens. The files are hostile until checked; they are read whole, within a limit. One thread
 * opens. What becomes `trusted` is JSON again: {"bos_token": "<s>", ...}. */
#include "models/text/chat.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "models/formats/gguf.h"
#include "models/formats/json_reader.h"
#include "models/text/bpe.h"
#include "models/text/text_buffer.h"

enum { FILE_LIMIT = 16 << 20 }; /* bytes; tokenizer_config.json with all added tokens has some 100 KiB */

struct chat {
    chat_template *template;
    text_buffer trusted;
};

/* out->data stays NULL: there is no such file. */
static moe_err read_file(const char *path, text_buffer *out)
{
    FILE *f = fopen(path, "re");
    if (f == NULL)
        return errno == ENOENT || errno == ENOTDIR ? MOE_OK : moe_fail(MOE_E_NOINPUT, "%s: cannot open: %s", path, strerror(errno));
    moe_err rc = MOE_OK;
    for (size_t n = 1; rc == MOE_OK && n > 0;) {
        rc = text_buffer_reserve(out, 1 << 16);
        if (rc != MOE_OK)
            break;
        n = fread(out->data + out->n, 1, 1 << 16, f);
        out->n += n;
        if (out->n > FILE_LIMIT)
            rc = moe_fail(MOE_E_DATA, "%s: longer than %d bytes", path, FILE_LIMIT);
    }
    if (rc == MOE_OK && ferror(f))
        rc = moe_fail(MOE_E_IO, "%s: cannot read", path);
    fclose(f);
    return rc;
}

/* One more name of the trusted object; raw is the inside of a JSON string. */
static moe_err add_trusted(chat *c, const char *name, size_t nname, const char *raw, size_t n)
{
    TRY(text_buffer_append(&c->trusted, c->trusted.n ? ", \"" : "{\"", c->trusted.n ? 3 : 2));
    TRY(text_buffer_append(&c->trusted, name, nname));
    TRY(text_buffer_append(&c->trusted, "\": \"", 4));
    TRY(text_buffer_append(&c->trusted, raw, n));
    return text_buffer_append(&c->trusted, "\"", 1);
}

/* --- tokenizer_config.json ---------------------------------------------------------------------------------------------------- */

static bool is_special_name(const json_reader *r)
{
    static const char *const names[] = {"bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (json_is(r, names[i]))
            return true;
    return false;
}

/* A string, {"content": string, ...}, or null. */
static moe_err read_special(chat *c, json_reader *r)
{
    const json_reader key = *r;
    json_event e;
    TRY(json_next(r, &e));
    if (e == JSON_STRING)
        return add_trusted(c, key.raw, key.raw_bytes, r->raw, r->raw_bytes);
    if (e != JSON_OBJECT)
        return json_skip_rest(r);
    for (;;) {
        TRY(json_next(r, &e));
        if (e == JSON_OBJECT_END)
            return MOE_OK;
        if (!json_is(r, "content")) {
            TRY(json_skip(r));
            continue;
        }
        TRY(json_expect(r, JSON_STRING));
        TRY(add_trusted(c, key.raw, key.raw_bytes, r->raw, r->raw_bytes));
    }
}

static moe_err decode(const json_reader *r, text_buffer *out)
{
    out->n = 0;
    TRY(text_buffer_reserve(out, r->raw_bytes + 1));
    out->n = json_decode(r, out->data);
    return MOE_OK;
}

/* {"name": ..., "template": ...} of a list of templates: the one that is called default. */
static moe_err read_named(json_reader *r, text_buffer *out)
{
    text_buffer text = {0};
    bool wanted = false;
    moe_err rc = MOE_OK;
    for (json_event e; rc == MOE_OK;) {
        TRY_GOTO(json_next(r, &e), rc, done);
        if (e == JSON_OBJECT_END)
            break;
        const bool name = json_is(r, "name");
        if (!name && !json_is(r, "template")) {
            TRY_GOTO(json_skip(r), rc, done);
            continue;
        }
        TRY_GOTO(json_expect(r, JSON_STRING), rc, done);
        if (name)
            wanted = json_is(r, "default");
        else
            TRY_GOTO(decode(r, &text), rc, done);
    }
    if (wanted && text.n > 0) {
        out->n = 0;
        rc = text_buffer_append(out, text.data, text.n);
    }
done:
    text_buffer_free(&text);
    return rc;
}

static moe_err read_template(json_reader *r, text_buffer *out)
{
    json_event e;
    TRY(json_next(r, &e));
    if (e == JSON_STRING)
        return decode(r, out);
    if (e != JSON_ARRAY)
        return json_skip_rest(r);
    for (;;) {
        TRY(json_next(r, &e));
        if (e == JSON_ARRAY_END)
            return MOE_OK;
        if (e != JSON_OBJECT)
            return json_fail(r, MOE_E_DATA, "chat_template: expected an object, found %s", json_event_name(e));
        TRY(read_named(r, out));
    }
}

static moe_err read_config(chat *c, const char *path, const text_buffer *file, text_buffer *template)
{
    json_reader r;
    json_open(&r, path, file->data, file->n);
    TRY(json_expect(&r, JSON_OBJECT));
    for (json_event e;;) {
        TRY(json_next(&r, &e));
        if (e == JSON_OBJECT_END)
            return json_expect(&r, JSON_END);
        if (json_is(&r, "chat_template"))
            TRY(read_template(&r, template));
        else if (is_special_name(&r))
            TRY(read_special(c, &r));
        else
            TRY(json_skip(&r));
    }
}

static moe_err open_folder(chat *c, const char *path)
{
    struct stat st;
    const bool folder = stat(path, &st) == 0 && S_ISDIR(st.st_mode);
    const char *slash = strrchr(path, '/');
    const int n = folder ? (int)strlen(path) : slash ? (int)(slash - path) : 1;
    char *config = NULL, *jinja = NULL;
    text_buffer file = {0}, template = {0}, own = {0};
    moe_err rc = MOE_OK;
    if (asprintf(&config, "%.*s/tokenizer_config.json", n, folder || slash ? path : ".") < 0 ||
        asprintf(&jinja, "%.*s/chat_template.jinja", n, folder || slash ? path : ".") < 0)
        TRY_GOTO(moe_fail(MOE_E_OS, "no memory for a path"), rc, done);
    TRY_GOTO(read_file(config, &file), rc, done);
    if (file.data != NULL)
        TRY_GOTO(read_config(c, config, &file, &template), rc, done);
    TRY_GOTO(read_file(jinja, &own), rc, done);
    if (own.data == NULL && template.n == 0)
        TRY_GOTO(moe_fail(MOE_E_NOINPUT, "%s: no chat template; expected chat_template.jinja or \"chat_template\" in tokenizer_config.json", path), rc, done);
    rc = own.data != NULL ? template_open(&c->template, jinja, own.data, own.n) : template_open(&c->template, config, template.data, template.n);
done:
    text_buffer_free(&file);
    text_buffer_free(&template);
    text_buffer_free(&own);
    free(config);
    free(jinja);
    return rc;
}

/* --- GGUF --------------------------------------------------------------------------------------------------------------------- */

/* The token whose id stands under `key`, as the inside of a JSON string. */
static moe_err add_gguf_token(chat *c, const gguf *g, const char *key, const char *name)
{
    const gguf_value *tokens;
    int64_t id;
    if (gguf_find(g, key) == NULL || gguf_find(g, "tokenizer.ggml.tokens") == NULL)
        return MOE_OK;
    TRY(gguf_get_array(g, "tokenizer.ggml.tokens", GGUF_STRING, &tokens));
    TRY(gguf_get_int(g, key, 0, (int64_t)tokens->n - 1, &id));
    const char *s;
    size_t at = 0, n;
    while (gguf_next_string(tokens, &at, &s, &n) && id-- > 0)
        ;
    text_buffer raw = {0};
    moe_err rc = MOE_OK;
    for (size_t i = 0; rc == MOE_OK && i < n; i++) {
        char escaped[8] = {s[i]};
        if (s[i] == '"' || s[i] == '\\' || (unsigned char)s[i] < 0x20)
            snprintf(escaped, sizeof escaped, "\\u%04x", (unsigned char)s[i]);
        rc = text_buffer_append(&raw, escaped, strlen(escaped));
    }
    if (rc == MOE_OK)
        rc = add_trusted(c, name, strlen(name), raw.n ? raw.data : "", raw.n);
    text_buffer_free(&raw);
    return rc;
}

static moe_err open_gguf(chat *c, const char *path)
{
    gguf *g;
    const char *s;
    size_t n;
    moe_err rc;
    TRY(gguf_open(&g, path));
    if (gguf_find(g, "tokenizer.chat_template") == NULL)
        TRY_GOTO(moe_fail(MOE_E_NOINPUT, "%s: no chat template (tokenizer.chat_template)", path), rc, done);
    TRY_GOTO(gguf_get_string(g, "tokenizer.chat_template", &s, &n), rc, done);
    TRY_GOTO(add_gguf_token(c, g, "tokenizer.ggml.bos_token_id", "bos_token"), rc, done);
    TRY_GOTO(add_gguf_token(c, g, "tokenizer.ggml.eos_token_id", "eos_token"), rc, done);
    rc = template_open(&c->template, path, s, n);
done:
    gguf_close(g);
    return rc;
}

/* A packed folder keeps the tokenizer of a GGUF file as tokenizer.gguf. */
static moe_err open_any(chat *c, const char *path)
{
    char *packed;
    if (gguf_is(path))
        return open_gguf(c, path);
    if (asprintf(&packed, "%s/tokenizer.gguf", path) < 0)
        return moe_fail(MOE_E_OS, "no memory for a path");
    const moe_err rc = gguf_is(packed) ? open_gguf(c, packed) : open_folder(c, path);
    free(packed);
    return rc;
}

moe_err chat_open(chat **out, const char *path)
{
    *out = NULL;
    chat *c = calloc(1, sizeof *c);
    if (c == NULL)
        return moe_fail(MOE_E_OS, "no memory for a chat template");
    moe_err rc = open_any(c, path);
    if (rc == MOE_OK)
        rc = c->trusted.n > 0 ? text_buffer_append(&c->trusted, "}", 1) : text_buffer_append(&c->trusted, "{}", 2);
    if (rc == MOE_OK)
        *out = c;
    else
        chat_close(c);
    return rc;
}

void chat_close(chat *c)
{
    if (c == NULL)
        return;
    template_close(c->template);
    text_buffer_free(&c->trusted);
    free(c);
}

moe_err chat_render(const chat *c, const char *json, size_t n, const struct tm *now, template_output *out)
{
    static const char before[] = "{\"messages\": ";
    text_buffer list = {0};
    template_input in = {
        .variables = json, .variables_bytes = n, .trusted = c->trusted.data, .trusted_bytes = c->trusted.n, .now = *now,
    };
    size_t at = 0;
    moe_err rc;
    *out = (template_output){0};
    while (at < n && strchr(" \t\r\n", json[at]) != NULL)
        at++;
    if (at < n && json[at] == '[') {
        TRY_GOTO(text_buffer_append(&list, before, sizeof before - 1), rc, done);
        TRY_GOTO(text_buffer_append(&list, json, n), rc, done);
        TRY_GOTO(text_buffer_append(&list, "}", 1), rc, done);
        in.variables = list.data;
        in.variables_bytes = list.n;
    }
    rc = template_render(c->template, &in, out);
done:
    text_buffer_free(&list);
    return rc;
}

moe_err chat_encode(const tokenizer *t, const template_output *text, token_ids *out)
{
    size_t plain = 0; /* text from here on is not encoded yet */
    for (size_t i = 0; i < text->segments; i++) {
        const size_t end = i + 1 < text->segments ? text->segment[i + 1].begin : text->n;
        size_t first, last;
        int32_t id;
        for (size_t at = text->segment[i].begin; !text->segment[i].user && tokenizer_next_special(t, text->text, end, at, &first, &last, &id); at = last) {
            if (first > plain)
                TRY(tokenizer_encode(t, text->text + plain, first - plain, false, out));
            TRY(token_ids_reserve(out, 1));
            out->id[out->n++] = id;
            plain = last;
        }
    }
    return plain < text->n ? tokenizer_encode(t, text->text + plain, text->n - plain, false, out) : MOE_OK;
}
