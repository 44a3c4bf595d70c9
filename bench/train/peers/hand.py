"""Qwen3-MoE as a skilled PyTorch user writes it for a CPU: tokens sorted by expert, one torch.mm for each expert and product, a backward of its
own that adds straight into .grad, q, k and v in one product, the head's logits 1024 rows at a time with their gradient made in forward.
Owns no data. verify.py compares it with transformers. Rule: whatever makes PyTorch faster here and computes the same belongs in."""
import torch
import torch.nn.functional as F
from torch import nn

ROWS = 1024  # of logits at a time


class Experts(torch.autograd.Function):
    """x [N, D] in the order of experts, w1 [E, 2F, D] (gate rows, then up rows), w2 [E, D, F], counts list[E] -> y [N, D]"""

    @staticmethod
    def forward(ctx, x, w1, w2, counts):
        f = w2.shape[2]
        h, a, y = x.new_empty(len(x), 2 * f), x.new_empty(len(x), f), torch.empty_like(x)
        begin = 0
        for e, n in enumerate(counts):
            if n == 0:
                continue
            r = slice(begin, begin + n)
            torch.mm(x[r], w1[e].t(), out=h[r])
            torch.mul(F.silu(h[r, :f]), h[r, f:], out=a[r])
            torch.mm(a[r], w2[e].t(), out=y[r])
            begin += n
        ctx.save_for_backward(x, w1, w2, h, a)
        ctx.weights, ctx.counts = (w1, w2), counts
        return y

    @staticmethod
    def backward(ctx, dy):
        x, w1, w2, h, a = ctx.saved_tensors
        f = w2.shape[2]
        for w in ctx.weights:
            if w.grad is None:
                w.grad = torch.zeros_like(w)
        g1, g2 = (w.grad for w in ctx.weights)
        dx, dh = torch.empty_like(x), torch.empty_like(h[: max(ctx.counts)])
        begin = 0
        for e, n in enumerate(ctx.counts):
            if n == 0:
                continue
            r = slice(begin, begin + n)
            torch.addmm(g2[e], dy[r].t(), a[r], out=g2[e])
            da = torch.mm(dy[r], w2[e])
            gate, up = h[r, :f], h[r, f:]
            sigmoid = torch.sigmoid(gate)
            silu = gate * sigmoid
            torch.mul(da, silu, out=dh[:n, f:])
            slope = sigmoid.addcmul_(silu, 1 - sigmoid)
            torch.mul(da.mul_(up), slope, out=dh[:n, :f])
            torch.addmm(g1[e], dh[:n].t(), x[r], out=g1[e])
            torch.mm(dh[:n], w1[e], out=dx[r])
            begin += n
        return dx, None, None, None


class Head(torch.autograd.Function):
    """Sum of cross-entropy of x [T, D] against target [T] (-1: none), times scale. The gradient of the loss is taken to be 1."""

    @staticmethod
    def forward(ctx, x, w, target, scale):
        dx, loss = torch.empty_like(x), 0.0
        if w.grad is None:
            w.grad = torch.zeros_like(w)
        for s in range(0, len(x), ROWS):
            rows, t = x[s : s + ROWS], target[s : s + ROWS]
            keep, at = t >= 0, t.clamp_min(0)[:, None]
            z = torch.log_softmax(torch.mm(rows, w.t()), -1)
            loss -= (z.gather(1, at)[:, 0] * keep).sum()
            if ctx.needs_input_grad[0]:
                z.exp_().scatter_add_(1, at, -torch.ones_like(at, dtype=z.dtype))
                z.mul_((keep * scale)[:, None])
                w.grad.addmm_(z.t(), rows)
                torch.mm(z, w, out=dx[s : s + ROWS])
        ctx.save_for_backward(dx)
        return loss * scale

    @staticmethod
    def backward(ctx, one):
        return ctx.saved_tensors[0], None, None, None


def rotate(x, cos, sin):
    a, b = x.chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)


class Block(nn.Module):
    def __init__(self, m):
        super().__init__()
        D, f, E, H, hd = m["hidden_size"], m["moe_intermediate_size"], m["num_experts"], m["num_attention_heads"], m["head_dim"]
        self.H, self.K, self.E, self.eps = H, m["num_experts_per_tok"], E, m["rms_norm_eps"]
        normal = lambda *shape: nn.Parameter(torch.randn(shape) * 0.02)
        ones = lambda n: nn.Parameter(torch.ones(n))
        self.norm1, self.norm2, self.norm_q, self.norm_k = ones(D), ones(D), ones(hd), ones(hd)
        self.qkv, self.o, self.router = normal(3 * H * hd, D), normal(D, H * hd), normal(E, D)
        self.w1, self.w2 = normal(E, 2 * f, D), normal(E, D, f)

    def forward(self, x, cos, sin):
        B, S, D = x.shape
        q, k, v = F.linear(F.rms_norm(x, (D,), self.norm1, self.eps), self.qkv).view(B, S, 3, self.H, -1).unbind(2)
        q, k = (F.rms_norm(y, y.shape[-1:], w, self.eps).transpose(1, 2) for y, w in ((q, self.norm_q), (k, self.norm_k)))
        o = F.scaled_dot_product_attention(rotate(q, cos, sin), rotate(k, cos, sin), v.transpose(1, 2), is_causal=True)
        x = x + F.linear(o.transpose(1, 2).reshape(B, S, -1), self.o)
        h = F.rms_norm(x, (D,), self.norm2, self.eps).view(-1, D)
        p = torch.softmax(F.linear(h, self.router), -1)
        weight, ids = p.topk(self.K, -1)
        weight = weight / weight.sum(-1, keepdim=True)
        order = ids.view(-1).argsort()
        counts = torch.bincount(ids.view(-1), minlength=self.E)
        y = Experts.apply(h[order // self.K], self.w1, self.w2, counts.tolist())
        back = torch.empty_like(order).scatter_(0, order, torch.arange(len(order)))
        y = (y[back].view(-1, self.K, D) * weight[..., None]).sum(1)
        return x + y.view(B, S, D), p, counts


class Moe(nn.Module):
    """m: the `model` of a preset; the sizes are those where every head has keys and values of its own and weights are not tied."""

    def __init__(self, m, seq_len, seed):
        super().__init__()
        assert m["num_attention_heads"] == m["num_key_value_heads"] and m["norm_topk_prob"] and not m.get("tie_word_embeddings")
        torch.manual_seed(seed)
        D, V, hd = m["hidden_size"], m["vocab_size"], m["head_dim"]
        self.coef, self.E, self.eps = m["router_aux_loss_coef"], m["num_experts"], m["rms_norm_eps"]
        self.embed, self.head = (nn.Parameter(torch.randn(V, D) * 0.02) for _ in range(2))
        self.norm = nn.Parameter(torch.ones(D))
        self.blocks = nn.ModuleList(Block(m) for _ in range(m["num_hidden_layers"]))
        angle = torch.outer(torch.arange(seq_len), 10000.0 ** (-torch.arange(0, hd, 2) / hd))
        self.register_buffer("cos", angle.cos(), False)
        self.register_buffer("sin", angle.sin(), False)

    def forward(self, ids, micro_batches=1):
        """Loss of one of `micro_batches` that make a step: cross-entropy and the balance loss over all layers together."""
        x, share, prob = F.embedding(ids, self.embed), 0, 0
        for b in self.blocks:
            x, p, counts = b(x, self.cos, self.sin)
            share, prob = share + counts, prob + p.sum(0)
        x = F.rms_norm(x, x.shape[-1:], self.norm, self.eps)
        target = F.pad(ids[:, 1:], (0, 1), value=-1).reshape(-1)
        loss = Head.apply(x.view(-1, x.shape[-1]), self.head, target, 1.0 / ((target >= 0).sum().item() * micro_batches))
        rows = len(self.blocks) * ids.numel()
        return loss + self.coef / micro_batches * self.E * (share / rows * (prob / rows)).sum()
