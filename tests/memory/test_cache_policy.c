/* Policies of the expert cache: who goes first, against plain models of lru and lfu, and what the learned one must get right by
 * construction. */
#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

#include "memory/cache_policy.h"

#define OK(call) cr_assert_eq((call), MOE_OK, "%s", moe_error_text())

static uint32_t draw(uint32_t *x, uint32_t n)
{
    *x = *x * 1664525u + 1013904223u;
    return (*x >> 8) % n;
}

static cache_policy *opened(const char *name, int layers, int experts)
{
    cache_policy *p;
    OK(cache_policy_open(&p, name, layers, experts));
    OK(cache_policy_check(p));
    return p;
}

Test(cache_policy, names)
{
    cr_assert_str_eq(cache_policy_name(0), "learned");
    cr_assert(cache_policy_name(-1) == NULL && cache_policy_name(99) == NULL);
    cache_policy *p;
    cr_assert_eq(cache_policy_open(&p, "mru", 1, 1), MOE_E_CONFIG);
    cr_assert(p == NULL);
    for (int i = 0; cache_policy_name(i) != NULL; i++)
        cr_expect(strstr(moe_error_text(), cache_policy_name(i)) != NULL, "%s", moe_error_text());
    cr_assert_eq(cache_policy_open(&p, "", 0, 1), MOE_E_CONFIG);
    cr_assert_eq(cache_policy_open(&p, "", 1 << 30, 1 << 30), MOE_E_CONFIG);
    cr_assert(cache_policy_bytes(48, 128) < 100 * 48 * 128);
}

enum { L = 3, E = 5, N = L * E };

/* The set as arrays: what may go, what is due, when it was last used, how often. */
typedef struct model {
    bool may_go[N], due[N];
    uint64_t last[N], clock;
    float hits[N];
} model;

static bool goes_before(const model *m, bool lfu, int a, int b)
{
    if (lfu) {
        const bool hot_a = m->hits[a] >= 2, hot_b = m->hits[b] >= 2;
        if (hot_a != hot_b)
            return hot_b;
        if (hot_a && m->hits[a] != m->hits[b])
            return m->hits[a] < m->hits[b];
    }
    return m->last[a] != m->last[b] ? m->last[a] < m->last[b] : a < b;
}

static int model_victim(const model *m, bool lfu, bool due)
{
    int v = -1;
    for (int i = 0; i < N; i++)
        if (m->may_go[i] && m->due[i] == due && (v < 0 || goes_before(m, lfu, i, v)))
            v = i;
    return v;
}

static void compare(cache_policy *p, const model *m, bool lfu)
{
    expert_id id;
    int v = model_victim(m, lfu, false);
    cr_assert_eq(cache_policy_victim(p, false, &id), v >= 0);
    cr_assert(v < 0 || id == (expert_id)v, "%u goes, expected %d", id, v);
    v = v >= 0 ? v : model_victim(m, lfu, true);
    cr_assert_eq(cache_policy_victim(p, true, &id), v >= 0);
    cr_assert(v < 0 || id == (expert_id)v, "%u goes, expected %d", id, v);
    OK(cache_policy_check(p));
}

static void model_choose(model *m, bool lfu, int layer)
{
    for (int i = layer * E; i < (layer + 1) * E; i++) {
        m->due[i] = false;
        m->hits[i] = lfu ? m->hits[i] * 0.957603281f : 0;
    }
}

static void random_calls(const char *name)
{
    const bool lfu = strcmp(name, "lfu") == 0;
    uint32_t x = 7;
    for (int round = 0; round < 20; round++) {
        cache_policy *p = opened(name, L, E);
        model m = {.clock = 0};
        for (int step = 0; step < 500; step++) {
            const int id = (int)draw(&x, N);
            switch (draw(&x, 6)) {
            case 0:
                m.may_go[id] = true;
                cache_policy_enter(p, (expert_id)id);
                break;
            case 1:
                m.may_go[id] = false;
                cache_policy_leave(p, (expert_id)id);
                break;
            case 2:
                m.due[id] = draw(&x, 2);
                cache_policy_set_due(p, (expert_id)id, m.due[id]);
                break;
            case 3:
                cache_policy_choose(p, id / E, &(int32_t){id % E}, 1);
                model_choose(&m, lfu, id / E);
                break;
            default:
                cache_policy_touch(p, (expert_id)id);
                m.last[id] = ++m.clock;
                m.hits[id] += 1;
                m.due[id] = false;
            }
            compare(p, &m, lfu);
        }
        cache_policy_close(p);
    }
}

Test(cache_policy, lru_against_a_plain_model) { random_calls("lru"); }
Test(cache_policy, lfu_against_a_plain_model) { random_calls("lfu"); }

/* --- learned -----------------------------------------------------------------------------------------------------------------
 */

static void pass(cache_policy *p, int layer, const int32_t *expert, int n)
{
    cache_policy_choose(p, layer, expert, n);
    for (int i = 0; i < n; i++)
        cache_policy_touch(p, (expert_id)(layer * E + expert[i]));
    OK(cache_policy_check(p));
}

static expert_id victim(cache_policy *p)
{
    expert_id id;
    cr_assert(cache_policy_victim(p, false, &id));
    return id;
}

Test(cache_policy, learned_keeps_the_favourites)
{
    cache_policy *p = opened(NULL, 1, E);
    uint32_t x = 3;
    for (int i = 0; i < 200; i++) { /* 0 is chosen every time, another one of four beside it */
        const int32_t pair[2] = {0, 1 + (int32_t)draw(&x, 4)};
        pass(p, 0, pair, 2);
    }
    for (expert_id id = 0; id < E; id++)
        cache_policy_enter(p, id);
    for (int i = 0; i < E - 1; i++) {
        const expert_id v = victim(p);
        cr_expect_neq(v, 0, "the favourite goes after %d others", i);
        cache_policy_leave(p, v);
    }
    cr_expect_eq(victim(p), 0);
    cache_policy_close(p);
}

/* Choices that stay for some tokens and then move on: the last ones are worth more than what was frequent long ago. */
Test(cache_policy, learned_follows_a_router_that_moves_on)
{
    cache_policy *p = opened(NULL, 1, E);
    for (int i = 0; i < 300; i++)
        pass(p, 0, &(int32_t){i / 12 % E}, 1);
    for (expert_id id = 0; id < E; id++)
        cache_policy_enter(p, id);
    const expert_id now = 299 / 12 % E;
    for (int i = 0; i < E - 1; i++) {
        const expert_id v = victim(p);
        cr_expect_neq(v, now, "the one in use goes after %d others", i);
        cache_policy_leave(p, v);
    }
    cache_policy_close(p);
}

/* Everything is chosen in every pass: the layer just passed is wanted last. */
Test(cache_policy, learned_gives_up_the_layer_just_passed_in_a_scan)
{
    cache_policy *p = opened(NULL, L, E);
    const int32_t all[E] = {0, 1, 2, 3, 4};
    for (expert_id id = 0; id < N; id++)
        cache_policy_enter(p, id);
    for (int i = 0; i < 7; i++) {
        pass(p, i % L, all, E);
        cr_expect_eq(victim(p) / E, (expert_id)(i % L));
    }
    cache_policy_close(p);
}

/* A prompt chooses every expert, but most of its tokens want one of them: that one stays for the text behind it. */
Test(cache_policy, learned_keeps_what_the_tokens_of_a_scan_chose_most)
{
    enum { TOKENS = 200 };
    cache_policy *p = opened(NULL, 1, E);
    const int32_t all[E] = {0, 1, 2, 3, 4};
    int32_t ids[TOKENS];
    uint32_t x = 5;
    cr_assert(cache_policy_is_scan(p, E) && !cache_policy_is_scan(p, E / 2));
    for (int i = 0; i < TOKENS; i++)
        ids[i] = i % 3 != 0 ? 2 : (int32_t)draw(&x, E);
    cache_policy_tokens(p, 0, ids, TOKENS, 1);
    pass(p, 0, all, E);
    for (expert_id id = 0; id < E; id++)
        cache_policy_enter(p, id);
    for (int i = 0; i < E - 1; i++) {
        const expert_id v = victim(p);
        cr_expect_neq(v, 2, "the favourite goes after %d others", i);
        cache_policy_leave(p, v);
    }
    cache_policy_close(p);
}

Test(cache_policy, what_is_due_goes_last)
{
    cache_policy *p = opened(NULL, 2, E);
    cache_policy_choose(p, 0, (int32_t[]){1, 3}, 2);
    cache_policy_enter(p, 1);
    cache_policy_enter(p, 3);
    expert_id id;
    cr_assert(!cache_policy_victim(p, false, &id), "both are wanted now");
    cr_assert(cache_policy_victim(p, true, &id));
    cache_policy_touch(p, 3);
    cr_assert_eq(victim(p), 3);
    cache_policy_choose(p, 1, (int32_t[]){0}, 1);
    cr_assert_eq(victim(p), 3, "1 is still wanted");
    cache_policy_choose(p, 0, (int32_t[]){3}, 1);
    cr_assert_eq(victim(p), 1, "the next pass wants 3");
    OK(cache_policy_check(p));
    cache_policy_close(p);
}

/* No choice of numbers makes a key that is no number, and the same calls make the same victims. */
Test(cache_policy, any_choices_leave_it_sound)
{
    for (int i = 0; cache_policy_name(i) != NULL; i++) {
        cache_policy *p[2] = {opened(cache_policy_name(i), L, E), opened(cache_policy_name(i), L, E)};
        uint32_t x = 11;
        for (int step = 0; step < 3000; step++) {
            int32_t chosen[E];
            int n = 0;
            const uint32_t kind = draw(&x, 8);
            for (int32_t e = 0; e < E; e++)
                if (kind == 0 || (kind > 1 && draw(&x, 5) < kind))
                    chosen[n++] = e;
            const int layer = (int)draw(&x, L);
            for (int k = 0; k < 2; k++) {
                pass(p[k], layer, chosen, n);
                cache_policy_enter(p[k], draw(&(uint32_t){x}, N));
            }
            expert_id a, b;
            cr_assert(cache_policy_victim(p[0], true, &a) && cache_policy_victim(p[1], true, &b) && a == b);
            if (draw(&x, 3) == 0)
                for (int k = 0; k < 2; k++)
                    cache_policy_leave(p[k], a);
            OK(cache_policy_check(p[0]));
        }
        cache_policy_close(p[0]);
        cache_policy_close(p[1]);
    }
}
