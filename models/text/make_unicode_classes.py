#!/usr/bin/env python3
"""Writes unicode_classes.inc: the classes of characters and the mappings that Hugging Face tokenizers use beside NFC.

Its parts have Unicode tables of several ages, so every class and mapping is probed through the part that uses it.

    python3.11 -m pip install tokenizers==0.23.3
    python3.11 models/text/make_unicode_classes.py > models/text/unicode_classes.inc        # about a minute
"""
import base64
import json
import struct
import sys

import tokenizers
from tokenizers import Tokenizer, normalizers, pre_tokenizers

assert tokenizers.__version__ == "0.23.3", tokenizers.__version__

POINTS = [c for c in range(0x110000) if not 0xD800 <= c < 0xE000]
COMPAT_RUN = 16  # items that a search may have to pass over


def charsmap(table):
    """precompiled_charsmap of {text: replacement}: a Darts double array and the replacements."""
    blob, tree = b"", {}
    for key, value in table.items():
        node = tree
        for b in key.encode():
            node = node.setdefault(b, {})
        node[0] = len(blob)
        blob += value.encode() + b"\0"
    units, used, bases, first = [0] * 256, {0}, set(), 1
    pending = [(tree, 0)]
    while pending:
        node, at = pending.pop()
        base = first
        while any((base ^ label) in used for label in node) or base in bases:
            base += 1
        bases.add(base)
        while max(base, first) + 256 > len(units):
            units += [0] * 256
        offset = at ^ base
        assert offset < 1 << 21
        units[at] |= offset << 10 | (0 in node) << 8
        for label in node:
            used.add(base ^ label)
        for label, child in node.items():
            if label == 0:
                units[base] = 1 << 31 | child
            else:
                units[base ^ label] |= label
                pending.append((child, base ^ label))
        while first in used:
            first += 1
    return struct.pack("<I", 4 * len(units)) + struct.pack(f"<{len(units)}I", *units) + blob


def precompiled(table):
    data = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "pre_tokenizer": None, "post_processor": None, "decoder": None,
            "normalizer": {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(charsmap(table)).decode()},
            "model": {"type": "WordLevel", "vocab": {"x": 0}, "unk_token": "x"}}
    return Tokenizer.from_str(json.dumps(data)).normalizer.normalize_str


def ranges(points, value=None):
    out = []
    for c in sorted(points):
        v = value(c) if value else 1
        if out and out[-1][1] == c - 1 and out[-1][2] == v:
            out[-1][1] = c
        else:
            out.append([c, c, v])
    return out


def emit(name, rows, comment, columns):
    print(f"/* {comment} */\nstatic const {'unicode_range' if columns == 3 else 'unicode_span'} {name}[] = {{")
    for i in range(0, len(rows), 7):
        print("    " + " ".join("{" + ", ".join(f"0x{x:X}" for x in r[:columns]) + "}," for r in rows[i:i + 7]))
    print("};")


def emit_compat():
    nfd, nfkd = normalizers.NFD().normalize_str, normalizers.NFKD().normalize_str
    full = {c: nfkd(chr(c)) for c in POINTS if nfkd(chr(c)) != nfd(chr(c))}
    rows, pool = [], ""
    for c, text in full.items():
        if rows and rows[-1][1] == c - 1 and c - rows[-1][0] < COMPAT_RUN:
            rows[-1][1] = c
        else:
            rows.append([c, c, len(pool.encode())])
        pool += text + "\n"
    assert "\n" not in "".join(full.values())
    emit("compat_ranges", rows, "first, last, where in compat_texts the text of the first begins (a line each): full compatibility decompositions", 3)
    print("static const char compat_texts[] =")
    escaped = pool.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("?", "\\?")
    at = 0
    while at < len(escaped):
        end = min(at + 100, len(escaped))
        while escaped[end - 1] == "\\" or (end < len(escaped) and escaped[end - 1:end + 1] in ("\\n", '\\"', "\\\\", "\\?")):
            end += 1
        print('    "' + escaped[at:end] + '"' + (";" if end == len(escaped) else ""))
        at = end


def main():
    bert = normalizers.BertNormalizer
    clean = bert(clean_text=True, handle_chinese_chars=False, strip_accents=False, lowercase=False).normalize_str
    strip = bert(clean_text=False, handle_chinese_chars=False, strip_accents=True, lowercase=False).normalize_str
    nfd, marks, lower = normalizers.NFD().normalize_str, normalizers.StripAccents().normalize_str, normalizers.Lowercase().normalize_str
    words, punctuation = pre_tokenizers.Whitespace().pre_tokenize_str, pre_tokenizers.Punctuation("removed").pre_tokenize_str
    digits = pre_tokenizers.Digits(individual_digits=True).pre_tokenize_str
    chars = [(c, chr(c)) for c in POINTS]
    print("/* Made by make_unicode_classes.py (tokenizers", tokenizers.__version__ + "); do not edit. */")
    print("/* clang-format off */")
    emit("control_spans", ranges(c for c, s in chars if clean(s) == "" and c != 0xFFFD and c != 0), "BertNormalizer: control characters", 2)
    emit("nonspacing_spans", ranges(c for c, s in chars if nfd(s) == s and strip(s) == ""), "BertNormalizer: marks without width", 2)
    emit("mark_spans", ranges(c for c, s in chars if marks(s) == ""), "StripAccents: marks", 2)
    emit("punctuation_spans", ranges(c for c, s in chars if not punctuation(s)), "Punctuation, BertPreTokenizer", 2)
    emit("word_spans", ranges(c for c, s in chars if len(words("_" + s)) == 1 and words("_" + s)[0][0] == "_" + s), "Whitespace, single_word: \\w", 2)
    emit("numeric_spans", ranges(c for c, s in chars if len(digits("a" + s)) == 2), "Digits", 2)
    lowered = {c: ord(lower(s)) for c, s in chars if lower(s) != s and c != 0x130}
    assert lower("\u0130") == "i\u0307"
    rows = []
    for c, v in sorted(lowered.items()):  # value: bit 31: every second one of the range
        last = rows[-1] if rows else None
        if last and v - c == last[2] and c - last[1] in (1, 2) and last[3] in (0, c - last[1]):
            last[1], last[3] = c, c - last[1]
        else:
            rows.append([c, c, v - c, 0])
    emit("lower_ranges", [[a, b, (d & 0x7FFFFFFF) | (0x80000000 if step == 2 else 0)] for a, b, d, step in rows],
         "first, last, what is added for lower case (31 bits); bit 31: every second code point. U+0130 has two", 3)
    first, pair, zwj = precompiled({"b": "B"}), precompiled({"b\u0301": "X"}), precompiled({"\u00a9": "C"})
    emit("extend_spans", ranges(c for c, s in chars if first("b" + s) == "B"), "characters that go with the one before them (grapheme clusters)", 2)
    emit("prepend_spans", ranges(c for c, s in chars if "X" not in pair(s + "b\u0301")), "characters that go with the one behind them", 2)
    emit("pictograph_spans", ranges(c for c, s in chars if zwj("\u00a9\u200d" + s).startswith("C\u200d") and first("b" + s) != "B"), "pictographs, which ZWJ joins", 2)
    emit_compat()
    print("/* clang-format on */")


if __name__ == "__main__":
    sys.exit(main())
