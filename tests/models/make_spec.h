/* A spec from config text, for tests: make_spec(&m, "qwen3_moe", "hidden_size=64 num_experts=8"). */
#ifndef MOE_TESTS_MODELS_MAKE_SPEC_H
#define MOE_TESTS_MODELS_MAKE_SPEC_H

#include "models/family.h"

/* Pairs "key=value" between blanks; lists as "[1,2]"; what is not named takes the family's default. */
moe_err make_spec(model_spec *out, const char *model_type, const char *pairs) MOE_MUST_CHECK;

#endif
