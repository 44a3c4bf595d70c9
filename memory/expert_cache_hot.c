/* The hot set on disk: which experts were worth keeping, best first, so that the next start reads those first. Owns the format.
 * One thread. Rule: the file is hostile until its size, its sum and every id are checked; a bad one is as good as none. */
#include <stdlib.h>
#include <string.h>
#include <xxh_x86dispatch.h>

#include "memory/expert_cache_private.h"

/* Little-endian; then `n` ids, then the XXH3-64 of everything before it. */
typedef struct hot_header {
    char magic[8];
    uint64_t fingerprint; /* of the model */
    uint32_t layers, experts, n, zero;
} hot_header;
_Static_assert(sizeof(hot_header) == 32, "hot_header is a format");

static const char hot_magic[8] = {'m', 'o', 'e', ' ', 'h', 'o', 't', '1'};

static int better_first(const void *a, const void *b, void *arg)
{
    const expert_cache *c = arg;
    const expert_id x = *(const expert_id *)a, y = *(const expert_id *)b;
    const double kx = cache_policy_key(c->policy, x), ky = cache_policy_key(c->policy, y);
    if (kx != ky)
        return kx < ky ? -1 : 1;
    return (x > y) - (x < y);
}

moe_err expert_cache_save_hot(const expert_cache *c, const char *path, uint64_t fingerprint)
{
    hot_header h = {.fingerprint = fingerprint, .layers = (uint32_t)c->c.layers, .experts = (uint32_t)c->c.experts};
    memcpy(h.magic, hot_magic, sizeof h.magic);
    char *file = malloc(sizeof h + (size_t)c->slots * sizeof(expert_id) + sizeof(uint64_t));
    expert_id *id = malloc((size_t)c->slots * sizeof *id);
    moe_err rc;
    if (file == NULL || id == NULL) {
        rc = moe_fail(MOE_E_OS, "%s: out of memory", path);
        goto out;
    }
    for (int s = 0; s < c->slots; s++)
        if (c->slot[s].state == SLOT_RESIDENT)
            id[h.n++] = c->slot[s].id;
    union {
        const expert_cache *in;
        void *out;
    } arg = {c}; /* qsort_r takes no const */
    qsort_r(id, h.n, sizeof *id, better_first, arg.out);
    const size_t ids = h.n * sizeof *id;
    memcpy(file, &h, sizeof h);
    memcpy(file + sizeof h, id, ids);
    const uint64_t sum = XXH3_64bits(file, sizeof h + ids);
    memcpy(file + sizeof h + ids, &sum, sizeof sum);
    rc = io_replace_file(c->c.io, path, file, sizeof h + ids + sizeof sum);
out:
    free(id);
    free(file);
    return rc;
}

static bool is_sound(const expert_cache *c, const char *file, size_t bytes, uint64_t fingerprint, hot_header *h)
{
    if (bytes < sizeof *h + sizeof(uint64_t))
        return false;
    memcpy(h, file, sizeof *h);
    if (memcmp(h->magic, hot_magic, sizeof h->magic) != 0 || h->fingerprint != fingerprint ||
        h->layers != (uint32_t)c->c.layers || h->experts != (uint32_t)c->c.experts || h->n > c->ids ||
        bytes != sizeof *h + h->n * sizeof(expert_id) + sizeof(uint64_t))
        return false;
    uint64_t sum;
    memcpy(&sum, file + bytes - sizeof sum, sizeof sum);
    if (sum != XXH3_64bits(file, bytes - sizeof sum))
        return false;
    for (uint32_t i = 0; i < h->n; i++) {
        expert_id id;
        memcpy(&id, file + sizeof *h + i * sizeof id, sizeof id);
        if (id >= c->ids)
            return false;
    }
    return true;
}

bool expert_cache_load_hot(expert_cache *c, const char *path, uint64_t fingerprint)
{
    void *data = NULL;
    size_t bytes = 0;
    hot_header h;
    const size_t limit = sizeof h + c->ids * sizeof(expert_id) + sizeof(uint64_t);
    const bool sound = io_read_file(c->c.io, path, limit, &data, &bytes) == MOE_OK && is_sound(c, data, bytes, fingerprint, &h);
    for (uint32_t i = 0; sound && i < h.n; i++) {
        expert_id id;
        memcpy(&id, (const char *)data + sizeof h + i * sizeof id, sizeof id);
        cache_queue_ahead(c, id, true);
    }
    free(data);
    if (sound)
        expert_cache_poll(c);
    return sound;
}
