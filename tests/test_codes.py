"""The registry of codes: complete, proven by its own examples, and what the page says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import rulequant
from rulequant.codes import CODES, Code, explanation, page
from rulequant.diagnostics import Severity
from rulequant.inventory import Inventory, LayerIndex, ModuleInfo, TensorInfo
from rulequant.lint import lint
from rulequant.loader import Loader
from rulequant.planner import make_plan

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = Path(rulequant.__file__).parent
LITERAL = re.compile(r"""["'](RQ\d{3})["']""")

CASES = list(CODES.values())
every_code = pytest.mark.parametrize("code", CASES, ids=[each.code for each in CASES])
with_wrong = pytest.mark.parametrize(
    "code", [each for each in CASES if each.wrong], ids=[each.code for each in CASES if each.wrong]
)
with_right = pytest.mark.parametrize(
    "code", [each for each in CASES if each.right], ids=[each.code for each in CASES if each.right]
)


def _linear(name: str, layer: int) -> ModuleInfo:
    return ModuleInfo(
        f"model.layers.{layer}.{name}",
        "Linear",
        "linear",
        (TensorInfo("weight", (128, 128), "bfloat16"),),
        layer=LayerIndex(layer, 2),
    )


MODEL = Inventory(
    "tiny",
    (
        ModuleInfo("model.embed_tokens", "Embedding", "embedding", (TensorInfo("weight", (64, 128), "bfloat16"),)),
        *(_linear(name, layer) for layer in range(2) for name in ("self_attn.o_proj", "mlp.gate", "mlp.down_proj")),
    ),
    model_type="llama",
)


def _codes_of(example: str, *, against_model: bool) -> dict[str, Severity]:
    """All codes that a rule file gets, alone or with the little model, and how bad each is."""
    text = example if "version:" in example else f"version: 1\n{example}"
    loader = Loader()
    loaded = loader.load_text(text + "\n", file="example.yaml")
    rules = loader.resolve(loaded) if loaded else None
    if loaded and rules:
        loader.diagnostics += lint(loader.chain(loaded) or [], rules)
        if against_model:
            loader.diagnostics += make_plan(rules, MODEL).diagnostics
    return {each.code: each.severity for each in loader.diagnostics}


def test_every_code_in_use_is_explained_and_every_explained_code_is_in_use() -> None:
    """The codes that the package writes are exactly those of the registry."""
    used = {
        code
        for path in PACKAGE.rglob("*.py")
        if "codes" not in path.relative_to(PACKAGE).parts
        for code in LITERAL.findall(path.read_text(encoding="utf-8"))
    }
    assert used == set(CODES)


def test_codes_are_in_order() -> None:
    """The registry, and so the page, is sorted."""
    assert list(CODES) == sorted(CODES)


@every_code
def test_says_what_and_why(code: Code) -> None:
    """Each code has a title without a full stop, and sentences."""
    assert not code.title.endswith(".")
    assert code.title[0].islower() or code.title.split()[0] in {"YAML"} or code.title[0].isdigit()
    assert code.what.endswith(".")
    assert code.why.endswith(".")
    assert code.code in explanation(code)


@with_wrong
def test_wrong_example_gets_the_code(code: Code) -> None:
    """The example of what is wrong gets its code, in the severity that the registry gives."""
    assert code.wrong is not None
    found = _codes_of(code.wrong, against_model=code.code.startswith("RQ4"))
    assert found.get(code.code) is code.severity


@with_right
def test_right_example_is_clean(code: Code) -> None:
    """The example put right gets no code at all."""
    assert code.right is not None
    assert _codes_of(code.right, against_model=code.code.startswith("RQ4")) == {}


def test_page_is_generated() -> None:
    """`docs/diagnostics.md` is what the registry says: write `rulequant.codes.page()` to it."""
    assert (ROOT / "docs" / "diagnostics.md").read_text(encoding="utf-8") == page()
