#!/usr/bin/env python3
"""Brings the results of all benchmarks into one form and one table.

    results.py kernels FILE    what bench_kernels --json wrote      -> bench/results/kernels.json
    results.py store FILE      what bench/store/fio.sh printed      -> bench/results/store.json
    results.py learning FILE   what bench/loss_curve.py wrote       -> bench/results/learning.json
    results.py table           bench/results/*.json -> bench/results/table.md, and to the terminal

Owns bench/results. Rule: raw samples stay in the JSON files; the table only repeats what they say."""
import argparse
import json
import pathlib
import re

import measure as c

ORDER = ("peers", "peers-tiny", "peers-small", "peers-fine", "limit-small", "limit-big", "kernels", "store", "checkpoint", "size", "learning",
         "serve-olmoe", "serve-qwen3moe", "serve-smollm2")
EXPERT_PRODUCTS = ("forward", "dx", "dw")


def kernels(text):
    """The worst and the median of the shapes of the presets' experts, for each number of rows and each product."""
    cases = [json.loads(line) for line in text.splitlines()]
    expert = [x for x in cases if x["case"].split()[-1] in ("up", "down")]
    rows = []
    for n in (8, 64, 512):
        for product in EXPERT_PRODUCTS:
            got = {x["case"]: x["percent"] for x in expert if x["rows"] == n and x["product"] == product}
            if got:
                worst = min(got, key=got.get)
                rows.append(c.row(f"expert product, {product}, {n} rows: worst shape", got[worst], "% of limit", ">= 80 %", got[worst] >= 80,
                                  f"{worst}; median of {len(got)} shapes {c.median(got.values()):.0f} %"))
    return rows, cases


def store(text):
    """Medians over the rounds of fio.sh."""
    x = r"([\d.]+)"
    form = re.compile(rf"^(\w+) +store {x} GB/s \(CPU {x} s/GB, checksums {x}\) +fio {x} GB/s \(CPU {x} s/GB\)", re.M)
    samples = [dict(zip(("mix", "store", "cpu", "checksums", "fio", "fio_cpu"), (m[0], *map(float, m[1:])))) for m in form.findall(text)]
    if not samples:
        c.fail("nothing that looks like the output of bench/store/fio.sh")
    rows = []
    for mix in dict.fromkeys(s["mix"] for s in samples):
        mine = [s for s in samples if s["mix"] == mix]
        ratio, cpu = c.median(s["store"] / s["fio"] for s in mine), c.median(s["cpu"] for s in mine)
        rows += [c.row(f"store, {mix} mix / fio", ratio * 100, "%", ">= 90 %", ratio >= 0.9,
                       f"store {c.median(s['store'] for s in mine):.2f}, fio {c.median(s['fio'] for s in mine):.2f} GB/s"),
                 c.row("    processor", cpu * 100, "% core s/GB", "<= 5 %", cpu <= 0.05,
                       f"checksums apart: {c.median(s['checksums'] for s in mine) * 100:.1f} %, "
                       f"fio {c.median(s['fio_cpu'] for s in mine) * 100:.1f} %")]
    return rows, samples


def learning(text):
    r = json.loads(text)
    gap = abs(r["difference"])
    return [c.row("tiny, final loss: moe-train - PyTorch", r["difference"], "nats", "within 0.02", gap <= 0.02, "")], r


def table():
    found = {p.stem: json.loads(p.read_text()) for p in sorted(c.RESULTS.glob("*.json"))}
    lines = ["| measure | figure | to reach | | how |", "|---|--:|---|---|---|"]
    for name in sorted(found, key=lambda n: (ORDER.index(n) if n in ORDER else len(ORDER), n)):
        r = found[name]
        c.print_rows(r["rows"])
        for x in r["rows"]:
            value = f"{x['value']:.4g}" if isinstance(x["value"], float) else x["value"]
            mark = {True: "reached", False: "**not reached**", None: ""}[x["reached"]]
            target = x["target"].replace("<=", "≤").replace(">=", "≥")
            lines.append(f"| {x['measure'].strip()} | {value} {x['unit']} | {target} | {mark} | {x['note']} |")
    head = ["# Results", ""]
    for name, r in found.items():
        m = r["machine"]
        head.append(f"- `{name}.json`: `{r['command']}`, {r['when']}, commit {r['commit']}; {m['cpu']} ({', '.join(m['isa'])}), "
                    f"{m['cpus']} processors, {m['ram_gib']} GiB, Linux {m['kernel']}, load before {m['load']:.1f}")
    (c.RESULTS / "table.md").write_text("\n".join([*head, "", *lines]) + "\n")
    c.say(f"written to {c.RESULTS / 'table.md'}")


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("what", choices=["kernels", "store", "learning", "table"])
    a.add_argument("file", nargs="?", type=pathlib.Path)
    a.add_argument("--command", default="", help="how FILE was made, to be kept in the result")
    args = a.parse_args()
    if args.what == "table":
        return table()
    if args.file is None:
        a.error("FILE is missing")
    rows, samples = {"kernels": kernels, "store": store, "learning": learning}[args.what](args.file.read_text())
    c.save(c.RESULTS / f"{args.what}.json", args.what, args.command, c.machine(), {}, rows, samples)


if __name__ == "__main__":
    main()
