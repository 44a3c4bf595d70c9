/* llama.cpp's logits of a list of tokens, for parity.py. usage: llama_logits MODEL.gguf IDS OUT REPACK
 * IDS: file of ids between blanks. OUT: [tokens, vocabulary] fp32, raw. REPACK: 0 plain weights, 1 repacked ones. KV cache in fp32, two threads. */
#include <stdio.h>
#include <stdlib.h>

#include "llama.h"

enum { MOST = 4096 };

static int read_ids(const char *path, llama_token *id)
{
    FILE *f = fopen(path, "r");
    int n = 0;
    while (f != NULL && n < MOST && fscanf(f, "%d", &id[n]) == 1)
        n++;
    if (f != NULL)
        fclose(f);
    return n;
}

int main(int argc, char **argv)
{
    static llama_token id[MOST];
    if (argc != 5)
        return 64;
    const int n = read_ids(argv[2], id);
    llama_backend_init();
    struct llama_model_params mp = llama_model_default_params();
    mp.use_extra_bufts = atoi(argv[4]) != 0;
    struct llama_model *m = llama_model_load_from_file(argv[1], mp);
    struct llama_context_params cp = llama_context_default_params();
    cp.n_ctx = cp.n_batch = cp.n_ubatch = (uint32_t)n;
    cp.n_threads = cp.n_threads_batch = 2;
    cp.type_k = cp.type_v = GGML_TYPE_F32;
    cp.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_DISABLED;
    struct llama_context *c = m == NULL || n == 0 ? NULL : llama_init_from_model(m, cp);
    FILE *out = fopen(argv[3], "wb");
    if (c == NULL || out == NULL)
        return 65;
    struct llama_batch b = llama_batch_init(n, 0, 1);
    b.n_tokens = n;
    for (int i = 0; i < n; i++) {
        b.token[i] = id[i];
        b.pos[i] = i;
        b.n_seq_id[i] = 1;
        b.seq_id[i][0] = 0;
        b.logits[i] = 1;
    }
    if (llama_decode(c, b) != 0)
        return 74;
    const size_t V = (size_t)llama_vocab_n_tokens(llama_model_get_vocab(m));
    for (int i = 0; i < n; i++)
        if (fwrite(llama_get_logits_ith(c, i), sizeof(float), V, out) != V)
            return 74;
    return fclose(out) == 0 ? 0 : 74;
}
