"""Names of an output lead a loader to the model's tensors, or there is none."""

from __future__ import annotations

from typing import Any

import pytest
from transformers.core_model_loading import Chunk, PrefixChange, Transpose, WeightConverter, WeightRenaming

from rulequant.errors import CheckpointError
from rulequant.inventory import Kind, ModuleInfo, TensorInfo
from rulequant.schemes import Bnb4bit
from rulequant.torch.checkpoint.keys import Conversion, KeyMap
from rulequant.torch.checkpoint.naming import Naming

SPLIT = WeightConverter("attn.qkv", ["attn.q_proj", "attn.k_proj"], operations=[Chunk(dim=0)])


def info_of(name: str, kind: Kind = "linear") -> ModuleInfo:
    return ModuleInfo(name, "Linear", kind, (TensorInfo("weight", (64, 64), "float32"),))


def keys_of(*renamings: WeightRenaming, converters: tuple[Any, ...] = (), **more: Any) -> KeyMap:
    return KeyMap(renamings=renamings, converters=converters, **more)


def encoded(naming: Naming, key: str, target: str, kind: Kind = "linear") -> str:
    info = info_of(target.removesuffix(".weight") if kind == "linear" else target.rpartition(".")[0], kind)
    name = naming.encoded(key, target, info, Bnb4bit(), info.tensors[0])
    assert naming.prefix(name, info) == (name.removesuffix("weight") if kind == "linear" else f"{name}.")
    return name


@pytest.mark.parametrize("layers", [None, frozenset({"a.b"})], ids=["bitsandbytes", "rulequant"])
@pytest.mark.parametrize(
    ("keys", "key", "name"),
    [
        (keys_of(), "a.b.weight", "a.b.weight"),
        (keys_of(WeightRenaming("old", "a")), "old.b.weight", "old.b.weight"),
        (keys_of(PrefixChange(prefix_to_remove="new")), "new.a.b.weight", "new.a.b.weight"),
        (keys_of(base_prefix="a"), "b.weight", "b.weight"),
        (keys_of(WeightRenaming(r"c\.weight$", "b.weight")), "a.c.weight", "a.b.weight"),
        (keys_of(WeightRenaming("proj$", "b.weight")), "a.proj", "a.b.weight"),
    ],
    ids=["the same", "renamed", "prefix of others", "prefix of the base model", "only without suffix", "no weight"],
)
def test_layers(keys: KeyMap, key: str, name: str, layers: frozenset[str] | None) -> None:
    """The source's own key, where what is behind it does not keep a loader from renaming it; else the model's name."""
    assert encoded(Naming(keys, layers), key, "a.b.weight") == name


def test_fused_experts() -> None:
    """The model's name first: a parameter becomes a module."""
    keys = keys_of(WeightRenaming("w1", "up"))
    assert encoded(Naming(keys, frozenset()), "experts.w1", "experts.up", "experts") == "experts.up"


@pytest.mark.parametrize(
    ("renamings", "name"),
    [
        ([], "m.attn.k_proj.weight"),
        ([WeightRenaming(r"^layer\.", "m.")], "m.attn.k_proj.weight"),
        ([WeightRenaming(r"^layer\.", "m."), WeightRenaming(r"^m\.attn\.k_", "n.attn.k_")], None),
        ([WeightRenaming("mm", "m"), WeightRenaming(r"^m\.", "mm.m.")], None),
    ],
    ids=["the model's", "the model's, though the source has another", "neither", "renamed wherever it is"],
)
def test_split_tensors(renamings: list[WeightRenaming], name: str | None) -> None:
    """What a converter makes has the model's name, encoded or not."""
    key, first = "layer.attn.qkv.weight", "m.attn.q_proj.weight"
    conversion = Conversion(SPLIT, "attn.qkv")
    keys = keys_of(*renamings, converters=(SPLIT,), targets={key: first}, converted={key: conversion})
    naming, target = Naming(keys, None), "m.attn.k_proj.weight"
    if name:
        assert encoded(naming, key, target) == name
        assert naming.kept(key, target, info_of("m.attn.k_proj")) == name
        return
    with pytest.raises(CheckpointError, match=r"`layer\.attn\.qkv\.weight`: .* rename its quantized form wrongly"):
        encoded(naming, key, target)
    with pytest.raises(CheckpointError, match=r"`m\.attn\.k_proj\.weight` is made of `layer\..* no name of its own"):
        naming.kept(key, target, info_of("m.attn.k_proj"))


def test_own_style_of_a_split_tensor() -> None:
    """Where a renaming spoils the model's name, the source's without the converter's pattern may do."""
    key, first = "layer.attn.qkv.weight", "m.attn.q_proj.weight"
    renamings = (WeightRenaming(r"^m\.", "x."), WeightRenaming(r"^layer\.", "m."))
    conversion = Conversion(SPLIT, "attn.qkv")
    keys = keys_of(*renamings, converters=(SPLIT,), targets={key: first}, converted={key: conversion})
    naming = Naming(keys, None)
    assert encoded(naming, key, "m.attn.k_proj.weight") == "layer.attn.k_proj.weight"
    assert naming.kept(key, "m.attn.q_proj.weight", info_of("m.attn.q_proj")) == "layer.attn.q_proj.weight"


def test_a_converter_that_takes_the_name() -> None:
    """rulequant's loader comes before it, and that of bitsandbytes does not."""
    keys = keys_of(converters=(WeightConverter("a.b", "a.b", operations=[Transpose(0, 1)]),))
    assert encoded(Naming(keys, frozenset({"a.b"})), "a.b.weight", "a.b.weight") == "a.b.weight"
    with pytest.raises(CheckpointError, match=r"`a\.b\.weight`: transformers renames it") as raised:
        encoded(Naming(keys, None), "a.b.weight", "a.b.weight")
    assert str(raised.value.remedy).startswith("let the container be `rulequant`, skip `a.b` with a reason")


def test_a_name_that_a_renaming_spoils() -> None:
    """rulequant's loader finds it as it was written; unless that is renamed to another layer."""
    spoiled = keys_of(WeightRenaming("b", "b.weight"))
    assert encoded(Naming(spoiled, frozenset({"a.b"})), "a.b", "a.b.weight") == "a.b.weight"
    mistaken = keys_of(WeightRenaming(r"a\.b", "a.c"), WeightRenaming("old", "a.b"))
    with pytest.raises(CheckpointError, match=r"`a\.b`: transformers renames it") as raised:
        encoded(Naming(mistaken, frozenset({"a.b", "a.c"})), "a.b", "a.b.weight")
    assert str(raised.value.remedy).startswith("skip `a.b` with a reason")
