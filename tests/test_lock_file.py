"""Locks: what a plan decided, as a file; read back it is the same, and what does not add up is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from inventories import llama, of, ruleset

from rulequant.errors import ModelError, UsageError
from rulequant.inventory import Inventory, ModuleInfo, TensorInfo
from rulequant.lock_file import Lock, dump_lock, is_lock, load_lock, make_lock
from rulequant.planner import make_plan

TEXT = """
skip_modules: [{modules: "**.o_proj", reason: too sensitive}]
rules: [{modules: "**.down_proj", layers: 0, scheme: int8, reason: int8 there}]
"""


def _lock(inventory: Inventory | None = None, text: str = TEXT) -> Lock:
    model = inventory or llama(4, tied=True, versions={"transformers": "5.0.0"})
    return make_lock(make_plan(ruleset(text), model), model)


def _saved(folder: Path, text: str) -> Path:
    path = folder / "rules.lock"
    path.write_text(text, encoding="utf-8")
    return path


def _facts(lock: Lock) -> dict[str, tuple[object, ...]]:
    return {
        each.name: (each.type, each.parameters, each.bytes_before, each.bytes_after, each.scheme, each.reason)
        for each in lock.plan.decisions
    }


def test_round_trip(tmp_path: Path) -> None:
    """A lock read back has the same modules, decisions, tensors, sizes and versions."""
    made = _lock()
    again = load_lock(_saved(tmp_path, dump_lock(made)))
    assert _facts(again) == _facts(made)
    assert again.tensors == made.tensors
    assert again.versions == {"transformers": "5.0.0"}
    assert again.plan.schemes == made.plan.schemes
    assert again.plan.summary == made.plan.summary
    assert dump_lock(again) == dump_lock(made)


def test_one_line_for_equal_layers() -> None:
    """Layers fold, an exception has its own line, and reasons are told but for the type."""
    lines = [each.strip(" ,") for each in dump_lock(_lock()).splitlines()]
    rows = dict(each.partition('": {')[::2] for each in lines if '"bytes":' in each)
    assert rows['"model.layers.{0..3}.self_attn.q_proj'] == (
        '"type": "Linear", "tensors": {"weight": "bfloat16[64,64]"}, "scheme": "nf4", "bytes": 2368}'
    )
    assert '"scheme": "int8", "detail": "int8 there"' in rows['"model.layers.0.mlp.down_proj']
    assert '"scheme": "nf4"' in rows['"model.layers.{1..3}.mlp.down_proj']
    assert '"reason": "skip", "detail": "too sensitive"' in rows['"model.layers.{0..3}.self_attn.o_proj']
    assert '"bfloat16[256,64] = model.embed_tokens.weight"' in rows['"lm_head']
    assert "detail" not in rows['"model.norm']


def test_independent_of_the_place_of_rules() -> None:
    """An edit that only moves the lines of a rule file leaves the lock's lines alone."""
    text = dump_lock(_lock())
    moved = dump_lock(_lock(text=f"\n\ndescription: moved\n{TEXT}"))
    different = [line for line, other in zip(text.splitlines(), moved.splitlines(), strict=True) if line != other]
    assert all("rules_sha256" in each for each in different)


def test_empty_model(tmp_path: Path) -> None:
    """A model without tensors has a lock too, and so has one with a tensor of its own."""
    assert load_lock(_saved(tmp_path, dump_lock(_lock(of())))).plan.decisions == ()
    root = of(ModuleInfo("", "Scale", tensors=(TensorInfo("s", (), "float32"),)))
    assert _facts(load_lock(_saved(tmp_path, dump_lock(_lock(root))))) == _facts(_lock(root))


def test_a_name_that_looks_like_a_range() -> None:
    """A name that could not be read back is refused."""
    with pytest.raises(ModelError, match=r"called `a\.\{1,2\}`, which a lock would take for a range"):
        dump_lock(_lock(of(ModuleInfo("a.{1,2}", "Linear", tensors=(TensorInfo("w", (2,), "float32"),)))))


def _edit(change: Callable[[dict[str, Any]], object]) -> Callable[[str], str]:
    def edited(text: str) -> str:
        data = json.loads(text)
        change(data)
        return json.dumps(data)

    return edited


Q = "model.layers.{0..3}.self_attn.q_proj"


@pytest.mark.parametrize(
    ("edited", "message"),
    [
        pytest.param(lambda _: "no", "is not a lock: ", id="no JSON"),
        pytest.param(lambda _: "[]", "has no `rulequant_lock`", id="a list"),
        pytest.param(lambda _: '{"format_version": 1}', "has no `rulequant_lock`", id="a plan"),
        pytest.param(lambda _: "[" * 100_000, "is not a lock", id="deep"),
        pytest.param(
            _edit(lambda data: data.update(rulequant_lock=2)), "lock format 2; this rulequant reads 1", id="format"
        ),
        pytest.param(_edit(lambda data: data.pop("rules")), "`rules`: field required", id="a key less"),
        pytest.param(
            _edit(lambda data: data["modules"].pop(Q)),
            r"edited or merged: `summary.modules` is 39, .* come to 35",
            id="a line less",
        ),
        pytest.param(
            _edit(lambda data: data["modules"][Q].update(bytes=1)),
            "edited or merged: `summary.bytes_after`",
            id="other bytes",
        ),
        pytest.param(
            _edit(lambda data: data["modules"][Q].update(scheme="x")),
            "scheme 'x', which the lock does not define",
            id="scheme",
        ),
        pytest.param(
            _edit(lambda data: data["modules"][Q].update(reason="skip")), "needs a scheme, or else a reason", id="both"
        ),
        pytest.param(
            _edit(lambda data: data["modules"][Q].update(tensors={"weight": "x"})), "not a dtype and shape", id="tensor"
        ),
        pytest.param(
            _edit(lambda data: data["modules"].update({Q.replace("..3", "..1"): data["modules"][Q]})),
            "q_proj' comes twice",
            id="twice",
        ),
        pytest.param(
            _edit(lambda data: data["modules"].update({"a.{0..9999999}": data["modules"][Q]})), "too long", id="bomb"
        ),
        pytest.param(
            lambda text: text.replace('"model":', '"model": "x", "model":'),
            "the key `model` comes twice",
            id="key twice",
        ),
        pytest.param(
            lambda text: text.replace('"bnb_4bit"', '"gone"'), "no installed method is called 'gone'", id="method"
        ),
    ],
)
def test_refused(edited: Callable[[str], str], message: str, tmp_path: Path) -> None:
    """What is no lock, or was edited or merged by hand, is said to be so, with the remedy."""
    with pytest.raises(UsageError, match=message) as caught:
        load_lock(_saved(tmp_path, edited(dump_lock(_lock()))))
    assert "rulequant lock MODEL RULES" in str(caught.value)


def test_no_file(tmp_path: Path) -> None:
    """A lock that is not there is no defect."""
    with pytest.raises(UsageError, match=r"cannot read the lock .*: No such file"):
        load_lock(tmp_path / "rules.lock")


def test_is_lock(tmp_path: Path) -> None:
    """A lock is known by its first lines."""
    assert is_lock(_saved(tmp_path, dump_lock(_lock())))
    assert not is_lock(_saved(tmp_path, "{}"))
    assert not is_lock(tmp_path / "gone")


def test_rules_are_where_the_caller_says() -> None:
    """The lock names the rule file as its reader finds it."""
    lock = _lock()
    assert json.loads(dump_lock(lock, rules="../x.yaml"))["rules"] == "../x.yaml"
    assert json.loads(dump_lock(replace(lock)))["rules"] == "rules.yaml"
