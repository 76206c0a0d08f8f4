"""The rule file as pydantic models: what one file may say, and what it may not."""

from __future__ import annotations

from importlib import metadata
from typing import Any

import pytest
from pydantic import ValidationError

from rulequant import schemes
from rulequant.rulefile import RuleFile
from rulequant.schemes import Bnb4bit, BnbInt8


def read(**content: Any) -> RuleFile:
    """A rule file with this content."""
    return RuleFile.model_validate({"version": 1, **content})


def errors(**content: Any) -> list[tuple[str, tuple[int | str, ...]]]:
    """Type and place of each complaint about a rule file with this content."""
    with pytest.raises(ValidationError, match="validation error") as caught:
        read(**content)
    return [(each["type"], each["loc"]) for each in caught.value.errors()]


def test_everything_a_file_may_say() -> None:
    """Each key of the language, version 1."""
    content = read(
        name="qwen3_moe",
        description="NF4; routers stay.",
        extends="causal_lm",
        models=["qwen3_moe"],
        quantizable_types=["Linear", "*Experts"],
        skip_modules=[
            "**.mlp.gate",
            {"modules": "model.visual", "except": "model.visual.merger", "reason": "OCR", "optional": True},
        ],
        output_embeddings="quantize",
        schemes={"nf4": {"method": "bnb_4bit", "double_quant": True}, "int8": {"method": "bnb_int8", "threshold": 5}},
        scheme="nf4",
        rules=[{"modules": "**.{q,k}_proj", "layers": ["0:2", -1], "types": "Linear", "scheme": "int8"}],
        expect={"min_quantized": 0.95, "min_quantized_layers": 1},
    )
    assert content.extends == ("causal_lm",)
    assert content.quantizable_types == ("Linear", "*Experts")
    assert [each.text for each in content.skip_modules[0].modules] == ["**.mlp.gate"]
    assert content.skip_modules[1].optional
    assert content.schemes == {"nf4": Bnb4bit(double_quant=True), "int8": BnbInt8(threshold=5.0)}
    assert [each.text for each in content.rules[0].layers] == ["0:2", "-1"]
    assert (content.expect.min_quantized, content.expect.min_quantized_layers) == (0.95, 1.0)


def test_what_a_file_leaves_out() -> None:
    """Only the version is required; what is left out is known to be left out."""
    content = read()
    assert content.model_fields_set == {"version"}
    assert content.expect.model_fields_set == set()
    assert (content.scheme, content.rules, content.skip_modules, content.schemes) == (None, (), (), {})


@pytest.mark.parametrize("key", ["extends", "models", "quantizable_types"])
def test_a_list_may_be_its_only_item(key: str) -> None:
    """A string stands for the list of it."""
    assert getattr(read(**{key: "a"}), key) == getattr(read(**{key: ["a"]}), key) == ("a",)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        pytest.param({"nme": "x"}, [("extra_forbidden", ("nme",))], id="top"),
        pytest.param({"expect": {"min": 1}}, [("extra_forbidden", ("expect", "min"))], id="expect"),
        pytest.param(
            {"skip_modules": [{"modules": "a", "excpt": "b"}]},
            [("extra_forbidden", ("skip_modules", 0, "excpt"))],
            id="skip",
        ),
        pytest.param(
            {"skip_modules": [{"modules": "a", "scheme": "nf4"}]},
            [("extra_forbidden", ("skip_modules", 0, "scheme"))],
            id="skip-with-a-scheme",
        ),
        pytest.param(
            {"rules": [{"modules": "a", "scheme": "x", "layer": 0}]},
            [("extra_forbidden", ("rules", 0, "layer"))],
            id="rule",
        ),
        pytest.param(
            {"rules": [{"modules": "a", "except_": "b", "scheme": "x"}]},
            [("extra_forbidden", ("rules", 0, "except_"))],
            id="the-python-name-of-except",
        ),
        pytest.param(
            {"schemes": {"x": {"method": "bnb_int8", "treshold": 6}}},
            [("extra_forbidden", ("schemes", "x", "treshold"))],
            id="scheme",
        ),
    ],
)
def test_unknown_keys_are_forbidden(content: dict[str, Any], expected: list[Any]) -> None:
    """At every level, a key that means nothing is an error."""
    assert errors(**content) == expected


@pytest.mark.parametrize("version", ["1", 2, 0, None, True, 1.5, [1]])
def test_only_version_1(version: Any) -> None:
    """The version is the integer 1, and true is not."""
    with pytest.raises(ValidationError, match="Input should be 1"):
        RuleFile.model_validate({"version": version})


def test_the_method_chooses_the_settings() -> None:
    """Each scheme is checked by the model of its own method, and all problems are found."""
    found = errors(
        schemes={
            "a": {"quant_type": "nf4"},
            "b": {"method": "bnb4"},
            "c": {"method": 4},
            "d": "bnb_4bit",
            "e": {"method": "bnb_4bit", "threshold": 6},
            "f": {"method": "bnb_int8", "threshold": -1},
        }
    )
    assert found == [
        ("missing", ("schemes", "a", "method")),
        ("unknown_method", ("schemes", "b", "method")),
        ("unknown_method", ("schemes", "c", "method")),
        ("dict_type", ("schemes", "d")),
        ("extra_forbidden", ("schemes", "e", "threshold")),
        ("greater_than_equal", ("schemes", "f", "threshold")),
    ]


def test_a_method_that_cannot_be_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A broken package is a complaint at the method, beside all others."""
    entries = metadata.EntryPoints([metadata.EntryPoint("broken", "gone.away:Gone", schemes.ENTRY_POINTS)])
    monkeypatch.setattr(metadata, "entry_points", lambda **_: entries)
    found = errors(schemes={"a": {"method": "broken"}}, output_embeddings="keep")
    assert found == [("literal_error", ("output_embeddings",)), ("broken_method", ("schemes", "a", "method"))]
