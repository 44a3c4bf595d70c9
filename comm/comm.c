/* The list of transports. */
#include "comm/comm.h"

#include <string.h>

#include "comm/self.h"

moe_err comm_open(comm **out, const char *transport)
{
    *out = NULL;
    if (strcmp(transport, "self") == 0)
        return comm_self_open(out);
    return moe_fail(MOE_E_CONFIG, "transport: expected self, got \"%s\"", transport);
}

void comm_close(comm *c)
{
    if (c != NULL)
        c->ops->destroy(c);
}
