/* Reads the dense part: each tensor in pieces of whole panels, several pieces in flight past the page cache, each laid out as soon as it has
 * landed. Owns the files and buffers while it runs.
 * Threads: the caller's; the layout is shared out. Rule: a file is not trusted to be as long as it was when it was opened. */
#include <stdlib.h>
#include <string.h>

#include "engine/serve/serve_private.h"
#include "memory/budget.h"

enum {
    LOAD_DEPTH = 8,       /* pieces in flight                              */
    LOAD_PIECE = 2 << 20, /* bytes of a piece, unless its rows are longer  */
};

typedef struct piece {
    io_transfer t;
    const load_part *part;
    int64_t first, rows; /* rows, or bytes of panels */
    char *buffer;        /* what was read begins at buffer + skip */
    size_t skip;
} piece;

typedef struct loader {
    serve *s;
    const load_part *part;
    int64_t parts, at, row; /* the piece that is cut next */
    io_file **file;
    io_queue *queue;
    char *memory, *sorted; /* LOAD_DEPTH buffers; rows of heads in order, scales, or a vector */
    size_t buffer_bytes;
    piece piece[LOAD_DEPTH];
    int in_flight;
} loader;

static int64_t part_rows(const load_part *p)
{
    return p->at.panels ? (int64_t)p->at.bytes : p->info.rows;
}

static size_t part_row_bytes(const load_part *p)
{
    return p->at.panels ? 1 : numfmt_row_bytes(p->at.format, p->info.cols);
}

/* Stored bytes of rows (bytes of panels) [first, first + n). */
static model_span part_span(const load_part *p, int64_t first, int64_t n)
{
    return p->at.panels ? (model_span){(uint64_t)first, (size_t)n} : model_rows_span(&p->at, first, n);
}

/* Rows that go together: whole panels, and whole heads where their rows are sorted. */
static int64_t rows_together(const serve *s, const load_part *p)
{
    if (p->at.panels)
        return LOAD_PIECE;
    if (p->at.stored == STORED_COLUMNS)
        return p->info.rows;
    const int64_t hd = s->spec->hd, one = p->info.layout == TENSOR_HEADS ? p->info.rows / s->spec->H : PANEL;
    const int64_t unit = !p->at.heads_interleaved ? one : hd % PANEL == 0 ? hd : hd * PANEL;
    const int64_t fit = (int64_t)(LOAD_PIECE / part_row_bytes(p)) / unit * unit;
    return fit > unit ? fit : unit;
}

/* The window of whole 4 KiB pages around a piece; what lies past the last whole page of the file is read apart. */
static moe_err start_piece(loader *l, piece *p)
{
    const load_part *part = &l->part[l->at];
    const int64_t most = rows_together(l->s, part), left = part_rows(part) - l->row;
    p->part = part;
    p->first = l->row;
    p->rows = left < most ? left : most;
    const model_span span = part_span(part, p->first, p->rows);
    const uint64_t begin = part->at.offset + span.at, end = begin + span.bytes, from = begin / IO_ALIGN * IO_ALIGN;
    const uint64_t whole = model_file_bytes(l->s->c.model, part->at.file) / IO_ALIGN * IO_ALIGN;
    uint64_t to = (end + IO_ALIGN - 1) / IO_ALIGN * IO_ALIGN;
    to = to < whole ? to : whole;
    p->skip = (size_t)(begin - from);
    const uint64_t covered = to > begin ? to : begin;
    if (covered < end)
        TRY(model_read(l->s->c.model, part->at.file, covered, p->buffer + (covered - from), (size_t)(end - covered)));
    l->row += p->rows;
    if (l->row == part_rows(part))
        l->at++, l->row = 0;
    p->t = (io_transfer){.file = l->file[part->at.file], .buf = p->buffer, .bytes = to > from ? (size_t)(to - from) : 0, .offset = from, .user = p};
    return MOE_OK;
}

/* Logical row i of a head lies at stored row 2i or 2(i - hd/2) + 1. */
static void sort_heads(char *to, const char *from, int64_t rows, size_t row_bytes, int hd)
{
    for (int64_t r = 0; r < rows; r++) {
        const int64_t i = r % hd, at = r - i + (i < hd / 2 ? 2 * i : 2 * (i - hd / 2) + 1);
        memcpy(to + (size_t)r * row_bytes, from + (size_t)at * row_bytes, row_bytes);
    }
}

static moe_err land_vector(const loader *l, const load_part *p, const char *from)
{
    const int hd = l->s->spec->hd;
    float *to = p->to;
    if (!model_rows_plain(&p->at)) { /* among the numbers of others */
        const model_source row = {.at = &p->at, .path = model_path(l->s->c.model, p->at.file), .name = p->info.name, .cols = p->info.cols,
                                  .stored = (const uint8_t *)from};
        TRY(model_rows(&row, 0, 1, l->sorted));
        from = l->sorted;
    }
    numfmt_to_f32(to, from, p->at.format, p->info.cols);
    if (!p->at.heads_interleaved)
        return MOE_OK;
    float *copy = malloc((size_t)p->info.cols * sizeof *copy);
    if (copy == NULL)
        return moe_fail(MOE_E_OS, "%s: out of memory", p->info.name);
    memcpy(copy, to, (size_t)p->info.cols * sizeof *copy);
    sort_heads((char *)to, (const char *)copy, p->info.cols, sizeof *to, hd);
    free(copy);
    return MOE_OK;
}

/* Rows as they are, or put together, in panels or one after the other. */
static moe_err land_rows(loader *l, const piece *p, const char *from)
{
    const load_part *part = p->part;
    model_source rows = {.at = &part->at, .path = model_path(l->s->c.model, part->at.file), .name = part->info.name, .cols = part->info.cols,
                         .first = p->first, .stored = (const uint8_t *)from};
    const model_span scales = model_scales_span(&part->at, p->first, p->rows);
    if (scales.bytes > 0) { /* few: one for many numbers */
        TRY(model_read(l->s->c.model, part->at.scale_file, part->at.scale_offset + scales.at, l->sorted, scales.bytes));
        rows.scales = (const uint8_t *)l->sorted;
    }
    if (part->info.layout == TENSOR_ROWS)
        return model_rows(&rows, p->first, p->rows, (char *)part->to + (size_t)p->first * part_row_bytes(part));
    if (part->info.layout == TENSOR_HEADS)
        return serve_pack_heads(l->s->c.stream, &(pack_args){.panels = part->to, .from = &rows, .N = part->info.rows / l->s->spec->H, .n = p->rows});
    return serve_pack(l->s->c.stream, &(pack_args){.panels = part->to, .from = &rows, .N = part->info.rows, .n = p->rows});
}

static moe_err land_piece(loader *l, const piece *p)
{
    const load_part *part = p->part;
    const char *from = p->buffer + p->skip;
    if (part->info.layout == TENSOR_VECTOR)
        return land_vector(l, part, from);
    if (part->at.panels) {
        memcpy((char *)part->to + (size_t)p->first, from, (size_t)p->rows);
        return MOE_OK;
    }
    if (part->at.heads_interleaved) {
        sort_heads(l->sorted, from, p->rows, part_row_bytes(part), l->s->spec->hd);
        from = l->sorted;
    }
    return land_rows(l, p, from);
}

/* Cuts and starts until LOAD_DEPTH are in flight or nothing is left; a piece that needs no transfer lands at once. */
static moe_err fill_queue(loader *l, piece **idle, int *nidle)
{
    while (*nidle > 0 && l->at < l->parts) {
        piece *p = idle[--*nidle];
        const moe_err rc = start_piece(l, p);
        if (rc != MOE_OK || p->t.bytes == 0) {
            idle[(*nidle)++] = p;
            TRY(rc);
            TRY(land_piece(l, p));
            continue;
        }
        TRY(l->s->c.io->ops->queue_submit(l->queue, &p->t));
        l->in_flight++;
    }
    return MOE_OK;
}

static moe_err run(loader *l)
{
    piece *idle[LOAD_DEPTH];
    int nidle = 0;
    for (int i = 0; i < LOAD_DEPTH; i++) {
        l->piece[i].buffer = l->memory + (size_t)i * l->buffer_bytes;
        idle[nidle++] = &l->piece[i];
    }
    while (l->at < l->parts || l->in_flight > 0) {
        io_transfer *done = NULL;
        TRY(fill_queue(l, idle, &nidle));
        if (l->in_flight == 0)
            continue;
        TRY(l->s->c.io->ops->queue_wait(l->queue, &done));
        for (const io_transfer *t = done; t != NULL; t = t->next)
            l->in_flight--; /* all of the list, for drain, when one of it is an error */
        while (done != NULL) {
            piece *p = done->user;
            done = done->next;
            if (p->t.rc != MOE_OK) {
                moe_error_set(p->t.rc, p->t.text);
                return moe_error_trace(p->t.rc, p->part->info.name, __FILE__, __LINE__);
            }
            TRY(land_piece(l, p));
            idle[nidle++] = p;
        }
    }
    return MOE_OK;
}

/* The buffers may not go while the disk still writes to them. */
static void drain(loader *l)
{
    for (io_transfer *done = NULL; l->in_flight > 0 && l->s->c.io->ops->queue_wait(l->queue, &done) == MOE_OK;)
        for (; done != NULL; done = done->next)
            l->in_flight--;
}

/* Past the page cache where the file system can. */
static moe_err open_file(io *disk, io_file **out, const char *path)
{
    const moe_err rc = disk->ops->open(disk, out, path, IO_READ | IO_DIRECT);
    return rc == MOE_E_CONFIG ? disk->ops->open(disk, out, path, IO_READ | IO_DROP) : rc;
}

moe_err serve_load(serve *s, const load_part *part, int64_t n)
{
    const int files = model_files(s->c.model);
    io *const disk = s->c.io;
    moe_err rc = MOE_OK;
    loader *l = calloc(1, sizeof *l);
    io_file **file = calloc((size_t)files, sizeof *file);
    void *memory = NULL;
    if (l == NULL || file == NULL) {
        free(l), free(file);
        return moe_fail(MOE_E_OS, "dense part: out of memory");
    }
    *l = (loader){.s = s, .part = part, .parts = n, .file = file};
    for (int64_t i = 0; i < n; i++) {
        const int64_t most = rows_together(s, &part[i]), rows = part_rows(&part[i]);
        const size_t bytes = part_span(&part[i], 0, rows < most ? rows : most).bytes; /* the scales are fewer */
        l->buffer_bytes = bytes > l->buffer_bytes ? bytes : l->buffer_bytes;
    }
    l->buffer_bytes = (l->buffer_bytes + 3 * IO_ALIGN - 1) / IO_ALIGN * IO_ALIGN; /* the window is longer on both sides */
    TRY_GOTO(budget_alloc(&memory, l->buffer_bytes * (LOAD_DEPTH + 1), "buffers for loading"), rc, done);
    l->memory = memory;
    l->sorted = l->memory + LOAD_DEPTH * l->buffer_bytes;
    for (int f = 0; f < files; f++)
        TRY_GOTO(open_file(disk, &file[f], model_path(s->c.model, f)), rc, done);
    TRY_GOTO(disk->ops->queue_open(disk, &l->queue, LOAD_DEPTH), rc, done);
    rc = run(l);
done:
    drain(l);
    if (l->queue != NULL)
        disk->ops->queue_close(disk, l->queue);
    for (int f = 0; f < files; f++)
        if (file[f] != NULL)
            disk->ops->close(disk, file[f]);
    budget_free(memory);
    free(file), free(l);
    return rc;
}
