"""Every diagnostic code with its long form: for `rulequant explain`, SARIF, and the page that lists them all."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from rulequant.codes import checkpoint, components, content, model, reading, references, removals
from rulequant.codes.entry import Code

__all__ = ["CODES", "Code", "explanation", "page"]

GROUPS: tuple[tuple[str, tuple[Code, ...]], ...] = (
    ("Reading the file", reading.CODES),
    ("Keys, values and patterns", content.CODES),
    ("What the entries say to each other", (*references.CODES, *components.CODES, *removals.CODES)),
    ("Rules against a model", model.CODES),
    ("Writing a checkpoint", checkpoint.CODES),
)

CODES: Mapping[str, Code] = MappingProxyType({each.code: each for _, codes in GROUPS for each in codes})
"""All codes, in order."""

_ABOUT = (
    "Codes are stable: none changes its meaning. `rulequant explain RQ101` prints what is here. An error makes a "
    "command exit 1, a warning does not; a note concerns only some users. "
    "In the examples `version: 1` is left out where it does not matter."
)


def explanation(code: Code) -> str:
    """The long form, as text for a terminal."""
    parts = [f"{code.code} ({code.severity.value}): {code.title}", code.what, code.why]
    if code.wrong:
        parts.append("Wrong:\n\n" + _indented(code.wrong))
    if code.right:
        parts.append("Right:\n\n" + _indented(code.right))
    return "\n\n".join(parts)


def page() -> str:
    """All codes as a Markdown page: `docs/diagnostics.md`."""
    lines = [
        "# Diagnostics",
        "",
        "<!-- Generated from rulequant/codes; tests/test_codes.py compares it. -->",
        "",
        _ABOUT,
        "",
        "| code | severity | |",
        "|---|---|---|",
    ]
    lines += [
        f"| [{each.code}](#{each.code.lower()}) | {each.severity.value} | {each.title} |" for each in CODES.values()
    ]
    for heading, codes in GROUPS:
        lines += ["", f"## {heading}"]
        for each in codes:
            lines += ["", *_section(each)]
    return "\n".join(lines) + "\n"


def _section(code: Code) -> list[str]:
    lines = [f"### {code.code}", "", f"**{code.title}** ({code.severity.value})", "", code.what, "", code.why]
    for word, example in (("Wrong", code.wrong), ("Right", code.right)):
        if example:
            lines += ["", f"{word}:", "", "```yaml", example, "```"]
    return lines


def _indented(text: str) -> str:
    return "\n".join(f"    {line}" if line else "" for line in text.splitlines())
