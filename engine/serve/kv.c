/* Keys and values of the running sequences, in blocks of KV_PAGE positions that hold a page of every layer.
 *
 * Reuse of prefixes. A full block is a function of the tokens before and in it (the kernels' order of sums sees to it), so it may serve every
 * sequence that begins with the same tokens. Known blocks are found through chains by hash(parent, tokens); the tokens themselves and
 * the parent are compared, so a collision costs time, never a bit. A block that no sequence holds stays known until it is the least
 * recently used and somebody needs one. A parent that was given out again carries a new `born`, so its children are not found any more.
 * Blocks suffice for every sequence at its longest: taking one never fails.
 *
 * Owns the pages and the books. One thread. */
#include <stdlib.h>
#include <string.h>

#include "engine/base/carve.h"
#include "engine/serve/serve_private.h"
#include "memory/budget.h"

static void pool_dims(kv_pool *p, const serve_config *c, const model_spec *m)
{
    const kv_shape k = spec_kv(m);
    *p = (kv_pool){.L = m->L, .sequences = c->max_sequences, .max_blocks = (int)((c->max_context + KV_PAGE - 1) / KV_PAGE),
                   .page_bytes = kv_page_bytes(c->kv, k.heads, k.key, k.value)};
    p->blocks = p->sequences * p->max_blocks;
    p->chains = p->blocks;
}

/* Books beside the pages: the same lines measure (base NULL) and point. */
static size_t book_layout(kv_pool *p, char *base)
{
    carve c = {base, 0};
    const size_t most = (size_t)p->max_blocks;
    p->block = carve_bytes(&c, (size_t)p->blocks * sizeof *p->block);
    p->chain = carve_bytes(&c, (size_t)p->chains * sizeof *p->chain);
    p->sequence = carve_bytes(&c, (size_t)p->sequences * sizeof *p->sequence);
    for (int i = 0; i < p->sequences; i++) {
        int32_t *block = carve_bytes(&c, most * sizeof *block), *partial = carve_bytes(&c, KV_PAGE * sizeof *partial);
        void **page = carve_bytes(&c, (size_t)p->L * most * sizeof *page);
        if (base != NULL)
            p->sequence[i] = (kv_sequence){.block = block, .page = page, .partial = partial};
    }
    return c.used;
}

static size_t pages_bytes(const kv_pool *p) { return (size_t)p->blocks * (size_t)p->L * p->page_bytes; }

uint64_t kv_pool_bytes(const serve_config *c, const model_spec *m)
{
    kv_pool p;
    pool_dims(&p, c, m);
    return pages_bytes(&p) + book_layout(&p, NULL);
}

moe_err kv_pool_open(kv_pool *p, const serve_config *c, const model_spec *m)
{
    moe_err rc;
    pool_dims(p, c, m);
    TRY_GOTO(budget_alloc(&p->book, book_layout(p, NULL), "books of the KV cache"), rc, fail);
    TRY_GOTO(budget_alloc(&p->memory, pages_bytes(p), "KV cache"), rc, fail);
    book_layout(p, p->book);
    p->pages = p->memory;
    p->bytes = pages_bytes(p) + book_layout(&(kv_pool){.L = p->L, .sequences = p->sequences, .max_blocks = p->max_blocks, .blocks = p->blocks,
                                                       .chains = p->chains}, NULL);
    for (int i = 0; i < p->chains; i++)
        p->chain[i] = -1;
    return MOE_OK;
fail:
    kv_pool_close(p);
    return rc;
}

void kv_pool_close(kv_pool *p)
{
    budget_free(p->memory);
    budget_free(p->book);
    *p = (kv_pool){0};
}

static uint32_t hash_block(int32_t parent, uint64_t parent_born, const int32_t *token)
{
    uint64_t h = ((uint64_t)(uint32_t)parent << 32 | 0x9e3779b9u) ^ parent_born * 0xff51afd7ed558ccdu;
    for (int i = 0; i < KV_PAGE; i++)
        h = (h ^ (uint32_t)token[i]) * 0x100000001b3u ^ h >> 29;
    return (uint32_t)(h ^ h >> 32);
}

static int32_t *chain_of(kv_pool *p, uint32_t hash) { return &p->chain[hash % (uint32_t)p->chains]; }

static void forget(kv_pool *p, int32_t b)
{
    kv_block *k = &p->block[b];
    if (!k->known)
        return;
    int32_t *link = chain_of(p, k->hash);
    while (*link != b)
        link = &p->block[*link].next;
    *link = k->next;
    k->known = false;
}

/* A block that no sequence holds, the least recently used: an unknown one before a known one. */
static int32_t take_block(kv_pool *p)
{
    int32_t best = -1;
    for (int32_t b = 0; b < p->blocks; b++) {
        const kv_block *k = &p->block[b], *than = best < 0 ? NULL : &p->block[best];
        if (k->refs == 0 && (than == NULL || k->known < than->known || (k->known == than->known && k->used < than->used)))
            best = b;
        if (best >= 0 && !p->block[best].known)
            break;
    }
    forget(p, best);
    p->block[best].refs = 1;
    p->block[best].born = p->block[best].used = ++p->clock;
    return best;
}

static void put_block(kv_pool *p, kv_sequence *q, int i, int32_t b)
{
    for (int l = 0; l < p->L; l++)
        q->page[(size_t)l * (size_t)p->max_blocks + (size_t)i] = p->pages + ((size_t)b * (size_t)p->L + (size_t)l) * p->page_bytes;
    q->block[i] = b;
}

void kv_extend(kv_pool *p, int sequence, int64_t n)
{
    kv_sequence *q = &p->sequence[sequence];
    while ((int64_t)q->blocks * KV_PAGE < q->length + n)
        put_block(p, q, q->blocks++, take_block(p));
}

/* The known block with these tokens behind `parent`, or -1. */
static int32_t find(kv_pool *p, int32_t parent, const int32_t *token, uint32_t *hash)
{
    const uint64_t born = parent < 0 ? 0 : p->block[parent].born;
    *hash = hash_block(parent, born, token);
    for (int32_t b = *chain_of(p, *hash); b >= 0; b = p->block[b].next) {
        const kv_block *k = &p->block[b];
        if (k->hash == *hash && k->parent == parent && k->parent_born == born && memcmp(k->token, token, sizeof k->token) == 0)
            return b;
    }
    return -1;
}

/* The block with index i of the sequence is full. When one with the same tokens is known, that one takes its place: the same bits. */
static void make_known(kv_pool *p, kv_sequence *q, int i)
{
    const int32_t b = q->block[i], parent = i > 0 ? q->block[i - 1] : -1;
    kv_block *k = &p->block[b];
    uint32_t hash;
    const int32_t twin = find(p, parent, q->partial, &hash);
    if (twin >= 0) {
        k->refs--;
        p->block[twin].refs++;
        put_block(p, q, i, twin);
        return;
    }
    k->known = true;
    k->parent = parent;
    k->parent_born = parent < 0 ? 0 : p->block[parent].born;
    k->hash = hash;
    memcpy(k->token, q->partial, sizeof k->token);
    k->next = *chain_of(p, hash);
    *chain_of(p, hash) = b;
}

void kv_commit(kv_pool *p, int sequence, const int32_t *token, int n)
{
    kv_sequence *q = &p->sequence[sequence];
    p->clock++;
    for (int i = 0; i < n; i++) {
        q->partial[q->length++ % KV_PAGE] = token[i];
        if (q->length % KV_PAGE == 0)
            make_known(p, q, (int)(q->length / KV_PAGE) - 1);
    }
    for (int i = 0; i < q->blocks; i++)
        p->block[q->block[i]].used = p->clock;
}

int64_t kv_reuse(kv_pool *p, int sequence, const int32_t *token, int64_t n)
{
    kv_sequence *q = &p->sequence[sequence];
    int32_t parent = -1;
    p->clock++;
    while (q->length + KV_PAGE < n && q->blocks < p->max_blocks) {
        uint32_t hash;
        const int32_t b = find(p, parent, token + q->length, &hash);
        if (b < 0)
            break;
        p->block[b].refs++;
        p->block[b].used = p->clock;
        put_block(p, q, q->blocks++, b);
        q->length += KV_PAGE;
        parent = b;
    }
    return q->length;
}

moe_err serve_sequence_begin(serve *s, int *sequence)
{
    for (int i = 0; i < s->kv.sequences; i++) {
        kv_sequence *q = &s->kv.sequence[i];
        if (q->used)
            continue;
        q->used = true;
        q->broken = false;
        q->length = 0;
        q->blocks = 0;
        *sequence = i;
        return MOE_OK;
    }
    *sequence = -1;
    return moe_fail(MOE_E_FULL, "all %d sequences are running", s->kv.sequences);
}

void serve_sequence_end(serve *s, int sequence)
{
    kv_sequence *q = &s->kv.sequence[sequence];
    for (int i = 0; i < q->blocks; i++)
        s->kv.block[q->block[i]].refs--;
    q->used = false;
    q->length = 0;
    q->blocks = 0;
}

int64_t serve_sequence_length(const serve *s, int sequence) { return s->kv.sequence[sequence].length; }

int64_t serve_sequence_reuse(serve *s, int sequence, const int32_t *token, int64_t n)
{
    return s->kv.sequence[sequence].length > 0 ? 0 : kv_reuse(&s->kv, sequence, token, n);
}

moe_err kv_check_pool(const kv_pool *p)
{
    int64_t held = 0, refs = 0, known = 0, chained = 0;
    for (int i = 0; i < p->sequences; i++) {
        const kv_sequence *q = &p->sequence[i];
        if (!q->used && q->blocks > 0)
            return moe_fail(MOE_E_DATA, "KV cache: sequence %d is not running but holds %d blocks", i, q->blocks);
        if (q->length > (int64_t)q->blocks * KV_PAGE)
            return moe_fail(MOE_E_DATA, "KV cache: sequence %d has %lld tokens in %d blocks", i, (long long)q->length, q->blocks);
        held += q->blocks;
    }
    for (int b = 0; b < p->blocks; b++)
        refs += p->block[b].refs, known += p->block[b].known;
    for (int c = 0; c < p->chains; c++)
        for (int32_t b = p->chain[c]; b >= 0; b = p->block[b].next)
            chained++;
    if (refs != held || known != chained)
        return moe_fail(MOE_E_DATA, "KV cache: %lld references for %lld held blocks, %lld of %lld known blocks in chains", (long long)refs,
                        (long long)held, (long long)chained, (long long)known);
    return MOE_OK;
}
