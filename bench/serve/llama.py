"""llama-server as the peer: started with or without a memory limit, driven over loopback with token ids, ended whatever happens.
Owns the process and the drive's read-ahead while a limit holds. One asyncio loop for each request round, standard library only.
Rule: prompts are those of `moe-serve bench` (engine/serve/commands.h), token for token."""
import asyncio
import contextlib
import json
import os
import pathlib
import signal
import subprocess
import time

import measure as c

PORT = 18765
VOCABULARY = 50304  # of the models that peers/make_models.py makes
MASK = (1 << 64) - 1


def prompt(seed, number, count, vocabulary):
    """Tokens of prompt `number`, as engine/serve/command_bench.c makes them."""
    def token(i):
        x = ((seed << 48 | number << 24 | i) + 1) * 0x9E3779B97F4A7C15 & MASK
        x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & MASK
        x = (x ^ x >> 27) * 0x94D049BB133111EB & MASK
        return (x ^ x >> 31) % vocabulary
    return [token(i) for i in range(count)]


@contextlib.contextmanager
def read_ahead(path, kib):
    """read_ahead_kb of the drive that holds `path`; put back at the end. Without the right to change it: as it is."""
    device = os.stat(path).st_dev
    block = pathlib.Path(os.path.realpath(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}"))
    file = next((p / "queue/read_ahead_kb" for p in (block, block.parent) if (p / "queue/read_ahead_kb").exists()), None)
    if kib is None or file is None or not os.access(file, os.W_OK):
        yield
        return
    before = file.read_text()
    file.write_text(str(kib))
    try:
        yield
    finally:
        file.write_text(before)


class Server:
    """One llama-server. limit_mib: of the whole process, page cache included."""

    def __init__(self, llama, model, folder, threads, parallel, context, words, limit_mib=None):
        self.vocabulary = VOCABULARY
        self.report = folder / "llama-limit"
        command = [str(llama / "build/bin/llama-server"), "-m", str(model), "-t", str(threads), "-tb", str(threads), "-np", str(parallel),
                   "-c", str(context), "--host", "127.0.0.1", "--port", str(PORT), "--no-warmup", "--cache-ram", "0", *words]
        if limit_mib:
            command = [str(c.LIMIT), str(limit_mib), *command]
        self.log = (folder / "llama.log").open("w+")
        began = time.monotonic()
        self.child = subprocess.Popen(command, stdout=self.log, stderr=self.log, env=dict(os.environ, LIMIT_REPORT=str(self.report)),
                                      start_new_session=True)
        self.ready = self._wait() and time.monotonic() - began

    def _wait(self):
        while self.child.poll() is None:
            with contextlib.suppress(OSError):
                if b" 200 " in asyncio.run(_get("/health")):
                    return True
            time.sleep(0.05)
        return False

    def generate(self, prompts, count, cap=60.0):
        """All prompts at once, `count` greedy tokens each, cut off `cap` seconds after a prompt's first token.
        -> {"decode": tokens/s while all of them decode, "prefill": tokens/s of the first prompt up to its first token, "tokens": got}"""
        got = asyncio.run(self._together(prompts, count, cap))
        first, last = max(t[0] for t in got), min(t[-1] for t in got)
        n = sum(first < x <= last for t in got for x in t)
        return {"decode": n / (last - first) if last > first else None, "prefill": len(prompts[0]) / got[0][0], "tokens": n}

    async def _together(self, prompts, count, cap):
        return await asyncio.gather(*[self._one(p, count, cap) for p in prompts])

    async def _one(self, tokens, count, cap):
        """Seconds after the request at which each token came."""
        body = json.dumps({"prompt": tokens, "n_predict": count, "temperature": 0, "ignore_eos": True, "cache_prompt": False, "stream": True,
                           "return_tokens": True}).encode()
        began, times = time.monotonic(), []
        reader, writer = await asyncio.open_connection("127.0.0.1", PORT, limit=1 << 24)
        writer.write(b"POST /completion HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
                     % len(body) + body)
        while len(times) < count:
            try:  # the first token is always waited for
                line = await asyncio.wait_for(reader.readline(), max(cap - (time.monotonic() - began - times[0]), 0.01) if times else None)
            except asyncio.TimeoutError:
                break
            if not line:
                break
            if line.startswith(b"data: "):
                event = json.loads(line[6:])
                times += [time.monotonic() - began] * len(event.get("tokens", []))
                if event.get("stop"):  # a token that is part of a character is not told before
                    times = times or [time.monotonic() - began]
                    break
        writer.close()
        if not times:
            self.log.flush()
            c.fail(f"llama-server answered with no token: {pathlib.Path(self.log.name).read_text()[-1500:]}")
        return times

    @contextlib.contextmanager
    def asleep(self):
        """Stopped while the other one is measured."""
        os.killpg(self.child.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.killpg(self.child.pid, signal.SIGCONT)

    def close(self):
        """-> {"peak_mib", "oom_kills"} of a limited one, else None"""
        if self.child.poll() is None:
            for line in subprocess.run(["ps", "-o", "pid=,comm=", "-g", str(self.child.pid)], stdout=subprocess.PIPE, text=True).stdout.splitlines():
                pid, name = line.split(None, 1)
                if name.startswith("llama-server"):
                    os.kill(int(pid), signal.SIGKILL)
            self.child.wait()
        self.log.close()
        with contextlib.suppress(OSError, ValueError):
            kind, peak, kills = self.report.read_text().split()
            return {"kind": kind, "peak_mib": int(peak), "oom_kills": int(kills)}


async def _get(path):
    reader, writer = await asyncio.open_connection("127.0.0.1", PORT)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    answer = await reader.read(-1)
    writer.close()
    return answer
