/* The collectives of one rank, and what is refused. */
#include <criterion/criterion.h>
#include <string.h>

#include "comm/comm.h"

Test(comm, self_is_one_rank_that_talks_to_itself)
{
    comm *c;
    cr_assert_eq(comm_open(&c, "self"), MOE_OK);
    cr_assert(c->rank == 0 && c->size == 1);
    double d[2] = {1.5, -2};
    float f[2] = {3, 4};
    cr_assert_eq(c->ops->sum_doubles(c, d, 2), MOE_OK);
    cr_assert_eq(c->ops->sum_floats(c, f, 2), MOE_OK);
    cr_assert(d[0] == 1.5 && d[1] == -2 && f[0] == 3 && f[1] == 4);
    char in[5] = "abcd", out[5] = "";
    const size_t bytes[1] = {5}, fewer[1] = {4};
    cr_assert_eq(c->ops->all_to_all(c, out, bytes, in, bytes), MOE_OK);
    cr_assert_str_eq(out, "abcd");
    cr_assert_eq(c->ops->all_to_all(c, out, fewer, in, bytes), MOE_E_DATA);
    cr_assert_eq(c->ops->broadcast(c, out, 5, 0), MOE_OK);
    cr_assert_eq(c->ops->broadcast(c, out, 5, 1), MOE_E_CONFIG);
    cr_assert_eq(c->ops->barrier(c), MOE_OK);
    comm_close(c);
}

Test(comm, an_unknown_transport_is_named)
{
    comm *c;
    cr_assert_eq(comm_open(&c, "pigeon"), MOE_E_CONFIG);
    cr_assert(c == NULL && strstr(moe_error_text(), "pigeon") != NULL);
    comm_close(c);
}
