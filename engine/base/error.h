/* Errors: one code, one sentence, one trace. The leaf that finds a problem writes the sentence (object, found, expected,
 * hint) with moe_fail; each level above adds a line with TRY; main prints moe_error_text.
 * The sentence lives in the calling thread; a thread that works for another hands it over with moe_error_take / _set. */
#ifndef MOE_ENGINE_BASE_ERROR_H
#define MOE_ENGINE_BASE_ERROR_H

#include <stddef.h>

#define MOE_MUST_CHECK __attribute__((warn_unused_result))
#define MOE_PRINTF(f, a) __attribute__((format(printf, f, a)))

/* Values from 64 up are sysexits codes and become the exit status of a program. */
typedef enum moe_err {
    MOE_OK = 0,
    MOE_E_FULL = 1,      /* nothing free: every slot is leased; never leaves a program */
    MOE_E_USAGE = 64,    /* command line */
    MOE_E_DATA = 65,     /* bad data or checksum */
    MOE_E_NOINPUT = 66,  /* missing input */
    MOE_E_NUMERIC = 70,  /* non-finite loss or norm */
    MOE_E_OS = 71,       /* out of memory, thread or system call failed */
    MOE_E_CREATE = 73,   /* cannot create */
    MOE_E_IO = 74,       /* disk full, read or write error */
    MOE_E_TEMP = 75,     /* stopped by a signal, or the run is locked */
    MOE_E_CONFIG = 78,   /* configuration, or it does not fit */
} moe_err;

enum { MOE_ERROR_TEXT = 4096 }; /* bytes; longer texts are cut */

/* Starts a new error: writes the sentence, forgets the old trace, returns `code`. */
moe_err moe_fail(moe_err code, const char *fmt, ...) MOE_PRINTF(2, 3) __attribute__((cold));
/* Adds a trace line "  in what (file:line)"; returns `code`. Used by TRY. */
moe_err moe_error_trace(moe_err code, const char *what, const char *file, int line) __attribute__((cold));
/* The sentence alone, without a trailing newline; "" when there was none. */
const char *moe_error_text(void);
/* The trace lines, "" when there are none. */
const char *moe_error_traces(void);
/* Copies the sentence out of this thread (cut to `size`) / makes it this thread's sentence and returns `code`. */
void moe_error_take(char *text, size_t size);
moe_err moe_error_set(moe_err code, const char *text);

#define TRY(call)                                                        \
    do {                                                                 \
        const moe_err try_rc = (call);                                   \
        if (__builtin_expect(try_rc != MOE_OK, 0))                       \
            return moe_error_trace(try_rc, #call, __FILE__, __LINE__);   \
    } while (0)

#define TRY_GOTO(call, rc, label)                                        \
    do {                                                                 \
        (rc) = (call);                                                   \
        if (__builtin_expect((rc) != MOE_OK, 0)) {                       \
            (rc) = moe_error_trace((rc), #call, __FILE__, __LINE__);     \
            goto label;                                                  \
        }                                                                \
    } while (0)

#endif
