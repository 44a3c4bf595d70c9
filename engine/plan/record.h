/* How large the parts of an expert's record are (memory/store.h), from the configuration alone. Pure. */
#ifndef MOE_ENGINE_PLAN_RECORD_H
#define MOE_ENGINE_PLAN_RECORD_H

#include "engine/config/train_config.h"
#include "memory/store.h"

/* 0 where records do not have it; multiples of IO_ALIGN. */
void record_part_bytes(const train_config *c, size_t bytes[STORE_PARTS]);

#endif
