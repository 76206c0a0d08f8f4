"""Which files of a component of a pipeline are its weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath

from rulequant.errors import CheckpointError
from rulequant.torch.checkpoint.layout import COMPONENT_STEM, MODEL_STEM, index_name, layout_of
from rulequant.torch.checkpoint.sidefiles import is_side_file

__all__ = ["local_weights", "weight_files"]


def weight_files(names: Sequence[str], folder: Path, read: Callable[[str], bytes]) -> list[str]:
    """The safetensors checkpoint among the files of a component; where it has none, all that side files leave out.

    `read` is called with the name of an index; `folder` is what messages call the place.
    """
    for stem in (COMPONENT_STEM, MODEL_STEM):
        with suppress(CheckpointError, OSError):
            found = layout_of(names, folder, lambda stem=stem: read(index_name(stem)), stem)  # type: ignore[misc]
            return [*found.shards, *([index_name(stem)] if found.index else [])]
    return sorted(each for each in names if not each.startswith(".") and not _is_beside(each))


def local_weights(folder: Path) -> list[str]:
    """As `weight_files`, of a folder on this machine."""
    names = sorted(each.name for each in folder.iterdir() if each.is_file())
    return weight_files(names, folder, lambda name: (folder / name).read_bytes())


def _is_beside(name: str) -> bool:
    return name in {"config.json", "README.md"} or is_side_file(PurePosixPath(name), frozenset())
