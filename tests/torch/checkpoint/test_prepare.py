"""Before anything is written: whether a plan is for the model at hand."""

from __future__ import annotations

import pytest
from inventories import linear, of, ruleset

from rulequant.errors import UsageError
from rulequant.inventory import ModuleInfo, TensorInfo
from rulequant.planner import make_plan
from rulequant.torch.checkpoint.prepare import check_same_model

LAYER = linear("fc", 64, 64)
ROOT = ModuleInfo("", "Net", tensors=(TensorInfo("scale", (4,), "float32"),))


@pytest.mark.parametrize(
    ("planned", "found", "message"),
    [
        pytest.param([LAYER], [linear("fd", 64, 64)], "made-up has no `fc`", id="missing"),
        pytest.param([LAYER], [LAYER, linear("fd", 64, 64)], "it does not know `fd`", id="unknown"),
        pytest.param(
            [LAYER], [linear("fc", 64, 32)], "`fc` is a Linear of 4096 bytes here, a Linear of 8192 bytes", id="size"
        ),
        pytest.param(
            [ROOT, LAYER], [LAYER], "made-up has no tensor that is in none of its modules", id="missing in the root"
        ),
        pytest.param(
            [LAYER],
            [ROOT, LAYER],
            "it does not know tensors of the model itself, in none of its modules",
            id="unknown in the root",
        ),
        pytest.param(
            [ROOT],
            [linear("", 64, 64)],
            "the model itself is a Linear of 8192 bytes here, a Net of 16 bytes in the plan",
            id="another root",
        ),
    ],
)
def test_another_model(planned: list[ModuleInfo], found: list[ModuleInfo], message: str) -> None:
    """The first module that differs is named, and the root in words."""
    plan = make_plan(ruleset("name: x"), of(*planned))
    with pytest.raises(UsageError, match=f"the plan is for another model: {message}"):
        check_same_model(plan, of(*found, model="made-up"))
    check_same_model(plan, of(*planned))
