"""The work of a preset for PyTorch: models/presets/NAME.yaml, so that both sides read the same sizes. Owns nothing.
Used by train.py and verify.py. Rule: only what the presets of the comparison use is understood; anything else must not pass silently."""
import pathlib

import torch
import yaml

PRESETS = pathlib.Path(__file__).resolve().parents[3] / "models" / "presets"
DEFAULTS = {"rms_norm_eps": 1e-6, "router_aux_loss_coef": 0.001, "tie_word_embeddings": False}  # of Qwen3MoeConfig


def load(name):
    """-> (model, train, optimizer) of the preset"""
    c = yaml.safe_load((PRESETS / f"{name}.yaml").read_text())
    assert c["model"].pop("model_type") == "qwen3_moe"
    return {**DEFAULTS, **c["model"]}, c["train"], c["optimizer"]


def hf_config(model, experts):
    from transformers import Qwen3MoeConfig
    return Qwen3MoeConfig(**model, intermediate_size=4 * model["hidden_size"], output_router_logits=True, use_cache=False,
                          attn_implementation="sdpa", experts_implementation=experts)


def groups(model, decay):
    """Weight decay on everything but norm gains."""
    p = list(model.parameters())
    return [{"params": [x for x in p if x.ndim >= 2], "weight_decay": decay}, {"params": [x for x in p if x.ndim < 2], "weight_decay": 0.0}]


def batches(model, train, steps):
    """-> list (steps) of lists (micro-batches) of int64 [windows, seq_len], uniform random ids"""
    g = torch.Generator().manual_seed(99)
    S, micro = train["seq_len"], train["micro_batch_tokens"]
    return [[torch.randint(model["vocab_size"], (micro // S, S), generator=g) for _ in range(train["tokens_per_step"] // micro)]
            for _ in range(steps)]
