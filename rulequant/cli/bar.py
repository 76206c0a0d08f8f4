"""The progress bar of apply, drawn by rich: bytes, rate, time left and the tensor at hand."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.text import Text

from rulequant.cli.progress import SETTLING
from rulequant.escaping import printable

__all__ = ["Bar"]

_NAME = 48
"""Columns for the name of a tensor; its end says more than its beginning."""


class _TensorColumn(TextColumn):
    """The name as it is: brackets in it are no markup."""

    def render(self, task: object) -> Text:
        name = printable(str(getattr(task, "description", "")))
        return Text(name if len(name) <= _NAME else f"…{name[1 - _NAME :]}", style="dim")


class Bar:
    """A progress bar on stderr."""

    def __init__(self, *, color: bool) -> None:
        self._progress = Progress(
            BarColumn(bar_width=30),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            _TensorColumn("{task.description}"),
            console=Console(stderr=True, no_color=not color),
            transient=True,
        )
        self._task: TaskID | None = None
        self._began = 0.0

    def __enter__(self) -> Bar:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def start(self, total_bytes: int, tensors: int, unit: str = "tensor") -> None:  # noqa: ARG002  # bytes are counted
        """Draw the empty bar, in place of that of an earlier round."""
        if self._task is not None:
            self._progress.remove_task(self._task)
        self._task = self._progress.add_task("", total=total_bytes)
        self._began = time.monotonic()

    def advance(self, tensor: str, nbytes: int) -> None:
        """Move it."""
        if self._task is None:
            return
        self._progress.update(self._task, advance=nbytes, description=tensor)
        if time.monotonic() - self._began < SETTLING:
            (task,) = self._progress.tasks
            self._progress.reset(self._task, completed=int(task.completed))
