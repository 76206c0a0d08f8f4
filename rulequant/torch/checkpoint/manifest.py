"""`rulequant-manifest.json`: what a finished output consists of, and of what it was made."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, NamedTuple

from rulequant.errors import CheckpointError
from rulequant.torch.checkpoint.checksums import Digest, digest_file
from rulequant.torch.checkpoint.files import (
    close_read,
    damaged,
    open_regular,
    printable,
    read_exactly,
    strict_json,
)
from rulequant.torch.checkpoint.partfile import PART_SUFFIX, write_file
from rulequant.torch.checkpoint.sealed import seal

__all__ = [
    "MANIFEST_NAME",
    "FileProblem",
    "FileRecord",
    "Manifest",
    "check_manifest",
    "compare_file",
    "load_manifest",
    "own_version",
    "stock_versions",
    "unlisted_files",
    "write_manifest",
]

MANIFEST_NAME = "rulequant-manifest.json"

_FORMAT_VERSION = 1
_MAX_BYTES = 100_000_000
_SHA256 = re.compile(r"[0-9a-f]{64}")
_CRC32 = re.compile(r"[0-9a-f]{8}")
_MOST_NAMES = 3
"""Tensors that a message names."""
_NOT_TRUSTED = "make the output again with `rulequant apply`, or get it again from its source"


@dataclass(frozen=True, slots=True)
class FileRecord:
    """Size in bytes and sha256 (hex) of one file."""

    size: int
    sha256: str
    crc32: Mapping[str, str] = field(default_factory=dict)
    """Of the tensors in it, in the order of the file, to tell which of them was changed."""

    def to_dict(self) -> dict[str, Any]:
        """The record as JSON-ready data."""
        return {"size": self.size, "sha256": self.sha256} | ({"crc32": dict(self.crc32)} if self.crc32 else {})


class FileProblem(NamedTuple):
    """What is wrong with a file of an output, on one line that names it."""

    file: str
    kind: Literal["changed", "missing", "added"]
    message: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """The files of an output by their path in it, and the hashes of what they were made from."""

    files: Mapping[str, FileRecord]
    source: Mapping[str, Mapping[str, int]]
    rules_sha256: str
    plan_sha256: str
    versions: Mapping[str, str]
    base_model: Mapping[str, str] | None = None
    """Repository and commit on the Hub that the source is, where that is known."""

    def to_dict(self) -> dict[str, Any]:
        """The manifest as JSON-ready data, keys in the order of the file."""
        data: dict[str, Any] = {
            "format_version": _FORMAT_VERSION,
            "files": {name: self.files[name].to_dict() for name in sorted(self.files)},
            "source": {name: dict(self.source[name]) for name in sorted(self.source)},
            "rules_sha256": self.rules_sha256,
            "plan_sha256": self.plan_sha256,
            "versions": {name: self.versions[name] for name in sorted(self.versions)},
        }
        return data | ({"base_model": dict(self.base_model)} if self.base_model else {})

    def to_bytes(self) -> bytes:
        """The text of the file: the data, and last the sha256 of their compact JSON form."""
        return seal(self.to_dict(), "manifest_sha256")


def write_manifest(
    folder: Path,
    *,
    source: Mapping[str, Mapping[str, int]],
    rules_sha256: str,
    plan_sha256: str,
    versions: Mapping[str, str],
    known: Mapping[str, FileRecord] | None = None,
    base_model: Mapping[str, str] | None = None,
) -> Manifest:
    """Hash every file of a finished folder and write the manifest into it, last.

    `source` is `CheckpointReader.fingerprint()`; `versions` is added to rulequant's own; files in
    `known` (by path in the folder) are not read again.

    Raises:
        CheckpointError: a file cannot be read or is not a regular one, or the manifest cannot be written.
        RuntimeError: a file is still being written (the caller's mistake).
    """
    files: dict[str, FileRecord] = {}
    for name in _walk(folder):
        if name.endswith(PART_SUFFIX):
            raise RuntimeError(f"{name} was not finished")
        files[name] = (known or {}).get(name) or FileRecord(*digest_file(folder / name, root=folder))
    all_versions = {"rulequant": own_version(), **versions}
    manifest = Manifest(files, source, rules_sha256, plan_sha256, all_versions, base_model)
    write_file(folder / MANIFEST_NAME, manifest.to_bytes())
    return manifest


def load_manifest(folder: Path) -> Manifest:
    """Read the manifest of an output.

    Raises:
        CheckpointError: there is none, it is of a newer version, or a byte of it was changed.
    """
    path = folder / MANIFEST_NAME
    if not os.path.lexists(path):
        raise CheckpointError(
            f"{printable(folder)}: no {MANIFEST_NAME}, so this is not a finished output of rulequant apply",
            remedy="give the folder that `rulequant apply -o` wrote",
        )
    text = _read(path)
    manifest = _parse(text, printable(path))
    # The text is a function of the data: any other text, a changed space even, was not written by rulequant.
    if manifest.to_bytes() != text:
        raise damaged(printable(path), "it was changed after rulequant wrote it (its own sha256 does not match)")
    return manifest


def check_manifest(folder: Path) -> list[str]:
    """Compare every file with the manifest, and return each problem as one line that names the file.

    A file that the manifest lacks is a problem too, except hidden ones (`.gitattributes`, `.cache/`), which
    publishing and downloading add.

    Raises:
        CheckpointError: there is no manifest at all.
    """
    try:
        manifest = load_manifest(folder)
    except CheckpointError as error:
        if not os.path.lexists(folder / MANIFEST_NAME):
            raise
        return [error.message]
    compared = (compare_file(folder, name, record) for name, record in manifest.files.items())
    return [each.message for each in (*filter(None, compared), *unlisted_files(folder, manifest))]


def compare_file(
    folder: Path, name: str, record: FileRecord, *, quick: bool = False, told: Callable[[int], None] = lambda _: None
) -> FileProblem | None:
    """What differs between a file and its record; by size alone where `quick`.

    Where a shard was changed, the tensors are named. `told` is called with the bytes of each piece that is read.
    """
    shown = printable(name)
    if not os.path.lexists(folder / name):
        return FileProblem(name, "missing", f"{shown}: missing")
    try:
        found = Digest(_size(folder, name), record.sha256, {})
        if found.size == record.size and not quick:
            found = digest_file(folder / name, root=folder, told=told)
    except CheckpointError as error:
        return FileProblem(name, "changed", error.message)
    if found.size != record.size:
        text = f"{shown}: has {found.size:,} bytes, the manifest says {record.size:,}"
    elif found.sha256 != record.sha256:
        where = _changed_part(found.crc32, record.crc32)
        text = f"{shown}: sha256 is {found.sha256[:12]}…, the manifest says {record.sha256[:12]}…: {where} changed"
    else:
        return None
    return FileProblem(name, "changed", text)


def unlisted_files(folder: Path, manifest: Manifest) -> list[FileProblem]:
    """The files, hidden ones aside, that the manifest lacks."""
    names = [name for name in _walk(folder) if name not in manifest.files and not _is_hidden(name)]
    return [
        FileProblem(name, "added", f"{printable(name)}: not in the manifest, so it was added later") for name in names
    ]


def _changed_part(found: Mapping[str, str], recorded: Mapping[str, str]) -> str:
    """Which part of a file was changed, as far as its checksums tell."""
    if not recorded:
        return "its bytes were"
    if list(found) != list(recorded):
        return "its header was"
    changed = [f"`{printable(name)}`" for name, value in recorded.items() if found[name] != value]
    if not changed:
        return "its header was"
    more = f" and {len(changed) - _MOST_NAMES} more tensors" if len(changed) > _MOST_NAMES else ""
    return f"{', '.join(changed[:_MOST_NAMES])}{more} {'were' if len(changed) > 1 else 'was'}"


def _walk(folder: Path) -> Iterator[str]:
    """The files of a folder by their paths in it; links to folders count as files, since they are not entered."""

    def refuse(error: OSError) -> None:
        raise CheckpointError(f"{printable(error.filename)}: cannot be listed: {error.strerror}") from error

    for current, folders, names in os.walk(folder, onerror=refuse):
        folders.sort()
        links = [name for name in folders if Path(current, name).is_symlink()]
        for path in (Path(current, name) for name in sorted([*names, *links])):
            name = path.relative_to(folder).as_posix()
            if name != MANIFEST_NAME:
                yield name


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") for part in name.split("/"))


def _size(folder: Path, name: str) -> int:
    """The size of a file, which has to be a regular one inside the folder."""
    fd = open_regular(folder / name, root=folder)
    try:
        return os.fstat(fd).st_size
    finally:
        close_read(fd)


def _read(path: Path) -> bytes:
    fd = open_regular(path, root=path.parent)
    try:
        size = os.fstat(fd).st_size
        if size > _MAX_BYTES:
            raise damaged(printable(path), f"{size:,} bytes, at most {_MAX_BYTES:,} are allowed")
        return bytes(read_exactly(fd, 0, size, path))
    finally:
        close_read(fd)


def _parse(text: bytes, where: str) -> Manifest:
    raw = strict_json(text, where)
    if not isinstance(raw, dict):
        raise damaged(where, "not a JSON object")
    version = raw.get("format_version")
    if type(version) is int and version > _FORMAT_VERSION:
        raise CheckpointError(
            f"{where}: format_version {version}, this rulequant reads {_FORMAT_VERSION}",
            remedy="update rulequant",
        )
    try:
        return Manifest(
            files={_relative(name): _file_record(each) for name, each in raw["files"].items()},
            source={str(name): dict(each) for name, each in raw["source"].items()},
            rules_sha256=str(raw["rules_sha256"]),
            plan_sha256=str(raw["plan_sha256"]),
            versions={str(name): str(each) for name, each in raw["versions"].items()},
            base_model={str(key): str(each) for key, each in raw.get("base_model", {}).items()} or None,
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise damaged(where, f"not a manifest of rulequant: {printable(repr(error))}") from error


def _file_record(value: dict[str, Any]) -> FileRecord:
    size, sha256 = value["size"], value["sha256"]
    if type(size) is not int or not _SHA256.fullmatch(sha256):
        raise ValueError("a file needs its size and sha256")
    crc32 = value.get("crc32", {})
    if not all(_CRC32.fullmatch(each) for each in crc32.values()):
        raise ValueError("a tensor needs its crc32")
    return FileRecord(size, sha256, crc32)


def _relative(name: str) -> str:
    if not name or "\0" in name or any(part in ("", ".", "..") for part in name.split("/")):
        raise ValueError(f"not a path inside the folder: {name!r}")
    return name


def stock_versions(library: str = "transformers") -> dict[str, str]:
    """The versions of the packages that decide the bytes, or the names, of an output that a library loads."""
    packages = ("torch", "transformers", "bitsandbytes", *(["diffusers"] if library == "diffusers" else []))
    return {each: metadata.version(each) for each in packages}


def own_version() -> str:
    """The version of rulequant, as far as it is installed."""
    try:
        return metadata.version("rulequant")
    except metadata.PackageNotFoundError:
        return "unknown"
