/* Parameterized tests are in criterion.h of this folder. */
#include "criterion.h"
