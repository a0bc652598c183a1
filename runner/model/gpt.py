"""A decoder-only transformer."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from runner.core.schema import Count, OpenFraction
from runner.model import Classifier


class Block(nn.Module):
    """x + Attention(LN(x)), then x + MLP(LN(x))."""

    def __init__(self, width: int, heads: int, dropout: float):
        super().__init__()
        self.heads = heads
        self.norm_1, self.norm_2 = (nn.LayerNorm(width, bias=False) for _ in range(2))
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.up, self.down = nn.Linear(width, 4 * width, bias=False), nn.Linear(4 * width, width, bias=False)
        self.drop_1, self.drop_2 = nn.Dropout(dropout), nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm_1(x)).unflatten(-1, (3, self.heads, -1)).movedim((-3, -2), (0, -3))
        x = x + self.drop_1(self.out(attention(q, k, v).movedim(-3, -2).flatten(-2)))
        return x + self.drop_2(self.down(F.gelu(self.up(self.norm_2(x)))))


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(D)) v over the places up to one's own, (B, H, T, D); on a CPU by its parts, of which there
    are all derivatives, of several runs at once too."""
    if q.is_cuda:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)
    scores = q @ k.mT / math.sqrt(q.shape[-1])
    later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
    return scores.masked_fill(later, -torch.inf).softmax(-1).to(v.dtype) @ v


class Body(nn.Module):
    def __init__(self, vocabulary: int, block: int, width: int, depth: int, heads: int, dropout: float):
        super().__init__()
        self.tokens, self.places = nn.Embedding(vocabulary, width), nn.Embedding(block, width)
        self.drop = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(Block(width, heads, dropout) for _ in range(depth))
        self.norm = nn.LayerNorm(width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.drop(self.tokens(x) + self.places(torch.arange(x.shape[-1], device=x.device)))
        for block in self.blocks:
            h = block(h)
        return self.norm(h)


class GPT(Classifier):
    """A decoder-only transformer for ids (B, T), with logits (B, T, C) of the next one, in the form of GPT-2 (Radford
    et al. 2019): learned positions, normalisation before every sublayer, GELU, four times the width inside, the
    classifier's weights those of the embedding. As in nanoGPT's code there are no biases, weights start normal with
    deviation 0.02, and those of what enters the residual sum with 0.02 / sqrt(2 depth). Features are (B, T, width).

    Parameters
    ----------
    shape : (T,). classes, vocabulary : of the data set; they are the same.
    width, depth, attention_heads : default 128, 4, 4. dropout : after embedding and sublayers. Default 0.

    Raises
    ------
    ValueError
        Inputs that are not ids, targets without places, or a width that the heads do not divide.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        classes: int,
        vocabulary: int | None = None,
        width: Count = 128,
        depth: Count = 4,
        attention_heads: Count = 4,
        dropout: OpenFraction = 0.0,
    ):
        if vocabulary is None or len(shape) != 1:
            raise ValueError("gpt needs ids (T,), such as those of dataset=tinyshakespeare")
        if vocabulary != classes:
            raise ValueError(f"gpt predicts the ids that it reads, {vocabulary}, and targets are of {classes} classes")
        if width % attention_heads:
            raise ValueError(f"gpt: width={width} is not a multiple of attention_heads={attention_heads}")
        super().__init__(
            Body(vocabulary, shape[0], width, depth, attention_heads, dropout), nn.Linear(width, classes, bias=False)
        )
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                into = name.endswith((".out", ".down"))
                nn.init.normal_(module.weight, std=0.02 / math.sqrt(2 * depth) if into else 0.02)
        self.head.weight = self.body.tokens.weight
