"""Hypothesis strategies: rule files as data, good by construction or arbitrary, and text that may be anything."""

from __future__ import annotations

import string
from typing import Any

import yaml
from hypothesis import strategies as st

from rulequant.bundled import bundled_names
from rulequant.known_types import known_types

__all__ = ["dump", "globs", "json_like", "rule_files", "schemes", "selectors", "texts", "yaml_like"]

_LETTERS = string.ascii_letters + string.digits + "_"
_WORDS = st.sampled_from(("model", "layers", "self_attn", "mlp", "q_proj", "gate", "lm_head", "experts", "0", "12"))
_NAMES = _WORDS | st.text(_LETTERS, min_size=1, max_size=6) | st.text("äß模λ", min_size=1, max_size=2)
_CLASSES = st.sampled_from(("[0-9]", "[abc]", "[!a-f]", "[!_]", "?", "*"))
_RANGES = st.tuples(st.integers(0, 12), st.integers(0, 12)).map(lambda ends: f"{{{ends[0]}..{ends[1]}}}")
_LISTS = st.lists(_NAMES, min_size=2, max_size=3).map(lambda words: f"{{{','.join(words)}}}")
_PARTS = st.lists(_NAMES | _CLASSES | _RANGES | _LISTS, min_size=1, max_size=3)
# Two stars side by side would be a `**` that is no segment of its own.
_SEGMENTS = _PARTS.map("".join).filter(lambda text: "**" not in text) | st.just("**")
# Fewer alternatives than a pattern may have, whatever the braces multiply to; and `.*?` is a regular expression's.
globs = st.lists(_SEGMENTS, min_size=1, max_size=4).map(".".join).filter(lambda t: t.count("{") <= 2 and ".*?" not in t)

_PROSE = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
_BOUNDS = st.integers(-9, 99).map(str) | st.just("")
_STEPS = st.sampled_from(("", ":", ":2", ":-1", ":3"))
_LAYERS = st.integers(-99, 99) | st.builds("{}:{}{}".format, _BOUNDS, _BOUNDS, _STEPS)
_TYPES = st.sampled_from(sorted(known_types())) | st.sampled_from(("*Experts", "[A-Z]*Linear", "My_Layer", "?"))
_SHARES = st.floats(0, 1) | st.integers(0, 1)


def _one_or_more(item: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return item | st.lists(item, min_size=1, max_size=3)


def selectors(**required: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """An entry of `skip_modules`, or with a `scheme` one of `rules`."""
    return st.fixed_dictionaries(
        {"modules": _one_or_more(globs), **required},
        optional={
            "except": _one_or_more(globs),
            "types": _one_or_more(_TYPES),
            "layers": _one_or_more(_LAYERS),
            "optional": st.booleans(),
            "reason": _PROSE,
        },
    )


schemes = st.fixed_dictionaries(
    {"method": st.just("bnb_4bit")},
    optional={
        "quant_type": st.sampled_from(("nf4", "fp4")),
        "double_quant": st.booleans(),
        "blocksize": st.sampled_from((32, 64, 128, 256, 512, 1024, 2048, 4096)),
        "compute_dtype": st.sampled_from(("auto", "float16", "bfloat16", "float32")),
        "quant_storage": st.sampled_from(("uint8", "float16", "bfloat16", "float32")),
    },
) | st.fixed_dictionaries(
    {"method": st.just("bnb_int8")},
    optional={"threshold": st.floats(0, 1e9) | st.integers(0, 10**9)},
)


@st.composite
def rule_files(draw: st.DrawFn) -> dict[str, Any]:
    """The data of a rule file that loads: what it names exists."""
    defined = draw(st.dictionaries(_PROSE, schemes, max_size=3))
    parents = draw(st.lists(st.sampled_from(bundled_names()), max_size=2))
    named = [*defined, *(("nf4", "int8") if parents else ())]
    data: dict[str, Any] = {"version": 1, "schemes": defined} | ({"extends": parents} if parents else {})
    if named:
        data["scheme"] = draw(st.sampled_from(named))
        data["rules"] = draw(st.lists(selectors(scheme=st.sampled_from(named)), max_size=3))
    rest = st.fixed_dictionaries(
        {},
        optional={
            "name": _PROSE,
            "description": st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
            "models": _one_or_more(_PROSE),
            "quantizable_types": _one_or_more(_TYPES),
            "skip_modules": st.lists(globs | selectors(), max_size=3),
            "output_embeddings": st.sampled_from(("skip", "quantize")),
            "expect": st.fixed_dictionaries({}, optional={"min_quantized": _SHARES, "min_quantized_layers": _SHARES}),
        },
    )
    return data | draw(rest)


_KEYS = st.sampled_from(
    [
        *("version", "name", "extends", "models", "quantizable_types", "skip_modules", "schemes", "scheme", "rules"),
        *("expect", "modules", "except", "types", "layers", "optional", "reason", "method", "quant_type", "blocksize"),
        *("min_quantized", "threshold", "output_embeddings", "compute_dtype"),
    ]
)
_VALUES = st.sampled_from((1, "bnb_4bit", "bnb_int8", "nf4", "causal_lm", "./base.yaml", "0:2", "**.mlp", "Linear", 64))
_SCALARS = (
    _VALUES | st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10) | globs  # NaN and all
)
json_like = st.recursive(
    _SCALARS, lambda item: st.lists(item, max_size=4) | st.dictionaries(_KEYS | st.text(max_size=5), item, max_size=4)
)

_TOKENS = st.sampled_from(
    [
        *("\n", "\n  ", "\n    ", "\n- ", "\n  - ", "\r\n", "\r", "---", "---\n", "...", "\ufeff", "\u2028", "\0"),
        *("- ", ": ", ":", ",", ", ", " ", "\t", " #", "|", ">", "|-\n", "? ", "[", "]", "{", "}", '"', "'", "\\"),
        *("*", "**", "&", "!", "!!str ", "%", "@", "`", "<<", "~", "null", "true", "yes", "1e-3", "010", ".nan"),
        "9" * 40,
    ]
)
yaml_like = st.lists(
    _TOKENS | _KEYS.map(lambda key: f"{key}: ") | _VALUES.map(str) | globs | st.text(max_size=3), max_size=30
).map("".join)
texts = yaml_like | st.text() | st.binary().map(lambda content: content.decode("utf-8", "replace"))


class _Dumper(yaml.SafeDumper):
    """All texts in double quotes: PyYAML leaves plain what YAML 1.2 takes for a number, such as 1e3."""

    def ignore_aliases(self, data: Any) -> bool:
        """A rule file has no anchors."""
        return True


_Dumper.add_representer(str, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"'))


def dump(data: dict[str, Any]) -> str:
    """Data as the text of a rule file."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False)
