"""A pipeline of diffusers: a folder with model_index.json, and a model in each of some sub-folders."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from rulequant.containers import ContainerName
from rulequant.diagnostics import Diagnostic, did_you_mean
from rulequant.errors import CheckpointError, ModelError, UsageError
from rulequant.pipeline_plan import PipelinePlan
from rulequant.planner import make_plan
from rulequant.ruleset import RuleSet
from rulequant.torch.checkpoint.files import open_regular, printable, read_exactly, strict_json
from rulequant.torch.checkpoint.reader import CheckpointReader
from rulequant.torch.skeleton import Skeleton, build_skeleton

__all__ = ["INDEX", "Pipeline", "check_rules_for", "open_pipeline", "plan_pipeline"]

INDEX = "model_index.json"
_LIBRARIES = frozenset({"diffusers", "transformers"})
_MAX_INDEX_BYTES = 1 << 20


@dataclass(frozen=True)
class Pipeline:
    """The folder of a pipeline, and which of its components are models."""

    name: str
    folder: Path
    kind: str
    """The class that model_index.json names."""
    components: tuple[str, ...]
    """Every component that has a folder, in the order of model_index.json."""
    models: tuple[str, ...]
    """Those of them that are models of diffusers or transformers."""
    trust_remote_code: bool = False

    def skeleton(self, component: str) -> Skeleton:
        """A component on meta; built once.

        Raises:
            ModelError: it cannot be built.
        """
        if component not in self._skeletons:
            folder = self.folder / component
            self._skeletons[component] = build_skeleton(str(folder), trust_remote_code=self.trust_remote_code)
        return self._skeletons[component]

    def attach(self, fingerprint: Mapping[str, Mapping[str, int]]) -> CheckpointReader:
        """The weights of its components, as they were when they were opened; tensors need not be known by name."""
        return CheckpointReader.attach(self.folder, fingerprint)

    @cached_property
    def _skeletons(self) -> dict[str, Skeleton]:
        return {}


def open_pipeline(name: str, *, trust_remote_code: bool = False) -> Pipeline:
    """Read model_index.json; no component is read yet.

    Raises:
        ModelError: it cannot be read, or says something else than a pipeline does.
    """
    folder = Path(name)
    data = _index(folder / INDEX)
    kind = data.get("_class_name")
    if not isinstance(kind, str):
        raise ModelError(f"{folder / INDEX}: `_class_name`, the class of the pipeline, is missing")
    entries = dict(_entries(data, folder))
    return Pipeline(
        name,
        folder,
        kind,
        tuple(entries),
        tuple(each for each, library in entries.items() if library in _LIBRARIES and _has_config(folder / each)),
        trust_remote_code,
    )


def _index(path: Path) -> dict[str, Any]:
    try:
        fd = open_regular(path, root=path.parent)
        try:
            size = min(os.fstat(fd).st_size, _MAX_INDEX_BYTES)
            data = strict_json(read_exactly(fd, 0, size, path), str(path))
        finally:
            os.close(fd)
    except CheckpointError as error:
        raise ModelError(error.message, remedy=error.remedy) from error
    if not isinstance(data, dict):
        raise ModelError(f"{path} is not a JSON object")
    return data


def _entries(data: dict[str, Any], folder: Path) -> Iterator[tuple[str, str]]:
    """(component, library) for each that has a folder; `[null, null]` is one that the pipeline does without."""
    for name, value in data.items():
        if name.startswith("_") or not isinstance(value, list) or len(value) != 2 or None in value:
            continue
        if not name.isidentifier():
            raise ModelError(f"{folder / INDEX}: {printable(repr(name))} is no name of a component")
        if (folder / name).is_dir():
            yield name, str(value[0])


def _has_config(folder: Path) -> bool:
    return (folder / "config.json").is_file()


def check_rules_for(pipeline: Pipeline, rules: RuleSet | None) -> RuleSet:
    """The rules, if they say which component gets which.

    Raises:
        UsageError: there are none, or they are for one model.
    """
    if rules is not None and rules.components:
        return rules
    models = ", ".join(pipeline.models)
    first = pipeline.models[0] if pipeline.models else "transformer"
    what = f"{rules.file} is for one model" if rules else "which component gets which rules is not said"
    raise UsageError(
        f"{pipeline.name} is a pipeline of several models ({models}), and {what}",
        remedy=f"give a rule file that says it: `components: {{{first}: {rules.file if rules else 'rules.yaml'}}}`",
    )


def plan_pipeline(pipeline: Pipeline, rules: RuleSet, container: ContainerName = "auto") -> PipelinePlan:
    """Decide about every component that the rules name; the others are copied.

    Raises:
        UsageError: the rules are for one model.
        ModelError: a component cannot be built.
    """
    check_rules_for(pipeline, rules)
    unknown = tuple(_unknown(pipeline, rules))
    named = [name for name in pipeline.models if name in rules.components]
    return PipelinePlan(
        model=pipeline.name,
        pipeline=pipeline.kind,
        rules=rules.file,
        rules_sha256=rules.sha256,
        components={
            name: make_plan(rules.components[name], pipeline.skeleton(name).inventory(), container) for name in named
        },
        copied={
            name: _weight_bytes(pipeline.folder / name) for name in pipeline.components if name not in rules.components
        },
        findings=unknown,
    )


def _unknown(pipeline: Pipeline, rules: RuleSet) -> Iterator[Diagnostic]:
    for name in rules.components:
        if name in pipeline.models:
            continue
        problem = "is no model: it has no config.json" if name in pipeline.components else "is not there"
        yield Diagnostic(
            "RQ544",
            f"{pipeline.name}: the component `{name}` {problem}",
            rules.origin(f"components.{name}"),
            value=name,
            allowed=pipeline.models,
            remedy=did_you_mean(name, pipeline.models) or f"its models: {', '.join(pipeline.models)}",
        )


def _weight_bytes(folder: Path) -> int:
    """Bytes of the safetensors files of a component; what else it has is small."""
    return sum(each.stat().st_size for each in folder.glob("*.safetensors"))
