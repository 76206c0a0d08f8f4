"""A trace as text: the answer first, then what it follows from."""

from __future__ import annotations

from collections.abc import Iterator

from rulequant.escaping import printable
from rulequant.inventory import ModuleInfo
from rulequant.plan import Decision
from rulequant.report.plantext import HEADINGS, NUMERIC, decision_rows
from rulequant.report.text import PLAIN, Style, columns, count, size
from rulequant.trace import Attempt, Contents, Test, Trace

__all__ = ["contents_text", "trace_text"]


def trace_text(found: Trace, style: Style = PLAIN) -> str:
    """Who the module is, the decision, the tests, and the skips and rules tried."""
    lines = [*_who(found.info, style), "", _answer(found.decision, style), "", style.bold("Tests")]
    first = next((each for each in found.tests if not each.passed), None)
    for each in found.tests:
        lines += _test(each, found, style, decides=each is first)
    lines += [
        "",
        style.bold("Skips and rules, in the order tried") + style.dim("  > decides  + selects  ~ misses by little"),
    ]
    lines += [line for each in found.attempts for line in _attempt(each, style)] or ["  none"]
    if found.default:
        name, place = found.default
        is_it = found.decision.scheme is not None and not any(each.decides for each in found.attempts)
        mark = style.green(">") if is_it else " "
        lines.append(f"{mark} default  scheme: {printable(name)}  ({printable(place.file)}:{place.line})")
    return "\n".join(lines)


def _who(info: ModuleInfo, style: Style) -> Iterator[str]:
    tensors = ", ".join(
        f"{printable(each.name)} {each.dtype}{list(each.shape)}" + (f" = {each.tied_to}" if each.tied_to else "")
        for each in info.tensors
    )
    yield f"{style.bold(printable(info.name or '(the model itself)'))}: {printable(info.type)}, {tensors}"
    if info.aliases:
        yield f"  also called {', '.join(printable(each) for each in info.aliases)}"
    if info.layer:
        yield f"  layer {info.layer.index} of {info.layer.length}"


def _answer(decision: Decision, style: Style) -> str:
    place = f" ({printable(decision.rule.file)}:{decision.rule.line})" if decision.rule else ""
    sizes = f"{size(decision.bytes_before)} -> {size(decision.bytes_after)}"
    if decision.quantize:
        reason = f"\n  {printable(decision.detail)}" if decision.detail else ""
        return f"{style.green('quantized')} with {printable(str(decision.scheme))}{place}, {sizes}{reason}"
    return f"{style.yellow('not quantized')}: {decision.reason}: {printable(decision.detail or '')}{place}"


def _test(test: Test, found: Trace, style: Style, *, decides: bool) -> Iterator[str]:
    mark = style.green("yes") if test.passed else style.yellow("no ")
    extra = ""
    if test.name == "type" and found.types:
        extra = f" ({', '.join(printable(each) for each in found.types)})"
    if test.name == "unsupported" and found.scheme:
        extra = f" ({printable(found.scheme)})"
    yield f"{'>' if decides else ' '} {mark}  {test.question}{extra}"
    if test.objection:
        place = test.objection.location
        where = f" ({printable(place.file)}:{place.line})" if place else ""
        yield f"       {printable(test.objection.detail)}{where}"


def _attempt(attempt: Attempt, style: Style) -> Iterator[str]:
    mark = style.green(">") if attempt.decides else "+" if attempt.selects else "~" if attempt.near_miss else " "
    patterns = ", ".join(printable(each) for each in attempt.patterns)
    scheme = f" -> {printable(attempt.scheme)}" if attempt.scheme else ""
    back = attempt.taken_back
    until = f", taken back at {printable(back.file)}:{back.line}" if back else ""
    place = f"{printable(attempt.location.file)}:{attempt.location.line}{until}"
    text = f"{mark} {attempt.kind}     {patterns}{scheme}  ({place})"
    yield text if attempt.selects or attempt.near_miss else style.dim(text)
    if attempt.selects or attempt.near_miss:
        verdict = "decides: " if attempt.decides else "selects it: " if attempt.selects else "almost: "
        yield f"             {verdict}{printable(attempt.why)}"


def contents_text(found: Contents, style: Style = PLAIN) -> str:
    """That the module owns nothing itself, and what becomes of what is inside."""
    name = printable(found.info.name or "(the model itself)")
    lines = [
        f"{style.bold(name)}: {printable(found.info.type)}, owns no parameter itself, so there is nothing to decide"
    ]
    if not found.decisions:
        return f"{lines[0]}; nothing inside has one either"
    before = sum(each.bytes_before for each in found.decisions)
    after = sum(each.bytes_after for each in found.decisions)
    quantized = sum(each.quantize for each in found.decisions)
    lines.append(
        f"  inside: {count(len(found.decisions), 'module')}, {quantized:,} quantized, {size(before)} -> {size(after)}"
    )
    rows = columns([HEADINGS, *decision_rows(found.decisions)], right=NUMERIC)
    return "\n".join([*lines, "", style.bold(rows[0]), *rows[1:]])
