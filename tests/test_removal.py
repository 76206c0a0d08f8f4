"""Skips taken back: which patterns of which files go, what is said where none does, and where it shows."""

from __future__ import annotations

from pathlib import Path

import pytest
from inventories import llama, write

from rulequant.loader import check_rules, load_rules
from rulequant.planner import make_plan
from rulequant.report.plantext import plan_text
from rulequant.report.rulestext import rules_data, rules_text
from rulequant.report.whytext import trace_text
from rulequant.ruleset import RuleSet
from rulequant.trace import trace

BASE = """version: 1
schemes: {nf4: {method: bnb_4bit}}
scheme: nf4
skip_modules:
  - {modules: ["**.mlp", "**.self_attn"], layers: 0, reason: the first layer sees the raw input}
  - lm_head
"""
CHILD = """version: 1
extends: ./base.yaml
remove_skips:
  - {modules: "**.mlp", reason: measured}
"""


def skips(rules: RuleSet) -> list[str]:
    """The patterns that are skipped, in order."""
    return [glob.text for each in rules.skips for glob in each.selector.modules]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a base and a child that takes back one of its patterns; the current one."""
    monkeypatch.chdir(tmp_path)
    return write(tmp_path, base=BASE, child=CHILD)


@pytest.mark.usefixtures("here")
def test_a_pattern_goes_and_its_skip_stays_with_the_others() -> None:
    """What is left of the skip keeps its narrowing, its reason and its places."""
    rules = load_rules("child.yaml")
    assert skips(rules) == ["**.self_attn", "lm_head"]
    first = rules.skips[0]
    assert (first.selector.layers[0].text, first.selector.reason) == ("0", "the first layer sees the raw input")
    assert [each.column for each in first.pattern_locations] == [26]
    (removed,) = rules.removed_skips
    assert [each.text for each in removed.selector.modules] == ["**.mlp"]
    assert (removed.location.file, removed.location.line, removed.reason) == ("child.yaml", 4, "measured")
    assert (removed.skip.location.file, removed.skip.location.line) == ("base.yaml", 5)


@pytest.mark.usefixtures("here")
def test_it_changes_what_the_rule_set_means() -> None:
    """The hash is that of a file without the skip, and what `show` prints loads as the same."""
    rules = load_rules("child.yaml")
    assert rules.sha256 != load_rules("base.yaml").sha256
    text = rules_text(rules)
    line = next(each for each in text.splitlines() if "taken back" in each)
    assert line.split() == ["#", "taken", "back:", '"**.mlp":', "measured", "#", "base.yaml:5,", "at", "child.yaml:4"]
    Path("whole.yaml").write_text(text)
    assert load_rules("whole.yaml").sha256 == rules.sha256
    assert rules_data(rules)["removed_skips"] == [
        {
            "modules": "**.mlp",
            "skip": {"file": "base.yaml", "line": 5},
            "taken_back": {"file": "child.yaml", "line": 4},
            "reason": "measured",
        }
    ]


def test_own_skips_stay(here: Path) -> None:
    """A file may take a skip back and put a narrower one in its place, even under the same pattern."""
    write(here, child=f"{CHILD}skip_modules:\n  - {{modules: '**.mlp', layers: -1}}\n")
    rules = load_rules("child.yaml")
    assert skips(rules) == ["**.self_attn", "lm_head", "**.mlp"]
    assert rules.skips[-1].location.file == "child.yaml"


def test_only_what_is_inherited(here: Path) -> None:
    """Of two parents that skip alike, one cannot take back the other's; their child takes back both."""
    write(here, other="version: 1\nskip_modules: ['**.mlp']")
    write(here, both="version: 1\nextends: [./other.yaml, ./child.yaml]")
    assert skips(load_rules("both.yaml")) == ["**.mlp", "**.self_attn", "lm_head"]
    write(here, neither="version: 1\nextends: [./other.yaml, ./base.yaml]\nremove_skips: ['**.mlp']")
    rules = load_rules("neither.yaml")
    assert (skips(rules), len(rules.removed_skips)) == (["**.self_attn", "lm_head"], 2)


def test_a_grandchild_may_skip_again(here: Path) -> None:
    """Files are folded in order: what one takes back, a later one can skip."""
    write(here, again="version: 1\nextends: ./child.yaml\nskip_modules: ['**.mlp']")
    assert skips(load_rules("again.yaml")) == ["**.self_attn", "lm_head", "**.mlp"]


@pytest.mark.parametrize(
    ("text", "message", "remedy"),
    [
        pytest.param(
            "extends: ./base.yaml\nremove_skips: ['**.mpl']",
            "no skip that the file inherits has the pattern `**.mpl`",
            "did you mean `**.mlp`?",
            id="misspelt",
        ),
        pytest.param(
            "extends: ./base.yaml\nremove_skips: [model.layers.0]",
            "no skip that the file inherits has the pattern `model.layers.0`",
            "patterns are written as they stand there: `**.mlp`, `**.self_attn`, `lm_head`",
            id="a-name-that-the-skip-selects",
        ),
        pytest.param(
            "extends: ./child.yaml\nremove_skips: ['**.mlp']",
            "the skip `**.mlp` is taken back already at child.yaml:4",
            "remove one of the two",
            id="by-a-parent",
        ),
        pytest.param(
            "skip_modules: ['**.mlp']\nremove_skips: ['**.mlp']",
            "`**.mlp` cannot be taken back: the file extends no other, so it inherits no skips",
            "add `extends`, or remove the entry",
            id="its-own",
        ),
        pytest.param(
            "extends: ./empty.yaml\nremove_skips: ['**.mlp']",
            "no skip that the file inherits has the pattern `**.mlp`",
            "remove the entry: the files that it extends skip nothing",
            id="no-skips-at-all",
        ),
    ],
)
def test_nothing_to_take_back(here: Path, text: str, message: str, remedy: str) -> None:
    """A pattern that no inherited skip has is an error: what it was to take back is still there, or never was."""
    write(here, empty="version: 1", wrong=f"version: 1\n{text}")
    rules, (found,) = check_rules("wrong.yaml")
    assert rules is None
    assert (found.code, found.message, found.remedy) == ("RQ326", message, remedy)


@pytest.mark.usefixtures("here")
def test_plan_and_why_tell() -> None:
    """The decision carries the reason of the removal, and `why` shows the skip that no longer decides."""
    rules, model = load_rules("child.yaml"), llama()
    plan = make_plan(rules, model)
    decision = plan.by_name["model.layers.0.mlp.up_proj"]
    assert (decision.scheme, decision.detail) == ("nf4", "skip taken back (**.mlp): measured")
    assert plan.by_name["model.layers.1.mlp.up_proj"].detail is None
    assert plan.by_name["model.layers.0.self_attn.q_proj"].reason == "skip"
    assert "nf4: skip taken back (**.mlp): measured" in plan_text(plan)
    traced = trace(model.by_name[decision.name], rules, model)
    text = trace_text(traced)
    assert "quantized with nf4 (base.yaml:3)" in text
    assert "  skip     **.mlp  (base.yaml:5, taken back at child.yaml:4)" in text
    (attempt,) = [each for each in traced.to_dict()["attempts"] if each["taken_back"]]
    assert (attempt["selects"], attempt["decides"]) == (False, False)
    assert attempt["why"] == "skip taken back (**.mlp): measured"
