"""How one module's decision comes about."""

from __future__ import annotations

import json

import pytest
from inventories import llama, of, ruleset

from rulequant.errors import UsageError
from rulequant.inventory import Inventory
from rulequant.planner import make_plan
from rulequant.report.whytext import contents_text, trace_text
from rulequant.trace import Attempt, Trace, contents, find_module, trace

O_PROJ = "model.layers.0.self_attn.o_proj"
RULES = """
    skip_modules:
      - modules: "**.self_attn"
        except: "**.o_proj"
        reason: attention stays
      - modules: "**.mlp"
        layers: -1
    rules:
      - {modules: model.layers, types: Conv1D, scheme: int8}
      - {modules: "**.{o,q}_proj", scheme: int8}
      - {modules: model, scheme: nf4}
"""


def _trace(name: str, text: str = RULES, inventory: Inventory | None = None) -> Trace:
    inventory = inventory or llama()
    return trace(find_module(name, inventory), ruleset(text), inventory)


def _attempt(text: str, name: str = O_PROJ) -> Attempt:
    return _trace(name, f"skip_modules:\n  - {text}").attempts[0]


def test_every_entry_is_tried() -> None:
    """Skips come first, then rules, each in its order, whoever decides."""
    found = _trace(O_PROJ)
    assert [(each.kind, each.selects) for each in found.attempts] == [
        ("skip", False),
        ("skip", False),
        ("rule", False),
        ("rule", True),
        ("rule", True),
    ]


def test_the_first_rule_decides() -> None:
    """Of two rules that select the module the first is marked."""
    assert [each.decides for each in _trace(O_PROJ).attempts] == [False, False, False, True, False]


def test_a_skip_decides_before_any_rule() -> None:
    """A rule that selects a skipped module does not decide."""
    found = _trace("model.layers.0.self_attn.q_proj")
    assert [each.decides for each in found.attempts] == [True, False, False, False, False]
    assert found.attempts[3].selects


@pytest.mark.parametrize("name", [each.name for each in llama().owners])
def test_agrees_with_the_plan(name: str) -> None:
    """The decision is the plan's, and there is an objection exactly where it is a no."""
    found = _trace(name)
    plan = make_plan(ruleset(RULES), llama())
    assert found.decision == plan.by_name[name]
    first = next((each.name for each in found.tests if not each.passed), None)
    assert first == found.decision.reason


@pytest.mark.parametrize(
    ("entry", "why"),
    [
        pytest.param('"**.self_attn"', f"`**.self_attn` matches `{O_PROJ[:-7]}`, and it is inside", id="around it"),
        pytest.param('"**.o_proj"', "`**.o_proj` matches it", id="itself"),
        pytest.param("model", "`model` matches `model`, and it is inside", id="far around it"),
        pytest.param('"**"', "`**` matches it", id="everything"),
        pytest.param(
            '{modules: "**.self_attn", except: "**.o_proj"}',
            "`**.self_attn` selects it, but `except: **.o_proj` takes it out",
            id="except",
        ),
        pytest.param(
            '{modules: "**.self_attn", types: [Conv1D, Embedding]}',
            "`**.self_attn` selects it, but it is a Linear, and `types` has Conv1D, Embedding",
            id="types",
        ),
        pytest.param(
            '{modules: "**.self_attn", layers: ["1:", -1]}',
            "`**.self_attn` selects it, but it is in layer 0 of 2, and `layers` has 1:, -1",
            id="layers",
        ),
        pytest.param(
            "layers.0", "`layers.0` does not match from the start of the name; `**.layers.0` would", id="beginning"
        ),
        pytest.param('"**.O_PROJ"', "`**.O_PROJ` differs in upper and lower case", id="case"),
        pytest.param(
            '"**.self_atn.o_proj"',
            "`**.self_atn.o_proj` has `self_atn` where the name has `self_attn`",
            id="typing error",
        ),
        pytest.param('"**.experts"', "no pattern matches its name", id="nothing like it"),
    ],
)  # fmt: skip
def test_why(entry: str, why: str) -> None:
    """Each entry says what matches, or the one thing that keeps it from the module."""
    found = _attempt(entry)
    assert found.why == why
    assert found.near_miss is (not found.selects and "no pattern" not in why)


def test_outside_any_stack() -> None:
    """`layers` keeps out what is in no layer."""
    found = _attempt("{modules: lm_head, layers: 0}", "lm_head")
    assert "in no stack of layers" in found.why


def test_default_scheme() -> None:
    """Where no rule selects the module, the default is named with its place."""
    found = _trace("model.layers.0.mlp.up_proj", "scheme: nf4\nschemes: {nf4: {method: bnb_4bit}}")
    assert found.default is not None
    assert found.default[0] == "nf4"
    assert found.decision.scheme == "nf4"
    assert "> default  scheme: nf4  (rules.yaml:1)" in trace_text(found)


def test_text() -> None:
    """The answer comes first, then the tests, then the entries with their marks."""
    lines = trace_text(_trace(O_PROJ)).splitlines()
    assert lines[0] == f"{O_PROJ}: Linear, weight bfloat16[64, 64]"
    assert lines[3].startswith("quantized with int8 (rules.yaml:9), 8.19 KB -> ")
    assert any(line.startswith("~ skip     **.self_attn") for line in lines)
    assert any(line.startswith("> rule     **.{o,q}_proj -> int8  (rules.yaml:9)") for line in lines)
    assert any(line.startswith("+ rule     model -> nf4") for line in lines)


def test_text_of_a_no() -> None:
    """The test that decides is marked, with its reason and place."""
    text = trace_text(_trace("model.layers.0.self_attn.q_proj"))
    assert "not quantized: skip: attention stays (rules.yaml:2)" in text
    assert "> no   no entry of skip_modules selects it\n       attention stays (rules.yaml:2)" in text


def test_data() -> None:
    """The trace as data can be written as JSON."""
    data = json.loads(json.dumps(_trace(O_PROJ).to_dict()))
    assert data["module"] == O_PROJ
    assert data["layer"] == {"index": 0, "of": 2}
    assert [each["test"] for each in data["tests"]][:3] == ["type", "skip", "output_embedding"]
    assert data["attempts"][3]["decides"] is True


def test_contents_of_a_container() -> None:
    """A module without parameters is answered with what is inside it."""
    inventory = llama()
    found = contents(find_module("model.layers.0.mlp", inventory), ruleset(RULES), inventory)
    assert [each.name.rpartition(".")[2] for each in found.decisions] == ["gate_proj", "up_proj", "down_proj"]
    text = contents_text(found)
    assert "owns no parameter itself" in text
    assert "inside: 3 modules, 3 quantized" in text
    assert json.loads(json.dumps(found.to_dict()))["decision"] is None


def test_contents_of_the_model() -> None:
    """The name of the whole model is the empty one."""
    inventory = llama()
    found = contents(find_module("", inventory), ruleset(RULES), inventory)
    assert len(found.decisions) == len(list(inventory.owners))


def test_contents_of_nothing() -> None:
    """A module with nothing inside says so."""
    inventory = llama()
    text = contents_text(contents(find_module("model.rotary_emb", inventory), ruleset(RULES), inventory))
    assert "nothing inside has one either" in text


@pytest.mark.parametrize(
    ("name", "message"),
    [
        pytest.param("model.layers.0.mlp.up_prj", r"has no module .*\n.*`model.layers.0.mlp.up_proj`", id="misspelt"),
        pytest.param("layers.0.mlp.up_proj", r"did you mean `model.layers.0.mlp.up_proj`\?", id="no beginning"),
        pytest.param(f"{O_PROJ}.weight", f"is a tensor, not a module\n.*`{O_PROJ}`", id="tensor"),
        pytest.param("**.o_proj", rf"is a pattern.*\n.*it selects `{O_PROJ}`, ", id="pattern"),
        pytest.param("zzz", "`plan --all` lists them", id="nothing like it"),
    ],
)
def test_unknown_module(name: str, message: str) -> None:
    """A name that the model does not have is answered with what may be meant."""
    with pytest.raises(UsageError, match=message):
        find_module(name, llama())


def test_alias() -> None:
    """A module is found under its other names too, and a pattern for one of them selects it."""
    inventory = of(*llama().modules)
    head = inventory.by_name["lm_head"]
    aliased = of(type(head)(**{**{f: getattr(head, f) for f in head.__slots__}, "aliases": ("head",)}))
    found = _trace("head", 'skip_modules: ["head"]', aliased)
    assert found.info.name == "lm_head"
    assert found.attempts[0].why == "`head` matches it under its alias `head`"
