"""The files of a checkpoint into the Hub's cache, several at once; what is there already is not asked for again."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

from huggingface_hub import constants, is_offline_mode

from rulequant.errors import CheckpointError, ModelError
from rulequant.torch.checkpoint.files import printable, size_text
from rulequant.torch.checkpoint.layout import COMPONENT_STEM, MODEL_STEM, find_layout, index_name
from rulequant.torch.checkpoint.partfile import free_bytes
from rulequant.torch.diffusion import is_component
from rulequant.torch.hub.answers import GOES_ON, explained
from rulequant.torch.hub.blob import Stopped, blob_path, fetch_blob, part_path
from rulequant.torch.hub.retries import retried
from rulequant.torch.hub.selection import RemoteFile, checkpoint_files
from rulequant.torch.hub.source import HubModel
from rulequant.torch.model_config import config_data
from rulequant.torch.model_index import read_index

__all__ = ["DownloadProgress", "download"]

_WORKERS = 8
"""As many as huggingface_hub uses: the store behind the Hub limits each connection, not all together."""


class DownloadProgress(Protocol):
    """Told how far a download is."""

    def start(self, total_bytes: int, files: int) -> None:
        """The bytes to download in all, and the number of files that lack any."""

    def advance(self, name: str, nbytes: int) -> None:
        """More bytes of a file are there; fewer, where a server starts over."""


def download(
    hub: HubModel,
    *,
    reserve: int = 0,
    progress: DownloadProgress | None = None,
    notice: Callable[[str], None] = lambda _: None,
) -> Path:
    """Fetch the checkpoint of a commit; the folder that holds it, a snapshot in the Hub's cache.

    `reserve` is how many bytes are to be free on the same device afterwards.
    Interrupted at any moment, it goes on where it stopped when it is called again.

    Raises:
        ModelError: the Hub does not answer, or has no such model for this user.
        CheckpointError: there is no safetensors checkpoint, too little space, or other bytes than promised.
        KeyboardInterrupt: as it came, and says that nothing is lost.
    """
    if is_offline_mode():
        _check_cached(hub)
        notice(f"HF_HUB_OFFLINE is set: taking what the cache holds of {hub.repo_id}, {hub.folder}")
        return hub.folder
    missing = [each for each in checkpoint_files(hub) if not (hub.snapshot / each.name).exists()]
    _check_space(hub, missing, reserve)
    if progress and missing:
        progress.start(sum(_left(hub, each) for each in missing), len(missing))
    _fetch_all(hub, missing, progress)
    return hub.folder


def _check_cached(hub: HubModel) -> None:
    try:
        for name in read_index(hub.folder).libraries if hub.is_pipeline else [""]:
            _check_component(hub.folder / name)
    except CheckpointError as error:
        raise ModelError(
            f"{hub.repo_id}: its weights are not all in the Hub's cache ({error.message}), and HF_HUB_OFFLINE is set",
            remedy="unset HF_HUB_OFFLINE to download them",
        ) from error


def _check_component(folder: Path) -> None:
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder")
    if (folder / "config.json").exists():  # else it has no weights: a tokenizer, a scheduler
        stem = COMPONENT_STEM if is_component(config_data(folder)) else MODEL_STEM
        find_layout(folder, (folder / index_name(stem)).read_bytes, stem)


def _left(hub: HubModel, file: RemoteFile) -> int:
    """The bytes of a file that are still to come."""
    if file.sha256 is None:
        return file.size
    if blob_path(hub, file).exists():
        return 0
    part = part_path(hub, file)
    return file.size - min(part.stat().st_size if part.exists() else 0, file.size)


def _check_space(hub: HubModel, missing: list[RemoteFile], reserve: int) -> None:
    needed, free = sum(_left(hub, each) for each in missing), free_bytes(hub.snapshot)
    if free < needed + reserve:
        beside = f", and {size_text(reserve)} for the output" if reserve else ""
        raise CheckpointError(
            f"{hub.repo_id}: not enough space: {size_text(needed)} are to be downloaded{beside}; "
            f"{printable(constants.HF_HUB_CACHE)} has {size_text(free)} free",
            remedy="free some space, or set HF_HOME to a folder on another device",
        )


def _fetch_all(hub: HubModel, files: list[RemoteFile], progress: DownloadProgress | None) -> None:
    """Work through the files, smallest first; progress is told in this thread alone."""
    stop = threading.Event()
    done: queue.SimpleQueue[tuple[str, int] | BaseException | None] = queue.SimpleQueue()
    waiting = iter(sorted(files, key=lambda each: each.size))
    lock = threading.Lock()

    def work() -> None:
        try:
            while (file := _next(waiting, lock)) is not None and not stop.is_set():
                _fetch(hub, file, done.put, stop)
        except BaseException as error:
            stop.set()
            done.put(error)
        done.put(None)

    # Daemons: an interrupt need not wait for a slow connection. What they have written so far is a file's beginning.
    workers = [threading.Thread(target=work, daemon=True) for _ in range(min(_WORKERS, len(files)))]
    for each in workers:
        each.start()
    try:
        with explained(hub.repo_id):
            _follow(done, len(workers), progress)
    except KeyboardInterrupt as interrupt:
        stop.set()
        raise type(interrupt)(f"what came of {hub.repo_id} stays in the Hub's cache, and {GOES_ON}") from interrupt


def _next(waiting: Iterator[RemoteFile], lock: threading.Lock) -> RemoteFile | None:
    with lock:
        return next(waiting, None)


def _follow(
    done: queue.SimpleQueue[tuple[str, int] | BaseException | None], workers: int, progress: DownloadProgress | None
) -> None:
    """Tell the progress until all workers have ended; raise the first error, once they have stopped."""
    failure: BaseException | None = None
    while workers:
        item = done.get()
        if item is None:
            workers -= 1
        elif isinstance(item, BaseException):
            failure = failure or item
        elif progress:
            progress.advance(*item)
    if failure:
        raise failure


def _fetch(hub: HubModel, file: RemoteFile, tell: Callable[[tuple[str, int]], None], stop: threading.Event) -> None:
    """One file into the cache, as a part of the snapshot."""
    resumable = file.sha256 is not None and file.size <= constants.MAX_HTTP_DOWNLOAD_SIZE
    if resumable and not blob_path(hub, file).exists():
        try:
            fetch_blob(hub, file, lambda count: tell((file.name, count)), stop)
        except Stopped:
            return
        except OSError as error:
            if error.errno is None:
                raise
            raise CheckpointError(f"{hub.repo_id}: cannot write {printable(file.name)}: {error.strerror}") from error
    # Of a blob that is there it makes the snapshot's file, in the way that the file system allows.
    retried(lambda: hub.fetch(file.name), stopped=stop.is_set)
    if not resumable:
        tell((file.name, file.size))
