/* Owns the escaping of strings in JSON output. Threads: pure. */
#include "engine/serve/json_text.h"

#include "models/text/utf8.h"

void json_text_add(text_buf *t, const char *s, size_t n)
{
    text_add(t, "\"");
    for (size_t i = 0; i < n;) {
        uint32_t cp;
        const size_t k = utf8_decode(s + i, n - i, &cp);
        if (k == 0) {
            text_add(t, "\xEF\xBF\xBD");
            i++;
            continue;
        }
        if (cp == '"' || cp == '\\')
            text_printf(t, "\\%c", (int)cp);
        else if (cp < 0x20 || cp == 0x7F)
            text_printf(t, "\\u%04x", cp);
        else
            text_add_bytes(t, s + i, k);
        i += k;
    }
    text_add(t, "\"");
}
