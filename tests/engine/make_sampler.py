"""Makes sampler_numpy.h: what each stage of the sampler keeps and which tokens are drawn, computed with numpy in double.

    pip install numpy==2.4.6 && python make_sampler.py > sampler_numpy.h

Written from the definitions in engine/serve/sampler.h and from the published algorithms, not from the C code: sorts everything, compares
whole suffixes for DRY, has its own Philox. Logits are multiples of 1/64, the same that the C test makes; a case in which a choice hangs on
less than 1e-5 is refused, so that float and double agree.
"""
import numpy as np

V, N, DRAWS = 61, 40, 24
SEED = 0x1234567887654321
DEFAULT = dict(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, typical_p=1.0, repeat=1.0, presence=0.0, frequency=0.0, penalty_window=-1,
               dry_multiplier=0.0, dry_base=1.75, dry_allowed=2, dry_window=-1, xtc_probability=0.0, xtc_threshold=0.1)
CASES = {
    "softmax": {},
    "warm": dict(temperature=2.5),
    "cold": dict(temperature=0.25),
    "greedy": dict(temperature=0.0),
    "top-k": dict(top_k=7),
    "top-p": dict(top_p=0.8),
    "min-p": dict(min_p=0.15),
    "typical": dict(typical_p=0.6),
    "typical, then top-p": dict(typical_p=0.8, top_p=0.7),
    "top-k, top-p, min-p": dict(top_k=30, top_p=0.9, min_p=0.05, temperature=0.7),
    "repeat": dict(repeat=1.7),
    "presence and frequency": dict(presence=0.75, frequency=0.5),
    "penalties over a window": dict(repeat=1.5, presence=0.25, frequency=1.25, penalty_window=9),
    "a negative presence": dict(presence=-2.0, penalty_window=5),
    "dry": dict(dry_multiplier=0.8),
    "dry, long allowance": dict(dry_multiplier=3.0, dry_allowed=4, dry_base=1.25),
    "dry over a window": dict(dry_multiplier=1.5, dry_window=14),
    "xtc": dict(xtc_probability=1.0, xtc_threshold=0.06),
    "xtc half the time": dict(xtc_probability=0.5, xtc_threshold=0.06),
    "xtc, greedy": dict(xtc_probability=1.0, xtc_threshold=0.06, temperature=0.0),
    "all": dict(temperature=0.9, top_k=25, top_p=0.95, min_p=0.02, typical_p=0.9, repeat=1.2, presence=0.1, frequency=0.1, penalty_window=20,
                dry_multiplier=0.5, xtc_probability=0.4, xtc_threshold=0.1),
}


def philox(seed, tensor, step, element):
    c = [element & 0xFFFFFFFF, element >> 32, tensor, step]
    k = [seed & 0xFFFFFFFF, seed >> 32]
    for _ in range(10):
        a, b = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(b >> 32) ^ c[1] ^ k[0], b & 0xFFFFFFFF, (a >> 32) ^ c[3] ^ k[1], a & 0xFFFFFFFF]
        k = [(k[0] + 0x9E3779B9) & 0xFFFFFFFF, (k[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return ((c[0] << 32 | c[1]) >> 11) * 2.0**-53


def logits():
    return np.array([((v * 37 + 11) % 61 * 5 % 97) / 16 - (v % 7) / 64 - 3 for v in range(V)])


def history():
    """Ends with 3 8 5 9, which stood earlier with 20 behind it, and 8 5 9 with 31 behind it; token 44 is the breaker."""
    h = [3, 8, 5, 9, 20, 1, 8, 5, 9, 31, 44, 5, 9, 7, 20, 20, 7, 3, 3, 50, 60, 0, 44, 5, 9, 12, 8, 5, 9, 33, 2, 20, 2, 20, 2, 44]
    return h + [3, 8, 5, 9]


def clear(a, b, what):
    if np.min(np.abs(np.asarray(a) - b)) < 1e-5:
        raise SystemExit("a close call: " + what)


def softmax(l):
    e = np.exp(l - l.max())
    return e / e.sum()


def penalized(l, o, h):
    l = l.copy()
    w = h if o["penalty_window"] < 0 else h[len(h) - o["penalty_window"]:]
    for t in set(w):
        l[t] = l[t] / o["repeat"] if l[t] > 0 else l[t] * o["repeat"]
        l[t] -= w.count(t) * o["frequency"] + o["presence"]
    if o["dry_multiplier"] > 0:
        w = h if o["dry_window"] < 0 else h[len(h) - o["dry_window"]:]
        longest = {}
        for end in range(1, len(w)):  # w[end] came behind w[:end]
            n = 0
            while n < end and w[end - 1 - n] == w[len(w) - 1 - n] and w[end - 1 - n] != 44:
                n += 1
            longest[w[end]] = max(longest.get(w[end], 0), n)
        for t, n in longest.items():
            if n >= o["dry_allowed"]:
                l[t] -= o["dry_multiplier"] * o["dry_base"] ** (n - o["dry_allowed"])
    return l


def reach(ids, p, enough):
    total = np.cumsum(p)
    clear(total[:-1] if len(total) > 1 else [2.0], enough, "mass")
    return ids[: int(np.searchsorted(total, enough)) + 1]


def kept(l, o, xtc):
    """Ids in the order in which they are summed when one is drawn."""
    ids = np.arange(V)
    falling = lambda ids: ids[np.lexsort((ids, -l[ids]))]
    if 0 < o["top_k"] < len(ids):
        ids = falling(ids)[: o["top_k"]]
    if o["typical_p"] < 1:
        p = softmax(l[ids])
        away = np.abs(np.log(p) - (p * np.log(p)).sum())
        order = np.lexsort((ids, away))
        clear(np.diff(away[order]), 0, "typical")
        ids = reach(ids[order], p[order], o["typical_p"])
    if o["top_p"] < 1:
        ids = falling(ids)
        ids = reach(ids, softmax(l[ids]), o["top_p"])
    if o["min_p"] > 0:
        p = softmax(l[ids]) / softmax(l[ids]).max()
        clear(p, o["min_p"], "min-p")
        ids = ids[p >= o["min_p"]]
    if xtc:
        p = softmax(l[ids])
        clear(p, o["xtc_threshold"], "xtc")
        likely = ids[p >= o["xtc_threshold"]]
        if len(likely) > 1:
            least = falling(likely)[-1]
            ids = np.array([i for i, q in zip(ids, p) if q < o["xtc_threshold"] or i == least])
    return ids


def draw(l, o, sequence, position):
    coin = philox(SEED, sequence, 1, position)
    ids = kept(l, o, o["xtc_probability"] > 0 and coin < o["xtc_probability"])
    if o["temperature"] == 0:
        return int(ids[np.lexsort((ids, -l[ids]))[0]])
    total = np.cumsum(softmax(l[ids] / o["temperature"]))
    u = philox(SEED, sequence, 0, position)
    clear(total, u, "draw")
    return int(ids[np.searchsorted(total, u)])


def main():
    h = history()
    assert len(h) == N
    print("/* Made by tests/engine/make_sampler.py with numpy %s: do not edit. */" % np.__version__)
    print('#include "engine/serve/sampler.h"\n')
    print("enum { NUMPY_V = %d, NUMPY_N = %d, NUMPY_DRAWS = %d };" % (V, N, DRAWS))
    print("static const uint64_t numpy_seed = 0x%x;" % SEED)
    print("static const int32_t numpy_history[NUMPY_N] = {%s};" % ", ".join(map(str, h)))
    p = np.log(softmax(logits()))
    order = np.lexsort((np.arange(V), -p))[:5]
    print("static const sampler_logprob numpy_top[5] = {%s};" % ", ".join("{%d, %.9gf}" % (i, p[i]) for i in order))
    print("static const struct numpy_case {\n    const char *name;\n    sampler_options o;")
    print("    int kept;                   /* candidates, with XTC when its probability is 1 */")
    print("    int32_t token[NUMPY_DRAWS]; /* of sequences 0 .. */\n} numpy_cases[] = {")
    for name, change in CASES.items():
        o = DEFAULT | change
        l = penalized(logits(), o, h)
        tokens = [draw(l, o, s, N) for s in range(DRAWS)]
        print('    {"%s",\n     {%s},' % (name, ", ".join(".%s = %r" % (k, v) for k, v in o.items() if v != 0)))
        print("     %d, {%s}}," % (len(kept(l, o, o["xtc_probability"] == 1)), ", ".join(map(str, tokens))))
    print("};")


main()
