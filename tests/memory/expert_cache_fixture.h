/* The fixture of the expert cache's tests: a small model whose bytes follow from where they lie, in files of odd sizes, so that every lease can be
 * held against what must be in it. Experts lie in three ranges that begin and end anywhere (land copies them, complemented, one after the
 * other) or as one aligned record. Owns the files. */
#ifndef MOE_TESTS_MEMORY_EXPERT_CACHE_FIXTURE_H
#define MOE_TESTS_MEMORY_EXPERT_CACHE_FIXTURE_H

#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "memory/expert_cache.h"
#include "tests/memory/scratch.h"
#include "tests/memory/sim_disk.h"

#define OK(call) cr_assert_eq((call), MOE_OK, "%s", moe_error_text())
#define FAILS(call, code, text)                                                                                                  \
    do {                                                                                                                         \
        cr_assert_eq((call), (code), "%s", moe_error_text());                                                                    \
        cr_assert(strstr(moe_error_text(), (text)), "\"%s\" lacks \"%s\"", moe_error_text(), (text));                            \
    } while (0)

enum { LAYERS = 3, EXPERTS = 6, IDS = LAYERS * EXPERTS, FILES = 2, RANGES = 3 };

typedef struct fixture {
    bool records; /* one aligned record each, read straight into the slot */
    size_t part[RANGES];
    expert_range range[IDS][RANGES];
    size_t file_bytes[FILES];
    expert_cache_config c;
    char path[FILES][SCRATCH_PATH];
    const char *paths[FILES];
    int damaged;  /* land finds this section damaged; -1: none */
    int landings; /* calls of land */
    expert_cache *cache;
} fixture;

static inline uint8_t byte_at(int file, uint64_t offset)
{
    uint64_t x = (offset + 1) * 0x9e3779b97f4a7c15u + (uint64_t)file * 0xc2b2ae3d27d4eb4fu;
    return (uint8_t)((x ^ x >> 29) >> 13);
}

static inline int fixture_ranges(void *user, expert_id id, expert_range range[EXPERT_RANGES])
{
    const fixture *f = user;
    memcpy(range, f->range[id], sizeof f->range[id]);
    return f->records ? 1 : RANGES;
}

static inline moe_err fixture_land(void *user, expert_id id, void *const raw[EXPERT_RANGES], void *slot)
{
    fixture *f = user;
    f->landings++;
    uint8_t *to = slot;
    for (int i = 0; i < RANGES; i++)
        for (size_t k = 0; k < f->range[id][i].bytes; k++)
            *to++ = (uint8_t)~((const uint8_t *)raw[i])[k];
    return (int)id == f->damaged ? moe_fail(MOE_E_DATA, "the checksum does not match") : MOE_OK;
}

/* Lays the experts out; file 1 ends with the last range of the last one. */
static inline void fixture_plan(fixture *f, bool records, size_t unit)
{
    *f = (fixture){.records = records, .damaged = -1, .part = {unit * 4 + 77, unit * 4 + 77, unit * 3 + 5}};
    for (int id = 0; id < IDS; id++)
        for (int i = 0; i < (records ? 1 : RANGES); i++) {
            const int file = records ? id % FILES : (id + i) % FILES;
            size_t *at = &f->file_bytes[file];
            *at = records ? (*at + IO_ALIGN - 1) / IO_ALIGN * IO_ALIGN : *at + 33;
            const size_t bytes = f->part[i] - (size_t)(id % 3);
            f->range[id][i] = (expert_range){.file = file, .offset = *at, .bytes = bytes};
            *at += bytes;
        }
    f->c = (expert_cache_config){.nfiles = FILES, .layers = LAYERS, .experts = EXPERTS, .ranges = fixture_ranges, .user = f,
                                 .land = records ? NULL : fixture_land, .policy = "lru"};
    f->c.slot_bytes = records ? f->part[0] : f->part[0] + f->part[1] + f->part[2];
}

static inline void fixture_files(fixture *f, struct io *disk, const char *dir)
{
    f->c.io = disk;
    for (int i = 0; i < FILES; i++) {
        snprintf(f->path[i], sizeof f->path[i], "%.200s/file%d", dir, i);
        f->paths[i] = f->path[i];
        uint8_t *data = malloc(f->file_bytes[i]);
        for (size_t k = 0; k < f->file_bytes[i]; k++)
            data[k] = byte_at(i, k);
        OK(io_write_file(disk, f->path[i], data, f->file_bytes[i]));
        free(data);
    }
    f->c.files = f->paths;
}

/* Memory for so many slots, and two flights at least. */
static inline void fixture_open(fixture *f, int slots)
{
    const size_t stride = (f->c.slot_bytes + IO_ALIGN - 1) / IO_ALIGN * IO_ALIGN;
    f->c.host_bytes = expert_cache_least_bytes(&f->c) + (size_t)(slots - 2) * stride;
    OK(expert_cache_open(&f->cache, &f->c));
    expert_cache_stats s;
    expert_cache_get_stats(f->cache, &s);
    cr_assert(s.slots <= slots && s.slots >= 2 && s.depth >= 1, "%d slots, %d flights", s.slots, s.depth);
    OK(expert_cache_check(f->cache));
}

/* Every byte of what is leased is what lies in the files. */
static inline void expect_content(const fixture *f, const expert_lease *l)
{
    const uint8_t *p = l->slot;
    for (int i = 0; i < (f->records ? 1 : RANGES); i++) {
        const expert_range *r = &f->range[l->id][i];
        for (size_t k = 0; k < r->bytes; k++) {
            const uint8_t byte = byte_at(r->file, r->offset + k), expected = f->records ? byte : (uint8_t)~byte;
            if (*p++ != expected)
                cr_assert_fail("section %u, range %d, byte %zu: %d, expected %d", l->id, i, k, p[-1], expected);
        }
    }
}

static inline uint32_t draw(uint32_t *x, uint32_t n)
{
    *x = *x * 1664525u + 1013904223u;
    return (*x >> 8) % n;
}

/* A part of a layer, ascending; perhaps all of it, perhaps nothing. */
static inline int draw_choice(uint32_t *x, int32_t out[EXPERTS])
{
    int n = 0;
    const uint32_t chance = 1 + draw(x, 6);
    for (int32_t e = 0; e < EXPERTS; e++)
        if (draw(x, 6) < chance)
            out[n++] = e;
    return n;
}

#endif
