"""Functions run in a process of their own, which may be killed, limited, or measured."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["in_child"]

_CONTEXT = multiprocessing.get_context("forkserver")
# Imported once, in a process without threads, of which each child is a copy.
_CONTEXT.set_forkserver_preload(
    [
        "bitsandbytes",
        "transformers.models.llama.modeling_llama",
        "rulequant.loader",
        "rulequant.torch.checkpoint.apply",
        "rulequant.torch.factories.bitsandbytes",
        "rulequant.torch.skeleton",
    ]
)


def in_child(function: Callable[..., Any], *arguments: Any, report: Path) -> tuple[int | None, str]:
    """The exit code of a child that calls a function of a test module, and the text that it returned."""
    process = _CONTEXT.Process(target=_call, args=(function, arguments, report))
    process.start()
    process.join(120)
    code = process.exitcode
    if code is None:
        process.kill()
        process.join()
    process.close()
    return code, report.read_text() if report.exists() else ""


def _call(function: Callable[..., Any], arguments: tuple[Any, ...], report: Path) -> None:
    import torch

    torch.set_num_threads(1)
    result = function(*arguments)
    report.write_text(str(result))
