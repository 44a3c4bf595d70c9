/* TensorBoard event files: records of (length, masked crc of the length, data, masked crc of the data), the data a protobuf
 * `Event` of tensorflow/core/util/event.proto, written by hand: a dozen fields of three wire types. */
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "engine/report/files.h"

/* CRC-32C (Castagnoli), bit by bit: a few hundred bytes a step. */
static uint32_t crc32c(const void *data, size_t n)
{
    const uint8_t *p = data;
    uint32_t crc = 0xFFFFFFFF;
    for (size_t i = 0; i < n; i++) {
        crc ^= p[i];
        for (int bit = 0; bit < 8; bit++)
            crc = crc >> 1 ^ (0x82F63B78 & (0 - (crc & 1))); /* the polynomial, reflected */
    }
    return ~crc;
}

/* So that a crc of data that holds crcs stays a good one. */
static uint32_t masked_crc(const void *data, size_t n)
{
    const uint32_t crc = crc32c(data, n);
    return (crc >> 15 | crc << 17) + 0xA282EAD8;
}

/* --- protobuf ------------------------------------------------------------------------------------------------------------- */

enum wire { WIRE_VARINT = 0, WIRE_DOUBLE = 1, WIRE_BYTES = 2, WIRE_FLOAT = 5 };

static void put_varint(text_buf *t, uint64_t x)
{
    do {
        const uint8_t byte = (uint8_t)((x & 0x7f) | (x > 0x7f ? 0x80 : 0));
        text_add_bytes(t, &byte, 1);
        x >>= 7;
    } while (x);
}

static void put_key(text_buf *t, int field, enum wire wire) { put_varint(t, (uint64_t)field << 3 | wire); }

static void put_bytes(text_buf *t, int field, const void *data, size_t n)
{
    put_key(t, field, WIRE_BYTES);
    put_varint(t, n);
    text_add_bytes(t, data, n);
}

/* Event: wall_time = 1, step = 2. */
static void put_head(text_buf *t, int64_t step)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    const double wall = (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
    put_key(t, 1, WIRE_DOUBLE);
    text_add_bytes(t, &wall, sizeof wall);
    put_key(t, 2, WIRE_VARINT);
    put_varint(t, (uint64_t)step);
}

/* Summary.Value: tag = 1, simple_value = 2; into Summary.value = 1. */
static void put_scalar(text_buf *summary, const char *tag, double x)
{
    if (!isfinite(x))
        return;
    const float value = (float)x;
    text_buf v = {0};
    put_bytes(&v, 1, tag, strlen(tag));
    put_key(&v, 2, WIRE_FLOAT);
    text_add_bytes(&v, &value, sizeof value);
    if (v.failed)
        summary->failed = true;
    else
        put_bytes(summary, 1, v.data, v.used);
    text_free(&v);
}

static moe_err append_event(log_file *f, text_buf *event)
{
    text_buf t = {0};
    const uint64_t length = event->used;
    uint32_t crc = masked_crc(&length, sizeof length);
    text_add_bytes(&t, &length, sizeof length);
    text_add_bytes(&t, &crc, sizeof crc);
    text_add_bytes(&t, event->data, event->used);
    crc = masked_crc(event->data, event->used);
    text_add_bytes(&t, &crc, sizeof crc);
    const moe_err rc = t.failed || event->failed ? moe_fail(MOE_E_OS, "out of memory for an event of %s", f->path)
                                                 : log_append(f, t.data, t.used);
    text_free(&t);
    text_free(event);
    return rc;
}

/* --- the file ------------------------------------------------------------------------------------------------------------- */

static moe_err create(log_file *f, const char *run_dir)
{
    char host[128] = "localhost";
    gethostname(host, sizeof host - 1);
    const long long now = (long long)time(NULL);
    for (int i = 0; i < 1000; i++) {
        text_buf t = {0};
        free(f->path);
        text_printf(&t, "%s/events.out.tfevents.%010lld.%s.%d.%d", run_dir, now, host, (int)getpid(), i);
        TRY(text_take(&t, &f->path));
        f->fd = open(f->path, O_WRONLY | O_CREAT | O_EXCL | O_APPEND | O_CLOEXEC, 0666);
        if (f->fd >= 0)
            return MOE_OK;
        if (errno != EEXIST)
            break;
    }
    return moe_fail(MOE_E_CREATE, "cannot create %s: %s", f->path, strerror(errno));
}

moe_err events_open(log_file *f, const char *run_dir, int64_t resume_step)
{
    static const char version[] = "brain.Event:2";
    static const uint8_t start[] = {1 << 3 | WIRE_VARINT, 1}; /* SessionLog: status = START */
    text_buf event = {0};
    *f = (log_file){.fd = -1};
    TRY(create(f, run_dir));
    put_head(&event, 0);
    put_bytes(&event, 3, version, sizeof version - 1); /* Event.file_version = 3 */
    TRY(append_event(f, &event));
    put_head(&event, resume_step + 1);
    put_bytes(&event, 7, start, sizeof start); /* Event.session_log = 7: readers purge steps from here on */
    return append_event(f, &event);
}

moe_err events_step(log_file *f, const step_metrics *m)
{
    text_buf event = {0}, summary = {0};
    put_scalar(&summary, "loss/train", m->loss);
    put_scalar(&summary, "loss/val", m->val_loss);
    put_scalar(&summary, "loss/aux", m->aux_loss);
    put_scalar(&summary, "loss/z", m->z_loss);
    put_scalar(&summary, "optimizer/lr", m->lr);
    put_scalar(&summary, "optimizer/grad_norm", m->grad_norm);
    put_scalar(&summary, "speed/tokens_per_second", m->tokens_per_second);
    put_scalar(&summary, "speed/gflops_per_second", m->gflops_per_second);
    put_scalar(&summary, "speed/stall_seconds", m->stall_seconds);
    put_scalar(&summary, "tiers/ssd_read_bytes", (double)m->ssd_read_bytes);
    put_scalar(&summary, "tiers/ssd_write_bytes", (double)m->ssd_write_bytes);
    put_scalar(&summary, "tiers/ssd_read_wasted_bytes", (double)m->ssd_read_wasted_bytes);
    put_scalar(&summary, "tiers/cache_hit_rate", m->cache_hit_rate);
    put_scalar(&summary, "tiers/rss_bytes", (double)m->rss_bytes);
    put_scalar(&summary, "experts/load_max_over_mean", m->expert_load_max_over_mean);
    put_head(&event, m->step);
    event.failed = event.failed || summary.failed;
    put_bytes(&event, 5, summary.data, summary.used); /* Event.summary = 5 */
    text_free(&summary);
    return append_event(f, &event);
}
