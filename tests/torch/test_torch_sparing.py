"""Imports that are left out while a model is built on meta: it is the same model, and nothing is out of reach."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
from tiny_models import save_tiny

from rulequant.torch import sparing
from rulequant.torch.skeleton import build_skeleton

SPARED = ("torch._dynamo.utils", "torch._inductor", "torch.distributed.tensor", "torch.distributed.fsdp")
INVENTORY = f"""
import json, sys
from dataclasses import asdict
from rulequant.torch.sparing import spare_imports
spare_imports()
from rulequant.torch.skeleton import build_skeleton
modules = [asdict(each) for each in build_skeleton(sys.argv[1]).inventory().modules]
print(json.dumps([modules, [name for name in {SPARED} if name in sys.modules]]))
"""
REACHED = """
from rulequant.torch.sparing import spare_imports
spare_imports()
import torch, torch._dynamo
from scipy.optimize import linear_sum_assignment
import scipy.optimize
assert "rosen" not in vars(scipy.optimize)
rows, columns = linear_sum_assignment([[1, 0], [0, 1]])
assert list(columns) == [1, 0]
assert scipy.optimize.linear_sum_assignment is not linear_sum_assignment
assert scipy.optimize.rosen([1, 1]) == 0
assert not hasattr(scipy.optimize, "no_such_name")
assert torch.compiler.disable(len) is len is torch.compiler.disable(recursive=False)(len)
assert not hasattr(torch._dynamo, "__no_such_name__")
assert torch._dynamo.is_compiling() is False
assert torch._dynamo.disable(len) is not len
"""


def run(code: str, *arguments: str) -> str:
    """What a process of its own prints."""
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *arguments], check=False, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize("model", ["llama", "bert", "t5"])
def test_the_model_is_the_same(model: str, tmp_path: Path) -> None:
    """Module for module, without the packages that are large."""
    source = save_tiny(model, tmp_path / model)
    modules, imported = json.loads(run(INVENTORY, str(source)))
    expected = [asdict(each) for each in build_skeleton(str(source)).inventory().modules]
    assert modules == json.loads(json.dumps(expected))
    assert imported == []


def test_what_is_left_out_is_imported_when_it_is_asked_for() -> None:
    """A package turns into itself, and gives what only it has."""
    run(REACHED)


def test_what_was_imported_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a process that has torch's compiler, it goes on as it is."""
    import torch._dynamo

    before = torch.compiler.disable, torch.distributed.is_available, torch._dynamo.disable
    monkeypatch.setitem(sys.modules, "scipy.optimize", sys)
    sparing.spare_imports()
    assert (torch.compiler.disable, torch.distributed.is_available, torch._dynamo.disable) == before
