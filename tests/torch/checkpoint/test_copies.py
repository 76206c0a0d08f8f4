"""Tied weights that are there twice have to be equal, whatever the pieces in which they are compared."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from rulequant.errors import CheckpointError
from rulequant.torch.checkpoint import copies as copies_module
from rulequant.torch.checkpoint.copies import check_copies
from rulequant.torch.checkpoint.reader import CheckpointReader


def check(folder: Path, kept: torch.Tensor, copy: torch.Tensor) -> None:
    save_file({"embed": kept, "head": copy}, folder / "model.safetensors")
    with CheckpointReader.open(folder) as reader:
        check_copies(reader, [(reader.entry("head"), reader.entry("embed"))])


@pytest.mark.parametrize(
    ("kept", "copy"),
    [
        (torch.ones(5, 3), torch.ones(5, 3)),
        (torch.ones(5, 3), torch.ones(5, 3, dtype=torch.bfloat16)),
        (torch.tensor([0.0]), torch.tensor([-0.0])),
        (torch.tensor([float("nan"), 1.0]), torch.tensor([float("nan"), 1.0])),
        (torch.arange(3), torch.arange(3)),
        (torch.zeros(0, 4), torch.zeros(0, 4)),
    ],
    ids=["equal", "equal in other dtypes", "signed zeros", "same bytes with NaN", "integers", "empty"],
)
def test_equal_copies_pass(kept: torch.Tensor, copy: torch.Tensor, tmp_path: Path) -> None:
    """What transformers would tie is fine."""
    check(tmp_path, kept, copy)


@pytest.mark.parametrize(
    ("kept", "copy", "difference"),
    [
        (torch.ones(5), torch.tensor([1.0, 1, 1, 1, 2]), "values differ from element 4 on"),
        (torch.ones(5, 3), torch.ones(3, 5), "shapes are [3, 5] and [5, 3]"),
        (torch.ones(2), torch.ones(2, dtype=torch.int32), "dtypes are I32 and F32"),
        (torch.arange(3), torch.arange(3) + 1, "values differ"),
    ],
    ids=["values", "shapes", "dtypes", "integers"],
)
def test_different_copies_are_refused(
    kept: torch.Tensor, copy: torch.Tensor, difference: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both are named, with what differs and how to say that both are meant; compared two elements at a time."""
    monkeypatch.setattr(copies_module, "_CHUNK", 2)
    with pytest.raises(CheckpointError, match=re.escape(difference)) as raised:
        check(tmp_path, kept, copy)
    assert "config.json ties `head` to `embed`, but the shards hold both" in raised.value.message
    assert '"tie_word_embeddings": false' in str(raised.value.remedy)
