"""One PyTorch peer: forward, backward, clipping and AdamW of a preset in fp32. One JSON line on stdout, seconds of every step after the warm-up.
Owns the model. Threads: --threads of PyTorch. Rule: the best settings found for this work (fused AdamW, gradients set to None for
transformers and kept for hand, whose backward adds into them)."""
import argparse
import json
import os
import resource
import time
import warnings

import torch

import work

warnings.filterwarnings("ignore")
a = argparse.ArgumentParser(description=__doc__)
a.add_argument("--config", default="small", help="a preset of models/presets")
a.add_argument("--model", default="hand", choices=["hand", "transformers"])
a.add_argument("--threads", type=int, default=0)
a.add_argument("--warmup", type=int, default=1)
a.add_argument("--steps", type=int, default=2)
a = a.parse_args()
torch.set_num_threads(a.threads or len(os.sched_getaffinity(0)))

m, t, o = work.load(a.config)
if a.model == "transformers":
    from transformers import AutoModelForCausalLM
    torch.manual_seed(t["seed"])
    model = AutoModelForCausalLM.from_config(work.hf_config(m, "grouped_mm"))
    loss_of = lambda ids, n: model(input_ids=ids, labels=ids).loss / n
else:
    from hand import Moe
    model = Moe(m, t["seq_len"], t["seed"])
    loss_of = model
model.train()
opt = torch.optim.AdamW(work.groups(model, o["weight_decay"]), lr=o["lr"], betas=tuple(o["betas"]), eps=o["eps"], fused=True)

PARTS = ("forward", "backward", "clip", "adamw")
steps, losses = [], []
for batch in work.batches(m, t, a.warmup + a.steps):
    part, loss_sum, last = dict.fromkeys(PARTS, 0.0), 0.0, time.perf_counter()
    begin, cpu = last, time.process_time()

    def lap(name):
        global last
        now = time.perf_counter()
        part[name] += now - last
        last = now

    for ids in batch:
        loss = loss_of(ids, len(batch))
        loss_sum += loss.item()
        lap("forward")
        loss.backward()
        lap("backward")
    torch.nn.utils.clip_grad_norm_(model.parameters(), o["clip_norm"])
    lap("clip")
    opt.step()
    opt.zero_grad(set_to_none=a.model == "transformers")
    lap("adamw")
    steps.append(dict(part, seconds=time.perf_counter() - begin, cpu_seconds=time.process_time() - cpu))
    losses.append(loss_sum)

print(json.dumps({
    "system": f"PyTorch {torch.__version__}", "model": a.model, "config": a.config, "threads": torch.get_num_threads(),
    "parameters": sum(p.numel() for p in model.parameters()), "malloc": os.path.basename(os.environ.get("LD_PRELOAD", "")) or "libc",
    "peak_rss": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10, "losses": losses, "steps": steps[a.warmup:],
}))
