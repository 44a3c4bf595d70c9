/* Owns the words of moe-model's commands; the work is models/ and inspect.c. One thread. */
#include "engine/serve/model_commands.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "engine/base/cli.h"
#include "engine/serve/inspect.h"
#include "engine/serve/json_text.h"
#include "engine/train/run_model.h"
#include "models/text/chat.h"
#include "models/text/tokenizer.h"

enum { INPUT_LIMIT = 1 << 30 /* bytes of text from stdin */ };

static moe_err print_text(text_buf *t, FILE *out)
{
    const moe_err rc = t->failed ? moe_fail(MOE_E_OS, "out of memory") : MOE_OK;
    if (rc == MOE_OK && t->used > 0)
        fwrite(t->data, 1, t->used, out); /* cli_main looks at the stream's state */
    text_free(t);
    return rc;
}

moe_err command_inspect(const char *path, uint64_t host_bytes, bool json, FILE *out)
{
    model *m;
    inspect_report r;
    text_buf t = {0};
    TRY(run_model_open(&m, path));
    moe_err rc = inspect_model(&r, m, host_bytes);
    if (rc == MOE_OK) {
        (json ? inspect_json : inspect_print)(&r, &t);
        rc = print_text(&t, out);
    }
    model_close(m);
    return rc;
}

static moe_err read_stream(FILE *in, const char *name, text_buf *t)
{
    char chunk[65536];
    for (size_t n; t->used < INPUT_LIMIT && (n = fread(chunk, 1, sizeof chunk, in)) > 0;)
        text_add_bytes(t, chunk, n);
    if (ferror(in))
        return moe_fail(MOE_E_IO, "cannot read %s: %s", name, strerror(errno));
    if (t->used >= INPUT_LIMIT)
        return moe_fail(MOE_E_DATA, "%s has more than %d bytes", name, (int)INPUT_LIMIT);
    return t->failed ? moe_fail(MOE_E_OS, "out of memory") : MOE_OK;
}

/* The word itself, or all of stdin for "-". */
static moe_err read_input(const char *word, text_buf *t)
{
    if (strcmp(word, "-") == 0)
        return read_stream(stdin, "stdin", t);
    text_add(t, word);
    return t->failed ? moe_fail(MOE_E_OS, "out of memory") : MOE_OK;
}

/* A file, or stdin for "-". */
static moe_err read_file(const char *path, text_buf *t)
{
    if (strcmp(path, "-") == 0)
        return read_stream(stdin, "stdin", t);
    FILE *in = fopen(path, "rb");
    if (in == NULL)
        return moe_fail(MOE_E_NOINPUT, "cannot open %s: %s", path, strerror(errno));
    const moe_err rc = read_stream(in, path, t);
    fclose(in);
    return rc;
}

static moe_err open_tokenizer(tokenizer **out, const char *path)
{
    char *texts;
    *out = NULL;
    TRY(run_model_texts(&texts, path));
    const moe_err rc = tokenizer_open(out, texts);
    free(texts);
    return rc;
}

static moe_err open_chat(chat **out, const char *path)
{
    char *texts;
    *out = NULL;
    TRY(run_model_texts(&texts, path));
    const moe_err rc = chat_open(out, texts);
    free(texts);
    return rc;
}

static void add_ids(text_buf *t, const token_ids *ids, const char *between)
{
    for (size_t i = 0; i < ids->n; i++)
        text_printf(t, "%s%d", i == 0 ? "" : between, ids->id[i]);
}

static moe_err print_pieces(const tokenizer *tok, const token_ids *ids, text_buf *t)
{
    text_add(t, "], \"pieces\": [");
    for (size_t i = 0; i < ids->n; i++) {
        const char *s;
        size_t n;
        TRY(tokenizer_piece(tok, ids->id[i], &s, &n));
        text_add(t, i ? ", " : "");
        json_text_add(t, s, n);
    }
    text_add(t, "]}");
    return MOE_OK;
}

moe_err command_tokenize(const char *path, const char *text, bool specials, bool json, FILE *out)
{
    tokenizer *tok = NULL;
    token_ids ids = {0};
    text_buf in = {0}, t = {0};
    moe_err rc;
    TRY_GOTO(read_input(text, &in), rc, done);
    TRY_GOTO(open_tokenizer(&tok, path), rc, done);
    TRY_GOTO(tokenizer_encode(tok, in.used > 0 ? in.data : "", in.used, specials, &ids), rc, done);
    text_add(&t, json ? "{\"tokens\": [" : "");
    add_ids(&t, &ids, json ? ", " : ",");
    if (json)
        TRY_GOTO(print_pieces(tok, &ids, &t), rc, done);
    text_add(&t, "\n");
    rc = print_text(&t, out);
done:
    text_free(&t);
    text_free(&in);
    free(ids.id);
    tokenizer_close(tok);
    return rc;
}

/* The next id of the list; *at moves behind it. false at the end. */
static moe_err next_id(const char **at, int64_t *id, bool *more)
{
    char number[24];
    *at += strspn(*at, ", \t\r\n");
    const size_t n = strcspn(*at, ", \t\r\n");
    *more = n > 0;
    *id = 0;
    if (n == 0)
        return MOE_OK;
    snprintf(number, sizeof number, "%.*s", (int)(n < sizeof number ? n : sizeof number - 1), *at);
    if (n >= sizeof number || !text_parse_int(number, id))
        return moe_fail(MOE_E_DATA, "\"%s\" is no token id: expected numbers between commas or blanks", number);
    *at += n;
    return MOE_OK;
}

moe_err command_detokenize(const char *path, const char *list, bool json, FILE *out)
{
    tokenizer *tok = NULL;
    text_buf in = {0}, bytes = {0}, t = {0};
    moe_err rc;
    TRY_GOTO(read_input(list, &in), rc, done);
    TRY_GOTO(open_tokenizer(&tok, path), rc, done);
    const char *at = in.used > 0 ? in.data : "";
    for (;;) {
        const char *s;
        size_t n;
        int64_t id;
        bool more;
        TRY_GOTO(next_id(&at, &id, &more), rc, done);
        if (!more)
            break;
        if (id < 0 || id >= tokenizer_vocab(tok)) {
            rc = moe_fail(MOE_E_DATA, "token id %lld: expected 0 to %d", (long long)id, tokenizer_vocab(tok) - 1);
            goto done;
        }
        TRY_GOTO(tokenizer_piece(tok, (int32_t)id, &s, &n), rc, done);
        text_add_bytes(&bytes, s, n);
    }
    text_add(&t, json ? "{\"text\": " : "");
    if (json)
        json_text_add(&t, bytes.used > 0 ? bytes.data : "", bytes.used);
    else
        text_add_bytes(&t, bytes.used > 0 ? bytes.data : "", bytes.used);
    text_add(&t, json ? "}\n" : "\n");
    rc = bytes.failed ? moe_fail(MOE_E_OS, "out of memory") : print_text(&t, out);
done:
    text_free(&t);
    text_free(&bytes);
    text_free(&in);
    tokenizer_close(tok);
    return rc;
}

moe_err command_template(const char *path, const char *messages, bool json, FILE *out)
{
    chat *c = NULL;
    tokenizer *tok = NULL;
    text_buf in = {0}, t = {0};
    template_output text = {0};
    token_ids ids = {0};
    const time_t seconds = time(NULL);
    struct tm now;
    moe_err rc;
    localtime_r(&seconds, &now);
    TRY_GOTO(read_file(messages, &in), rc, done);
    TRY_GOTO(open_chat(&c, path), rc, done);
    TRY_GOTO(chat_render(c, in.used > 0 ? in.data : "", in.used, &now, &text), rc, done);
    if (json) {
        TRY_GOTO(open_tokenizer(&tok, path), rc, done);
        TRY_GOTO(chat_encode(tok, &text, &ids), rc, done);
        text_add(&t, "{\"text\": ");
        json_text_add(&t, text.text, text.n);
        text_add(&t, ", \"tokens\": [");
        add_ids(&t, &ids, ", ");
        text_add(&t, "]}\n");
    } else {
        text_add_bytes(&t, text.text, text.n);
    }
    rc = print_text(&t, out);
done:
    template_output_free(&text);
    text_free(&t);
    text_free(&in);
    free(ids.id);
    tokenizer_close(tok);
    chat_close(c);
    return rc;
}

typedef struct progress {
    int percent;
} progress;

static void show_progress(void *user, uint64_t done, uint64_t total)
{
    progress *p = user;
    const int percent = total == 0 ? 100 : (int)(100.0 * (double)done / (double)total);
    if (percent == p->percent)
        return;
    p->percent = percent;
    fprintf(stderr, "\r%3d %%%s", percent, percent == 100 ? "\n" : "");
    fflush(stderr);
}

static moe_err describe(const char *dir, FILE *out)
{
    model *m;
    inspect_report r;
    char dense[TEXT_NUMBER], experts[TEXT_NUMBER];
    TRY(model_open(&m, dir));
    const moe_err rc = inspect_model(&r, m, 0);
    if (rc == MOE_OK)
        fprintf(out, "%s: dense part %s, %lld experts %s\n", dir, text_bytes(dense, (double)model_file_bytes(m, 0)), (long long)r.experts,
                text_bytes(experts, model_files(m) > 1 ? (double)model_file_bytes(m, 1) : 0.0));
    model_close(m);
    return rc;
}

moe_err command_pack(const char *path, const char *dir, const packed_options *o, FILE *out)
{
    progress p = {-1};
    packed_options options = *o;
    model *m;
    if (cli_is_terminal(STDERR_FILENO)) {
        options.progress = show_progress;
        options.user = &p;
    }
    TRY(run_model_open(&m, path));
    const moe_err rc = packed_write(m, dir, &options);
    model_close(m);
    TRY(rc);
    return describe(dir, out);
}

/* What the tokenizer is made of goes with the model, so that the folder is complete. */
static moe_err copy_tokenizer(const model *m, const char *dir)
{
    tokenizer *tok;
    if (model_tokenizer(m) == NULL)
        return MOE_OK;
    TRY(tokenizer_open(&tok, model_tokenizer(m)));
    const moe_err rc = tokenizer_save(tok, dir);
    tokenizer_close(tok);
    return rc;
}

moe_err command_upcycle(const char *path, const char *dir, const upcycle_options *o, FILE *out)
{
    progress p = {-1};
    upcycle_options options = *o;
    moe_stream stream = {0};
    model *m = NULL;
    moe_err rc;
    if (cli_is_terminal(STDERR_FILENO)) {
        options.progress = show_progress;
        options.user = &p;
    }
    options.stream = &stream;
    TRY_GOTO(moe_backend_find(&options.be, NULL), rc, done);
    TRY_GOTO(moe_pool_open(&stream.pool, (int)sysconf(_SC_NPROCESSORS_ONLN), KERNEL_SCRATCH_BYTES), rc, done);
    TRY_GOTO(run_model_open(&m, path), rc, done);
    TRY_GOTO(upcycle_write(m, dir, &options), rc, done);
    TRY_GOTO(copy_tokenizer(m, dir), rc, done);
    fprintf(out, "%s: every feed-forward of %s became %d experts, %d of them for a token\n", dir, path, o->experts, o->top_k);
    rc = MOE_OK;
done:
    model_close(m);
    moe_pool_close(stream.pool);
    return rc;
}
