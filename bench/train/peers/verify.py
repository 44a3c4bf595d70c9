"""Does hand.py compute what transformers computes? Same weights, same tokens: the loss and every gradient. Exit status 0: yes.
Owns two small models. Rule: a peer that computes something else is no peer."""
import torch
from transformers import Qwen3MoeForCausalLM

import work
from hand import Moe

m, t, _ = work.load("tiny")
m.update(num_hidden_layers=2, hidden_size=64, num_attention_heads=2, num_key_value_heads=2, head_dim=32, moe_intermediate_size=96,
         num_experts=8, vocab_size=512, max_position_embeddings=64)
torch.manual_seed(1)
theirs, ours = Qwen3MoeForCausalLM(work.hf_config(m, "eager")), Moe(m, 64, 1)
pairs = [(ours.embed, [theirs.model.embed_tokens.weight]), (ours.head, [theirs.lm_head.weight]), (ours.norm, [theirs.model.norm.weight])]
for b, l in zip(ours.blocks, theirs.model.layers):
    s, e = l.self_attn, l.mlp.experts
    pairs += [(b.norm1, [l.input_layernorm.weight]), (b.norm2, [l.post_attention_layernorm.weight]), (b.norm_q, [s.q_norm.weight]),
              (b.norm_k, [s.k_norm.weight]), (b.qkv, [s.q_proj.weight, s.k_proj.weight, s.v_proj.weight]), (b.o, [s.o_proj.weight]),
              (b.router, [l.mlp.gate.weight]), (b.w1, [e.gate_up_proj]), (b.w2, [e.down_proj])]
with torch.no_grad():
    for p, q in pairs:
        p.copy_(torch.cat(q))
ids = torch.randint(512, (3, 64))
a, b = ours(ids), theirs(input_ids=ids, labels=ids).loss
a.backward()
b.backward()
worst = 0.0
for p, q in pairs:
    g = torch.cat([x.grad for x in q])
    worst = max(worst, ((p.grad - g).norm() / g.norm()).item())
print(f"loss: hand {a.item():.6f}, transformers {b.item():.6f}; worst relative error of a gradient {worst:.1e}")
assert abs(a.item() - b.item()) < 1e-5 and worst < 1e-5  # seen: 0 and 6e-7
