"""Whatever it is given, rulequant answers with diagnostics; and what it loads it can write and load again."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import HealthCheck, example, given, settings
from strategies import dump, json_like, rule_files, texts

from rulequant.diagnostics import Diagnostic, has_errors
from rulequant.lint import lint
from rulequant.loader import Loader, check_rules, load_rules
from rulequant.ruleset import RuleSet

LINT = "RQ310"
"""The first code of findings about a rule set that loads."""
# The same examples in every run; tests/fuzz looks further.
fuzz = settings(deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), print_blob=False)


def _loaded(text: str | bytes) -> tuple[RuleSet | None, list[Diagnostic]]:
    """What becomes of a text, with the findings about what it says."""
    loader = Loader()
    loaded = loader.load_text(text, file="rules.yaml")
    rules = loader.resolve(loaded) if loaded else None
    found = list(loader.diagnostics)
    if loaded and rules:
        found += lint(loader.chain(loaded) or [], rules)
    return rules, found


def _check(text: str, rules: RuleSet | None, found: list[Diagnostic]) -> None:
    """There is a rule set or an error, and every diagnostic is about a place in the text."""
    assert (rules is None) == has_errors(each for each in found if each.code < LINT)
    lines = text.count("\n") + text.count("\r") + 1
    for each in found:
        assert json.loads(json.dumps(each.to_dict()))["message"]
        place = each.location
        assert place is not None
        if place.file == "rules.yaml":
            assert (1, 1) <= (place.line, place.column) <= (place.end_line, place.end_column)
            assert place.end_line <= lines


@settings(fuzz, max_examples=80)
@given(rule_files())
def test_good_data_load(data: dict[str, Any]) -> None:
    """A rule file that is good by construction loads, and dumped, loaded and dumped again it is the same."""
    rules = load_rules(data)
    dumped = rules.to_dict()
    again, found = _loaded(dump(dumped))
    assert not [each for each in found if each.code < LINT]
    assert again is not None
    assert again.to_dict() == dumped
    assert again.sha256 == rules.sha256
    assert load_rules(dumped).sha256 == rules.sha256


@settings(fuzz, max_examples=60)
@given(rule_files())
def test_data_and_text_mean_the_same(data: dict[str, Any]) -> None:
    """Given as data and given as text, a rule file is the same rule set."""
    rules, _ = _loaded(dump(data))
    assert rules is not None
    assert rules.sha256 == load_rules(data).sha256


@settings(fuzz, max_examples=300)
@given(json_like)
@example({"version": 1, "rules": [{"modules": "a", "scheme": "nf4", "layers": 10**30}]})
@example({"version": 1, "skip_modules": [{"modules": ["a"], "types": [None]}]})
@example({"version": 1, "expect": {"min_quantized": float("nan")}})
def test_any_data(data: Any) -> None:
    """Data of any shape are answered with diagnostics."""
    text = dump(data)
    _check(text, *_loaded(text))
    if isinstance(data, dict):
        rules, found = check_rules(data)
        assert (rules is None) == has_errors(found)


@settings(fuzz, max_examples=800)
@given(texts)
def test_any_text(text: str) -> None:
    """Text of any kind is answered with diagnostics, those of the lines that it has."""
    _check(text, *_loaded(text))
