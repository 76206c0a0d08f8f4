"""`rulequant apply`"""

from __future__ import annotations

import json
import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rulequant.cli import terminal
from rulequant.cli.command import Command, format_option, model_options
from rulequant.cli.sizes import SIZE
from rulequant.cli.stopping import stops_cleanly
from rulequant.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from rulequant.cli.jobs import Request
    from rulequant.containers import ContainerName
    from rulequant.pipeline_plan import PipelinePlan
    from rulequant.plan import Plan
    from rulequant.torch.checkpoint.finish import Applied
    from rulequant.torch.checkpoint.job import Job
    from rulequant.torch.checkpoint.pipeline_job import PipelineJob
    from rulequant.torch.checkpoint.reader import CheckpointReader
    from rulequant.torch.checkpoint.write import OpenExecutor

    Write = Callable[[Job | PipelineJob, CheckpointReader, OpenExecutor], Applied]

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
@click.option("--workers", metavar="N", type=click.IntRange(min=1), help="Processes that read, encode and write at "
              "once. Default: the cores that are available. The output is the same for any number.")  # fmt: skip
@click.option("--memory", metavar="SIZE", type=SIZE, help="What the workers may take in all for what they read, encode "
              "and write, beside what they import. Default: 32MiB for each.")  # fmt: skip
@click.option("--executor", type=click.Choice(("local", "ray")), default="local", show_default=True, help="Who writes "
              "the files: processes here, or the tasks of a Ray cluster that sees MODEL and OUT too.")  # fmt: skip
@click.option("--ray-address", metavar="ADDRESS", help="The cluster for --executor ray, such as auto or HOST:PORT. "
              "Default: RAY_ADDRESS; without it, one made of this machine.")  # fmt: skip
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
    workers: int | None,
    memory: int | None,
    executor: str,
    ray_address: str | None,
    restart: bool,
    quiet: bool,
    form: str,
    trust_remote_code: bool,
    revision: str | None,
) -> None:
    """Quantize MODEL, a checkpoint folder or a Hub id, into the new folder OUT, which transformers loads.

    MODEL may also be `package.module:callable`, for a function that returns an nn.Module with its weights; then
    `rulequant.torch.load_quantized` loads OUT.

    RULES is a rule file or the name of a bundled one; absent, the bundled one for the model's type. For the folder of a
    pipeline of diffusers it names the rule file of each component under `components`.

    MODEL is only read. A Hub id is downloaded into the Hub's cache first; interrupted and run again, the download goes
    on where it stopped. HF_TOKEN or `hf auth login` let it read what is private or gated.

    OUT appears when it is complete and on the disk, and not before: whatever interrupts the run, nothing that looks
    like a finished checkpoint is left behind. The same command again goes on with the files that were finished, once
    their hashes are checked.

    Exits 1 if the rules do not fit the model or no checkpoint can hold what they ask for.
    """
    if plan_file and rules is not None:
        raise UsageError("RULES and --plan both say what to do", remedy="give one of the two")
    if ray_address and executor != "ray":
        raise UsageError("--ray-address is for --executor ray", remedy="give both, or neither")
    _check_model(model)
    _check_output(output)
    from rulequant.cli.jobs import Request
    from rulequant.cli.summary import own_peak_memory, record, summarize

    began = time.monotonic()
    try:
        with stops_cleanly():
            plan, checkpoint = _saved_plan(plan_file) if plan_file else (None, None)
            request = Request(
                model, rules, plan, checkpoint, output, container, max_shard_size, quiet, trust_remote_code, revision
            )
            cluster = _cluster(ray_address) if executor == "ray" else None
            applied, seen = _apply(request, workers, memory, cluster, restart=restart)
    except KeyboardInterrupt as interrupt:
        raise type(interrupt)(_what_is_left(output), *interrupt.args) from interrupt
    seconds = time.monotonic() - began
    peak = max(seen, own_peak_memory() or 0) or None
    if not quiet:
        summarize(applied, seconds, peak, model)
    if form == "json":
        terminal.data(json.dumps(record(applied, seconds, peak), indent=1))


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


def _cluster(address: str | None) -> OpenExecutor:
    """Who writes the shards on the cluster; said at once where that cannot be."""
    from rulequant.cli.inputs import require_extra, torch_extra

    require_extra("apply")
    with torch_extra("apply"):
        from rulequant.torch.checkpoint.cluster import on_cluster, require_ray

        require_ray()
        return partial(on_cluster, address=address)


def _apply(
    request: Request, workers: int | None, memory: int | None, cluster: OpenExecutor | None, *, restart: bool
) -> tuple[Applied, int]:
    """What was written, and the most memory that was seen in use, in bytes; 0 where the system does not tell."""
    from rulequant.cli.inputs import require_extra, torch_extra

    require_extra("apply")
    with torch_extra("apply"):
        from rulequant.torch.checkpoint.crew import available_cores, memory_of_each

        workers = 1 if cluster else workers or available_cores()
        each = memory_of_each(memory, workers)
        write = partial(_write, request, memory=each, restart=restart)
        if _by_itself(request.model):
            return _apply_elsewhere(request, workers, each, write, cluster)
        return _apply_here(request, workers, write, cluster)


def _by_itself(model: str) -> bool:
    """Whether another process may prepare: a folder can be opened again, and here nothing is imported for it yet."""
    return "transformers" not in sys.modules and Path(model).is_dir()


def _apply_elsewhere(
    request: Request, workers: int, memory: int, write: Write, cluster: OpenExecutor | None
) -> tuple[Applied, int]:
    from rulequant.cli.ahead import begin_ahead, draft_for
    from rulequant.cli.jobs import job_elsewhere, job_of_survey, survey_saved
    from rulequant.torch.checkpoint.crew import Crew
    from rulequant.torch.checkpoint.place import check_output
    from rulequant.torch.checkpoint.reader import CheckpointReader

    folder = Path(request.model)
    check_output(request.output, folder)
    survey = survey_saved(request)
    with draft_for(request, wanted=survey is None and workers > 1) as draft:
        takes_torch = survey is not None and any(step.takes_torch for step in survey.steps)
        with Crew(workers, guest=survey is None, torch=takes_torch, draft=draft) as crew:
            if draft is not None:
                begin_ahead(request, crew, draft, memory)
            job = job_of_survey(request, survey) if survey else crew.call(job_elsewhere, request)
            with CheckpointReader.attach(folder, job.fingerprint) as reader:
                return write(job, reader, cluster or crew.executor), crew.footprint.peak


def _apply_here(request: Request, workers: int, write: Write, cluster: OpenExecutor | None) -> tuple[Applied, int]:
    from rulequant.cli.jobs import job_here
    from rulequant.torch.checkpoint.apply import open_workers

    job, source = job_here(request)
    with source.attach(job.fingerprint) as reader, open_workers(job, reader, workers) as (open_executor, footprint):
        return write(job, reader, cluster or open_executor), footprint.peak


def _write(
    request: Request,
    job: Job | PipelineJob,
    reader: CheckpointReader,
    open_executor: OpenExecutor,
    *,
    memory: int,
    restart: bool,
) -> Applied:
    from rulequant.cli.progress import choose_progress
    from rulequant.torch.checkpoint import write

    with choose_progress(quiet=request.quiet) as progress:
        return write.write_output(
            job,
            reader,
            request.output,
            open_executor,
            memory=memory,
            restart=restart,
            progress=progress,
            notice=terminal.note,
        )


def _saved_plan(path: Path) -> tuple[Plan | PipelinePlan, dict[str, Any] | None]:
    from rulequant.plan_file import read_plan

    return read_plan(path)
