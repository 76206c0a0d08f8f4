"""A pipeline of diffusers: a folder with model_index.json, and a model in each of some sub-folders; or on the Hub."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from rulequant.containers import ContainerName
from rulequant.diagnostics import Diagnostic, did_you_mean
from rulequant.errors import UsageError
from rulequant.pipeline_plan import PipelinePlan
from rulequant.planner import make_plan
from rulequant.ruleset import RuleSet
from rulequant.torch.checkpoint.component_files import local_weights
from rulequant.torch.checkpoint.reader import CheckpointReader
from rulequant.torch.diffusion import is_pipeline
from rulequant.torch.model_index import ModelIndex, read_index
from rulequant.torch.skeleton import Skeleton, build_skeleton, hub_model

if TYPE_CHECKING:
    from rulequant.torch.hub.selection import RemoteFile
    from rulequant.torch.hub.source import HubModel

__all__ = ["Pipeline", "check_rules_for", "open_model", "open_pipeline", "plan_pipeline"]

_LIBRARIES = frozenset({"diffusers", "transformers"})


@dataclass(frozen=True)
class Pipeline:
    """The folder of a pipeline, and which of its components are models."""

    name: str
    folder: Path
    """Of one on the Hub, the commit in the Hub's cache."""
    kind: str
    """The class that model_index.json names."""
    components: tuple[str, ...]
    """Every component that has a folder, in the order of model_index.json."""
    models: tuple[str, ...]
    """Those of them that are models of diffusers or transformers."""
    trust_remote_code: bool = False
    hub: HubModel | None = None
    """The repository and the commit, for a Hub id."""
    listing: Mapping[str, RemoteFile] | None = field(default=None, repr=False)
    """Its files, for a Hub id whose files are not all here."""
    _skeletons: dict[str, Skeleton] = field(default_factory=dict, repr=False)

    def skeleton(self, component: str) -> Skeleton:
        """A component on meta; built once.

        Raises:
            ModelError: it cannot be built.
        """
        if component not in self._skeletons:
            self._skeletons[component] = build_skeleton(
                f"{self.name}/{component}" if self.hub else str(self.folder / component),
                trust_remote_code=self.trust_remote_code,
                hub=self.hub.component(component) if self.hub else None,
            )
        return self._skeletons[component]

    def attach(self, fingerprint: Mapping[str, Mapping[str, int]]) -> CheckpointReader:
        """The weights of its components, as they were when they were opened; tensors need not be known by name."""
        return CheckpointReader.attach(self.folder, fingerprint)

    def weight_bytes(self, component: str) -> int:
        """Bytes of the weights of a component; what else it has is small."""
        if self.hub is None or self.listing is None:
            paths = (self.folder / component / each for each in local_weights(self.folder / component))
            return sum(each.stat().st_size for each in paths if each.exists())
        from rulequant.torch.hub.selection import component_weights

        return sum(each.size for each in component_weights(self.hub, self.listing, component))

    def downloaded(self) -> Pipeline:
        """The same, with what was found out about it, once all of it is in its folder."""
        known = {name: each.at(self.folder / name) for name, each in self._skeletons.items()}
        return replace(self, listing=None, _skeletons=known)


def open_model(
    model: str,
    *,
    trust_remote_code: bool = False,
    revision: str | None = None,
    token: str | bool | None = None,
    real: bool = False,
) -> Skeleton | Pipeline:
    """What MODEL is: one model, as `build_skeleton` builds it, or a pipeline, as `open_pipeline` opens it."""
    if is_pipeline(model):
        return open_pipeline(model, trust_remote_code=trust_remote_code)
    hub = hub_model(model, revision=revision, token=token)
    if hub and hub.is_pipeline:
        return open_pipeline(model, trust_remote_code=trust_remote_code, hub=hub)
    return build_skeleton(model, trust_remote_code=trust_remote_code, real=real, hub=hub)


def open_pipeline(name: str, *, trust_remote_code: bool = False, hub: HubModel | None = None) -> Pipeline:
    """Read model_index.json; no component is read yet.

    Raises:
        ModelError: it cannot be read, or says something else than a pipeline does; or the Hub does not answer.
    """
    folder = hub.folder if hub else Path(name)
    index, listing = read_index(folder), _listing(hub) if hub else None
    names = set(listing) if listing is not None else _names(folder, index)
    folders = {each.partition("/")[0] for each in names if "/" in each}
    return Pipeline(
        name,
        folder,
        index.kind,
        tuple(each for each in index.libraries if each in folders),
        tuple(each for each, kind in index.libraries.items() if kind in _LIBRARIES and f"{each}/config.json" in names),
        trust_remote_code,
        hub,
        listing,
    )


def _listing(hub: HubModel) -> Mapping[str, RemoteFile] | None:
    """The files of a commit; None offline, where only the cache is to be had."""
    from huggingface_hub import is_offline_mode

    from rulequant.torch.hub.selection import listing

    return None if is_offline_mode() else listing(hub)


def _names(folder: Path, index: ModelIndex) -> set[str]:
    """The files in the folders of components; of a folder without any the folder itself."""
    found = set()
    for each in index.libraries:
        if (folder / each).is_dir():
            found |= {f"{each}/", *(f"{each}/{file.name}" for file in (folder / each).iterdir() if file.is_file())}
    return found


def check_rules_for(pipeline: Pipeline, rules: RuleSet | None) -> RuleSet:
    """The rules, if they say which component gets which.

    Raises:
        UsageError: there are none, or they are for one model.
    """
    if rules is not None and rules.components:
        return rules
    if not pipeline.models:
        raise UsageError(f"{pipeline.name} is a pipeline none of whose components is a model that rulequant knows")
    models, first = ", ".join(pipeline.models), pipeline.models[0]
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
        copied={name: pipeline.weight_bytes(name) for name in pipeline.components if name not in rules.components},
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
