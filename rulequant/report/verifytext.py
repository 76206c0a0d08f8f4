"""What is known of a verified output, as text: a line for each check, and the weights that are worst off."""

from __future__ import annotations

import math
from collections.abc import Iterator

from rulequant.diagnostics import Diagnostic
from rulequant.escaping import printable
from rulequant.report.text import PLAIN, Style, columns, count, size
from rulequant.verification import Comparison, Verified, WeightError

__all__ = ["HEADINGS", "NUMERIC", "left_out", "share", "verdict", "verify_summary", "verify_text", "weight_rows"]

HEADINGS = ("weight", "scheme", "parameters", "relative error", "SNR", "worst expert")
NUMERIC = frozenset({2, 3, 4, 5})
_FILES = frozenset({"RQ530", "RQ531", "RQ532"})
_TENSORS = frozenset({"RQ534", "RQ535"})
_LAYERS = frozenset({"RQ536"})


def verify_text(found: Verified, *, limit: int | None = None, style: Style = PLAIN) -> str:
    """Summary and table; findings are printed elsewhere. `limit` is the most weights of the table."""
    parts = ["\n".join(verify_summary(found, style)), "\n".join(_table(found, limit, style))]
    return "\n\n".join(part for part in parts if part)


def verify_summary(found: Verified, style: Style = PLAIN) -> list[str]:
    """What was checked and how it came out, one line each."""
    made = f" (rulequant {found.versions['rulequant']})" if "rulequant" in found.versions else ""
    rows = [("output", printable(f"{found.output}{made}")), ("files", _files(found))]
    if found.of_pipeline:
        rows += _copied(found)
    else:
        rows += [("tensors", _tensors(found)), ("layers", _layers(found)), *_against(found)]
    width = max(len(label) for label, _ in rows)
    return [f"{style.bold(label.ljust(width))}  {text}" for label, text in rows]


def verdict(found: Verified) -> str:
    """The last line: `no problems`, or how many."""
    problems = len(found.diagnostics) + sum(len(each.diagnostics) for each in found.components.values())
    return f"{count(problems, 'problem')} found" if problems else "no problems"


def _problems(found: Verified, codes: frozenset[str]) -> list[Diagnostic]:
    return [each for each in found.diagnostics if each.code in codes]


def _files(found: Verified) -> str:
    if found.in_pipeline:
        return "among those of the pipeline"
    if not found.files:
        return "not compared: there is no manifest to go by"
    what = "sizes compared, nothing hashed" if found.quick else "hashed"
    bad = {each.value for each in _problems(found, _FILES)}
    result = f"{count(len(bad), 'file')} not as in the manifest" if bad else "all as in the manifest"
    return f"{found.files:,}, {size(found.file_bytes)}, {what}: {result}"


def _tensors(found: Verified) -> str:
    if not found.tensors:
        return "not checked, since something before could not be read"
    bad = _problems(found, _TENSORS)
    result = f"{count(len(bad), 'difference')} from the plan" if bad else "all as planned"
    return f"{found.tensors:,} in {count(found.shards, 'shard')}, {size(found.payload_bytes)}: {result}"


def _layers(found: Verified) -> str:
    if found.plan is not None and found.called:
        return "made by the plan when rulequant.torch.load_quantized loads it: there is no config.json"
    if found.plan is None or found.container is None:
        return "not checked, since something before could not be read"
    facts, bad = found.plan.summary, _problems(found, _LAYERS)
    if bad:
        return f"{count(len(bad), 'layer')} that {found.loader} would make otherwise than planned"
    return (
        f"{facts['quantized']:,} of {facts['modules']:,} modules quantized when {found.loader} loads it "
        f"({printable(found.container)}), as planned"
    )


def _against(found: Verified) -> Iterator[tuple[str, str]]:
    if found.against is None:
        return
    if found.comparison is None:
        yield "against", f"{printable(found.against)}: not compared, since the output is not as planned"
        return
    yield "against", f"{printable(found.against)}: {_unquantized(found.comparison)}"
    for each in found.comparison.schemes:
        text = f"{count(each.weights, 'weight')}, relative error {share(each.relative_error)} over all of them"
        yield f"scheme {printable(each.scheme)}", f"{text}, {share(each.worst)} at worst"


def _copied(found: Verified) -> Iterator[tuple[str, str]]:
    if found.copied is None or found.against is None:
        return
    equal, different = found.copied
    total = equal + different
    text = (
        f"{different:,} of {total:,} copied files differ" if different else f"all {total:,} copied files are the same"
    )
    yield "against", f"{printable(found.against)}: {text}"


def _unquantized(comparison: Comparison) -> str:
    total = comparison.equal + comparison.different
    if comparison.different:
        return f"{comparison.different:,} of {total:,} unquantized tensors differ"
    return f"all {total:,} unquantized tensors are the same"


def _table(found: Verified, limit: int | None, style: Style) -> list[str]:
    rows = weight_rows(found, limit)
    if not rows:
        return []
    headings = HEADINGS[: len(rows[0])]
    lines = columns([headings, *rows], right=NUMERIC)
    return [style.bold(lines[0]), *lines[1:], *left_out(found, limit)]


def left_out(found: Verified, limit: int | None) -> list[str]:
    """A line for the weights that the table leaves out."""
    weights = found.comparison.weights if found.comparison else ()
    rest = weights[limit:] if limit is not None else ()
    return [f"{len(rest):,} more with {share(rest[0].relative_error)} or less; --all shows them"] if rest else []


def weight_rows(found: Verified, limit: int | None = None) -> list[tuple[str, ...]]:
    """A row of HEADINGS for each weight, worst first; without the last column where no weight has experts."""
    weights = found.comparison.weights if found.comparison else ()
    width = len(HEADINGS) - (not any(each.worst_expert is not None for each in weights))
    return [_row(each)[:width] for each in weights[:limit]]


def _row(weight: WeightError) -> tuple[str, ...]:
    expert = "" if weight.worst_expert_error is None else f"{weight.worst_expert}: {share(weight.worst_expert_error)}"
    return (
        printable(weight.name),
        printable(weight.scheme),
        f"{weight.parameters:,}",
        share(weight.relative_error),
        f"{weight.snr_db:.1f} dB",
        expert,
    )


def share(error: float) -> str:
    """A relative error with three digits."""
    return f"{100 * error:.3g}%" if math.isfinite(error) else str(error)
