"""Which files of a folder are the checkpoint, and whether its index and its shards agree."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rulequant.errors import CheckpointError
from rulequant.torch.checkpoint.files import damaged, printable, size_text, strict_json
from rulequant.torch.checkpoint.header import Header, TensorEntry

__all__ = [
    "COMPONENT_STEM",
    "INDEX_NAME",
    "MODEL_STEM",
    "SINGLE_NAME",
    "Index",
    "Layout",
    "check_index",
    "find_layout",
    "index_name",
    "layout_of",
    "merge_headers",
    "natural_key",
    "parse_index",
    "single_name",
]

MODEL_STEM = "model"
"""What transformers' names of files begin with."""
COMPONENT_STEM = "diffusion_pytorch_model"
"""What those of diffusers begin with."""
INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"

_SUFFIX = ".safetensors"
_PICKLE_SUFFIXES = frozenset({".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth"})
_MAX_NAME_BYTES = 255
_DOWNLOAD_AGAIN = "download the checkpoint again"
_ONE_CHECKPOINT = "keep the checkpoint you mean in a folder of its own"


@dataclass(frozen=True, slots=True)
class Index:
    """What `model.safetensors.index.json` says: the shard of each tensor, and their total size in bytes."""

    weight_map: Mapping[str, str]
    total_size: int | None


@dataclass(frozen=True, slots=True)
class Layout:
    """The files that hold the tensors, and the index that names them (None for a single file)."""

    shards: tuple[str, ...]
    index: Index | None


def natural_key(name: str) -> tuple[object, ...]:
    """A sort key that puts `layers.2` before `layers.10`."""
    return tuple(_part_key(part) for part in name.split(".")), name


def index_name(stem: str) -> str:
    """The name of the index of a checkpoint whose files begin so."""
    return f"{stem}.safetensors.index.json"


def single_name(stem: str) -> str:
    """The name of a checkpoint in one file."""
    return f"{stem}.safetensors"


def find_layout(folder: Path, read_index: Callable[[], bytes | bytearray], stem: str = MODEL_STEM) -> Layout:
    """Find the one checkpoint of a folder; `read_index` is called where there is an index.

    Raises:
        CheckpointError: no folder, no weights, pickles only, two checkpoints at once, or a bad index.
    """
    found = layout_of(_file_names(folder), folder, read_index, stem)
    missing = [shard for shard in found.shards if found.index and _is_missing(folder / shard)]
    if missing:
        raise CheckpointError(
            f"{printable(folder / index_name(stem))}: names files that are missing: {_some(missing)}",
            remedy=_DOWNLOAD_AGAIN,
        )
    return found


def layout_of(
    names: Sequence[str], folder: Path, read_index: Callable[[], bytes | bytearray], stem: str = MODEL_STEM
) -> Layout:
    """As `find_layout`, from the names of the files; whether all that the index names are there is not asked."""
    index_file, single = index_name(stem), single_name(stem)
    if index_file not in names:
        return _single_layout(folder, names, stem)
    index = parse_index(read_index(), folder / index_file)
    shards = tuple(sorted(set(index.weight_map.values()), key=natural_key))
    if single in names and single not in shards:
        raise CheckpointError(
            f"{printable(folder)}: both {index_file} and {single}, which it does not name: "
            "two checkpoints in one folder",
            remedy=_ONE_CHECKPOINT,
        )
    return Layout(shards, index)


def parse_index(text: bytes | bytearray, path: Path) -> Index:
    """Check the text of an index: plain file names of safetensors files, and a size that is a number.

    Raises:
        CheckpointError: naming the index and the entry.
    """
    where = printable(path)
    raw = strict_json(text, where)
    weight_map = raw.get("weight_map") if isinstance(raw, dict) else None
    if not isinstance(raw, dict) or not isinstance(weight_map, dict) or not weight_map:
        raise damaged(where, "it must have a `weight_map` that maps tensor names to files")
    for name, shard in weight_map.items():
        if not _is_plain_name(shard):
            raise damaged(
                where,
                f"tensor `{printable(name)}` is said to be in {printable(repr(shard))}; "
                f"only the plain name of a {_SUFFIX} file in the same folder is allowed",
            )
    return Index(weight_map, _total_size(raw.get("metadata"), where))


def merge_headers(headers: Mapping[str, Header], folder: Path) -> dict[str, TensorEntry]:
    """The tensors of all shards by name; CheckpointError for one that two shards hold, or for none at all."""
    entries: dict[str, TensorEntry] = {}
    for shard, header in headers.items():
        for name, entry in header.tensors.items():
            if name in entries:
                raise CheckpointError(
                    f"{printable(folder)}: tensor `{printable(name)}` is in two shards, "
                    f"{printable(entries[name].shard)} and {printable(shard)}",
                    remedy=_DOWNLOAD_AGAIN,
                )
            entries[name] = entry
    if not entries:
        raise CheckpointError(f"{printable(folder)}: the checkpoint holds no tensor", remedy=_DOWNLOAD_AGAIN)
    return entries


def check_index(index: Index, entries: Mapping[str, TensorEntry], path: Path) -> None:
    """Compare the index, read from `path`, with what the shards hold.

    `total_size` may be off by a factor of two: real indexes count tied weights twice, or the bytes of another
    dtype. Past that it is taken for a lie.

    Raises:
        CheckpointError: naming the tensor and the shard.
    """
    where = printable(path)
    for name, shard in index.weight_map.items():
        actual = entries[name].shard if name in entries else None
        if actual != shard:
            found = f"it is in {printable(actual)}" if actual else "no shard has it"
            raise CheckpointError(
                f"{where}: tensor `{printable(name)}` is said to be in {printable(shard)}, but {found}",
                remedy=_DOWNLOAD_AGAIN,
            )
    for name, entry in entries.items():
        if name not in index.weight_map:
            raise CheckpointError(
                f"{where}: does not list tensor `{printable(name)}` that {printable(entry.shard)} holds",
                remedy=_DOWNLOAD_AGAIN,
            )
    _check_total_size(index.total_size, sum(entry.nbytes for entry in entries.values()), where)


def _part_key(part: str) -> tuple[tuple[str, int, str], ...]:
    # Numbers compare as (digits, text): right for any length, where int() would refuse thousands of digits.
    tokens = re.findall(r"([^0-9]*)0*([0-9]*)", part)
    return tuple((text, len(digits), digits) for text, digits in tokens)


def _file_names(folder: Path) -> list[str]:
    try:
        return sorted(each.name for each in folder.iterdir())
    except FileNotFoundError as error:
        raise CheckpointError(f"{printable(folder)}: no such folder", remedy="check the path") from error
    except NotADirectoryError as error:
        raise CheckpointError(
            f"{printable(folder)}: not a folder",
            remedy="give the folder that holds config.json and the weights",
        ) from error
    except OSError as error:
        raise CheckpointError(f"{printable(folder)}: cannot list the folder: {error.strerror}") from error


def _is_missing(path: Path) -> bool:
    # Asked of the file, not of the listing: a link of the Hub cache may have lost its blob.
    try:
        path.stat()
    except FileNotFoundError:
        return True
    except OSError:
        return False  # opening it says what the matter is
    return False


def _single_layout(folder: Path, names: Sequence[str], stem: str) -> Layout:
    index_file, single = index_name(stem), single_name(stem)
    pattern = re.compile(re.escape(stem) + r"-[0-9]+-of-[0-9]+\.safetensors")
    shards = [name for name in names if pattern.fullmatch(name)]
    if single in names and not shards:
        return Layout((single,), None)
    where = printable(folder)
    if single in names:
        raise CheckpointError(
            f"{where}: both {single} and shards of another checkpoint without index: {_some(shards)}",
            remedy=_ONE_CHECKPOINT,
        )
    if shards:
        raise CheckpointError(
            f"{where}: {index_file} is missing, but its shards are there: {_some(shards)}",
            remedy=_DOWNLOAD_AGAIN,
        )
    pickles = [name for name in names if Path(name).suffix in _PICKLE_SUFFIXES]
    if pickles:
        raise CheckpointError(
            f"{where}: only pickled weights, which can run code when read: {_some(pickles)}",
            remedy="convert them to safetensors (transformers' `save_pretrained` writes it) on a machine "
            "where that does no harm",
        )
    raise CheckpointError(
        f"{where}: no weights: neither {single} nor {index_file} among {_some(names) if names else 'no files at all'}",
        remedy="give a folder with the weights in safetensors format",
    )


def _is_plain_name(value: object) -> bool:
    return (
        isinstance(value, str)
        and value.endswith(_SUFFIX)
        and value.isprintable()
        and len(value.encode()) <= _MAX_NAME_BYTES
        and not any(each in value for each in "/\\")
    )


def _total_size(metadata: object, where: str) -> int | None:
    if metadata is None:
        return None
    if not isinstance(metadata, dict):
        raise damaged(where, "`metadata` must be a JSON object")
    size = metadata.get("total_size")
    if size is None:
        return None
    # Some writers leave a float such as 1.3e10.
    if isinstance(size, float) and size.is_integer():
        size = int(size)
    if type(size) is not int or size < 0:
        raise damaged(where, f"metadata.total_size must be a number of bytes, got {printable(repr(size))}")
    return size


def _check_total_size(declared: int | None, actual: int, where: str) -> None:
    if declared is None or actual <= 2 * declared <= 4 * actual:
        return
    raise CheckpointError(
        f"{where}: metadata.total_size says {declared:,} bytes ({size_text(declared)}), "
        f"the shards hold {actual:,} ({size_text(actual)})",
        remedy=f"{_DOWNLOAD_AGAIN}; if it is complete, correct metadata.total_size or take it out",
    )


def _some(names: Sequence[str], *, count: int = 5) -> str:
    shown = ", ".join(printable(name) for name in names[:count])
    return f"{shown} and {len(names) - count} more" if len(names) > count else shown
