/* What the readers of the three formats share: a growing list of accesses that trace.c sorts into a trace. Private to engine/serve/trace*.c. */
#ifndef MOE_ENGINE_SERVE_TRACE_PRIVATE_H
#define MOE_ENGINE_SERVE_TRACE_PRIVATE_H

#include "engine/serve/trace.h"

typedef struct trace_access {
    int32_t token, layer, expert;
} trace_access;

typedef struct trace_list {
    trace_access *item;
    int64_t n, room;
    int32_t tokens; /* begun so far */
} trace_list;

/* MOE_E_DATA when there are too many. */
moe_err trace_add(trace_list *l, const char *name, trace_access a) MOE_MUST_CHECK;

moe_err trace_parse_jsonl(trace_list *l, const char *name, const char *text, size_t bytes) MOE_MUST_CHECK;
moe_err trace_parse_csv(trace_list *l, const char *name, const char *text, size_t bytes) MOE_MUST_CHECK;

#endif
