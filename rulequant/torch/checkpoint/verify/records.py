"""The records of an output: its manifest, and whether files, plan and rules are those that it speaks of."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, TypeVar

from rulequant.diagnostics import Diagnostic
from rulequant.errors import CheckpointError, RulequantError
from rulequant.loader import load_rules
from rulequant.plan import Plan
from rulequant.torch.checkpoint.files import close_read, open_regular, printable
from rulequant.torch.checkpoint.manifest import MANIFEST_NAME, Manifest, load_manifest
from rulequant.torch.checkpoint.records import PLAN_NAME, RULES_NAME
from rulequant.torch.checkpoint.verify.files import check_files
from rulequant.verification import Verified

__all__ = ["MAKE_AGAIN", "Progress", "attempt", "compare_files", "read_manifest", "record_findings", "require_output"]

T = TypeVar("T")

MAKE_AGAIN = "make the output again with `rulequant apply`"


class Progress(Protocol):
    """Told how far a check is that takes long; a new `start` ends the one before."""

    def start(self, total_bytes: int, items: int, unit: str = "tensor") -> None:
        """The bytes to read in all, and the number of files or tensors."""

    def advance(self, name: str, nbytes: int) -> None:
        """Some bytes of a file or tensor are done."""


def require_output(folder: Path) -> None:
    """Refuse, as CheckpointError, a folder that is no finished output."""
    if not folder.is_dir():
        what = "not a folder" if os.path.lexists(folder) else "no such folder"
        raise CheckpointError(f"{printable(folder)}: {what}", remedy="give the folder that `rulequant apply -o` wrote")
    if not os.path.lexists(folder / MANIFEST_NAME):
        load_manifest(folder)  # raises, and says what the folder is not


def attempt(found: Verified, check: Callable[[], T], *, code: str = "RQ539") -> T | None:
    """The result of a check; what it raises about the output is a finding of the code, and its result None."""
    try:
        return check()
    except RulequantError as error:
        found.diagnostics.append(Diagnostic(code, error.message, remedy=error.remedy))
        return None


def read_manifest(found: Verified) -> Manifest | None:
    """The manifest of an output; None where it cannot be trusted, which is then a finding."""
    try:
        manifest = load_manifest(Path(found.output))
    except CheckpointError as error:
        found.diagnostics.append(Diagnostic("RQ530", error.message, value=MANIFEST_NAME, remedy=error.remedy))
        return None
    found.files, found.versions = len(manifest.files), dict(manifest.versions)
    found.file_bytes = sum(each.size for each in manifest.files.values())
    return manifest


def compare_files(found: Verified, manifest: Manifest, progress: Progress | None) -> None:
    """Find what is not as the manifest says."""
    if progress and not found.quick:
        progress.start(found.file_bytes, found.files, "file")
    told = progress.advance if progress and not found.quick else lambda *_: None
    # What else is wrong may come of a changed file, so that comes first.
    found.diagnostics[:0] = check_files(Path(found.output), manifest, quick=found.quick, told=told)


def record_findings(folder: Path, plan: Plan, manifest: Manifest) -> list[Diagnostic]:
    """Where manifest, plan and rules do not belong together, although each by itself is in order."""
    hashes = [(PLAN_NAME, "plan has the sha256", plan.sha256, manifest.plan_sha256)]
    hashes += [(PLAN_NAME, "plan was made with rules of the sha256", plan.rules_sha256, manifest.rules_sha256)]
    if RULES_NAME in manifest.files:
        close_read(open_regular(folder / RULES_NAME, root=folder))
        hashes += [(RULES_NAME, "rules have the sha256", load_rules(folder / RULES_NAME).sha256, manifest.rules_sha256)]
    return [
        Diagnostic("RQ533", f"{name}: its {what} {one[:12]}…, the manifest says {other[:12]}…", value=name,
                   remedy=MAKE_AGAIN)
        for name, what, one, other in hashes
        if one != other
    ]  # fmt: skip
