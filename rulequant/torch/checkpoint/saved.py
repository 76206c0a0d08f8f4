"""What a library tells of a checkpoint, saved with the plan, which is then applied without importing that library.

It is for one checkpoint, byte by byte of its config.json and tensor by tensor, and for the versions that it was made
with; for any other it is passed over, and the library asked again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

from pydantic import ConfigDict, Field, ValidationError

from rulequant.errors import UsageError
from rulequant.inventory import Kind, TensorInfo
from rulequant.plan import Plan
from rulequant.plan_file import Part, first_problem
from rulequant.schemes import Slicing
from rulequant.torch.checkpoint.header import TensorEntry
from rulequant.torch.checkpoint.job import Survey
from rulequant.torch.checkpoint.manifest import own_version, stock_versions
from rulequant.torch.checkpoint.reader import CheckpointReader
from rulequant.torch.checkpoint.step import Block, Step

__all__ = ["SECTION", "saved_survey", "section_of"]

SECTION = "checkpoint"
"""The key of the plan JSON."""


class _Block(Part):
    tensor: str
    rows: int = Field(ge=0)
    columns: int = Field(ge=0)
    stride: int = Field(ge=0)
    first: int = Field(ge=0, default=0)
    row: int = Field(ge=0, default=0)
    column: int = Field(ge=0, default=0)
    transposed: bool = False


class _Tensor(Part):
    name: str
    shape: list[int]
    dtype: str


class _Step(Part):
    key: str
    target: str
    kind: str
    shape: list[int]
    dtype: str
    blocks: list[_Block]
    columns: int
    tensors: list[_Tensor]
    nbytes: int
    prefix: str = ""
    scheme: str | None = None
    slicing: list[int] | None = Field(default=None, min_length=2, max_length=2)


class _Section(Part):
    model_config = ConfigDict(extra="forbid", frozen=True)

    versions: dict[str, str]
    config_sha256: str
    tensors_sha256: str
    quant_method: str
    quantization: dict[str, Any]
    dtype: str
    model_class: str | None
    steps: list[_Step]
    copies: dict[str, str]
    dropped: dict[str, str]
    mean_threads: int = Field(ge=1)
    sha256: str


def section_of(survey: Survey, reader: CheckpointReader, plan: Plan) -> dict[str, Any] | None:
    """The survey of a checkpoint folder of transformers as JSON-ready data; None for other libraries."""
    if survey.library != "transformers":
        return None
    data: dict[str, Any] = {
        "versions": _versions(),
        "config_sha256": _config_sha256(reader.folder),
        "tensors_sha256": _tensors_sha256(reader.tensors.values()),
        "quant_method": survey.quant_method,
        "quantization": dict(survey.quantization),
        "dtype": survey.dtype,
        "model_class": survey.model_class,
        "steps": [_step_data(step, plan) for step in survey.steps],
        "copies": dict(survey.copies),
        "dropped": dict(survey.dropped),
        "mean_threads": survey.mean_threads,
    }
    return {**data, "sha256": _digest(data, plan)}


def saved_survey(data: Mapping[str, Any], reader: CheckpointReader, plan: Plan) -> Survey | None:
    """The survey that was saved with a plan; None where it is for another checkpoint, or made with other versions.

    Raises:
        UsageError: it was edited.
    """
    remedy = "make it anew with `rulequant plan MODEL RULES -o FILE`"
    try:
        section = _Section.model_validate(data)
    except ValidationError as error:
        raise UsageError(f"the plan's `{SECTION}` is not valid: {first_problem(error)}", remedy=remedy) from error
    if section.versions != _versions() or section.config_sha256 != _config_sha256(reader.folder):
        return None
    if section.tensors_sha256 != _tensors_sha256(reader.tensors.values()):
        return None
    if _digest({key: value for key, value in data.items() if key != "sha256"}, plan) != section.sha256:
        raise UsageError(f"the plan's `{SECTION}` was edited, or is that of another plan", remedy=remedy)
    return Survey(
        quant_method=section.quant_method,
        quantization=section.quantization,
        dtype=section.dtype,
        model_class=section.model_class,
        library="transformers",
        stem="model",
        loading=None,
        steps=tuple(_step(each, reader, plan) for each in section.steps),
        copies=section.copies,
        dropped=section.dropped,
        mean_threads=section.mean_threads,
    )


def _step_data(step: Step, plan: Plan) -> dict[str, Any]:
    data: dict[str, Any] = {
        "key": step.key,
        "target": step.target,
        "kind": step.kind,
        "shape": list(step.shape),
        "dtype": step.dtype,
        "blocks": [_block_data(each) for each in step.blocks],
        "columns": step.columns,
        "tensors": [{"name": each.name, "shape": list(each.shape), "dtype": each.dtype} for each in step.tensors],
        "nbytes": step.nbytes,
    }
    if step.scheme is not None:
        name = next(name for name, each in plan.schemes.items() if each == step.scheme)
        data |= {"prefix": step.prefix, "scheme": name, "slicing": list(step.slicing) if step.slicing else None}
    return data


def _block_data(block: Block) -> dict[str, Any]:
    numbers = {key: value for key, value in asdict(block).items() if key != "entry" and value}
    return {"tensor": block.entry.name, "rows": 0, "columns": 0, "stride": 0} | numbers


def _step(data: _Step, reader: CheckpointReader, plan: Plan) -> Step:
    return Step(
        key=data.key,
        target=data.target,
        kind=cast(Kind, data.kind),
        shape=tuple(data.shape),
        dtype=data.dtype,
        blocks=tuple(_block(each, reader) for each in data.blocks),
        columns=data.columns,
        tensors=tuple(TensorInfo(each.name, tuple(each.shape), each.dtype) for each in data.tensors),
        nbytes=data.nbytes,
        prefix=data.prefix,
        scheme=plan.schemes[data.scheme] if data.scheme is not None else None,
        slicing=Slicing(*data.slicing) if data.slicing else None,
    )


def _block(data: _Block, reader: CheckpointReader) -> Block:
    fields = data.model_dump(exclude={"tensor"})
    return Block(entry=reader.entry(data.tensor), **fields)


def _versions() -> dict[str, str]:
    """Of what decides about names."""
    return {"rulequant": own_version(), "transformers": stock_versions()["transformers"]}


def _config_sha256(folder: Path) -> str:
    return hashlib.sha256((folder / "config.json").read_bytes()).hexdigest()


def _tensors_sha256(entries: Iterable[TensorEntry]) -> str:
    """Of names, dtypes and shapes; how they are shared out among files does not matter."""
    return _sha256([[each.name, each.dtype, list(each.shape)] for each in sorted(entries, key=lambda each: each.name)])


def _digest(data: Mapping[str, Any], plan: Plan) -> str:
    return _sha256([plan.sha256, data])


def _sha256(data: object) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()
