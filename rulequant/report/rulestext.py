"""A resolved rule set as YAML, with the file and line that each part comes from."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

from rulequant.diagnostics import Location
from rulequant.escaping import printable
from rulequant.report.text import PLAIN, Style
from rulequant.ruleset import OriginRule, OriginSkip, RuleSet
from rulequant.scalars import NumberTooLongError, resolve

__all__ = ["rules_data", "rules_text", "scalar"]

_COLUMN = 60
"""Where origins start, unless a line is longer."""
_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")

Line = tuple[str, str | None]
"""Text, and where it comes from."""


def rules_text(rules: RuleSet, style: Style = PLAIN) -> str:
    """YAML that loads as the same rule set, the origin of each entry behind it as a comment."""
    head = f"# {printable(rules.file)}"
    if len(rules.files) > 1:
        head += f", with {', '.join(printable(each) for each in rules.files[:-1])}"
    lines = [style.dim(head)]
    for text, origin in _lines(rules):
        lines.append(text if origin is None else f"{text.ljust(_COLUMN)}  {style.dim(f'# {printable(origin)}')}")
    return "\n".join(lines)


def rules_data(rules: RuleSet) -> dict[str, Any]:
    """The rule set and its origins as JSON-ready data."""
    removed = [
        {
            "modules": each.selector.modules[0].text,
            "skip": _place(each.skip.location),
            "taken_back": _place(each.location),
            "reason": each.reason,
        }
        for each in rules.removed_skips
    ]
    origins = {key: _place(each) for key, each in rules.origins.items()}
    origins |= {f"skip_modules[{index}]": _place(each.location) for index, each in enumerate(rules.skips)}
    origins |= {f"rules[{index}]": _place(each.location) for index, each in enumerate(rules.rules)}
    return {
        "format_version": 1,
        "file": rules.file,
        "files": list(rules.files),
        "sha256": rules.sha256,
        "rules": rules.to_dict(),
        "origins": origins,
        "removed_skips": removed,
    }


def _place(location: Location) -> dict[str, Any]:
    return {"file": location.file, "line": location.line}


def _lines(rules: RuleSet) -> Iterator[Line]:
    data = rules.to_dict()
    for key, value in data.items():
        if key == "output_embeddings":
            yield from _removed(rules)
        if key == "skip_modules":
            yield "skip_modules:", None
            yield from _entries(rules.skips, value)
        elif key == "rules":
            yield "rules:", None
            yield from _entries(rules.rules, value)
        elif key in {"schemes", "expect"} and value:
            yield f"{key}:", None
            for name, settings in value.items():
                yield f"  {scalar(name)}: {_flow(settings)}", _origin(rules, f"{key}.{name}", key)
        elif value not in ({}, None):
            yield (
                f"{key}: {_flow(value)}",
                _origin(rules, key) if key not in {"version", "name", "description"} else None,
            )


def _removed(rules: RuleSet) -> Iterator[Line]:
    """The skips that are no longer there, as comments."""
    for each in rules.removed_skips:
        reason = f": {printable(each.reason)}" if each.reason else ""
        text = f"# taken back: {scalar(each.selector.modules[0].text)}{reason}"
        yield text, f"{_where(each.skip.location)}, at {_where(each.location)}"


def _origin(rules: RuleSet, *keys: str) -> str:
    """The first of the keys that has an origin; without one the value is the default."""
    found = next((rules.origins[key] for key in keys if key in rules.origins), None)
    return _where(found) if found else "default"


def _where(location: Location) -> str:
    return f"{location.file}:{location.line}"


def _entries(entries: Iterable[OriginSkip | OriginRule], values: list[dict[str, Any]]) -> Iterator[Line]:
    for entry, value in zip(entries, values, strict=True):
        for number, (key, each) in enumerate(value.items()):
            text = f"{'    ' if number else '  - '}{key}: {_flow(_item(key, each))}"
            yield text, None if number else _where(entry.location)


def _item(key: str, value: Any) -> Any:
    """A list of one as its item, as people write it; `layers` stay a list, since an index would be text there."""
    return value[0] if key in {"modules", "except", "types"} and len(value) == 1 else value


def _flow(value: Any) -> str:
    """A value on one line."""
    match value:
        case str():
            return scalar(value)
        case list():
            return f"[{', '.join(_flow(each) for each in value)}]"
        case dict():
            return f"{{{', '.join(f'{scalar(key)}: {_flow(each)}' for key, each in value.items())}}}"
        case _:
            return json.dumps(value)


def scalar(text: str) -> str:
    """Text as a YAML scalar: plain where it reads as the same text, else in double quotes."""
    if _PLAIN.fullmatch(text) and _reads_as_text(text):
        return text
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{printable(escaped)}"'  # Python's escapes \n, \x1b, \u202e and \U000e0001 are YAML's too


def _reads_as_text(text: str) -> bool:
    try:
        return isinstance(resolve(text), str)
    except NumberTooLongError:
        return False
