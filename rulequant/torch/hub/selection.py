"""Which files of a repository a checkpoint is made of: config, safetensors and side files, and no other weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from huggingface_hub import HfApi

from rulequant.errors import CheckpointError
from rulequant.torch.checkpoint.files import printable
from rulequant.torch.checkpoint.layout import INDEX_NAME, layout_of
from rulequant.torch.checkpoint.sidefiles import is_side_file, module_folders
from rulequant.torch.hub.answers import explained
from rulequant.torch.hub.retries import retried
from rulequant.torch.hub.source import HubModel

__all__ = ["RemoteFile", "checkpoint_files"]

_CARD = "README.md"
_CONFIG = "config.json"
_MODULES = "modules.json"


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file of a repository, by its path in it."""

    name: str
    size: int
    """Bytes; 0 where the Hub does not say."""
    sha256: str | None
    """What its bytes hash to, for files in large file storage."""


def checkpoint_files(hub: HubModel) -> list[RemoteFile]:
    """What `apply` reads of a commit.

    Raises:
        ModelError: the Hub does not answer.
        CheckpointError: it has no safetensors checkpoint, or several.
    """
    with explained(hub.repo_id):
        found = retried(lambda: _listing(hub))
        modules = module_folders(hub.fetch(_MODULES).read_bytes()) if _MODULES in found else frozenset()
        wanted = {_CONFIG, _CARD, *_weights(hub, found)}
    return [
        each for name, each in sorted(found.items()) if name in wanted or is_side_file(PurePosixPath(name), modules)
    ]


def _listing(hub: HubModel) -> dict[str, RemoteFile]:
    info = HfApi(token=hub.token).model_info(hub.repo_id, revision=hub.commit, files_metadata=True)
    return {
        each.rfilename: RemoteFile(each.rfilename, each.size or 0, each.lfs.sha256 if each.lfs else None)
        for each in info.siblings or ()
    }


def _weights(hub: HubModel, found: Mapping[str, RemoteFile]) -> list[str]:
    names = sorted(name for name in found if "/" not in name)
    layout = layout_of(names, Path(hub.repo_id), lambda: hub.fetch(INDEX_NAME).read_bytes())
    missing = [each for each in layout.shards if each not in found]
    if missing:
        raise CheckpointError(
            f"{hub.repo_id}: {INDEX_NAME} names {printable(missing[0])}, which the repository lacks",
            remedy="tell its owners, or choose another revision",
        )
    return [*layout.shards, *([INDEX_NAME] if layout.index else [])]
