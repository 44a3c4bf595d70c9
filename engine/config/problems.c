#include "engine/config/problems.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/base/text.h"

enum { SET_SHOWN = 80 }; /* bytes of a --set that a sentence repeats */

const char *problems_place(const problems *p, config_origin at, char *out, size_t size)
{
    if (at.kind == ORIGIN_SET) {
        const char *set = p->sets[at.set];
        snprintf(out, size, "--set %.*s%s", SET_SHOWN, set, strlen(set) > SET_SHOWN ? "..." : "");
    } else if (at.kind == ORIGIN_FILE && at.line > 0) {
        snprintf(out, size, "%s:%d:%d", p->file, at.line, at.col);
    } else {
        snprintf(out, size, "%s", p->file);
    }
    return out;
}

void problems_add(problems *p, config_origin at, const char *key, const char *fmt, ...)
{
    if (p->n == PROBLEMS_MAX) {
        p->dropped++;
        return;
    }
    if (p->n == p->capacity) {
        const int capacity = p->capacity ? p->capacity * 2 : 16;
        problem *item = realloc(p->item, (size_t)capacity * sizeof *item);
        if (!item) {
            p->dropped++;
            return;
        }
        p->item = item;
        p->capacity = capacity;
    }
    char place[1024];
    text_buf t = {0};
    va_list ap;
    text_printf(&t, "%s: %s%s", problems_place(p, at, place, sizeof place), key, *key ? ": " : "");
    va_start(ap, fmt);
    text_vprintf(&t, fmt, ap);
    va_end(ap);
    for (size_t i = 0; i < t.used; i++) /* what a file says must not steer a terminal */
        if ((unsigned char)t.data[i] < 0x20 || t.data[i] == 0x7f)
            t.data[i] = '?';
    p->item[p->n] = (problem){at, p->n, NULL};
    if (text_take(&t, &p->item[p->n].sentence) == MOE_OK)
        p->n++;
    else
        p->dropped++;
}

int problems_count(const problems *p) { return p->n + p->dropped; }

static int by_place(const void *a, const void *b)
{
    const problem *x = a, *y = b;
    const bool xs = x->at.kind == ORIGIN_SET, ys = y->at.kind == ORIGIN_SET;
    if (xs != ys)
        return xs - ys;
    if (xs && x->at.set != y->at.set)
        return x->at.set - y->at.set;
    if (x->at.line != y->at.line)
        return x->at.line - y->at.line;
    if (x->at.col != y->at.col)
        return x->at.col - y->at.col;
    return x->order - y->order;
}

moe_err problems_fail(problems *p)
{
    if (problems_count(p) == 0)
        return MOE_OK;
    if (p->n > 0)
        qsort(p->item, (size_t)p->n, sizeof *p->item, by_place);
    text_buf t = {0};
    int shown = 0;
    for (; shown < p->n; shown++) {
        const size_t more = strlen(p->item[shown].sentence) + 1;
        if (t.used + more > MOE_ERROR_TEXT - 64 && shown > 0) /* 64: room for the last line */
            break;
        text_printf(&t, "%s%s", shown ? "\n" : "", p->item[shown].sentence);
    }
    const int hidden = problems_count(p) - shown;
    if (hidden > 0)
        text_printf(&t, "%s... and %d more", shown ? "\n" : "", hidden);
    const moe_err rc =
        t.failed ? moe_fail(MOE_E_OS, "out of memory while reading %s", p->file) : moe_fail(MOE_E_CONFIG, "%s", t.data);
    text_free(&t);
    return rc;
}

void problems_free(problems *p)
{
    for (int i = 0; i < p->n; i++)
        free(p->item[i].sentence);
    free(p->item);
    p->item = NULL;
    p->n = p->capacity = p->dropped = 0;
}
