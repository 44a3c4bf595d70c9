#!/usr/bin/env python3
"""Draws what a moe-train run did: loss, throughput, tier traffic and the load of the experts.

Reads RUN_DIR/metrics.jsonl and RUN_DIR/experts.bin, writes RUN_DIR/plots/{loss,throughput,tiers,experts}.png. Works without a display and
while the run goes on. Needs matplotlib (Debian: python3-matplotlib).
"""
import argparse
import json
import os
import struct
import sys

EX_DATA, EX_NOINPUT, EX_UNAVAILABLE, EX_CANTCREAT = 65, 66, 69, 73

BLUE, ORANGE, GREEN, RED, GRAY = "#2f6fb0", "#d9822b", "#3a8f5c", "#b8403a", "#8a8a8a"


def fail(code, sentence):
    print(f"plot.py: {sentence}", file=sys.stderr)
    sys.exit(code)


def import_matplotlib():
    try:
        import matplotlib
        matplotlib.use("Agg")
        import matplotlib.pyplot as plt
        import numpy as np
    except ImportError as e:
        fail(EX_UNAVAILABLE, f"{e}; install matplotlib (apt install python3-matplotlib, or pip install matplotlib)")
    plt.rcParams.update({
        "figure.dpi": 120, "font.size": 10, "axes.titlesize": 11, "axes.titleweight": "bold", "axes.titlelocation": "left",
        "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": "#e6e6e6", "axes.axisbelow": True,
        "lines.linewidth": 1.6, "legend.frameon": False, "savefig.bbox": "tight",
    })
    return plt, np


# --- reading ---------------------------------------------------------------------------------------------------------------

def read_metrics(path):
    """The steps of metrics.jsonl. A torn last line is left out: the run may be writing it."""
    try:
        with open(path, encoding="utf-8", errors="replace") as f:
            lines = f.read().split("\n")
    except OSError as e:
        fail(EX_NOINPUT, f"{path}: {e.strerror}; expected the folder of a moe-train run")
    steps = []
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        try:
            step = json.loads(line)
            step["step"]
        except (ValueError, KeyError, TypeError):
            if number < len(lines):
                fail(EX_DATA, f"{path}:{number}: expected a JSON object with a \"step\"")
            continue
        steps.append(step)
    if not steps:
        fail(EX_DATA, f"{path}: no steps yet")
    return steps


def read_experts(path, np):
    """(steps [n], rows [n, layers, experts]), or None without the file. engine/report/files.h has the format."""
    try:
        with open(path, "rb") as f:
            data = f.read()
    except OSError:
        return None
    if len(data) < 32:
        return None
    magic, layers, experts = struct.unpack_from("<8sII", data)
    if magic != b"MOEROWS1" or layers == 0 or experts == 0:
        fail(EX_DATA, f"{path}: expected a file that begins with MOEROWS1")
    record = np.dtype([("step", "<u8"), ("rows", "<u4", (layers, experts))])
    n = (len(data) - 32) // record.itemsize
    table = np.frombuffer(data, record, count=n, offset=32)
    return (table["step"].astype(np.int64), table["rows"]) if n else None


class Run:
    def __init__(self, folder, np):
        self.np = np
        self.name = os.path.basename(os.path.abspath(folder))
        self.steps = read_metrics(os.path.join(folder, "metrics.jsonl"))
        self.experts = read_experts(os.path.join(folder, "experts.bin"), np)
        self.x = self.column("step")

    def column(self, key):
        """One value a step; NaN where it was not measured."""
        return self.np.array([s[key] if isinstance(s.get(key), (int, float)) else self.np.nan for s in self.steps], dtype=float)

    def has(self, key):
        return bool(self.np.isfinite(self.column(key)).any())


def smooth(np, y, window):
    """Mean over `window` steps around each; narrower at the beginning, where curves are steep, one-sided at the end. Steps without a value
    do not count."""
    if window <= 1 or len(y) < 3:
        return y
    good = np.isfinite(y)
    total = np.concatenate([[0], np.cumsum(np.where(good, y, 0))])
    count = np.concatenate([[0], np.cumsum(good)])
    i, half = np.arange(len(y)), window // 2
    reach = np.minimum(half, i)
    lo, hi = i - reach, np.minimum(i + reach + 1, len(y))
    with np.errstate(invalid="ignore", divide="ignore"):
        return (total[hi] - total[lo]) / (count[hi] - count[lo])


# --- drawing ---------------------------------------------------------------------------------------------------------------

def curve(run, ax, key, color, label, window, scale=1.0):
    """Raw values faint, their mean over `window` steps on top."""
    y = run.column(key) * scale
    soft = smooth(run.np, y, window)
    few = len(y) < 3
    if window > 1 and not few:
        ax.plot(run.x, y, color=color, alpha=0.25, linewidth=0.9)
    ax.plot(run.x, soft, color=color, label=label, marker="o" if few else None)


def finish(ax, title, unit=None, legend=True):
    ax.set_title(title)
    if unit:
        ax.set_ylabel(unit)
    if legend and ax.get_legend_handles_labels()[1]:  # on the line of the title, where no curve runs
        ax.legend(loc="lower right", bbox_to_anchor=(1, 0.97), ncols=6, fontsize=9, columnspacing=1.2, handlelength=1.4)
    ax.margins(x=0.01)


def from_zero(ax):
    """The axis begins at 0, with some air above the highest value."""
    top = ax.get_ylim()[1]
    ax.set_ylim(0, top * 1.1 if top > 0 else 1)


def draw_loss(run, plt, window):
    fig, (top, bottom) = plt.subplots(2, 1, figsize=(9, 6.2), height_ratios=[4, 1], sharex=True)
    np = run.np
    curve(run, top, "loss", BLUE, "training", window)
    val = run.column("val_loss")
    good = np.isfinite(val)
    if good.any():
        top.plot(run.x[good], val[good], color=ORANGE, marker="o", markersize=4, label="held out")
        top.annotate(f"{val[good][-1]:.3f}", (run.x[good][-1], val[good][-1]), textcoords="offset points", xytext=(0, 7), ha="right", color=ORANGE)
    losses = run.column("loss")
    losses = losses[np.isfinite(losses)]
    if len(losses) > 20:  # the first steps would flatten the rest
        low = min(losses.min(), val[good].min() if good.any() else losses.min())
        top.set_ylim(low - 0.05 * (losses[0] - low), losses[0] + 0.05 * (losses[0] - low))
    finish(top, f"{run.name}: cross-entropy", "nats per token")
    bottom.plot(run.x, run.column("lr"), color=GRAY)
    from_zero(bottom)
    bottom.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    finish(bottom, "learning rate", legend=False)
    bottom.set_xlabel("step")
    return fig


def draw_throughput(run, plt, window):
    np = run.np
    fig, (top, middle, bottom) = plt.subplots(3, 1, figsize=(9, 8), sharex=True, height_ratios=[3, 2, 3])
    curve(run, top, "tokens_per_second", BLUE, None, window)
    median = np.nanmedian(run.column("tokens_per_second")) if run.has("tokens_per_second") else np.nan
    if np.isfinite(median):
        top.axhline(median, color=GRAY, linestyle="--", linewidth=1)
        top.annotate(f"median {median:,.0f}", (1, median), xycoords=("axes fraction", "data"), textcoords="offset points", xytext=(-2, 4),
                     ha="right", color="#555555", fontsize=9)
    from_zero(top)
    finish(top, f"{run.name}: throughput", "tokens / s", legend=False)
    curve(run, middle, "gflops_per_second", GREEN, None, window)
    from_zero(middle)
    finish(middle, "arithmetic", "GFLOP / s", legend=False)
    parts = [(k, n, c) for k, n, c in (("forward_seconds", "forward", BLUE), ("backward_seconds", "backward", GREEN),
                                       ("update_seconds", "update", ORANGE), ("checkpoint_seconds", "checkpoint", RED),
                                       ("eval_seconds", "evaluation", GRAY)) if run.has(k)]
    if parts:
        values = [np.nan_to_num(run.column(k)) for k, _, _ in parts]
        bottom.stackplot(run.x, values, labels=[n for _, n, _ in parts], colors=[c for _, _, c in parts], alpha=0.75, linewidth=0)
    if run.has("stall_seconds"):
        bottom.plot(run.x, smooth(np, run.column("stall_seconds"), window), color="black", linewidth=1.2, label="waiting for SSD")
    total = sum(values) if parts else run.column("seconds")
    if len(total) > 20:  # a checkpoint or an evaluation may stick out; the steps are what is looked at
        bottom.set_ylim(0, 1.25 * np.nanpercentile(total, 95))
    else:
        from_zero(bottom)
    finish(bottom, "time of a step", "seconds")
    bottom.set_xlabel("step")
    return fig


def draw_tiers(run, plt, window):
    np = run.np
    fig, (top, middle, bottom) = plt.subplots(3, 1, figsize=(9, 8), sharex=True, height_ratios=[3, 2, 2])
    scale, unit = (1e-9, "GB") if max(np.nanmax(run.column(k), initial=0) for k in ("ssd_read_bytes", "ssd_write_bytes")) >= 1e8 else (1e-6, "MB")
    curve(run, top, "ssd_read_bytes", BLUE, "read", window, scale)
    curve(run, top, "ssd_write_bytes", ORANGE, "written", window, scale)
    curve(run, top, "ssd_read_wasted_bytes", RED, "read for nothing", window, scale)
    from_zero(top)
    finish(top, f"{run.name}: SSD traffic", f"{unit} per step")
    if run.has("cache_hit_rate"):
        curve(run, middle, "cache_hit_rate", GREEN, "found in RAM", window, 100)
    if run.has("stall_seconds") and run.has("seconds"):
        with np.errstate(invalid="ignore", divide="ignore"):
            share = run.column("stall_seconds") / run.column("seconds") * 100
        middle.plot(run.x, smooth(np, share, window), color="black", label="of the step waiting for SSD")
    middle.set_ylim(0, 105)
    finish(middle, "hits and stalls", "%")
    large = np.nanmax(run.column("rss_bytes"), initial=0) >= 2.0 ** 29
    curve(run, bottom, "rss_bytes", GRAY, None, 1, 2.0 ** -30 if large else 2.0 ** -20)
    from_zero(bottom)
    finish(bottom, "resident memory", "GiB" if large else "MiB", legend=False)
    bottom.set_xlabel("step")
    return fig


def bins_of(np, steps, rows, most=400):
    """Neighbouring steps added up so that at most `most` columns remain: (edges, rows per bin)."""
    per = max(1, -(-len(steps) // most))
    starts = np.arange(0, len(steps), per)
    edges = np.append(steps[starts], steps[-1] + 1)
    return edges, np.add.reduceat(rows.astype(np.float64), starts, axis=0)


def draw_experts(run, plt):
    np = run.np
    if run.experts is None:
        return None
    steps, rows = run.experts
    edges, total = bins_of(np, steps, rows)
    _, layers, experts = total.shape
    with np.errstate(invalid="ignore", divide="ignore"):
        load = total / total.mean(axis=2, keepdims=True)
        image = np.log2(np.clip(load, 2.0 ** -3, 2.0 ** 3)).reshape(len(total), layers * experts).T
    height = min(11, 3.2 + 0.02 * layers * experts + 0.12 * layers)
    fig, (top, bottom) = plt.subplots(2, 1, figsize=(9, height), sharex=True, height_ratios=[max(3, height - 2.4), 1.4], layout="constrained")
    mesh = top.pcolormesh(edges, np.arange(layers * experts + 1), image, cmap="RdBu_r", vmin=-3, vmax=3, rasterized=True)
    top.grid(False)
    for l in range(1, layers):
        top.axhline(l * experts, color="black", linewidth=0.6)
    shown = range(0, layers, max(1, -(-layers // 24)))
    top.set_yticks([l * experts + experts / 2 for l in shown], [str(l) for l in shown])
    top.tick_params(axis="y", length=0)
    top.invert_yaxis()
    top.set_ylabel(f"MoE layer ({experts} experts each)")
    top.set_title(f"{run.name}: rows routed to each expert, against the layer's mean")
    bar = fig.colorbar(mesh, ax=top, ticks=[-3, -2, -1, 0, 1, 2, 3], pad=0.01, fraction=0.04)
    bar.ax.set_yticklabels(["≤ 1/8", "1/4", "1/2", "mean", "2 ×", "4 ×", "≥ 8 ×"])
    bar.outline.set_visible(False)
    bottom.plot(run.x, run.column("expert_load_max_over_mean"), color=RED)
    bottom.axhline(1, color=GRAY, linestyle="--", linewidth=1)
    from_zero(bottom)
    finish(bottom, "busiest expert over the mean", legend=False)
    bottom.set_xlabel("step")
    return fig


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0], epilog="Exit codes: 65 damaged file, 66 no such run, 69 no matplotlib, 73 cannot write.")
    p.add_argument("run_dir", metavar="RUN_DIR", help="folder of a moe-train run (it holds metrics.jsonl)")
    p.add_argument("--out", metavar="DIR", help="where the pictures go (default: RUN_DIR/plots)")
    p.add_argument("--smooth", metavar="N", type=int, help="steps of the moving mean (default: a fiftieth of the run; 1: none)")
    p.add_argument("--format", choices=["png", "svg", "pdf"], default="png", help="of the pictures (default: png)")
    a = p.parse_args()
    if not os.path.isdir(a.run_dir):
        fail(EX_NOINPUT, f"{a.run_dir}: no such folder")
    plt, np = import_matplotlib()
    run = Run(a.run_dir, np)
    window = a.smooth if a.smooth is not None else max(1, len(run.steps) // 50)
    out = a.out or os.path.join(a.run_dir, "plots")
    try:
        os.makedirs(out, exist_ok=True)
        for name, fig in (("loss", draw_loss(run, plt, window)), ("throughput", draw_throughput(run, plt, window)),
                          ("tiers", draw_tiers(run, plt, window)), ("experts", draw_experts(run, plt))):
            if fig is None:
                continue
            path = os.path.join(out, f"{name}.{a.format}")
            fig.align_ylabels()
            fig.axes[0].xaxis.set_major_locator(plt.MaxNLocator(integer=True))
            fig.savefig(path)
            plt.close(fig)
            print(path)
    except OSError as e:
        fail(EX_CANTCREAT, f"cannot write the pictures: {e}")


if __name__ == "__main__":
    main()
