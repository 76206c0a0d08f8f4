"""One large file into the Hub's cache, from the byte on at which an earlier run stopped, and hashed when it is whole.

huggingface_hub keeps the files that it has finished, and throws away the rest of the one at hand; a shard may be 50 GB.
"""

from __future__ import annotations

import fcntl
import io
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

from huggingface_hub import get_hf_file_metadata, hf_hub_url
from huggingface_hub.file_download import HfFileMetadata, http_get
from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # it is documented

from rulequant.errors import CheckpointError
from rulequant.torch.checkpoint.files import hash_fd, printable
from rulequant.torch.hub.retries import retried
from rulequant.torch.hub.selection import RemoteFile
from rulequant.torch.hub.source import HubModel

__all__ = ["PART_SUFFIX", "Stopped", "blob_path", "fetch_blob", "part_path"]

PART_SUFFIX = ".rulequant.incomplete"
_OPEN_FLAGS = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
_LOCK_INTERVAL = 0.5
# A signed address of the store behind the Hub answers so when it has expired; asking the Hub gives a new one.
_EXPIRED = frozenset({403})


class Stopped(Exception):  # noqa: N818  it is no error
    """The download was called off."""


def blob_path(hub: HubModel, file: RemoteFile) -> Path:
    """Where the Hub's cache holds the bytes of a file: `blobs/<sha256>` of the repository's folder."""
    return hub.snapshot.parent.parent / "blobs" / str(file.sha256)


def part_path(hub: HubModel, file: RemoteFile) -> Path:
    """Where the bytes are as long as they are not all there."""
    blob = blob_path(hub, file)
    return blob.with_name(blob.name + PART_SUFFIX)


def fetch_blob(hub: HubModel, file: RemoteFile, advance: Callable[[int], None], stop: threading.Event) -> None:
    """Bring `blobs/<sha256>` to life. `advance` is told the bytes that come in, a negative number where they are lost.

    Raises:
        CheckpointError: the bytes are not those that the Hub promises, or cannot be written.
        Stopped: `stop` was set; what is there stays.
    """
    blob, part = blob_path(hub, file), part_path(hub, file)
    blob.parent.mkdir(parents=True, exist_ok=True)
    with _locked(part, stop) as stream:
        if blob.exists():  # another process was faster, and held the lock
            part.unlink(missing_ok=True)
            return
        counted = _Counted(stream, advance, stop)
        retried(lambda: _request(hub, file, counted), also=_EXPIRED, stopped=stop.is_set)
        found = hash_fd(stream.fileno(), part)
        if found != file.sha256:
            part.unlink()
            raise CheckpointError(
                f"{hub.repo_id}: {printable(file.name)} came with the sha256 {found}, the Hub says {file.sha256}",
                remedy="run it again: it is fetched anew; if that does not help, a proxy on the way may change it",
            )
        part.replace(blob)


def _request(hub: HubModel, file: RemoteFile, stream: _Counted) -> None:
    """Ask for what is missing, where it is to be had now."""
    address = hf_hub_url(hub.repo_id, file.name, revision=hub.commit)
    found = get_hf_file_metadata(address, token=hub.token)
    size = stream.to_end()
    if size > file.size:
        stream.clear()
        size = 0
    headers = build_hf_headers(token=hub.token if _is_same_origin(address, found) else False)
    http_get(
        found.location,
        cast("Any", stream),  # all that is asked of it: write, tell, seek, truncate
        resume_size=size,
        headers=headers,
        expected_size=file.size,
        displayed_filename=file.name,
        tqdm_class=cast("Any", _NoBar),
    )


def _is_same_origin(address: str, found: HfFileMetadata) -> bool:
    """Whether the bytes come from the Hub itself; the store behind it is never shown the token."""
    ours, theirs = urlsplit(address), urlsplit(found.location)
    return (ours.scheme, ours.netloc) == (theirs.scheme, theirs.netloc)


@contextmanager
def _locked(path: Path, stop: threading.Event) -> Iterator[io.FileIO]:
    """The part file, once no other process or thread writes it."""
    while True:
        stream = io.FileIO(os.open(path, _OPEN_FLAGS, 0o666), "r+b")
        try:
            if _try_lock(stream) and _is_at(stream, path):
                yield stream
                return
        finally:
            stream.close()
        if stop.is_set():
            raise Stopped
        time.sleep(_LOCK_INTERVAL)


def _try_lock(stream: io.FileIO) -> bool:
    try:
        fcntl.flock(stream.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_at(stream: io.FileIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(stream.fileno()), path.lstat())
    except FileNotFoundError:
        return False


class _Counted(io.RawIOBase):
    """A file that tells what is written to it, and refuses once the download is called off."""

    def __init__(self, stream: io.FileIO, advance: Callable[[int], None], stop: threading.Event) -> None:
        self._stream, self._advance, self._stop = stream, advance, stop

    def to_end(self) -> int:
        """Go to the end; the number of bytes before it."""
        return self._stream.seek(0, os.SEEK_END)

    def clear(self) -> None:
        """Start over."""
        self.seek(0)
        self.truncate()

    def write(self, data: Any) -> int:
        """All of it."""
        view = memoryview(data).cast("B")
        done = 0
        while done < len(view):
            if self._stop.is_set():
                raise Stopped
            done += self._stream.write(view[done:]) or 0
        self._advance(len(view))
        return len(view)

    def tell(self) -> int:
        """As of any file."""
        return self._stream.tell()

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """As of any file."""
        return self._stream.seek(offset, whence)

    def truncate(self, size: int | None = None) -> int:
        """As of any file."""
        before = os.fstat(self._stream.fileno()).st_size
        after = self._stream.truncate(size)
        self._advance(after - before)
        return after


class _NoBar:
    """Stands in for tqdm: what is shown is the caller's to decide."""

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def __enter__(self) -> _NoBar:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def update(self, n: float | None = 1) -> None:
        """Nothing."""
