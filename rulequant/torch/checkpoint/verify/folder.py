"""An output folder verified: one check after the other, as far as each makes the next one possible."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple, cast

from rulequant.plan import Plan
from rulequant.plan_file import load_plan
from rulequant.torch.checkpoint.files import close_read, open_regular
from rulequant.torch.checkpoint.layout import COMPONENT_STEM, MODEL_STEM
from rulequant.torch.checkpoint.manifest import Manifest
from rulequant.torch.checkpoint.prepare import check_same_model
from rulequant.torch.checkpoint.reader import CheckpointReader
from rulequant.torch.checkpoint.records import PLAN_NAME
from rulequant.torch.checkpoint.sources import Source, source_of
from rulequant.torch.checkpoint.stored import stored_tensors
from rulequant.torch.checkpoint.stream import plan_steps
from rulequant.torch.checkpoint.verify.contents import (
    bytes_of,
    check_bytes,
    check_promises,
    check_tensors,
    payload_bytes,
)
from rulequant.torch.checkpoint.verify.layers import check_layers, prepare_layers
from rulequant.torch.checkpoint.verify.original import compare
from rulequant.torch.checkpoint.verify.records import (
    Progress,
    attempt,
    compare_files,
    read_manifest,
    record_findings,
    require_output,
)
from rulequant.torch.skeleton import Skeleton, build_skeleton
from rulequant.verification import Verified

__all__ = ["verify_folder"]


class _Planned(NamedTuple):
    """The output's model on meta, and the plan that is known to be for it."""

    skeleton: Skeleton | None
    """None for the output of a callable's model, which says nothing of how to build it."""
    plan: Plan


class _Original(NamedTuple):
    """The model that the output is said to be made from, opened before anything takes long."""

    skeleton: Skeleton
    source: Source
    reader: CheckpointReader


def verify_folder(
    folder: Path,
    *,
    against: str | None = None,
    quick: bool = False,
    trust_remote_code: bool = False,
    in_pipeline: bool = False,
    progress: Progress | None = None,
) -> Verified:
    """Check an output of apply: files, tensors, layers; and against the original, how close each weight is.

    Whatever is wrong with the output is in `Verified.diagnostics`. `quick` compares sizes and headers, and hashes
    nothing. A component `in_pipeline` has no manifest of its own. Memory does not grow with the checkpoint: files are
    hashed and weights decoded in pieces.

    Raises:
        CheckpointError: the folder is no finished output, or the original cannot be read.
        ModelError: the original is no model with weights that can be built.
        UsageError: the original is another model than the plan of the output is for.
    """
    if not in_pipeline:
        require_output(folder)
    found = Verified(str(folder), quick=quick, against=against, in_pipeline=in_pipeline)
    with ExitStack() as stack:
        original = _open_original(against, stack, trust_remote_code=trust_remote_code) if against else None
        manifest = None if in_pipeline else read_manifest(found)
        planned = attempt(found, lambda: _check_plan(found, manifest, trust_remote_code=trust_remote_code))
        if original and planned:
            check_same_model(planned.plan, original.skeleton.inventory())
            planned = planned if planned.skeleton else _Planned(original.skeleton, planned.plan)
        if manifest:
            compare_files(found, manifest, progress)
        reader = attempt(found, lambda: stack.enter_context(CheckpointReader.open(folder, _stem(planned))))
        if planned is None:
            return found
        if not found.called:
            attempt(found, lambda: _check_layers(found, planned, trust_remote_code=trust_remote_code))
        if reader is None:
            return found
        as_planned = attempt(found, lambda: _check_contents(found, reader, planned), code="RQ534")
        if original and as_planned:
            _compare(found, reader, planned.plan, original, progress)
    return found


def _stem(planned: _Planned | None) -> str:
    """What the names of the weights begin with: of a model of diffusers something else."""
    of_diffusers = planned is not None and planned.skeleton is not None and planned.skeleton.dtypes is not None
    return COMPONENT_STEM if of_diffusers else MODEL_STEM


def _open_original(model: str, stack: ExitStack, *, trust_remote_code: bool) -> _Original:
    skeleton = build_skeleton(model, trust_remote_code=trust_remote_code, real=True)
    source = source_of(skeleton)
    source.config()  # which may say that the model is itself quantized
    return _Original(skeleton, source, stack.enter_context(source.open()))


def _check_plan(found: Verified, manifest: Manifest | None, *, trust_remote_code: bool) -> _Planned:
    folder = Path(found.output)
    close_read(open_regular(folder / PLAN_NAME, root=folder))  # reading a pipe would wait for ever
    plan = load_plan(folder / PLAN_NAME)
    if manifest:
        found.diagnostics += record_findings(folder, plan, manifest)
    if not os.path.lexists(folder / "config.json") and not (manifest and "config.json" in manifest.files):
        found.plan, found.called = plan, True
        return _Planned(None, plan)
    close_read(open_regular(folder / "config.json", root=folder))
    skeleton = build_skeleton(str(folder), trust_remote_code=trust_remote_code)
    check_same_model(plan, skeleton.inventory())
    found.plan = plan
    return _Planned(skeleton, plan)


def _check_layers(found: Verified, planned: _Planned, *, trust_remote_code: bool) -> None:
    skeleton = cast(Skeleton, planned.skeleton)
    config: Any = getattr(skeleton.model, "config", None)
    of_diffusers = isinstance(config, dict)
    quantization = (
        (config or {}).get("quantization_config") if of_diffusers else getattr(config, "quantization_config", None)
    )
    found.loader = "transformers" if skeleton.dtypes is None else "diffusers"
    found.container = quantization.get("quant_method") if isinstance(quantization, dict) else None
    prepared = prepare_layers(build_skeleton(found.output, trust_remote_code=trust_remote_code))
    found.diagnostics += check_layers(prepared, skeleton, planned.plan)


def _check_contents(found: Verified, reader: CheckpointReader, planned: _Planned) -> bool:
    """Whether the shards hold what the plan says."""
    skeleton, plan = planned
    found.tensors, found.shards = len(reader.tensors), len(reader.shards)
    found.payload_bytes = payload_bytes(reader.tensors, plan)
    if skeleton:
        stored = stored_tensors(reader.tensors, skeleton, plan, skeleton.inventory())
        findings = [*check_tensors(stored), *check_promises(plan, skeleton.inventory())]
        absent = bytes_of(stored.absent, skeleton.inventory())
    else:
        findings, absent = [], 0
    findings += check_bytes(found.payload_bytes, plan, absent)
    found.diagnostics += findings
    return not findings


def _compare(
    found: Verified, output: CheckpointReader, plan: Plan, original: _Original, progress: Progress | None
) -> None:
    inventory = original.skeleton.inventory()
    keys = original.source.keys(original.reader)
    steps = plan_steps(original.reader, keys, plan, inventory, original.skeleton)
    if progress:
        progress.start(sum(step.source_bytes for step in steps), len(steps), "tensor")
    names = {each.name: each.scheme for each in plan.quantized if each.scheme}
    told = progress.advance if progress else lambda *_: None
    found.comparison, findings = compare(output, original.reader, steps, names, told)
    found.diagnostics += findings
