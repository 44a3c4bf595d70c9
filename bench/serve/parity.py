#!/usr/bin/env python3
"""Logits of moe-serve beside llama.cpp's, of the same GGUF files and tokens; no figure of speed.

    parity.py BUILD --llama DIR [--models smollm2,tiny-olmoe,...] [--tokens 64]

DIR is what peers/setup.sh made, with numpy in its venv: run this with DIR/venv/bin/python. llama.cpp's two ways through the processor (plain and repacked
weights) differ from each other too: that is the measure. Distances are max |difference| and the root of the mean square, over the standard deviation of
the logits; `same` counts tokens with the same largest logit."""
import argparse
import pathlib
import subprocess
import sys
import tempfile

import numpy as np

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
from llama import prompt  # noqa: E402


def build(llama):
    """The small program beside llama.cpp's libraries."""
    root, lib = llama / "llama_cpp_python-0.3.36/vendor/llama.cpp", llama / "build"
    exe, obj = llama / "llama_logits", llama / "llama_logits.o"
    subprocess.run(["cc", "-O2", f"-I{root}/include", f"-I{root}/ggml/include", "-c", HERE / "peers/llama_logits.c", "-o", obj], check=True)
    subprocess.run(["c++", obj, lib / "src/libllama.a", lib / "ggml/src/libggml.a", lib / "ggml/src/libggml-cpu.a", lib / "ggml/src/libggml-base.a",
                    "-fopenmp", "-ldl", "-o", exe], check=True)
    return exe


def distance(a, b):
    scale = b.std()
    d = np.abs(a - b)
    return f"max {d.max() / scale:.2e}  rms {np.sqrt((d.astype(np.float64) ** 2).mean()) / scale:.2e}  same {(a.argmax(1) == b.argmax(1)).sum()} of {len(a)}"


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("build", type=pathlib.Path)
    a.add_argument("--llama", type=pathlib.Path, required=True)
    a.add_argument("--models", default="smollm2,tiny-olmoe,tiny-qwen3moe")
    a.add_argument("--tokens", type=int, default=64)
    args = a.parse_args()
    exe = build(args.llama)
    for name in args.models.split(","):
        model = args.llama / "models" / f"{name}.gguf"
        with tempfile.TemporaryDirectory() as d:
            ids, ours, theirs = (pathlib.Path(d) / x for x in ("ids", "ours.npy", "theirs"))
            ids.write_text(" ".join(map(str, prompt(1, 0, args.tokens, 49000))))
            subprocess.run([args.build / "bin/moe-serve", "logits", model, "--tokens", ids, "--kv", "f32", "--out", ours], check=True)
            mine, way = np.load(ours), []
            for repack in "01":
                subprocess.run([exe, model, ids, theirs, repack], check=True, stderr=subprocess.DEVNULL)
                way.append(np.fromfile(theirs, np.float32).reshape(mine.shape))
        print(f"{name}\n  llama.cpp repacked / plain   {distance(way[1], way[0])}\n  moe-serve / plain            {distance(mine, way[0])}\n"
              f"  moe-serve / repacked         {distance(mine, way[1])}", flush=True)


if __name__ == "__main__":
    main()
