"""The README.md of an output: what it is, how it was made and how it loads, above the card of the source."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from rulequant.plan import Plan
from rulequant.scalars import quote, resolve
from rulequant.schemes import Scheme
from rulequant.source import Document, parse
from rulequant.sourcetext import SourceText
from rulequant.splice import Change, span_of, spliced
from rulequant.torch.checkpoint.files import printable, size_text
from rulequant.torch.checkpoint.origin import Origin

__all__ = ["CardFacts", "card_text"]

_FRONT_MATTER = re.compile(r"\A\ufeff?\s*---[ \t]*\r?\n(?P<yaml>.*?)^---[ \t]*\r?(?:\n|\Z)", re.DOTALL | re.MULTILINE)
_ITEM = re.compile(r"[ \t]*-[ \t]+")
_PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9_./-]*")
_QUOTE = '"'


@dataclass(frozen=True)
class CardFacts:
    """What a card says of an output."""

    plan: Plan
    source: str
    """The name of the source folder."""
    container: str
    """The `quant_method` of its config.json."""
    dtype: str
    """The dtype of what is not quantized."""
    bytes_written: int
    """Bytes of all tensors."""
    command: str
    """What makes it again."""
    version: str
    """Of rulequant."""
    model_class: str | None = None
    """The class of transformers that loads it; None where the model brings its own code."""
    library: str = "transformers"
    """What loads it."""
    loading: str | None = None
    """Python that loads it, where it is not transformers that does."""
    origin: Origin | None = None
    """Where on the Hub the source comes from, where that is known."""
    files: Mapping[str, str] = field(default_factory=dict)
    """What the other files of rulequant are for, by name."""


def card_text(facts: CardFacts, source: str | None, *, link: str | None = None) -> str:
    """The text of the card. Of the source's card the front matter stays, with a few keys added, and the text below.

    Where the source's card is not given as text, `link` may name the file that holds it.
    """
    found = _FRONT_MATTER.match(source) if source else None
    before = found["yaml"] if found else ""
    body = (source[found.end() :] if found else source) if source else ""
    parts = [f"---\n{_front_matter(before, facts).rstrip()}\n---\n", *_own_part(facts)]
    if body.strip():
        parts.append(f"---\n\n*The card of the original model:*\n\n{body.strip()}\n")
    elif link:
        parts.append(f"The card of the original model is in [{link}]({link}).\n")
    return "\n".join(parts)


def _front_matter(text: str, facts: CardFacts) -> str:
    """The YAML with our keys, edited as text so that all else stays as it is; unchanged where it is beyond us."""
    wanted = _keys(facts)
    if not text.strip():
        return "\n".join(_entry(key, value) for key, value in wanted.items())
    document = _parsed(text)
    if document is None or not isinstance(document.data, dict):
        return text
    data = document.data
    wanted |= {"library_name": data.get("library_name") or wanted["library_name"]}
    tags = data.get("tags", [])
    if isinstance(tags, list):
        wanted["tags"] = [*tags, *(each for each in wanted["tags"] if each not in tags)]
    else:
        del wanted["tags"]
    edited = _edited(document, {key: value for key, value in wanted.items() if data.get(key) != value})
    after = _parsed(edited)
    return edited if after is not None and after.data == data | wanted else text


def _keys(facts: CardFacts) -> dict[str, Any]:
    """The keys of the front matter that a quantized model is found by."""
    methods = {each.method for each in _used(facts.plan).values()}
    bits = {"bnb_4bit": "4-bit", "bnb_int8": "8-bit"}
    tags = ["rulequant", *(["bitsandbytes"] if facts.container == "bitsandbytes" else [])]
    keys: dict[str, Any] = {
        "library_name": facts.library,
        "tags": [*tags, *sorted(bits[each] for each in methods if each in bits)],
    }
    if facts.origin:
        keys |= {"base_model": facts.origin.repo_id, "base_model_relation": "quantized"}
    return keys


def _parsed(text: str) -> Document | None:
    """The front matter, read as strictly as rule files are: no aliases, no tags, no key twice."""
    document, problems = parse(text, file="README.md")
    return None if problems else document


def _edited(document: Document, changes: Mapping[str, Any]) -> str:
    text, data = document.text, cast("dict[str, Any]", document.data)
    newline = "\r\n" if "\r\n" in text else "\n"
    origin = SourceText.of("", text)
    edits, added = [], []
    for key, value in changes.items():
        if key not in data:
            added.append(_entry(key, value).replace("\n", newline))
        elif key == "tags" and data[key]:
            edits.append(_more_items(document, origin, value[len(data[key]) :], newline))
        else:
            span = span_of(document.key((key,)), origin)[0], span_of(document.value((key,)), origin)[1]
            edits.append(Change(span, _entry(key, value).replace("\n", newline), span))
    ordered = sorted(edits, key=lambda change: change.span)
    return newline.join([spliced(text, ordered).rstrip("\r\n"), *added])


def _more_items(document: Document, origin: SourceText, items: list[str], newline: str) -> Change:
    """The edit that adds items to the list of tags, in the style of the list."""
    last = span_of(document.value(("tags", len(document.data["tags"]) - 1)), origin)
    prefix = _ITEM.match(origin.text, origin.line_start(last[0]))
    at = origin.line_end(last[1]) if prefix else last[1]
    texts = [f"{newline}{prefix[0]}{_scalar(each)}" if prefix else f", {_scalar(each)}" for each in items]
    return Change((at, at), "".join(texts), (at, at))


def _entry(key: str, value: str | list[str]) -> str:
    if isinstance(value, str):
        return f"{key}: {_scalar(value)}"
    return "\n".join([f"{key}:", *(f"- {_scalar(each)}" for each in value)])


def _scalar(text: str) -> str:
    return text if _PLAIN.fullmatch(text) and isinstance(resolve(text), str) else quote(text)


def _used(plan: Plan) -> dict[str, Scheme]:
    return {name: plan.schemes[name] for name in dict.fromkeys(cast(str, each.scheme) for each in plan.quantized)}


def _own_part(facts: CardFacts) -> Iterator[str]:
    plan, summary = facts.plan, facts.plan.summary
    name = facts.origin.repo_id if facts.origin else facts.source
    share = facts.bytes_written / summary["bytes_before"] if summary["bytes_before"] else 0.0
    yield f"# {_text(name)}, quantized\n"
    yield (
        f"Made from {_code(name)}{_at(facts.origin)} with rulequant {facts.version}: "
        f"{summary['quantized']:,} of {summary['modules']:,} modules are quantized, "
        f"{summary['coverage']:.1%} of the parameters.\n"
    )
    yield "| | before | after |\n|---|---|---|"
    yield f"| tensors | {size_text(summary['bytes_before'])} | {size_text(facts.bytes_written)} ({share:.0%}) |"
    yield (
        f"| bits per weight | {_bits(summary['bytes_before'], plan):.2f} | {_bits(facts.bytes_written, plan):.2f} |\n"
    )
    yield "| modules | method | settings |\n|---|---|---|"
    yield from _methods(plan, facts.dtype)
    yield f"\n## Loading\n\n```python\n{_loading(facts)}\n```\n"
    yield f"## Making it again\n\n```sh\n{facts.command}\n```\n"
    if facts.files:
        yield "\n".join(f"- {_code(name)}: {purpose}" for name, purpose in facts.files.items()) + "\n"


def _at(origin: Origin | None) -> str:
    """The commit, and the name that it went by."""
    if origin is None:
        return ""
    called = f" ({_code(origin.revision)})" if origin.revision and origin.revision != origin.commit else ""
    return f" at commit {_code(origin.commit)}{called}"


def _bits(nbytes: int, plan: Plan) -> float:
    parameters = plan.summary["parameters"]
    return nbytes * 8 / parameters if parameters else 0.0


def _methods(plan: Plan, dtype: str) -> Iterator[str]:
    counts = Counter(each.scheme for each in plan.quantized)
    for name, scheme in _used(plan).items():
        settings = scheme.model_dump(mode="json", exclude={"method"})
        listed = ", ".join(f"{key}: {json.dumps(value).strip(_QUOTE)}" for key, value in settings.items())
        yield f"| {counts[name]:,} | {_code(scheme.method)} | {_code(listed)} |"
    reasons = Counter(each.reason for each in plan.decisions if not each.quantize)
    for reason, count in reasons.most_common():
        stored = "float32" if reason == "keep_in_fp32" else dtype
        yield f"| {count:,} | none ({_text(str(reason).replace('_', ' '))}) | {stored} |"


def _loading(facts: CardFacts) -> str:
    if facts.loading:
        return facts.loading
    name, trust = (facts.model_class, "") if facts.model_class else ("AutoModel", ", trust_remote_code=True")
    lines = [f"from transformers import {name}", "", f'model = {name}.from_pretrained("path/to/this/folder"{trust})']
    if facts.container == "rulequant":
        lines.insert(0, "import rulequant.torch.transformers  # pip install 'rulequant[torch]'")
    return "\n".join(lines)


def _text(text: str) -> str:
    """Text that is no markup in a table or a heading."""
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", printable(text))


def _code(text: str) -> str:
    return f"`{printable(text).replace('`', '').replace('|', '')}`"
