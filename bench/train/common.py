"""What the training benchmarks share: the FMA peak, `moe-train check` and `moe-train run`; and all of ../measure.py.
Owns the child processes; ends every child it started. One thread, standard library only."""
import array
import contextlib
import json
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
from measure import *  # noqa: E402,F401,F403
from measure import LIMIT, ROOT, fail, first  # noqa: E402

PRESETS = ROOT / "models" / "presets"


def peak(build, threads):
    """FMA peak, read and write bandwidth of this moment, all threads: {"fma_gflops", "read_gbps", "write_gbps", ...}"""
    out = subprocess.run([build / "bench" / "train" / "bench_peak", "--threads", str(threads)], check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(out.stdout)


# --- moe-train ------------------------------------------------------------------------------------------------------------------

def tokens_file(folder, vocab, count):
    """Uniform random token ids as a nanoGPT shard (uint16). Speed only: there is nothing to learn."""
    r = random.Random(99)
    path = folder / f"tokens-{vocab}.bin"
    array.array("H", (r.randrange(vocab) for _ in range(count))).tofile(path.open("wb"))
    return path


def number(build, config, key, sets=()):
    """A whole number of the configuration, as moe-train reads it."""
    out = subprocess.run([build / "bin" / "moe-train", "run", config, "--print-config", *[w for s in sets for w in ("--set", s)]],
                         stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if out.returncode != 0:
        fail(out.stderr.strip())
    return int(re.search(rf"^ *{key}: (\d+)", out.stdout, re.M).group(1))


def shape(build, config, sets=()):
    """-> (vocab_size, tokens_per_step)"""
    return number(build, config, "vocab_size", sets), number(build, config, "tokens_per_step", sets)


UNITS = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}


def _bytes(number, unit):
    return float(number) * UNITS[unit]


def check(build, config, sets=(), host=None):
    """What `moe-train check` says: memory by name, `full` where something is partly in RAM, GB and GFLOP of each phase, for each way."""
    command = [build / "bin" / "moe-train", "check", config, "--no-measure", *[w for s in sets for w in ("--set", s)]]
    out = subprocess.run([*command, *(["--host-memory", host] if host else [])], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if out.returncode != 0:
        fail(out.stderr.strip())
    plan = {"text": out.stdout, "memory": {}, "full": {}, "disk": 0.0, "ways": {}}
    for name, number, unit, note in re.findall(r"^  (\S.*?) {2,}([\d.]+) (B|[KMGT]iB) {3}(.*)$", out.stdout, re.M):
        plan["memory"].setdefault(name, _bytes(number, unit))
        whole = re.match(r"of ([\d.]+) ([KMGT]?i?B)", note)
        if whole:
            plan["full"][name] = _bytes(*whole.groups())
    disk = out.stdout.partition("\ndisk\n")[2].partition("\n\n")[0]
    plan["disk"] = sum(_bytes(*m) for m in re.findall(r" {2,}([\d.]+) (B|[KMGT]iB)", disk))
    way = None
    for line in out.stdout.splitlines():
        m = re.search(r"every expert touched, (deferred|speculative)", line)
        way = m.group(1) if m else way
        m = re.match(r"  (forward|backward) +read +([\d.]+) GB +write +([\d.]+) GB +activations +([\d.]+) GB +([\d.]+) GFLOP", line)
        if m and way:
            read, write, spill, gflop = (float(x) * 1e9 for x in m.groups()[1:])
            forward = m.group(1) == "forward"
            plan["ways"].setdefault(way, {})[m.group(1)] = {  # activations leave in forward and come back in backward
                "read": read + (0 if forward else spill), "write": write + (spill if forward else 0), "flops": gflop}
    plan["flops"] = sum(p["flops"] for p in plan["ways"]["deferred"].values())
    return plan


def _lines(path):
    try:
        text = path.read_text()
    except OSError:
        return []
    return [json.loads(l) for l in text[: text.rfind("\n") + 1].splitlines()]


def _io_written(pid):
    try:
        return int(first(f"/proc/{pid}/io", r"^write_bytes: (\d+)", "0"))
    except (OSError, ValueError):
        return 0


def _peak_rss(pid):
    return int(first(f"/proc/{pid}/status", r"^VmHWM:\s*(\d+)", "0")) << 10


def _cpu_seconds(pid):
    try:
        fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    except (OSError, IndexError):
        return None


class Trace:
    """Bytes written by a process over time, to tell what a checkpoint wrote: it begins when the line of its step is there, and the next line says
    how long it took."""

    def __init__(self):
        self.at, self.line = [], None

    def sample(self, pid):
        self.at.append((time.time(), _io_written(pid)))

    def arrived(self, lines, mtime):
        """Adds checkpoint_bytes of the checkpoint before each line that had one."""
        for m in lines[:1]:
            if self.line and m.get("checkpoint_seconds"):
                begin = max((w for t, w in self.at if t <= self.line), default=self.at[0][1])
                end = min((w for t, w in self.at if t >= self.line + m["checkpoint_seconds"]), default=self.at[-1][1])
                m["checkpoint_bytes"] = end - begin
        self.at, self.line = [x for x in self.at if x[0] >= mtime - 0.05], mtime


def train(args, config, folder, steps, sets=(), host=None, limit_mib=None, finish=False, trace=False):
    """Runs `steps` steps in a new run folder. -> {"steps": lines of metrics.jsonl with cpu_seconds (of all threads, so far), "peak_rss",
    "limit": {"kind", "peak_mib", "oom_kills"} or None}. finish: to its end, with the checkpoint that is made there; else the process is killed
    after the last step, which costs nothing. trace: lines with checkpoint_bytes, see Trace."""
    run, pid_file, report = folder / "run", folder / "pid", folder / "limit"
    shutil.rmtree(run, ignore_errors=True)
    sets = ["memory.ssd=[store/]", f"run.threads={args.threads}", *sets, f"train.steps={steps if finish else 10**6}"]
    command = ["bash", "-c", 'echo $$ >"$0"; exec "$@"', pid_file, args.build / "bin" / "moe-train", "run", config, "--run-dir", run, "--quiet",
               *[w for s in sets for w in ("--set", s)], *(["--host-memory", host] if host else [])]
    if limit_mib:
        command = [LIMIT, str(limit_mib), *command]
    pid_file.unlink(missing_ok=True)
    log = (folder / "log").open("w+")
    child = subprocess.Popen([str(c) for c in command], stdout=log, stderr=log, env=dict(os.environ, LIMIT_REPORT=str(report)), start_new_session=True)
    try:
        got, rss, pid = _watch(child, run / "metrics.jsonl", pid_file, None if finish else steps, Trace() if trace else None)
        ended = child.poll()
    finally:
        with contextlib.suppress(ProcessLookupError, ValueError, OSError):
            if child.poll() is None:  # limit.sh, where it is there, stays to report and to remove its cgroup
                os.kill(int(pid_file.read_text()), signal.SIGKILL)
        child.wait()
    if len(got) < steps or (ended is not None and not finish) or (finish and ended != 0):
        log.seek(0)
        fail(f"moe-train run ended with {ended} after {len(got)} of {steps} steps: {log.read().strip()[-2000:]}")
    limit = None
    if limit_mib:
        kind, most, kills = report.read_text().split()
        limit = {"kind": kind, "peak_mib": int(most), "oom_kills": int(kills)}
    shutil.rmtree(run, ignore_errors=True)
    return {"steps": got[:steps], "peak_rss": rss, "limit": limit}


def _watch(child, metrics, pid_file, steps, trace):
    """Follows a run until it ends or has done so many steps. -> (lines, peak RSS, pid)"""
    got, rss, pid, seen = [], 0, None, 0
    while True:
        over = child.poll() is not None
        if pid is None and pid_file.exists():
            pid = int(pid_file.read_text() or 0) or None
        if pid and trace:
            trace.sample(pid)
        with contextlib.suppress(OSError):
            stat = metrics.stat()
            if stat.st_size != seen:
                seen = stat.st_size
                rss = max(rss, _peak_rss(pid))
                new = [dict(m, cpu_seconds=_cpu_seconds(pid)) for m in _lines(metrics)[len(got):]]
                if trace:
                    trace.arrived(new, stat.st_mtime)
                got += new
        if over or (steps and len(got) >= steps):
            return got, rss, pid
        time.sleep(0.005 if trace else 0.02)
