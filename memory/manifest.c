/* The manifest: bytes to struct and back. The reader treats its input as hostile: nothing is believed before it is checked, no
 * size is multiplied before it is bounded by the file's length, and no allocation is larger than the file. Fuzzed:
 * tests/fuzz/fuzz_manifest.c. Owns nothing; threads: any. */
#include "memory/manifest.h"

#include <stdlib.h>
#include <string.h>
#include <xxh_x86dispatch.h>

enum { SUM_BYTES = 8 };

static moe_err check_record(const manifest *m, int32_t s, const char *what)
{
    const record *r = &m->records[s];
    if (r->step > m->step || r->grad_step > m->step)
        return moe_fail(MOE_E_DATA,
                        "%s: section %d is at step %llu with a gradient of step %llu, past the checkpoint's step %llu", what, s,
                        (unsigned long long)r->step, (unsigned long long)r->grad_step, (unsigned long long)m->step);
    if (r->slot < -1 || r->slot >= MANIFEST_SLOT_MAX || r->grad_slot < -1 || r->grad_slot >= MANIFEST_SLOT_MAX ||
        r->reserved != 0)
        return moe_fail(MOE_E_DATA, "%s: section %d: slot %d, gradient slot %d, reserved %u", what, s, r->slot, r->grad_slot,
                        r->reserved);
    if (r->slot == -1 && r->step != 0)
        return moe_fail(MOE_E_DATA, "%s: section %d is at step %llu but was never written", what, s, (unsigned long long)r->step);
    if (r->grad_step != 0 && r->grad_step <= r->step)
        return moe_fail(MOE_E_DATA, "%s: section %d: a gradient of step %llu is pending on state of step %llu", what, s,
                        (unsigned long long)r->grad_step, (unsigned long long)r->step);
    if ((r->grad_step != 0) != (r->grad_slot != -1))
        return moe_fail(MOE_E_DATA, "%s: section %d: gradient of step %llu in slot %d; expected both or none", what, s,
                        (unsigned long long)r->grad_step, r->grad_slot);
    return MOE_OK;
}

static bool in_range(double x, double low, double high) { return x >= low && x <= high; /* false for NaN */ }

static moe_err check_log_entry(const manifest *m, uint64_t i, const char *what)
{
    const adamw_step *e = &m->log[i];
    const uint64_t expected = m->step - m->log_steps + 1 + i;
    if (e->step != expected)
        return moe_fail(MOE_E_DATA, "%s: step log: entry %llu is step %llu, expected %llu", what, (unsigned long long)i,
                        (unsigned long long)e->step, (unsigned long long)expected);
    if (!in_range(e->beta1, 0, 1) || !in_range(e->beta2, 0, 1) || !in_range(e->clip, 0, 1) || !in_range(e->eps, 0, 1e30) ||
        !in_range(e->lr, -1e30, 1e30) || !in_range(e->weight_decay, -1e30, 1e30))
        return moe_fail(MOE_E_DATA,
                        "%s: step log: step %llu: lr %g, betas %g %g, eps %g, weight decay %g, clip %g are not possible", what,
                        (unsigned long long)e->step, e->lr, e->beta1, e->beta2, e->eps, e->weight_decay, e->clip);
    return MOE_OK;
}

moe_err manifest_check(const manifest *m, const char *what)
{
    if (m->sections < 0)
        return moe_fail(MOE_E_DATA, "%s: %d sections", what, m->sections);
    if (m->state_bytes > MANIFEST_STATE_MAX)
        return moe_fail(MOE_E_DATA, "%s: %llu bytes of state, expected at most %d", what, (unsigned long long)m->state_bytes,
                        MANIFEST_STATE_MAX);
    if (m->step > INT64_MAX || m->log_steps > m->step)
        return moe_fail(MOE_E_DATA, "%s: a log of %llu steps at step %llu", what, (unsigned long long)m->log_steps,
                        (unsigned long long)m->step);
    if (m->dense_bytes > ((uint64_t)1 << 60) || m->dense_slot < -1 || m->dense_slot >= MANIFEST_SLOT_MAX)
        return moe_fail(MOE_E_DATA, "%s: dense part of %llu bytes in slot %d", what, (unsigned long long)m->dense_bytes,
                        m->dense_slot);
    uint64_t oldest = m->step;
    for (int32_t s = 0; s < m->sections; s++) {
        TRY(check_record(m, s, what));
        oldest = m->records[s].step < oldest ? m->records[s].step : oldest;
    }
    for (uint64_t i = 0; i < m->log_steps; i++)
        TRY(check_log_entry(m, i, what));
    if (m->step - oldest > m->log_steps)
        return moe_fail(MOE_E_DATA, "%s: the step log begins at step %llu, but a section stands at step %llu", what,
                        (unsigned long long)(m->step - m->log_steps + 1), (unsigned long long)oldest);
    return MOE_OK;
}

/* --- struct to bytes ---------------------------------------------------------------------------------------------------------
 */

/* Sizes of the variable parts; callers have bounded all three by MANIFEST_MAX. */
typedef struct sizes {
    size_t records, log, state;
} sizes;

static moe_err sizes_of(sizes *z, int32_t sections, uint64_t log_steps, uint64_t state_bytes, const char *what)
{
    if (sections < 0 || (uint64_t)sections > MANIFEST_MAX / sizeof(record) || log_steps > MANIFEST_MAX / sizeof(adamw_step) ||
        state_bytes > MANIFEST_STATE_MAX)
        return moe_fail(MOE_E_DATA, "%s: %d sections, %llu logged steps and %llu bytes of state are too large for a manifest",
                        what, sections, (unsigned long long)log_steps, (unsigned long long)state_bytes);
    *z = (sizes){(size_t)sections * sizeof(record), (size_t)log_steps * sizeof(adamw_step), (size_t)state_bytes};
    return MOE_OK;
}

static void put(char **p, const void *src, size_t n)
{
    if (n > 0)
        memcpy(*p, src, n);
    *p += n;
}

moe_err manifest_format(const manifest *m, void **data, size_t *bytes)
{
    *data = NULL;
    *bytes = 0;
    sizes z = {0};
    TRY(sizes_of(&z, m->sections, m->log_steps, m->state_bytes, "manifest"));
    const size_t all = sizeof(manifest_header) + z.records + z.log + z.state + SUM_BYTES;
    if (all > MANIFEST_MAX)
        return moe_fail(MOE_E_DATA, "manifest: %zu bytes, expected at most %d", all, MANIFEST_MAX);
    manifest_header h = {.magic = MANIFEST_MAGIC,
                         .version = MANIFEST_VERSION,
                         .header_bytes = sizeof h,
                         .file_bytes = all,
                         .step = m->step,
                         .sections = m->sections,
                         .dense_slot = m->dense_slot,
                         .record_bytes = sizeof(record),
                         .log_entry_bytes = sizeof(adamw_step),
                         .log_steps = m->log_steps,
                         .state_bytes = m->state_bytes,
                         .dense_bytes = m->dense_bytes,
                         .dense_sum = m->dense_sum};
    memcpy(h.uuid, m->uuid, sizeof h.uuid);
    char *buf = malloc(all), *p = buf;
    if (buf == NULL)
        return moe_fail(MOE_E_OS, "manifest: out of memory (%zu bytes)", all);
    put(&p, &h, sizeof h);
    put(&p, m->records, z.records);
    put(&p, m->log, z.log);
    put(&p, m->state, z.state);
    const uint64_t sum = XXH3_64bits(buf, all - SUM_BYTES);
    put(&p, &sum, sizeof sum);
    *data = buf;
    *bytes = all;
    return MOE_OK;
}

/* --- bytes to struct ---------------------------------------------------------------------------------------------------------
 */

/* One block: struct, records, log, state. */
static moe_err manifest_alloc(manifest **out, const sizes *z)
{
    char *block = calloc(1, sizeof(manifest) + z->records + z->log + z->state + 1);
    *out = (manifest *)(void *)block;
    if (block == NULL)
        return moe_fail(MOE_E_OS, "manifest: out of memory");
    (*out)->records = (record *)(void *)(block + sizeof(manifest));
    (*out)->log = (adamw_step *)(void *)(block + sizeof(manifest) + z->records);
    (*out)->state = block + sizeof(manifest) + z->records + z->log;
    return MOE_OK;
}
_Static_assert(sizeof(manifest) % 8 == 0 && sizeof(record) % 8 == 0 && sizeof(adamw_step) % 8 == 0,
               "the parts of the block stay aligned");

static moe_err check_header(const manifest_header *h, size_t bytes, const char *what)
{
    if (memcmp(h->magic, MANIFEST_MAGIC, sizeof h->magic) != 0)
        return moe_fail(MOE_E_DATA, "%s: not a manifest", what);
    if (h->version != MANIFEST_VERSION)
        return moe_fail(MOE_E_DATA, "%s: manifest version %u; this program reads %d", what, h->version, MANIFEST_VERSION);
    if (h->file_bytes != bytes)
        return moe_fail(MOE_E_DATA, "%s: %zu bytes; the manifest was written with %llu", what, bytes,
                        (unsigned long long)h->file_bytes);
    if (h->header_bytes != sizeof *h || h->record_bytes != sizeof(record) || h->log_entry_bytes != sizeof(adamw_step) ||
        h->reserved[0] != 0 || h->reserved[1] != 0)
        return moe_fail(MOE_E_DATA, "%s: header, record or log entry of another size", what);
    return MOE_OK;
}

moe_err manifest_parse(manifest **out, const void *data, size_t bytes, const char *what)
{
    *out = NULL;
    manifest_header h;
    if (bytes < sizeof h + SUM_BYTES || bytes > MANIFEST_MAX)
        return moe_fail(MOE_E_DATA, "%s: %zu bytes cannot be a manifest", what, bytes);
    memcpy(&h, data, sizeof h);
    TRY(check_header(&h, bytes, what));
    uint64_t sum;
    memcpy(&sum, (const char *)data + bytes - SUM_BYTES, sizeof sum);
    const uint64_t found = XXH3_64bits(data, bytes - SUM_BYTES);
    if (sum != found)
        return moe_fail(MOE_E_DATA, "%s: checksum mismatch: expected %016llx, found %016llx", what, (unsigned long long)sum,
                        (unsigned long long)found);
    sizes z = {0};
    TRY(sizes_of(&z, h.sections, h.log_steps, h.state_bytes, what));
    if (z.records + z.log + z.state != bytes - sizeof h - SUM_BYTES)
        return moe_fail(MOE_E_DATA, "%s: %zu bytes do not hold %d sections, %llu logged steps and %llu bytes of state", what,
                        bytes, h.sections, (unsigned long long)h.log_steps, (unsigned long long)h.state_bytes);
    manifest *m = NULL;
    TRY(manifest_alloc(&m, &z));
    memcpy(m->uuid, h.uuid, sizeof m->uuid);
    m->step = h.step;
    m->sections = h.sections;
    m->log_steps = h.log_steps;
    m->dense_bytes = h.dense_bytes;
    m->dense_sum = h.dense_sum;
    m->dense_slot = h.dense_slot;
    m->state_bytes = h.state_bytes;
    const char *p = (const char *)data + sizeof h;
    memcpy(m->records, p, z.records);
    memcpy(m->log, p + z.records, z.log);
    memcpy(m->state, p + z.records + z.log, z.state);
    const moe_err rc = manifest_check(m, what);
    if (rc != MOE_OK) {
        free(m);
        return rc;
    }
    *out = m;
    return MOE_OK;
}

moe_err manifest_copy(manifest **out, const manifest *m)
{
    *out = NULL;
    sizes z = {0};
    TRY(sizes_of(&z, m->sections, m->log_steps, m->state_bytes, "manifest"));
    manifest *copy = NULL;
    TRY(manifest_alloc(&copy, &z));
    record *records = copy->records;
    adamw_step *log = copy->log;
    void *state = copy->state;
    *copy = *m;
    copy->records = records;
    copy->log = log;
    copy->state = state;
    char *p = (char *)records;
    put(&p, m->records, z.records);
    put(&p, m->log, z.log);
    put(&p, m->state, z.state);
    *out = copy;
    return MOE_OK;
}
