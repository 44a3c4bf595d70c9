/* The store's files: layout, creation, checks. Each folder holds store.id, slot-<k>.bin and spill.bin (memory/store_private.h).
 * A slot is a file, so that a run that keeps more checkpoints than before only adds files. Owns nothing that moves; threads:
 * opener. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xxh_x86dispatch.h>

#include "memory/store_private.h"

#define STORE_MAGIC "PNSTORE"
enum { STORE_VERSION = 2, STORE_PATH = 4096 };
#define STORE_MAX_FILE ((uint64_t)1 << 60)

static uint64_t pad(uint64_t n) { return (n + IO_ALIGN - 1) & ~(uint64_t)(IO_ALIGN - 1); }

uint64_t store_dir_sections(int32_t sections, int ndirs, int dir)
{
    return (uint64_t)(sections / ndirs) + (dir < sections % ndirs ? 1 : 0);
}

/* The spill file is striped; every folder gets the same whole number of stripes. */
static uint64_t spill_dir_bytes(uint64_t bytes, int ndirs)
{
    const uint64_t stripes = (bytes + STORE_STRIPE - 1) / STORE_STRIPE;
    return (stripes + (uint64_t)ndirs - 1) / (uint64_t)ndirs * STORE_STRIPE;
}

static uint64_t record_bytes_of(const store_config *c)
{
    uint64_t sum = 0;
    for (int p = 0; p < STORE_PARTS; p++)
        sum += pad(c->part_bytes[p]);
    return sum;
}

uint64_t store_disk_bytes(const store_config *c)
{
    uint64_t sum = (uint64_t)c->sections * record_bytes_of(c) * (uint64_t)c->slots + (uint64_t)c->ndirs * IO_ALIGN;
    if (c->spill_bytes > 0)
        sum += spill_dir_bytes(c->spill_bytes, c->ndirs) * (uint64_t)c->ndirs;
    return sum;
}

moe_err store_layout(store *s, const store_config *c)
{
    if (c->ndirs < 1 || c->ndirs > STORE_MAX_DIRS)
        return moe_fail(MOE_E_CONFIG, "memory.ssd: expected 1 to %d folders, got %d", STORE_MAX_DIRS, c->ndirs);
    if (c->slots < 1 || c->slots > STORE_MAX_SLOTS)
        return moe_fail(MOE_E_CONFIG, "checkpoint.keep: expected at most %d, got slots for %d", STORE_MAX_SLOTS - 2,
                        c->slots - 1);
    if (c->sections < 0)
        return moe_fail(MOE_E_CONFIG, "store: %d sections", c->sections);
    uint64_t at = 0;
    for (int p = 0; p < STORE_PARTS; p++) {
        if (c->part_bytes[p] > STORE_MAX_FILE / 64)
            return moe_fail(MOE_E_CONFIG, "store: a part of %zu bytes is too large", c->part_bytes[p]);
        s->part_bytes[p] = c->part_bytes[p];
        s->padded[p] = pad(c->part_bytes[p]);
        s->part_offset[p] = at;
        at += s->padded[p];
    }
    if (at > 0 && (uint64_t)c->sections > STORE_MAX_FILE / at)
        return moe_fail(MOE_E_CONFIG, "store: %d sections of %llu bytes are too large", c->sections, (unsigned long long)at);
    if (c->spill_bytes > STORE_MAX_FILE)
        return moe_fail(MOE_E_CONFIG, "store: a spill area of %llu bytes is too large", (unsigned long long)c->spill_bytes);
    s->record_bytes = at;
    s->sections = c->sections;
    s->slots = c->slots;
    s->ndirs = c->ndirs;
    s->spill_bytes = c->spill_bytes;
    s->buffered = c->buffered;
    memcpy(s->uuid, c->uuid, sizeof s->uuid);
    return MOE_OK;
}

static uint64_t slot_file_bytes(const store *s, int dir)
{
    return store_dir_sections(s->sections, s->ndirs, dir) * s->record_bytes;
}

static moe_err file_path(const store *s, int dir, const char *name, char path[STORE_PATH])
{
    if (snprintf(path, STORE_PATH, "%s/%s", s->drive[dir].dir, name) >= STORE_PATH)
        return moe_fail(MOE_E_CONFIG, "%.200s...: the path is too long", s->drive[dir].dir);
    return MOE_OK;
}

static moe_err slot_path(const store *s, int dir, int slot, char path[STORE_PATH])
{
    char name[32];
    snprintf(name, sizeof name, "slot-%d.bin", slot);
    return file_path(s, dir, name, path);
}

static int file_flags(const store *s) { return s->buffered ? IO_DROP : IO_DIRECT; }

/* --- store.id ----------------------------------------------------------------------------------------------------------------
 */

static moe_err id_write(const store *s, int dir, int slots)
{
    store_id id = {.magic = STORE_MAGIC,
                   .version = STORE_VERSION,
                   .dirs = (uint32_t)s->ndirs,
                   .dir = (uint32_t)dir,
                   .sections = s->sections,
                   .slots = (uint32_t)slots};
    memcpy(id.uuid, s->uuid, sizeof id.uuid);
    for (int p = 0; p < STORE_PARTS; p++)
        id.part_bytes[p] = s->part_bytes[p];
    id.sum = XXH3_64bits(&id, offsetof(store_id, sum));
    char path[STORE_PATH];
    TRY(file_path(s, dir, "store.id", path));
    return io_replace_file(s->io, path, &id, sizeof id);
}

static moe_err id_read(const store *s, int dir, store_id *id, char path[STORE_PATH])
{
    memset(id, 0, sizeof *id);
    TRY(file_path(s, dir, "store.id", path));
    void *data = NULL;
    size_t bytes = 0;
    TRY(io_read_file(s->io, path, sizeof *id, &data, &bytes));
    if (bytes == sizeof *id)
        memcpy(id, data, sizeof *id);
    free(data);
    if (bytes != sizeof *id || memcmp(id->magic, STORE_MAGIC, sizeof STORE_MAGIC) != 0)
        return moe_fail(MOE_E_DATA, "%s: not the identity of a store folder", path);
    if (id->sum != XXH3_64bits(id, offsetof(store_id, sum)))
        return moe_fail(MOE_E_DATA, "%s: checksum mismatch", path);
    if (id->version != STORE_VERSION)
        return moe_fail(MOE_E_DATA, "%s: version %u; this program reads %d", path, id->version, STORE_VERSION);
    return MOE_OK;
}

static void uuid_text(const uint8_t u[16], char out[40])
{
    char *p = out;
    for (int i = 0; i < 16; i++)
        p += sprintf(p, "%s%02x", i == 4 || i == 6 || i == 8 || i == 10 ? "-" : "", u[i]);
}

static moe_err id_check(store *s, int dir, const store_id *id, const char *path)
{
    if (memcmp(id->uuid, s->uuid, sizeof s->uuid) != 0) {
        char found[40], expected[40];
        uuid_text(id->uuid, found);
        uuid_text(s->uuid, expected);
        return moe_fail(MOE_E_CONFIG, "%s: belongs to run %s, this run is %s", path, found, expected);
    }
    if (id->dirs != (uint32_t)s->ndirs || id->dir != (uint32_t)dir)
        return moe_fail(
            MOE_E_CONFIG,
            "%s: folder %u of %u of its store, configured as %d of %d; memory.ssd must name the same folders in order", path,
            id->dir + 1, id->dirs, dir + 1, s->ndirs);
    if (id->sections != s->sections)
        return moe_fail(MOE_E_DATA, "%s: a store of %d sections, expected %d", path, id->sections, s->sections);
    for (int p = 0; p < STORE_PARTS; p++)
        if (id->part_bytes[p] != s->part_bytes[p])
            return moe_fail(MOE_E_DATA, "%s: part %c has %llu bytes, expected %zu", path, STORE_LETTERS[p],
                            (unsigned long long)id->part_bytes[p], s->part_bytes[p]);
    if (id->slots < 1 || id->slots > STORE_MAX_SLOTS)
        return moe_fail(MOE_E_DATA, "%s: %u slots, expected 1 to %d", path, id->slots, STORE_MAX_SLOTS);
    return MOE_OK;
}

/* --- creating ----------------------------------------------------------------------------------------------------------------
 */

static moe_err check_file_system(const store *s, int dir, io_space *space)
{
    TRY(s->io->ops->space(s->io, s->drive[dir].dir, space));
    if (space->in_memory && !s->buffered)
        return moe_fail(MOE_E_CONFIG,
                        "%s: a file system in memory (tmpfs) is not a disk; choose another folder or set memory.buffered: true",
                        s->drive[dir].dir);
    return MOE_OK;
}

/* A folder may hold nothing, or files of this same run (an attempt that was cut short): those are removed. */
static moe_err remove_old(const store *s, int dir)
{
    char path[STORE_PATH];
    TRY(file_path(s, dir, "store.id", path));
    if (!s->io->ops->exists(s->io, path))
        return MOE_OK; /* a slot file without identity is refused by IO_CREATE */
    store_id id;
    TRY(id_read(s, dir, &id, path));
    if (memcmp(id.uuid, s->uuid, sizeof s->uuid) != 0) {
        char found[40];
        uuid_text(id.uuid, found);
        return moe_fail(MOE_E_CREATE, "%s: the folder holds the store of run %s; choose another folder or remove it",
                        s->drive[dir].dir, found);
    }
    for (int k = 0; k < STORE_MAX_SLOTS; k++) {
        TRY(slot_path(s, dir, k, path));
        TRY(s->io->ops->remove(s->io, path));
    }
    TRY(file_path(s, dir, "spill.bin", path));
    return s->io->ops->remove(s->io, path);
}

/* Folders of one file system are added up before they are compared with its free space. What does not fit is known before a byte is
 * written: that is the configuration's fault, not a disk that fills up while a run writes. */
static moe_err check_space(const store *s, const io_space *space, const uint64_t *need)
{
    for (int d = 0; d < s->ndirs; d++) {
        uint64_t sum = 0;
        for (int e = 0; e < s->ndirs; e++)
            sum += space[e].device == space[d].device ? need[e] : 0;
        if (sum > space[d].free_bytes)
            return moe_fail(MOE_E_CONFIG, "%s: the disk is too small: the store needs %llu bytes (%.1f GiB), %llu are free (%.1f GiB)",
                            s->drive[d].dir, (unsigned long long)sum, (double)sum / (1 << 30),
                            (unsigned long long)space[d].free_bytes, (double)space[d].free_bytes / (1 << 30));
    }
    return MOE_OK;
}

static moe_err make_file(const store *s, const char *path, uint64_t bytes, io_file **out)
{
    *out = NULL;
    io_file *f = NULL;
    TRY(s->io->ops->open(s->io, &f, path, IO_CREATE | file_flags(s)));
    moe_err rc;
    TRY_GOTO(s->io->ops->allocate(s->io, f, bytes), rc, fail);
    TRY_GOTO(s->io->ops->sync(s->io, f), rc, fail);
    *out = f;
    return MOE_OK;
fail:
    s->io->ops->close(s->io, f);
    return rc;
}

/* A creation that failed gives the disk its bytes back, as far as it can; the folders stay. */
static void unmake(store *s, int dir, int from_slot)
{
    char path[STORE_PATH];
    store_drive *d = &s->drive[dir];
    for (int k = from_slot; k < s->slots; k++) {
        if (d->slot[k] != NULL)
            s->io->ops->close(s->io, d->slot[k]);
        d->slot[k] = NULL;
        if (slot_path(s, dir, k, path) == MOE_OK)
            (void)!s->io->ops->remove(s->io, path);
    }
    if (from_slot > 0)
        return;
    if (d->spill != NULL)
        s->io->ops->close(s->io, d->spill);
    d->spill = NULL;
    if (file_path(s, dir, "spill.bin", path) == MOE_OK)
        (void)!s->io->ops->remove(s->io, path);
}

static moe_err make_slots(store *s, int dir, int from, bool replace)
{
    char path[STORE_PATH];
    for (int k = from; k < s->slots; k++) {
        TRY(slot_path(s, dir, k, path));
        if (replace)
            TRY(s->io->ops->remove(s->io, path));
        TRY(make_file(s, path, slot_file_bytes(s, dir), &s->drive[dir].slot[k]));
    }
    return MOE_OK;
}

static moe_err make_spill(store *s, int dir)
{
    if (s->spill_bytes == 0)
        return MOE_OK;
    char path[STORE_PATH];
    TRY(file_path(s, dir, "spill.bin", path));
    TRY(s->io->ops->remove(s->io, path));
    return make_file(s, path, spill_dir_bytes(s->spill_bytes, s->ndirs), &s->drive[dir].spill);
}

static moe_err create_files(store *s, io_space *space, uint64_t *need)
{
    for (int d = 0; d < s->ndirs; d++) {
        TRY(io_make_dir(s->io, s->drive[d].dir));
        TRY(remove_old(s, d));
    }
    for (int d = 0; d < s->ndirs; d++) {
        TRY(check_file_system(s, d, &space[d]));
        need[d] = slot_file_bytes(s, d) * (uint64_t)s->slots + (s->spill_bytes ? spill_dir_bytes(s->spill_bytes, s->ndirs) : 0);
    }
    TRY(check_space(s, space, need));
    moe_err rc = MOE_OK;
    for (int d = 0; d < s->ndirs; d++) {
        TRY_GOTO(id_write(s, d, s->slots), rc, fail); /* from here on the folder's files are this run's, to make and to remove */
        s->drive[d].made = true;
        TRY_GOTO(make_slots(s, d, 0, false), rc, fail);
        TRY_GOTO(make_spill(s, d), rc, fail);
        TRY_GOTO(s->io->ops->sync_dir(s->io, s->drive[d].dir), rc, fail);
    }
    return MOE_OK;
fail:;
    char text[MOE_ERROR_TEXT];
    moe_error_take(text, sizeof text);
    for (int d = 0; d < s->ndirs; d++)
        if (s->drive[d].made)
            unmake(s, d, 0);
    return moe_error_set(rc, text);
}

/* --- opening -----------------------------------------------------------------------------------------------------------------
 */

static moe_err open_slots(store *s, int dir, int slots)
{
    char path[STORE_PATH];
    for (int k = 0; k < slots; k++) {
        uint64_t size = 0;
        TRY(slot_path(s, dir, k, path));
        TRY(s->io->ops->open(s->io, &s->drive[dir].slot[k], path, IO_WRITE | file_flags(s)));
        TRY(s->io->ops->size(s->io, s->drive[dir].slot[k], &size));
        if (size != slot_file_bytes(s, dir))
            return moe_fail(MOE_E_DATA, "%s: %llu bytes, expected %llu", path, (unsigned long long)size,
                            (unsigned long long)slot_file_bytes(s, dir));
    }
    return MOE_OK;
}

/* The spill file is scratch: one of the right size is kept as it is, else it is made anew. */
static moe_err open_spill(store *s, int dir)
{
    char path[STORE_PATH];
    uint64_t size = 0;
    TRY(file_path(s, dir, "spill.bin", path));
    if (s->spill_bytes == 0)
        return s->io->ops->remove(s->io, path);
    if (s->io->ops->exists(s->io, path)) {
        TRY(s->io->ops->open(s->io, &s->drive[dir].spill, path, IO_WRITE | file_flags(s)));
        TRY(s->io->ops->size(s->io, s->drive[dir].spill, &size));
        if (size == spill_dir_bytes(s->spill_bytes, s->ndirs))
            return MOE_OK;
        s->io->ops->close(s->io, s->drive[dir].spill);
        s->drive[dir].spill = NULL;
    }
    io_space space;
    TRY(s->io->ops->space(s->io, s->drive[dir].dir, &space));
    if (spill_dir_bytes(s->spill_bytes, s->ndirs) > space.free_bytes + size)
        return moe_fail(MOE_E_CONFIG, "%s: the disk is too small: the spill file needs %llu bytes, %llu are free", path,
                        (unsigned long long)spill_dir_bytes(s->spill_bytes, s->ndirs),
                        (unsigned long long)(space.free_bytes + size));
    TRY(make_spill(s, dir));
    return s->io->ops->sync_dir(s->io, s->drive[dir].dir);
}

/* The identities name the new count only when every folder has its files. */
static moe_err add_slots(store *s, int have)
{
    moe_err rc = MOE_OK;
    for (int d = 0; d < s->ndirs; d++) {
        TRY_GOTO(make_slots(s, d, have, true), rc, fail);
        TRY_GOTO(s->io->ops->sync_dir(s->io, s->drive[d].dir), rc, fail);
    }
    for (int d = 0; d < s->ndirs; d++)
        TRY(id_write(s, d, s->slots));
    return MOE_OK;
fail:;
    char text[MOE_ERROR_TEXT];
    moe_error_take(text, sizeof text);
    for (int d = 0; d < s->ndirs; d++)
        unmake(s, d, have);
    return moe_error_set(rc, text);
}

static moe_err open_files(store *s, io_space *space, uint64_t *need)
{
    char path[STORE_PATH];
    int have = STORE_MAX_SLOTS;
    for (int d = 0; d < s->ndirs; d++) { /* an interrupted addition of slots may have reached only some folders */
        store_id id;
        TRY(id_read(s, d, &id, path));
        TRY(id_check(s, d, &id, path));
        TRY(check_file_system(s, d, &space[d]));
        have = (int)id.slots < have ? (int)id.slots : have;
    }
    const int wanted = s->slots;
    s->slots = have > wanted ? have : wanted;
    for (int d = 0; d < s->ndirs; d++) {
        TRY(open_slots(s, d, have));
        TRY(open_spill(s, d));
        need[d] = slot_file_bytes(s, d) * (uint64_t)(s->slots - have);
    }
    if (s->slots == have)
        return MOE_OK;
    for (int d = 0; d < s->ndirs; d++)
        TRY(s->io->ops->space(s->io, s->drive[d].dir, &space[d]));
    TRY(check_space(s, space, need));
    return add_slots(s, have);
}

moe_err store_files_open(store *s, const store_config *c)
{
    s->drive = calloc((size_t)s->ndirs, sizeof *s->drive);
    if (s->drive == NULL)
        return moe_fail(MOE_E_OS, "store: out of memory");
    for (int d = 0; d < s->ndirs; d++) {
        s->drive[d].dir = strdup(c->dirs[d]);
        if (s->drive[d].dir == NULL)
            return moe_fail(MOE_E_OS, "store: out of memory");
    }
    io_space space[STORE_MAX_DIRS];
    uint64_t need[STORE_MAX_DIRS];
    return c->create ? create_files(s, space, need) : open_files(s, space, need);
}

void store_files_close(store *s)
{
    if (s->drive == NULL)
        return;
    for (int d = 0; d < s->ndirs; d++) {
        for (int k = 0; k < STORE_MAX_SLOTS; k++)
            if (s->drive[d].slot[k] != NULL)
                s->io->ops->close(s->io, s->drive[d].slot[k]);
        if (s->drive[d].spill != NULL)
            s->io->ops->close(s->io, s->drive[d].spill);
        free(s->drive[d].dir);
    }
    free(s->drive);
}

/* --- looking -----------------------------------------------------------------------------------------------------------------
 */

static moe_err look(store *s, const store_config *c, int *slots)
{
    char path[STORE_PATH];
    TRY(store_layout(s, c));
    s->drive = calloc((size_t)s->ndirs, sizeof *s->drive);
    if (s->drive == NULL)
        return moe_fail(MOE_E_OS, "store: out of memory");
    *slots = STORE_MAX_SLOTS;
    for (int d = 0; d < s->ndirs; d++) {
        store_id id;
        s->drive[d].dir = strdup(c->dirs[d]);
        if (s->drive[d].dir == NULL)
            return moe_fail(MOE_E_OS, "store: out of memory");
        TRY(id_read(s, d, &id, path));
        TRY(id_check(s, d, &id, path));
        *slots = (int)id.slots < *slots ? (int)id.slots : *slots;
    }
    return MOE_OK;
}

moe_err store_look(const store_config *c, int *slots)
{
    *slots = 0;
    store *s = calloc(1, sizeof *s);
    if (s == NULL)
        return moe_fail(MOE_E_OS, "store: out of memory");
    s->io = c->io;
    const moe_err rc = look(s, c, slots);
    for (int d = 0; s->drive != NULL && d < s->ndirs; d++)
        free(s->drive[d].dir);
    free(s->drive);
    free(s);
    return rc;
}

void store_where(const store_config *c, section_id section, store_part part, int *dir, uint64_t *offset)
{
    uint64_t at = (uint64_t)(section / c->ndirs) * record_bytes_of(c);
    for (int p = 0; p < (int)part; p++)
        at += pad(c->part_bytes[p]);
    *dir = section % c->ndirs;
    *offset = at;
}
