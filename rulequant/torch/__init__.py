"""Inspecting, swapping and writing models: everything that imports torch lives here.

torch itself is imported by the functions: parts of this package, which read and write files, do without it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torch import nn

    from rulequant.pipeline_plan import PipelinePlan
    from rulequant.plan import Plan
    from rulequant.ruleset import RuleSet
    from rulequant.torch.pipeline import Pipeline
    from rulequant.verification import Verified

    Rules = RuleSet | str | os.PathLike[str] | Mapping[str, Any]

__all__ = ["apply", "apply_checkpoint", "load_quantized", "plan", "verify"]


def plan(model: nn.Module, rules: Rules) -> Plan:
    """Every decision about a model, real or on meta; nothing of it is changed.

    `rules` is a rule set, a path, a bundled name, or the data of a rule file.

    Raises:
        DiagnosticsError: the rule file has errors. What the rules get wrong about this model is in
            `Plan.diagnostics` instead.
        ModelError: the model holds a tensor that has no shape or no known dtype yet.
        UsageError: the model is no `nn.Module`.
    """
    from torch import nn

    from rulequant.errors import UsageError
    from rulequant.planner import make_plan
    from rulequant.torch.inspect import inspect_model

    if not isinstance(model, nn.Module):
        raise UsageError(
            f"the model is a {type(model).__name__}, not an nn.Module",
            remedy="load it first; for a checkpoint folder there is rulequant.torch.apply_checkpoint",
        )
    ruleset = _loaded(rules)
    return make_plan(ruleset, inspect_model(model), None)


def apply(model: nn.Module, rules: Rules) -> Plan:
    """Quantize a model in place by its rules, and return the plan that was carried out.

    A model on meta becomes the prepared skeleton that weights are later loaded into. To write a checkpoint of a
    transformers model use `apply_checkpoint`: this function does not touch `model.config`.

    Raises:
        DiagnosticsError: the rule file has errors, or does not fit the model.
        ModelError: a module cannot be replaced where it stands.
        NotFiniteError: a weight holds a value that cannot be encoded.
        UsageError: the model is no `nn.Module`, or no installed package provides a method.

    Whichever is raised, the model is unchanged.
    """
    from rulequant.diagnostics import DiagnosticsError, Severity
    from rulequant.torch.swap import swap_layers

    made = plan(model, rules)
    if not made.ok:
        raise DiagnosticsError(each for each in made.diagnostics if each.severity is Severity.ERROR)
    swap_layers(model, made)
    return made


def apply_checkpoint(
    source: str | os.PathLike[str],
    rules: Rules | Plan | PipelinePlan,
    output: str | os.PathLike[str],
    *,
    container: Literal["auto", "bitsandbytes", "rulequant"] = "auto",
    max_shard_bytes: int = 5_000_000_000,
    restart: bool = False,
    workers: int = 1,
    memory: int | None = None,
    trust_remote_code: bool = False,
    revision: str | None = None,
    token: str | bool | None = None,
) -> Plan:
    """Quantize a checkpoint into a new folder, and return the plan that was carried out.

    `source` is a folder, the id of a model on the Hub, or `package.module:callable`, whose model is quantized from
    memory and loaded again by `load_quantized`. Of a pipeline of diffusers, for which `rules` name components or are
    its saved plan, all components come back as one plan, with their names before those of the modules.

    A Hub id is downloaded into the Hub's cache first, `revision` of it, with `token` where it is given and else with
    HF_TOKEN or what `hf auth login` stored; interrupted, the download goes on where it stopped when it is run again.

    The output loads with plain transformers, or after `import rulequant.torch.transformers` where stock transformers
    cannot express the plan. It appears complete or not at all; the source is only read. After an interruption the same
    call goes on with the shards that were finished, unless `restart`.

    More than one of `workers` are processes of their own, which read, encode and write at once; the output is the same.
    `memory` is what they may take for that in all, 32 MiB each by default, beside what they import.

    Raises:
        DiagnosticsError: the rule file has errors, does not fit the model, or no checkpoint can express the plan.
        ModelError: the source is no checkpoint that transformers can build, or the Hub does not give it.
        CheckpointError: the source cannot be trusted, or the output cannot be written; a ResumableError where the same
            call may go on later.
        NotFiniteError: a weight holds a value that cannot be encoded.
    """
    from rulequant.errors import UsageError
    from rulequant.pipeline_plan import PipelinePlan
    from rulequant.plan import Plan
    from rulequant.torch.checkpoint.apply import apply_to_folder
    from rulequant.torch.checkpoint.remote import with_weights
    from rulequant.torch.pipeline import Pipeline, open_model

    ready = rules if isinstance(rules, Plan | PipelinePlan) else _loaded(rules)
    options: dict[str, Any] = {"container": container, "max_shard_bytes": max_shard_bytes}
    options |= {"restart": restart, "workers": workers, "memory": memory}
    found = open_model(
        os.fspath(source), trust_remote_code=trust_remote_code, revision=revision, token=token, real=True
    )
    if isinstance(found, Pipeline):
        return _apply_pipeline(found, ready, Path(output), **options)
    if isinstance(ready, PipelinePlan):
        raise UsageError(f"{os.fspath(source)} is one model, and the plan is for a pipeline")
    skeleton = with_weights(found, ready, Path(output), container=container)
    return apply_to_folder(skeleton, ready, Path(output), **options).plan


def _apply_pipeline(pipeline: Pipeline, rules: RuleSet | Plan | PipelinePlan, output: Path, **options: Any) -> Plan:
    from rulequant.errors import UsageError
    from rulequant.plan import Plan
    from rulequant.ruleset import RuleSet
    from rulequant.torch.checkpoint.apply import apply_pipeline
    from rulequant.torch.checkpoint.remote import with_components
    from rulequant.torch.pipeline import check_rules_for

    if isinstance(rules, Plan):
        raise UsageError(
            f"{pipeline.name} is a pipeline, and the plan is for one model",
            remedy="give rules with `components`, or the plan of the pipeline",
        )
    ready = check_rules_for(pipeline, rules) if isinstance(rules, RuleSet) else rules
    whole = with_components(pipeline, ready, output, container=options["container"])
    return apply_pipeline(whole, ready, output, **options).plan


def load_quantized(model: nn.Module | Callable[[], nn.Module] | str, folder: str | os.PathLike[str]) -> nn.Module:
    """Load what `apply_checkpoint`, or `rulequant apply`, wrote for `package.module:callable`.

    `model` is a model of the same class, a callable that returns one, or `package.module:callable`. Its weights are
    overwritten, so they may be random, or on meta; its layers are replaced by the saved plan. It is returned in eval
    mode.

    Raises:
        ModelError: the callable fails, or leaves something on meta that no checkpoint holds.
        UsageError: the folder is a checkpoint of transformers, or of another model.
        CheckpointError: the folder cannot be trusted, or its tensors are not those of the plan.
    """
    from rulequant.torch import loading

    return loading.load_quantized(model, folder)


def verify(
    output: str | os.PathLike[str],
    against: str | os.PathLike[str] | None = None,
    *,
    quick: bool = False,
    trust_remote_code: bool = False,
) -> Verified:
    """Check that a folder is what `apply_checkpoint` wrote, and how close its weights are to those of the original.

    What is wrong with it is in `Verified.diagnostics`; with `against`, the folder that it was made from, the error of
    each weight is in `Verified.comparison`, worst first; of a pipeline both are in `Verified.components`, by component.
    `quick` compares sizes and headers, and hashes nothing.

    Raises:
        CheckpointError: the folder is no output of apply, or the original cannot be read.
        ModelError: the original is no checkpoint folder that transformers can build.
        UsageError: the original is another model than the plan of the output is for.
    """
    from rulequant.torch.checkpoint.verify.pipeline import verify_output

    model = None if against is None else os.fspath(against)
    return verify_output(Path(output), against=model, quick=quick, trust_remote_code=trust_remote_code)


def _loaded(rules: Rules) -> RuleSet:
    from rulequant.loader import load_rules
    from rulequant.ruleset import RuleSet

    return rules if isinstance(rules, RuleSet) else load_rules(rules)
