"""`rulequant apply`"""

from __future__ import annotations

import json
import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rulequant.cli import terminal
from rulequant.cli.command import Command, format_option, model_options
from rulequant.cli.sizes import SIZE
from rulequant.cli.stopping import stops_cleanly
from rulequant.errors import UsageError

if TYPE_CHECKING:
    from rulequant.containers import ContainerName
    from rulequant.plan import Plan
    from rulequant.ruleset import RuleSet
    from rulequant.torch.checkpoint.write import Applied
    from rulequant.torch.skeleton import Skeleton

__all__ = ["command"]

EXAMPLES = (
    "rulequant apply ./all-MiniLM-L6-v2 -o minilm-nf4",
    "rulequant apply ./llama rules.yaml -o llama-nf4 --max-shard-size 2GB",
    "rulequant apply org/llama --revision v1.0 -o llama-nf4",
    "rulequant plan ./llama rules.yaml -o plan.json && rulequant apply ./llama --plan plan.json -o llama-nf4",
)


@click.command("apply", cls=Command, examples=EXAMPLES)
@click.argument("model")
@click.argument("rules", required=False)
@click.option("-o", "--output", metavar="OUT", required=True, type=click.Path(path_type=Path),
              help="The folder to write; it must not exist.")  # fmt: skip
@click.option("--plan", "plan_file", metavar="FILE", type=click.Path(path_type=Path), help="Apply exactly this plan, "
              "saved by `rulequant plan -o FILE`, instead of RULES.")  # fmt: skip
@click.option("--max-shard-size", metavar="SIZE", type=SIZE, default="5GB", show_default=True, help="The largest file "
              "to write, such as 500MB or 2GiB.")  # fmt: skip
@click.option("--container", type=click.Choice(("auto", "bitsandbytes", "rulequant")), default="auto",
              show_default=True, help="Who loads OUT: plain transformers (bitsandbytes), or transformers after `import "
              "rulequant.torch.transformers`. auto: the first, where it can express the plan.")  # fmt: skip
@click.option("--restart", is_flag=True, help="Begin anew, whatever an interrupted run has finished.")
@click.option("-q", "--quiet", is_flag=True, help="No progress and no summary; errors and warnings only.")
@format_option()
@model_options
def command(
    model: str,
    rules: str | None,
    output: Path,
    plan_file: Path | None,
    max_shard_size: int,
    container: ContainerName,
    restart: bool,
    quiet: bool,
    form: str,
    trust_remote_code: bool,
    revision: str | None,
) -> None:
    """Quantize MODEL, a checkpoint folder or a Hub id, into the new folder OUT, which transformers loads.

    MODEL may also be `package.module:callable`, for a function that returns an nn.Module with its weights; then
    `rulequant.torch.load_quantized` loads OUT.

    For the folder of a pipeline of diffusers, RULES names the rule file of each component under `components`.

    MODEL is only read. A Hub id is downloaded into the Hub's cache first; interrupted and run again, the download goes
    on where it stopped. HF_TOKEN or `hf auth login` let it read what is private or gated.

    OUT appears when it is complete and on the disk, and not before: whatever interrupts the run, nothing that looks
    like a finished checkpoint is left behind. The same command again goes on with the files that were finished, once
    their hashes are checked.

    Exits 1 if the rules do not fit the model or no checkpoint can hold what they ask for.
    """
    if plan_file and rules is not None:
        raise UsageError("RULES and --plan both say what to do", remedy="give one of the two")
    _check_model(model)
    _check_output(output)
    began = time.monotonic()
    from rulequant.cli.inputs import is_pipeline

    if is_pipeline(model):
        _pipeline(
            model, rules, plan_file, output, max_shard_size,
            container=container, quiet=quiet, form=form, trust_remote_code=trust_remote_code,
        )  # fmt: skip
        return
    try:
        with stops_cleanly():
            applied = _apply(
                model, rules, plan_file, output, max_shard_size, container=container, restart=restart, quiet=quiet,
                trust_remote_code=trust_remote_code, revision=revision,
            )  # fmt: skip
    except KeyboardInterrupt as interrupt:
        raise type(interrupt)(_what_is_left(output), *interrupt.args) from interrupt
    seconds = time.monotonic() - began
    if not quiet:
        _summarize(applied, seconds, model)
    if form == "json":
        terminal.data(json.dumps(_record(applied, seconds), indent=1))


def _pipeline(
    model: str,
    rules: str | None,
    plan_file: Path | None,
    output: Path,
    max_shard_bytes: int,
    *,
    container: ContainerName,
    quiet: bool,
    form: str,
    trust_remote_code: bool,
) -> None:
    """Apply to a pipeline of diffusers."""
    from rulequant.cli.pipelines import apply_pipeline, pipeline_record, summarize

    if plan_file:
        raise UsageError(f"{model} is a pipeline, and --plan is for one model", remedy="give RULES with `components`")
    began = time.monotonic()
    try:
        with stops_cleanly():
            applied = apply_pipeline(
                model, rules, output, max_shard_bytes,
                container=container, quiet=quiet, trust_remote_code=trust_remote_code,
            )  # fmt: skip
    except KeyboardInterrupt as interrupt:
        raise type(interrupt)(_what_is_left(output), *interrupt.args) from interrupt
    seconds = time.monotonic() - began
    if not quiet:
        summarize(applied, seconds)
    if form == "json":
        terminal.data(json.dumps(pipeline_record(applied, seconds), indent=1))


def _check_model(model: str) -> None:
    path = Path(model)
    if path.is_file():
        raise UsageError(
            f"{model} is a file, and apply reads a checkpoint", remedy="give the folder that holds the weights"
        )


def _check_output(output: Path) -> None:
    """Say what takes no torch to find out; the full check comes right before writing."""
    if output.exists():
        raise UsageError(f"{output} exists", remedy="choose a new folder, or remove it")


def _what_is_left(output: Path) -> str:
    return f"{output} is complete" if output.exists() else f"nothing was written to {output}"


def _apply(
    model: str,
    rules: str | None,
    plan_file: Path | None,
    output: Path,
    max_shard_bytes: int,
    *,
    container: ContainerName,
    restart: bool,
    quiet: bool,
    trust_remote_code: bool,
    revision: str | None,
) -> Applied:
    from rulequant.cli.inputs import read_skeleton, torch_extra
    from rulequant.cli.progress import choose_download, choose_progress

    saved = _saved_plan(plan_file) if plan_file else None  # before torch: it may be no plan
    skeleton = read_skeleton(model, trust_remote_code=trust_remote_code, revision=revision, real=True)
    ruleset, plan = (None, saved) if saved else _planned(rules, skeleton)
    with torch_extra("apply"):
        from rulequant.torch.checkpoint.apply import apply_to_folder
        from rulequant.torch.checkpoint.remote import with_weights

        with choose_download(quiet=quiet) as progress:
            skeleton = with_weights(
                skeleton, plan, output, container=container, progress=progress, notice=terminal.note
            )
        with choose_progress(quiet=quiet) as progress:
            return apply_to_folder(
                skeleton,
                plan,
                output,
                made_with=ruleset,
                container=container,
                max_shard_bytes=max_shard_bytes,
                restart=restart,
                progress=progress,
                notice=terminal.note,
            )


def _saved_plan(path: Path) -> Plan:
    from rulequant.plan_file import load_plan

    return load_plan(path)


def _planned(rules: str | None, skeleton: Skeleton) -> tuple[RuleSet, Plan]:
    """The rules and the plan to apply, once its warnings are told; errors among them stop apply itself."""
    from rulequant.cli.inputs import read_rules
    from rulequant.diagnostics import DiagnosticsError, Severity
    from rulequant.planner import make_plan

    inventory = skeleton.inventory()
    ruleset, warnings = read_rules(rules, inventory)
    plan = make_plan(ruleset, inventory)
    terminal.problems([*warnings, *(each for each in plan.diagnostics if each.severity is Severity.WARNING)])
    if not plan.ok:
        raise DiagnosticsError(each for each in plan.diagnostics if each.severity is Severity.ERROR)
    return ruleset, plan


def _record(applied: Applied, seconds: float) -> dict[str, Any]:
    from rulequant.report.worsttext import worst_data

    facts = applied.plan.summary
    return {
        "format_version": 1,
        "output": str(applied.output),
        "container": applied.container,
        "model": applied.plan.model,
        "rules": applied.plan.rules,
        "rules_sha256": applied.plan.rules_sha256,
        "plan_sha256": applied.plan.sha256,
        "tensors": applied.tensors,
        "shards": len(set(applied.weight_map.values())),
        "modules_quantized": facts["quantized"],
        "bytes_before": facts["bytes_before"],
        "bytes_after": applied.payload_bytes,
        "bytes_written": applied.bytes_written,
        "bits_per_weight": facts["bits_per_weight"],
        "worst_modules": worst_data(applied.samples),
        "seconds": round(seconds, 3),
        "peak_memory_bytes": _peak_memory(),
    }


def _summarize(applied: Applied, seconds: float, model: str) -> None:
    from rulequant.escaping import printable
    from rulequant.report.text import columns, count, percent, size
    from rulequant.report.worsttext import worst_rows

    facts = applied.plan.summary
    before = facts["bytes_before"]
    shards = count(len(set(applied.weight_map.values())), "shard")
    peak = _peak_memory()
    rows = [
        ("written", printable(f"{applied.output} ({count(applied.tensors, 'tensor')} in {shards})")),
        ("size", f"{size(before)} -> {size(applied.bytes_written)} ({percent(applied.bytes_written / before)} of it)"),
        ("bits per weight", f"{facts['bits_per_weight']:.2f}"),
        ("quantized", f"{count(facts['quantized'], 'module')}, {percent(facts['coverage'])} of the parameters"),
        ("container", f"{applied.container}, which {_loads(applied)}"),
        *worst_rows(applied.samples),
        ("time", f"{seconds:.1f} s"),
    ]
    rows += [("peak memory", size(peak))] if peak else []
    style = terminal.style_of(sys.stderr)
    for line, (label, _) in zip(columns(rows), rows, strict=True):
        terminal.message(style.bold(line[: len(label)]) + line[len(label) :])
    terminal.note(f"check it any time: rulequant verify {_quoted(applied.output)}{_against(model)}")


def _quoted(path: Path | str) -> str:
    from rulequant.escaping import printable

    return shlex.quote(printable(str(path)))


def _against(model: str) -> str:
    """The option that compares weights too, where MODEL is what it takes."""
    return f" --against {_quoted(model)}" if Path(model).is_dir() or ":" in model else ""


def _loads(applied: Applied) -> str:
    if applied.library == "rulequant":
        return "`rulequant.torch.load_quantized` loads"
    if applied.library == "diffusers":
        return "diffusers loads as it is"
    from rulequant.report.plantext import loaded

    return f"transformers loads {loaded(applied.container)}"


def _peak_memory() -> int | None:
    """The most memory that the process held, in bytes; None where the system does not say."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # https://man7.org/linux/man-pages/man2/getrusage.2.html
