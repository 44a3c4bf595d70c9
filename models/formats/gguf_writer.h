/* Writing GGUF metadata into memory: what a packed folder keeps of a GGUF model's tokenizer, and files for tests. Little-endian, version 3. */
#ifndef MOE_MODELS_FORMATS_GGUF_WRITER_H
#define MOE_MODELS_FORMATS_GGUF_WRITER_H

#include "engine/base/text.h"
#include "models/formats/gguf.h"

/* A file without tensors that holds general.architecture and the keys which begin with one of the prefixes (NULL-terminated). */
moe_err gguf_subset(const gguf *g, const char *const *prefixes, text_buf *out) MOE_MUST_CHECK;

#endif
