"""Functions that return models, as a user would name them: `called_models:mixed`."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["broken", "counting", "empty", "foreign", "mixed", "moe", "not_finite", "odd", "stateful", "twins", "whole"]


class Block(nn.Module):
    """Two layers, a table that is saved, and one that is computed anew."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width, bias=False)
        self.norm = nn.LayerNorm(width)
        self.register_buffer("scale", torch.full((width,), 0.5))
        # Not by linspace: once transformers has loaded a model, torch may no longer know it on meta.
        self.register_buffer("phase", torch.arange(width) / width, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(functional.gelu(self.up(self.norm(x) * self.scale + self.phase)))


class Mixed(nn.Module):
    """Tied embeddings, a shared block, layers in two dtypes, a parameter of the model itself, integers."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(96, 64)
        self.blocks = nn.ModuleList([Block(64), Block(64)])
        self.again = self.blocks[0]
        self.narrow = nn.Linear(64, 64, dtype=torch.bfloat16)
        self.conv = nn.Conv1d(64, 64, 1)
        self.gain = nn.Parameter(torch.ones(64))
        self.register_buffer("steps", torch.tensor([1, 2, 3]))
        self.head = nn.Linear(64, 96, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids) * self.gain
        for block in (*self.blocks, self.again):
            x = block(x)
        x = x + self.narrow(x.bfloat16()).float()
        x = x + self.conv(x.transpose(1, 2)).transpose(1, 2)
        return self.head(x)


def mixed() -> nn.Module:
    """The same weights each time."""
    torch.manual_seed(0)
    return Mixed()


class _Odd(nn.Module):
    """Children that are called like methods, so that no attribute leads to them."""

    def __init__(self) -> None:
        super().__init__()
        self.half = nn.Linear(64, 64)
        self.type = nn.Sequential(nn.Linear(64, 64))

    def forward(self, x: Tensor) -> Tensor:
        return self._modules["type"](self._modules["half"](x))


def odd() -> nn.Module:
    """The same weights each time."""
    torch.manual_seed(0)
    return nn.Sequential(_Odd(), nn.LayerNorm(64))


def moe() -> nn.Module:
    """A tiny Qwen3-MoE of transformers, with fused experts."""
    import transformers

    torch.manual_seed(0)
    config = transformers.Qwen3MoeConfig(
        hidden_size=64, intermediate_size=64, moe_intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, head_dim=32, num_experts=4, num_experts_per_tok=2, vocab_size=96,
    )  # fmt: skip
    return transformers.Qwen3MoeForCausalLM(config).to(torch.bfloat16).eval()


def empty() -> nn.Module:
    """A model that has no weights."""
    with torch.device("meta"):
        return Mixed()


def whole() -> nn.Module:
    """A layer, which cannot be replaced in a parent."""
    return nn.Linear(64, 64)


def not_finite() -> nn.Module:
    """A weight with a NaN in it."""
    model = mixed()
    with torch.no_grad():
        model.blocks[1].down.weight[3, 5] = float("nan")  # type: ignore[union-attr, index]
    return model


class _Stateful(nn.Identity):
    def get_extra_state(self) -> str:
        return "more"


def stateful() -> nn.Module:
    """State that is no tensor."""
    return nn.Sequential(_Stateful(), nn.Linear(64, 64))


def foreign() -> nn.Module:
    """A dtype that safetensors knows and that is not written."""
    model = nn.Sequential(nn.Linear(64, 64))
    model.register_buffer("wave", torch.zeros(2, dtype=torch.complex64))
    return model


def broken() -> nn.Module:
    """It cannot be called."""
    raise ValueError("no such weights")


calls = 0


def counting() -> nn.Module:
    """Counts how often it is called."""
    global calls  # noqa: PLW0603
    calls += 1
    return mixed()


def twins() -> nn.Module:
    """Two layers with one weight and a bias each, and a third."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 64, bias=False))
    model[1].weight = model[0].weight
    return model
