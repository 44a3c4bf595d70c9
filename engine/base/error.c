#include "engine/base/error.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static _Thread_local char error_text[MOE_ERROR_TEXT];
static _Thread_local char error_trace[MOE_ERROR_TEXT];

moe_err moe_fail(moe_err code, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(error_text, sizeof error_text, fmt, ap);
    va_end(ap);
    error_trace[0] = '\0';
    return code;
}

moe_err moe_error_trace(moe_err code, const char *what, const char *file, int line)
{
    const size_t used = strlen(error_trace);
    snprintf(error_trace + used, sizeof error_trace - used, "  in %s (%s:%d)\n", what, file, line);
    return code;
}

const char *moe_error_text(void) { return error_text; }

const char *moe_error_traces(void) { return error_trace; }

void moe_error_take(char *text, size_t size) { snprintf(text, size, "%s", error_text); }

moe_err moe_error_set(moe_err code, const char *text) { return moe_fail(code, "%s", text); }
