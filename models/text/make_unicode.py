#!/usr/bin/env python3
"""Writes unicode_tables.inc: what Hugging Face tokenizers know about Unicode and our libraries do not.

Shadow ranges: its regular expressions use Unicode 16 categories, PCRE2 10.42 has Unicode 14 (Python 3.11's unicodedata has the
same version). A code point whose category differs is matched as a representative of its true category with the same UTF-8 length (of Han
characters: a Han character).
NFC: its normalizer has Unicode 9 tables; so the properties are probed one by one, values come from unicodedata (they never change
once a code point has them).

    python3.11 -m pip install tokenizers==0.23.3
    python3.11 models/text/make_unicode.py > models/text/unicode_tables.inc        # about a minute
"""
import sys
import unicodedata

import tokenizers
from tokenizers import Regex, normalizers, pre_tokenizers

assert tokenizers.__version__ == "0.23.3", tokenizers.__version__
assert unicodedata.unidata_version == "14.0.0", unicodedata.unidata_version

POINTS = [c for c in range(0x110000) if not 0xD800 <= c < 0xE000]
CATEGORIES = ("Lu Ll Lt Lm Lo Mn Mc Me Nd Nl No Pc Pd Ps Pe Pi Pf Po Sm Sc Sk So Zs Zl Zp Cc Cf Co Cn").split()
HANGUL = range(0xAC00, 0xD7A4)


def oracle_categories():
    """General category of every code point as the oracle's regular expressions see it."""
    text = "".join(map(chr, POINTS))
    category = [None] * len(POINTS)
    for name in CATEGORIES:
        at = 0
        for _, (a, b) in pre_tokenizers.Split(Regex(r"\p{%s}+" % name), "removed").pre_tokenize_str(text) + [("", (len(text),) * 2)]:
            for i in range(at, a):
                assert category[i] is None, hex(POINTS[i])
                category[i] = name
            at = b
    return dict(zip(POINTS, category))


def utf8_length(c):
    return len(chr(c).encode())


def shadow_ranges():
    oracle = oracle_categories()
    text = "".join(map(chr, POINTS))
    han = {POINTS[i] for _, (a, b) in pre_tokenizers.Split(Regex(r"\p{Han}+"), "removed", invert=True).pre_tokenize_str(text) for i in range(a, b)}
    ours = {c: unicodedata.category(chr(c)) for c in POINTS}
    differ = {c for c in POINTS if oracle[c] != ours[c]}
    differ.add(0x180E)  # PCRE2 counts MONGOLIAN VOWEL SEPARATOR as \s, Unicode has not since 6.3

    def representative(c):
        low = {3: 0x1000, 4: 0x10000}[utf8_length(c)]
        return next(x for x in POINTS if x >= low and x not in differ and oracle[x] == oracle[c] and utf8_length(x) == utf8_length(c)
                    and (x in han) == (c in han))

    cache, out = {}, []
    for c in sorted(differ):
        key = (utf8_length(c), oracle[c], c in han)
        if key not in cache:
            cache[key] = representative(c)
        if out and out[-1][1] == c - 1 and out[-1][2] == cache[key]:
            out[-1][1] = c
        else:
            out.append([c, c, cache[key]])
    return out


def nfc_tables():
    nfd, nfc = normalizers.NFD().normalize_str, normalizers.NFC().normalize_str
    ccc, decompose, compose = {}, {}, {}
    for c in POINTS:
        s = chr(c)
        k = unicodedata.combining(s)
        if k:  # moves in front of a higher class, or lets a lower one pass: the oracle knows its class
            if nfd("a\u0315" + s) == "a" + nfd(s) + "\u0315" or nfd("a" + s + "\u0334") == "a\u0334" + nfd(s):
                ccc[c] = k
        d = unicodedata.decomposition(s)
        if d and not d.startswith("<") and nfd(s) != s:
            assert nfd(s) == unicodedata.normalize("NFD", s), hex(c)
            parts = [int(x, 16) for x in d.split()]
            decompose[c] = parts + [0] * (2 - len(parts))
            if len(parts) == 2 and nfc(nfd(s)) == s:
                compose[tuple(parts)] = c
    check = set(ccc) | {b for _, b in compose} | set(range(0x1161, 0x1176)) | set(range(0x11A8, 0x11C3))
    composed = set(compose.values())
    check |= {c for c in decompose if c not in composed}
    return ccc, decompose, compose, check


def ranges(points):
    """[first, last, value] of runs with one value; points: dict or set."""
    out = []
    for c in sorted(points):
        v = points[c] if isinstance(points, dict) else 1
        if out and out[-1][1] == c - 1 and out[-1][2] == v:
            out[-1][1] = c
        else:
            out.append([c, c, v])
    return out


def emit(name, kind, rows, per_line):
    print(f"static const {kind} {name}[] = {{")
    for i in range(0, len(rows), per_line):
        print("    " + " ".join("{" + ", ".join(f"0x{x:X}" for x in r) + "}," for r in rows[i:i + per_line]))
    print("};")


def main():
    print("/* Made by make_unicode.py (tokenizers", tokenizers.__version__ + ", unicodedata", unicodedata.unidata_version + "); do not edit. */")
    print("/* clang-format off */")
    print("/* first, last, representative of the same category and UTF-8 length */")
    emit("shadow_ranges", "unicode_range", shadow_ranges(), 5)
    ccc, decompose, compose, check = nfc_tables()
    print("/* first, last, canonical combining class */")
    emit("nfc_classes", "unicode_range", ranges(ccc), 6)
    print("/* first, last, 1: may be changed by NFC, alone or after what stands before it */")
    emit("nfc_checked", "unicode_range", ranges(check), 6)
    print("/* code point, first and second part (0: a singleton); Hangul is computed */")
    emit("nfc_decompositions", "unicode_triple", [[c, *d] for c, d in sorted(decompose.items()) if c not in HANGUL], 6)
    print("/* first part, second part, composed */")
    emit("nfc_compositions", "unicode_triple", [[a, b, c] for (a, b), c in sorted(compose.items()) if c not in HANGUL], 6)
    print("/* clang-format on */")


if __name__ == "__main__":
    sys.exit(main())
