"""The rule files under tests/examples, and what rulequant says about each of them as text.

`valid/` holds files without a finding and `invalid/` files named after the code that they show, each with its findings
beside it in `NAME.expected`; folders inside hold what they extend. `model/` holds files that are fine by themselves and
not with the inventories beside them: `NAME.validate.expected` is what `validate --model` finds with all of them, and
`NAME.plan.expected` what a plan for each finds.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from rulequant.across import check_across
from rulequant.diagnostics import Diagnostic, Location
from rulequant.inventory import Inventory
from rulequant.inventory_file import load_inventory
from rulequant.lint import lint
from rulequant.loader import LoadedFile, Loader
from rulequant.planner import make_plan
from rulequant.ruleset import RuleSet

__all__ = ["EXAMPLES", "GENERATED", "INVALID", "MODEL", "VALID", "expected_texts", "findings", "lines"]

EXAMPLES = Path(__file__).with_name("examples")
# Cases too large to keep as files; their `.expected` is kept.
GENERATED = {
    "RQ002-bytes.yaml": "version: 1\n" + "# filler\n" * 120_000,
    "RQ002-values.yaml": f"version: 1\nmodels: [{'a,' * 50_000}]\n",
    "RQ306-segments.yaml": "version: 1\nskip_modules:\n" + '- "a{0..999}.b"\n' * 30,
    "RQ318-alike.yaml": "version: 1\nskip_modules:\n" + "".join(f'- "**.a{each:04}*b"\n' for each in range(5000)),
}
VALID = sorted(EXAMPLES.glob("valid/*.yaml"))
INVALID = sorted({*EXAMPLES.glob("invalid/*.yaml"), *(EXAMPLES / "invalid" / name for name in GENERATED)})
MODEL = sorted(EXAMPLES.glob("model/*.yaml"))


def findings(path: Path) -> list[Diagnostic]:
    """All that rulequant has to say about a file without a model; the working directory is its folder."""
    loader = Loader()
    _load(path, loader)
    return loader.diagnostics


def expected_texts(path: Path) -> dict[Path, str]:
    """What is to stand in the files beside an example; the working directory is its folder."""
    if path.parent.name != "model":
        return {path.with_suffix(".expected"): lines(findings(path), path)}
    loader = Loader()
    rules = _load(path, loader)
    if rules is None:
        raise ValueError(lines(loader.diagnostics, path))
    inventories = _inventories()
    across = [*loader.diagnostics, *check_across(rules, inventories)]
    plans = (f"# {each.model}\n{lines(make_plan(rules, each).diagnostics, path)}" for each in inventories)
    return {
        path.with_suffix(".validate.expected"): lines(across, path),
        path.with_suffix(".plan.expected"): "".join(plans),
    }


def lines(diagnostics: Iterable[Diagnostic], path: Path) -> str:
    """`line:column CODE severity: message; remedy` for each finding, in the order of the text; others' files last."""
    ordered = sorted(diagnostics, key=lambda each: (_place(each).file != path.name, _place(each), each.code))
    return "".join(f"{_line(each, path)}\n" for each in ordered)


def _load(path: Path, loader: Loader) -> RuleSet | None:
    name = path.name
    loaded = loader.load_text(GENERATED[name], file=name) if name in GENERATED else loader.load(Path(name))
    rules = loader.resolve(loaded) if loaded else None
    if loaded and rules:
        loader.diagnostics += lint(_chain(loader, loaded), rules)
    return rules


def _chain(loader: Loader, loaded: LoadedFile) -> list[LoadedFile]:
    return loader.chain(loaded) or []


def _inventories() -> list[Inventory]:
    return [load_inventory(each) for each in sorted(EXAMPLES.glob("model/*.json"))]


def _place(diagnostic: Diagnostic) -> Location:
    return diagnostic.location or Location("", 0, 0, 0, 0)


def _line(diagnostic: Diagnostic, path: Path) -> str:
    place = _place(diagnostic)
    text = diagnostic.concise().removeprefix(f"{place}: ")
    other = "" if place.file == path.name else f"{place.file}:"
    return f"{other}{place.line}:{place.column} {text}"
