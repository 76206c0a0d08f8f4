"""A plan as one HTML file: no script, nothing loaded from elsewhere, everything escaped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from rulequant.diagnostics import Diagnostic
from rulequant.escaping import printable
from rulequant.plan import Plan, TypeMass
from rulequant.report.overview import in_order
from rulequant.report.plantext import HEADINGS, NUMERIC, decision_rows, is_quantized
from rulequant.report.text import count, percent, size

__all__ = ["GENERATOR", "plan_html"]

GENERATOR = '<meta name="generator" content="rulequant plan">'
"""By which a report is known as one, before it is written over."""

_CSS = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; --yes: #2a7d4f; --no: #b26b00; --bad: #c0392b }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 75rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.5rem; margin: 0 } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem }
p.about { margin: 0; opacity: .75 }
dl { display: grid; grid-template-columns: repeat(auto-fit, minmax(11rem, 1fr)); gap: .75rem; margin: 1.5rem 0 }
dl div { border: 1px solid var(--line); border-radius: .5rem; padding: .6rem .8rem }
dt { font-size: .8rem; opacity: .75 } dd { margin: 0; font-size: 1.25rem }
.bar { display: flex; height: 1.4rem; margin: .25rem 0; border-radius: .3rem; overflow: hidden }
.bar { background: var(--soft) }
.bar span { display: block } .bar .q { background: var(--yes) } .bar .n { background: var(--no) }
table { border-collapse: collapse; width: 100%; font-size: .87rem }
th, td { text-align: left; padding: .25rem .6rem; border-bottom: 1px solid var(--line); vertical-align: top }
td.num, th.num { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap }
td:first-child, code, pre { font-family: ui-monospace, monospace; overflow-wrap: anywhere }
tr.yes td:nth-child(3) { color: var(--yes); font-weight: 600 } tr.no td:nth-child(3) { color: var(--no) }
.error { color: var(--bad) } .note { opacity: .75 } .warning { color: var(--no) } li { margin: .4rem 0 }
footer { margin: 3rem 0 1rem; font-size: .8rem; opacity: .7 }
"""


def plan_html(plan: Plan) -> str:
    """The page."""
    title = f"{plan.model}: quantization plan"
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        GENERATOR,
        f"<title>{_text(title)}</title><style>{_CSS}</style></head><body>",
        *_head(plan),
        *_findings(plan.diagnostics),
        *_sizes(plan),
        *_left_over(plan),
        *_modules(plan),
        *_schemes(plan),
        f"<footer>rules sha256 {_text(plan.rules_sha256)}<br>plan sha256 {_text(plan.sha256)}</footer>",
        "</body></html>",
    ]
    return "\n".join(parts) + "\n"


def _text(value: object) -> str:
    return escape(printable(str(value)))


def _head(plan: Plan) -> Iterable[str]:
    facts = plan.summary
    before, after = facts["bytes_before"], facts["bytes_after"]
    about = ", ".join(each for each in (plan.architecture, plan.model_type) if each)
    cards = (
        ("Size before", size(before)),
        ("Size after", f"{size(after)} ({percent(after / before)})" if before else size(after)),
        ("Bits per weight", f"{facts['bits_per_weight']:.2f}"),
        ("Parameters", f"{facts['parameters']:,}"),
        ("Parameters quantized", percent(facts["coverage"])),
        ("Layers quantized", percent(facts["layer_coverage"])),
        ("Modules quantized", f"{facts['quantized']:,} of {facts['modules']:,}"),
    )
    yield f"<h1>{_text(plan.model)}</h1>"
    yield f'<p class="about">{_text(about)}{" · " if about else ""}rules {_text(plan.rules)}</p>'
    yield "<dl>" + "".join(f"<div><dt>{label}</dt><dd>{_text(value)}</dd></div>" for label, value in cards) + "</dl>"


def _findings(diagnostics: Sequence[Diagnostic]) -> Iterable[str]:
    if not diagnostics:
        return
    yield "<h2>Findings</h2><ul>"
    for each in in_order(diagnostics):
        where = f" <code>{_text(each.location)}</code>" if each.location else ""
        remedy = f"<br>{_text(each.remedy)}" if each.remedy else ""
        kind = each.severity.value
        yield f'<li><b class="{kind}">{kind} {each.code}</b>{where}<br>{_text(each.message)}{remedy}</li>'
    yield "</ul>"


def _sizes(plan: Plan) -> Iterable[str]:
    """Two bars on one scale: what is quantized, and what is not."""
    before = plan.summary["bytes_before"]
    if not before:
        return
    kept = sum(each.bytes_after for each in plan.decisions if not each.quantize)
    yield "<h2>Sizes</h2>"
    for label, total in (("before", before), ("after", plan.summary["bytes_after"])):
        yield f"<div>{label}: {_text(size(total))}, of it {_text(size(kept))} not quantized</div>"
        yield (
            f'<div class="bar"><span class="q" style="width:{100 * (total - kept) / before:.2f}%"></span>'
            f'<span class="n" style="width:{100 * kept / before:.2f}%"></span></div>'
        )


def _left_over(plan: Plan) -> Iterable[str]:
    masses = [each for each in plan.unquantized_by_type if each.parameters]
    if not masses:
        return
    total = plan.summary["parameters"]
    yield "<h2>Not quantized, by class</h2>"
    yield from _table(
        ("class", "reason", "modules", "parameters", "share", "bytes"),
        [(_mass(each, total), "") for each in masses],
        frozenset({2, 3, 4, 5}),
    )


def _mass(mass: TypeMass, total: int) -> tuple[str, ...]:
    share = percent(mass.parameters / total)
    return (mass.type, mass.reason, f"{mass.modules:,}", f"{mass.parameters:,}", share, size(mass.bytes))


def _modules(plan: Plan) -> Iterable[str]:
    yield f"<h2>{_text(count(len(plan.decisions), 'module'))}, equal layers folded</h2>"
    rows = [(row, "yes" if is_quantized(row, plan) else "no") for row in decision_rows(plan.decisions)]
    yield from _table(HEADINGS, rows, NUMERIC)


def _table(
    headings: Sequence[str], rows: Iterable[tuple[Sequence[str], str]], numeric: frozenset[int]
) -> Iterable[str]:
    def cell(tag: str, index: int, text: str) -> str:
        return f"<{tag}{' class=num' if index in numeric else ''}>{_text(text)}</{tag}>"

    yield "<table><thead><tr>" + "".join(cell("th", *each) for each in enumerate(headings)) + "</tr></thead><tbody>"
    for row, kind in rows:
        yield f'<tr class="{kind}">' + "".join(cell("td", *each) for each in enumerate(row)) + "</tr>"
    yield "</tbody></table>"


def _schemes(plan: Plan) -> Iterable[str]:
    used = list(dict.fromkeys(each.scheme for each in plan.quantized if each.scheme))
    if not used:
        return
    yield "<h2>Schemes in use</h2>"
    rows = []
    for name in used:
        settings = plan.schemes[name].model_dump(mode="json", by_alias=True)
        rows.append(((name, ", ".join(f"{key}: {value}" for key, value in settings.items())), ""))
    yield from _table(("scheme", "settings"), rows, frozenset())
