#!/usr/bin/env python3
"""Does a token cost the same when the model grows? 16, 64 and 256 experts a layer at the same active size and the same rows an expert.

    size.py BUILD [--experts 16,64,256]

A step grows with the number of experts, so that each gets --rows rows. The memory limit holds everything but expert states, of which it holds
the share --keep: the rest streams from the drive and back in every step. Time per token should be flat within 10 % while that is hidden behind
the computation; a drive that is too slow for it shows in the stalls (use more --rows). The router's own work grows with the number of experts;
the table says how much of the growth it is."""
import json

import common as c

SEQ, MICRO = 512, 2048  # tokens


def config(folder, args, experts):
    """-> (path, tokens of a step)"""
    tokens = args.rows * experts // args.top_k
    if tokens % MICRO:
        c.fail(f"{experts} experts with {args.rows} rows make {tokens} tokens a step; expected a multiple of {MICRO}")
    path = folder / f"experts-{experts}.yaml"
    path.write_text(json.dumps({
        "model": {"model_type": "qwen3_moe", "vocab_size": 512, "hidden_size": args.hidden, "num_hidden_layers": args.layers,
                  "num_attention_heads": args.hidden // 64, "num_key_value_heads": args.hidden // 64, "head_dim": 64,
                  "moe_intermediate_size": args.width, "num_experts": experts, "num_experts_per_tok": args.top_k, "norm_topk_prob": True,
                  "max_position_embeddings": SEQ, "router_aux_loss_coef": 0.01},
        "data": {"path": str(folder / "tokens-512.bin")},
        "train": {"steps": 100, "seq_len": SEQ, "tokens_per_step": tokens, "micro_batch_tokens": MICRO, "seed": 1},
        "optimizer": {"lr": 3e-4, "clip_norm": 1.0, "update": args.update},
    }))
    return path, tokens


def limit_of(args, path):
    """-> (memory.host, check's words): everything in RAM but all of the expert states, of which --keep."""
    plan = c.check(args.build, path, host="1TiB")
    m = plan["memory"]
    need = m["together"] - (1 - args.keep) * m["expert slots"]
    host = f"{int(need / 0.95 / 2**20) + 24}MiB"
    plan = c.check(args.build, path, ["memory.ssd=[store/]"], host)
    if "groups of" in plan["text"] or plan["memory"]["activations"] < 0.99 * plan["full"]["activations"]:
        c.fail(f"{host} does not hold the activations:\n{plan['text']}")
    if need > 0.9 * c.available_bytes():
        c.fail(f"{host} is needed and this machine has {c.available_bytes() / 2**30:.1f} GiB; use fewer --rows or --experts")
    return host, plan


def measure(args, folder):
    sizes = [int(x) for x in args.experts.split(",")]
    made = {e: config(folder, args, e) for e in sizes}
    c.tokens_file(folder, 512, max(t for _, t in made.values()) * 2 + 1)
    limits = {e: limit_of(args, made[e][0]) for e in sizes}
    s = {"sizes": {e: {"tokens_per_step": made[e][1], "host": limits[e][0], "flops": limits[e][1]["flops"], "plan": limits[e][1]["text"],
                       "steps": []} for e in sizes}, "peak": []}
    for r in range(args.rounds):
        s["peak"].append(c.peak(args.build, args.threads))
        for e in sizes:
            got = c.train(args, made[e][0], folder, args.warmup + args.steps, host=limits[e][0])["steps"]
            s["sizes"][e]["steps"] += [dict(b, cpu=b["cpu_seconds"] - a["cpu_seconds"]) for a, b in zip(got, got[1:])][args.warmup - 1:]
            c.say(f"round {r + 1} {e:>4} experts in {limits[e][0]}: {' '.join('%.2f' % m['seconds'] for m in got)} s")
    return s


def judge(s):
    per_token, stall, rows = {}, {}, []
    for e, x in s["sizes"].items():
        per_token[e] = c.median(m["seconds"] for m in x["steps"]) / x["tokens_per_step"]
        stall[e] = c.median(m["stall_seconds"] / m["seconds"] for m in x["steps"])
        moved = c.median(m["ssd_read_bytes"] + m["ssd_write_bytes"] for m in x["steps"])
        cpu = c.median(m["cpu"] for m in x["steps"]) / x["tokens_per_step"]
        mflop, kilobytes = x["flops"] / x["tokens_per_step"] / 1e6, moved / x["tokens_per_step"] / 1e3
        rows.append(c.row(f"{e} experts a layer: time per token", per_token[e] * 1e6, "us", "", None,
                          f"{cpu * 1e6:.1f} us of processor time, stalled {stall[e] * 100:.1f} %, {mflop:.2f} MFLOP and {kilobytes:.1f} KB of "
                          f"SSD traffic a token, memory {x['host']}"))
    low, high = min(per_token, key=per_token.get), max(per_token, key=per_token.get)
    spread = (per_token[high] / per_token[low] - 1) * 100
    flops = [x["flops"] / x["tokens_per_step"] for x in s["sizes"].values()]
    hidden = max(stall.values()) <= 0.05
    rows.append(c.row("time per token, most over least", spread, "%", "<= 10 % while hidden", True if spread <= 10 else False if hidden else None,
                      f"flops a token grow by {(max(flops) / min(flops) - 1) * 100:.1f} % (router); " +
                      ("hidden: no size stalls above 5 %" if hidden else "NOT hidden: the drive is too slow here, see the stalls")))
    return rows


def main():
    a = c.parser(__doc__, 2)
    a.add_argument("--experts", default="16,64,256", help="experts a layer (default 16,64,256)")
    a.add_argument("--rows", type=int, default=1536, help="rows of an expert in a step (default 1536)")
    a.add_argument("--keep", type=float, default=0.5, help="share of the expert states that stays in RAM (default 0.5)")
    a.add_argument("--hidden", type=int, default=512, help="hidden_size, a multiple of 64 (default 512)")
    a.add_argument("--width", type=int, default=512, help="moe_intermediate_size (default 512)")
    a.add_argument("--layers", type=int, default=2, help="num_hidden_layers (default 2)")
    a.add_argument("--top-k", type=int, default=4, help="num_experts_per_tok (default 4)")
    a.add_argument("--update", choices=["auto", "deferred", "speculative"], default="deferred", help="optimizer.update (default deferred)")
    a.add_argument("--warmup", type=int, default=3, help="steps before it counts, at least 1 (default 3)")
    a.add_argument("--steps", type=int, default=2, help="timed steps of a turn (default 2)")
    args = c.parse(a)
    args.warmup = max(1, args.warmup)
    with c.scratch(args) as folder:
        s = measure(args, folder)
    c.write_result(args, "size", judge(s), s, experts=args.experts, rows_of_an_expert=args.rows, keep=args.keep)


if __name__ == "__main__":
    main()
