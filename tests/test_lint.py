"""Findings about rule files that show without a model."""

from __future__ import annotations

import pytest

from rulequant.bundled import bundled_names, bundled_path
from rulequant.diagnostics import Diagnostic
from rulequant.lint import lint
from rulequant.loader import Loader

HEAD = "version: 1\nextends: causal_lm\nmodels: [llama]\n"


def findings(text: str) -> list[Diagnostic]:
    """Lint the text of one file."""
    loader = Loader()
    loaded = loader.load_text(text, file="rules.yaml")
    assert loaded, loader.diagnostics
    files, merged = loader.chain(loaded), loader.resolve(loaded)
    assert files, loader.diagnostics
    assert merged, loader.diagnostics
    return lint(files, merged)


CASES = {
    "shadowed-rule": (
        "rules:\n- {modules: '**.attn', scheme: int8}\n- {modules: '**.attn.q', scheme: fp4}\n",
        "RQ310",
        6,
        "this rule (`**.attn.q`) never wins: the one at line 5 comes first and selects all that it selects",
    ),
    "rule-behind-skip": (
        "skip_modules: ['**.mlp']\nrules:\n- {modules: '**.mlp.up', scheme: int8}\n",
        "RQ311",
        6,
        (
            "this rule (`**.mlp.up`) never applies: the skip at line 4 takes all that it selects, "
            "and a skip always beats a rule"
        ),
    ),
    "subsumed-skip": (
        "skip_modules:\n- '**.mlp'\n- '**.mlp.gate'\n",
        "RQ312",
        6,
        "this skip (`**.mlp.gate`) adds nothing: the one at line 5 selects all that it selects",
    ),
    "duplicate-skip": (
        "skip_modules:\n- '**.mlp'\n- '**.mlp'\n",
        "RQ312",
        6,
        "this skip (`**.mlp`) adds nothing: the one at line 5 selects all that it selects",
    ),
    "repeated-pattern": (
        "skip_modules:\n- modules: ['**.a.b', '**.a']\n  reason: r\n",
        "RQ313",
        5,
        "the pattern `**.a.b` adds nothing to `**.a` in the same list",
    ),
    "unused-scheme": (
        "schemes: {mine: {method: bnb_4bit}}\n",
        "RQ314",
        4,
        "the scheme `mine` is defined and never used",
    ),
    "unknown-type": (
        "quantizable_types: [Linaer]\n",
        "RQ315",
        4,
        "no module class of torch or transformers is called `Linaer`",
    ),
    "empty-slice": (
        "rules:\n- {modules: '**.a', layers: '5:2', scheme: int8}\n",
        "RQ316",
        5,
        "the slice `5:2` selects no layer of any model",
    ),
    "idle-override": ("scheme: nf4\n", "RQ317", 4, "`scheme` repeats what bundled:causal_lm says already"),
    "idle-scheme": (
        "schemes: {int8: {method: bnb_int8, threshold: 6}}\nrules: [{modules: '**.a', scheme: int8}]\n",
        "RQ317",
        4,
        "`schemes.int8` repeats what bundled:causal_lm says already",
    ),
}


@pytest.mark.parametrize(("body", "code", "line", "message"), CASES.values(), ids=CASES)
def test_finding(body: str, code: str, line: int, message: str) -> None:
    """Each mistake gives exactly one finding, at its line, in these words."""
    (found,) = findings(HEAD + body)
    assert (found.code, found.location and found.location.line, found.message) == (code, line, message)
    assert found.remedy


@pytest.mark.parametrize(
    "body",
    [
        "rules:\n- {modules: '**.attn.q', scheme: fp4}\n- {modules: '**.attn', scheme: int8}\n",
        "rules:\n- {modules: '**.a', layers: '0:2', scheme: fp4}\n- {modules: '**.a', scheme: int8}\n",
        "skip_modules:\n- {modules: '**.mlp', except: '**.mlp.up'}\nrules:\n- {modules: '**.mlp.up', scheme: int8}\n",
        "quantizable_types: [Linear, FalconLinear, '*Experts']\n",
        "rules:\n- {modules: '**.a', layers: ['-2:', 0, '::2'], scheme: int8}\n",
        "scheme: int8\n",
    ],
    ids=["narrow-first", "narrowed-first", "excepted", "known-types", "slices", "override"],
)
def test_nothing_to_say(body: str) -> None:
    """What has an effect is not reported."""
    assert findings(HEAD + body) == []


def test_a_base_may_offer_schemes() -> None:
    """A file without `models` defines schemes for those that extend it."""
    assert findings("version: 1\nschemes: {a: {method: bnb_4bit}, b: {method: bnb_int8}}\nscheme: a\n") == []


@pytest.mark.parametrize("name", bundled_names())
def test_bundled_files_are_clean(name: str) -> None:
    """rulequant's own rule files give no finding."""
    path = bundled_path(name)
    assert path
    loader = Loader()
    loaded = loader.load(path, file=f"bundled:{name}")
    assert loaded
    files, merged = loader.chain(loaded), loader.resolve(loaded)
    assert files
    assert merged
    assert lint(files, merged) == []
