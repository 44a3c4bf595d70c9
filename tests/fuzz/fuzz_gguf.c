/* Any bytes as a GGUF file: no crash, no leak; what is taken keeps the format's promises, and a tokenizer or a model that comes out of it can be used. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "models/formats/gguf_private.h"
#include "models/formats/gguf_writer.h"
#include "models/model.h"
#include "models/text/tokenizer_gguf.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void expect(int good, const char *what)
{
    if (!good) {
        fprintf(stderr, "%s: %s\n", what, moe_error_text());
        abort();
    }
}

static void check_tensors(const gguf *g, size_t size)
{
    for (int64_t i = 0; i < gguf_count(g); i++) {
        const gguf_tensor *t = gguf_at(g, i);
        expect(t->begin <= size && t->bytes <= size - t->begin, "a tensor lies inside the file");
        expect(gguf_tensor_find(g, t->name) == t, "a tensor is found by its name");
        for (int64_t k = 0; k < i && i < 64; k++) {
            const gguf_tensor *o = gguf_at(g, k);
            expect(t->begin >= o->begin + o->bytes || o->begin >= t->begin + t->bytes, "tensors do not overlap");
        }
    }
}

static void check_keys(const gguf *g)
{
    static const char *const all[] = {"", NULL};
    text_buf copy = {0};
    gguf *again;
    for (int64_t i = 0; i < gguf_keys(g); i++) {
        const gguf_value *v = gguf_key(g, i);
        const char *s;
        size_t n, at = 0;
        uint64_t items = 0;
        expect(gguf_find(g, v->key) == v, "a key is found by its name");
        while (v->type == GGUF_STRING && gguf_next_string(v, &at, &s, &n)) {
            expect(s + n <= (const char *)v->data + v->bytes, "a string lies inside its value");
            items++;
        }
        expect(v->type != GGUF_STRING || items == v->n, "as many strings as were said");
    }
    expect(gguf_subset(g, all, &copy) == MOE_OK, "the metadata is written");
    expect(gguf_from_memory(&again, copy.data, copy.used, "copy") == MOE_OK && gguf_keys(again) == gguf_keys(g), "what is written is read");
    gguf_close(again);
    text_free(&copy);
}

static void try_tokenizer(const gguf *g)
{
    tokenizer_parts p = {0};
    tokenizer_ends ends;
    if (tokenizer_gguf_parse(&p, &ends, g) == MOE_OK)
        expect(ends.eos < bpe_ids(p.model) && ends.bos < bpe_ids(p.model), "the ends are tokens");
    tokenizer_parts_free(&p);
}

static void try_model(const uint8_t *data, size_t size)
{
    char path[64];
    model *m;
    const int fd = memfd_create("fuzz", MFD_CLOEXEC);
    if (fd < 0 || write(fd, data, size) != (ssize_t)size)
        abort();
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    if (model_open(&m, path) == MOE_OK) {
        tensor_info *t;
        int64_t n;
        expect(spec_tensors(model_spec_of(m), &t, &n) == MOE_OK, "the table of an open model");
        for (int64_t i = 0; i < n; i++) {
            model_extent e;
            model_find(m, &t[i], &e);
            expect(e.bytes > 0 && e.offset <= size && e.bytes <= size - e.offset, "an extent lies inside the file");
        }
        free(t);
        model_close(m);
    } else {
        expect(m == NULL && moe_error_text()[0] != '\0', "an error has a sentence and leaves nothing");
    }
    close(fd);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    gguf *g;
    if (gguf_from_memory(&g, data, size, "fuzz") != MOE_OK) {
        expect(g == NULL && moe_error_text()[0] != '\0', "an error has a sentence and leaves nothing");
        return 0;
    }
    check_tensors(g, size);
    check_keys(g);
    try_tokenizer(g);
    gguf_close(g);
    try_model(data, size);
    return 0;
}
