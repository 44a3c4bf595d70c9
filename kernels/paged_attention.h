/* Causal grouped-query attention of new tokens over a paged KV cache. A page holds KV_PAGE positions of one sequence and one layer, keys and
 * values of all kv heads; its inside is private to kernels/ (kv_* below). Tokens of many sequences, prefill chunks and single
 * decoded tokens may be mixed in one call: every token is its own row.
 *   o[t] = softmax over low <= j <= pos[t] of scale * q[t].k[j], times v[j];   low = max(0, pos[t] - window + 1), 0 without a window
 * With sinks the softmax of head h has one more score, sinks[h], whose value is zero (gpt-oss).
 * Order of sums: that of attention.h (forward), K and V as stored: with NUM_F32 pages the bits are those of attention_forward on the
 * whole sequence, whatever the batch, the chunks and the neighbours (as long as k and v are finite). A sink comes before the first key:
 * m = sinks[h], l = 1. A window changes neither tiles nor lanes: keys before it weigh nothing, pages before it are not read. Formats: NUM_F32, NUM_BF16 (nearest
 * even), NUM_Q8_0: blocks of 32 along head_dim (the last may be shorter), d = max |x| / 127 as bf16, nearest even, q = nearest even of
 * x * (1 / d), read back as q * d.
 * With hdv > 0 (latent attention, MLA: arXiv 2405.04434) a value is the first hdv numbers of its key, as stored: pages hold keys only, and o has
 * hdv numbers a head. The sums are the same ones. */
#ifndef MOE_KERNELS_PAGED_ATTENTION_H
#define MOE_KERNELS_PAGED_ATTENTION_H

#include "kernels/attention.h"
#include "kernels/numfmt.h"

enum { KV_PAGE = ATTENTION_TILE };

size_t kv_page_bytes(numfmt f, int Hkv, int hd, int hdv); /* K and V (hdv 0) of KV_PAGE positions, a multiple of 64 */

/* Stores k and v (after norm and rope) of T tokens: token t goes to position pos[t] % KV_PAGE of page[t]. */
typedef struct kv_store_args {
    void *const *page;    /* [T] the page each token belongs to */
    const int32_t *pos;   /* [T]                                */
    const float *k, *v;   /* [T, ldk]; hdv > 0: v is not read   */
    size_t ldk;
    int64_t T;
    int Hkv, hd;
    int hdv;              /* 0: values of their own, hd wide; else below hd: how much of a key is the value */
    numfmt format;
} kv_store_args;
typedef moe_err (*kv_store_fn)(const kv_store_args *a, moe_stream *s);

typedef struct paged_attention_args {
    float *o;                        /* [T, ldo] head h at h * head_o                                */
    const float *q;                  /* [T, ldq] head h at h * head_q                                */
    size_t ldq, ldo;
    size_t head_q, head_o;           /* 0: hd, and in o the width of a value: heads side by side     */
    const int32_t *pos;              /* [T] position of the token: it sees low .. pos                */
    const void *const *const *pages; /* [T] page table of the token's sequence, valid from low / KV_PAGE to pos / KV_PAGE; tokens of one
                                        sequence that stand together may point to the same table: they are then tiled together */
    int64_t T;
    int H, Hkv, hd;
    float scale;
    numfmt format;
    int window;                      /* newest positions a token sees, itself included; 0: all           */
    const float *sinks;              /* [H], or NULL: none                                               */
    int hdv;                         /* as in kv_store_args                                              */
} paged_attention_args;
typedef moe_err (*paged_attention_fn)(const paged_attention_args *a, moe_stream *s);

#endif
