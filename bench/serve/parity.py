#!/usr/bin/env python3
"""Logits of moe-serve beside llama.cpp's, of the same GGUF files and tokens; no figure of speed.

    parity.py BUILD --llama DIR [--models smollm2,tiny-olmoe,tiny-qwen3moe] [--formats F32,Q4_0,...] [--tokens 64]

DIR is what peers/setup.sh made; run this with DIR/venv/bin/python. --formats: tiny-olmoe, all its matrices but the router in each of these.
Attention in fp32 on both sides (llama.cpp's flash attention rounds to fp16). Both multiply the same integers: a token's logits differ by rounding, 1e-7,
until an activation between two integers falls to the other side, which changes the logits by the noise of quantisation and spreads to the
tokens behind it. llama.cpp's two ways through the processor (plain and repacked weights) do the same to each other, and that is the measure.
Distance of a token: root mean square of the differences over the standard deviation of the logits."""
import argparse
import pathlib
import subprocess
import sys
import tempfile

import gguf
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
    d = np.sqrt(((a - b).astype(np.float64) ** 2).mean(1)) / b.std()
    return f"median {np.median(d):.1e}  largest {d.max():.1e}  below 1e-5 {(d < 1e-5).sum():>3}  same largest logit {(a.argmax(1) == b.argmax(1)).sum():>3} of {len(a)}"


def requantise(source, to, form):
    """The model of `source` with its matrices (but the router) in another format."""
    kind = gguf.GGMLQuantizationType
    r = gguf.GGUFReader(source)
    w = gguf.GGUFWriter(to, r.get_field("general.architecture").contents())
    for f in r.fields.values():
        if not f.name.startswith("GGUF.") and f.name != "general.architecture":
            array = f.types[0] == gguf.GGUFValueType.ARRAY
            w.add_key_value(f.name, f.contents(), f.types[0], sub_type=f.types[-1] if array else None)
    for t in r.tensors:
        x = gguf.quants.dequantize(t.data, t.tensor_type).astype(np.float32).reshape([int(n) for n in reversed(t.shape)])
        if x.ndim > 1 and "gate_inp" not in t.name and form != "F32":
            w.add_tensor(t.name, gguf.quants.quantize(x, kind[form]), raw_dtype=kind[form])
        else:
            w.add_tensor(t.name, x)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def compare(args, exe, name, model, folder):
    ids, ours, theirs = (folder / x for x in ("ids", "ours.npy", "theirs"))
    ids.write_text(" ".join(map(str, prompt(1, 0, args.tokens, 49000))))
    subprocess.run([args.build / "bin/moe-serve", "logits", model, "--tokens", ids, "--kv", "f32", "--out", ours], check=True)
    mine, way = np.load(ours), []
    for repack in "01":
        subprocess.run([exe, model, ids, theirs, repack], check=True, stderr=subprocess.DEVNULL)
        way.append(np.fromfile(theirs, np.float32).reshape(mine.shape))
    print(f"{name}\n  llama.cpp repacked / plain   {distance(way[1], way[0])}\n  moe-serve / plain            {distance(mine, way[0])}\n"
          f"  moe-serve / repacked         {distance(mine, way[1])}", flush=True)


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("build", type=pathlib.Path)
    a.add_argument("--llama", type=pathlib.Path, required=True)
    a.add_argument("--models", default="smollm2,tiny-olmoe,tiny-qwen3moe")
    a.add_argument("--formats", default="F32,Q4_0,Q4_1,Q5_0,Q5_1,Q8_0,MXFP4")
    a.add_argument("--tokens", type=int, default=64)
    args = a.parse_args()
    exe = build(args.llama)
    with tempfile.TemporaryDirectory() as d:
        folder = pathlib.Path(d)
        for name in args.models.split(","):
            compare(args, exe, name, args.llama / "models" / f"{name}.gguf", folder)
        for form in filter(None, args.formats.split(",")):
            requantise(args.llama / "models/tiny-olmoe.gguf", folder / "model.gguf", form)
            compare(args, exe, f"tiny-olmoe in {form}", folder / "model.gguf", folder)


if __name__ == "__main__":
    main()
