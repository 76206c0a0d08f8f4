"""What `apply` says when it is done."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rulequant.cli import terminal

if TYPE_CHECKING:
    from rulequant.torch.checkpoint.finish import Applied

__all__ = ["own_peak_memory", "record", "summarize"]


def record(applied: Applied, seconds: float, peak: int | None) -> dict[str, Any]:
    from rulequant.report.worsttext import worst_data
    from rulequant.torch.checkpoint.pipeline import AppliedPipeline

    facts = applied.plan.summary
    data = {
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
        "peak_memory_bytes": peak,
    }
    if not isinstance(applied, AppliedPipeline):
        return data
    parts = {
        name: {"container": each.container, "tensors": each.tensors, "bytes_written": each.bytes_written}
        for name, each in applied.components.items()
    }
    copied = {key: value for key, value in applied.pipeline.summary.items() if key not in facts}
    return {**data, "pipeline": applied.pipeline.pipeline, "components": parts, **copied}


def summarize(applied: Applied, seconds: float, peak: int | None, model: str) -> None:
    from rulequant.escaping import printable
    from rulequant.report.text import columns, count, percent, size
    from rulequant.report.worsttext import worst_rows

    facts = applied.plan.summary
    before = facts["bytes_before"]
    shards = count(len(set(applied.weight_map.values())), "shard")
    rows = [
        ("written", printable(f"{applied.output} ({count(applied.tensors, 'tensor')} in {shards})")),
        ("size", f"{size(before)} -> {size(applied.bytes_written)} ({percent(applied.bytes_written / before)} of it)"),
        ("bits per weight", f"{facts['bits_per_weight']:.2f}"),
        ("quantized", f"{count(facts['quantized'], 'module')}, {percent(facts['coverage'])} of the parameters"),
        *_containers(applied),
        *worst_rows(applied.samples),
        ("time", f"{seconds:.1f} s"),
    ]
    rows += [("peak memory", size(peak))] if peak else []
    style = terminal.style_of(sys.stderr)
    for line, (label, _) in zip(columns(rows), rows, strict=True):
        terminal.message(style.bold(line[: len(label)]) + line[len(label) :])
    terminal.note(f"check it any time: rulequant verify {_quoted(applied.output)}{_against(model)}")


def _containers(applied: Applied) -> list[tuple[str, str]]:
    from rulequant.torch.checkpoint.pipeline import AppliedPipeline

    if isinstance(applied, AppliedPipeline):
        from rulequant.cli.pipelines import totals

        loaded = [f"{name}: {each.container}, which {_loads(each)}" for name, each in applied.components.items()]
        return [*totals(applied.pipeline), *(("container", each) for each in loaded)]
    return [("container", f"{applied.container}, which {_loads(applied)}")]


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
        after = " as it is" if applied.container == "bitsandbytes" else " after `import rulequant.torch.diffusers`"
        return f"diffusers loads{after}"
    from rulequant.report.plantext import loaded

    return f"transformers loads {loaded(applied.container)}"


def own_peak_memory() -> int | None:
    """The most memory that this process held, in bytes; None where the system does not say."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # https://man7.org/linux/man-pages/man2/getrusage.2.html
