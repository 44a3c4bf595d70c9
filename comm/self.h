/* The transport of a single rank: sums are what they are, a message to oneself is a copy. */
#ifndef MOE_COMM_SELF_H
#define MOE_COMM_SELF_H

#include "comm/comm.h"

moe_err comm_self_open(comm **out) MOE_MUST_CHECK;

#endif
