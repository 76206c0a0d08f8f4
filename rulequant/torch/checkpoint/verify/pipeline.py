"""The output for a pipeline verified: its files, each component that was quantized, and the copies of the others."""

from __future__ import annotations

from pathlib import Path

from rulequant.diagnostics import Diagnostic
from rulequant.errors import UsageError
from rulequant.pipeline_plan import PipelinePlan
from rulequant.plan_file import read_plan
from rulequant.torch.checkpoint.files import close_read, open_regular, printable
from rulequant.torch.checkpoint.manifest import FileRecord, Manifest
from rulequant.torch.checkpoint.records import CARD_NAME, PLAN_NAME
from rulequant.torch.checkpoint.verify.files import compare_all
from rulequant.torch.checkpoint.verify.folder import verify_folder
from rulequant.torch.checkpoint.verify.records import (
    MAKE_AGAIN,
    Progress,
    attempt,
    compare_files,
    read_manifest,
    record_findings,
    require_output,
)
from rulequant.torch.diffusion import is_pipeline
from rulequant.verification import Verified

__all__ = ["verify_output"]


def verify_output(
    folder: Path,
    *,
    against: str | None = None,
    quick: bool = False,
    trust_remote_code: bool = False,
    progress: Progress | None = None,
) -> Verified:
    """Check an output of apply, of one model or of a pipeline; as `verify_folder`.

    Raises as `verify_folder`; UsageError too where the one is a pipeline, and the original is one model.
    """
    if not is_pipeline(folder):
        return verify_folder(
            folder, against=against, quick=quick, trust_remote_code=trust_remote_code, progress=progress
        )
    require_output(folder)
    if against and not is_pipeline(against):
        raise UsageError(
            f"{printable(folder)} is a pipeline, and {printable(against)} is no folder of one",
            remedy="give the folder of the pipeline that it was made from, with model_index.json",
        )
    whole = Verified(str(folder), quick=quick, against=against, of_pipeline=True)
    manifest = read_manifest(whole)
    if manifest is None:
        return whole
    plan = attempt(whole, lambda: _check_plan(whole, manifest))
    compare_files(whole, manifest, progress)
    for name in plan.components if plan else _planned(manifest):
        whole.components[name] = verify_folder(
            folder / name,
            against=str(Path(against, name)) if against else None,
            quick=quick,
            trust_remote_code=trust_remote_code,
            in_pipeline=True,
            progress=progress,
        )
    if plan:
        _check_components(whole, plan)
    if against:
        _compare_copies(whole, manifest, Path(against), progress)
    return whole


def _planned(manifest: Manifest) -> list[str]:
    """The components that have a plan of their own."""
    return [each.split("/")[0] for each in manifest.files if each.count("/") == 1 and each.endswith(f"/{PLAN_NAME}")]


def _check_plan(whole: Verified, manifest: Manifest) -> PipelinePlan:
    folder = Path(whole.output)
    close_read(open_regular(folder / PLAN_NAME, root=folder))  # reading a pipe would wait for ever
    plan, _ = read_plan(folder / PLAN_NAME)
    if not isinstance(plan, PipelinePlan):
        raise UsageError(f"{PLAN_NAME} is not the plan of a pipeline", remedy=MAKE_AGAIN)
    whole.diagnostics += record_findings(folder, plan.merged, manifest)
    return plan


def _check_components(whole: Verified, plan: PipelinePlan) -> None:
    """Whether the plan of each component is that of the whole."""
    for name, each in whole.components.items():
        if each.plan is not None and each.plan.sha256 != plan.components[name].sha256:
            text = f"{name}/{PLAN_NAME}: another plan for the component than that of the pipeline"
            whole.diagnostics.append(Diagnostic("RQ533", text, value=f"{name}/{PLAN_NAME}", remedy=MAKE_AGAIN))


def _compare_copies(whole: Verified, manifest: Manifest, source: Path, progress: Progress | None) -> None:
    """Whether what was copied is what the original has."""
    copies = {name: each for name, each in manifest.files.items() if _is_copy(name, whole)}
    problems = _problems(whole, copies, source, progress)
    for name, problem in problems.items():
        text = f"{printable(name)}: a copy, and {printable(source)} {problem}"
        remedy = "compare with the folder that it was made from, or make the output again"
        whole.diagnostics.append(Diagnostic("RQ545", text, value=name, remedy=remedy))
    whole.copied = (len(copies) - len(problems), len(problems))


def _is_copy(name: str, whole: Verified) -> bool:
    first = name.split("/", maxsplit=1)[0]
    return first not in whole.components and first != CARD_NAME and not first.startswith("rulequant-")


def _problems(
    whole: Verified, copies: dict[str, FileRecord], source: Path, progress: Progress | None
) -> dict[str, str]:
    if progress and not whole.quick:
        progress.start(sum(each.size for each in copies.values()), len(copies), "file")
    told = progress.advance if progress and not whole.quick else lambda *_: None
    found = compare_all(source, copies, quick=whole.quick, told=told)
    return {each.file: "has none" if each.kind == "missing" else "has another file there" for each in found}
