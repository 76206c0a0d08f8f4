"""Which files of a repository a checkpoint is made of: config, safetensors and side files, and no other weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from huggingface_hub import HfApi

from rulequant.errors import CheckpointError
from rulequant.torch.checkpoint.component_files import weight_files
from rulequant.torch.checkpoint.files import printable
from rulequant.torch.checkpoint.layout import COMPONENT_STEM, MODEL_STEM, index_name, layout_of
from rulequant.torch.checkpoint.sidefiles import is_side_file, module_folders
from rulequant.torch.diffusion import is_component
from rulequant.torch.hub.answers import explained
from rulequant.torch.hub.retries import retried
from rulequant.torch.hub.source import HubModel
from rulequant.torch.model_config import config_data
from rulequant.torch.model_index import INDEX, read_index

__all__ = ["RemoteFile", "checkpoint_files", "component_weights", "listing"]

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
    found = listing(hub)
    with explained(hub.repo_id):
        wanted = set(_of_pipeline(hub, found) if hub.is_pipeline else _of_model(hub, found))
    return [each for name, each in sorted(found.items()) if name in wanted]


def listing(hub: HubModel) -> dict[str, RemoteFile]:
    """All files of a commit.

    Raises:
        ModelError: the Hub does not answer.
    """
    with explained(hub.repo_id):
        info = retried(lambda: HfApi(token=hub.token).model_info(hub.repo_id, revision=hub.commit, files_metadata=True))
    return {
        each.rfilename: RemoteFile(each.rfilename, each.size or 0, each.lfs.sha256 if each.lfs else None)
        for each in info.siblings or ()
    }


def component_weights(hub: HubModel, found: Mapping[str, RemoteFile], component: str) -> list[RemoteFile]:
    """The weights of a component of a pipeline; none where it has no folder."""
    with explained(hub.repo_id):
        names = [each.name for each in _names_in(found, component)]
        weights = weight_files(names, Path(hub.repo_id, component), lambda name: _read(hub, f"{component}/{name}"))
    return [found[f"{component}/{name}"] for name in weights if f"{component}/{name}" in found]


def _names_in(found: Mapping[str, RemoteFile], folder: str) -> Iterator[PurePosixPath]:
    """The files that lie in a folder itself."""
    return (path for path in map(PurePosixPath, found) if path.parent == PurePosixPath(folder))


def _of_pipeline(hub: HubModel, found: Mapping[str, RemoteFile]) -> Iterator[str]:
    """All that is no weight, wherever it lies, and of each component its weights."""
    yield from (INDEX, _CARD)
    yield from (name for name in found if is_side_file(PurePosixPath(name), frozenset()))
    for each in read_index(hub.folder).libraries:
        yield from (file.name for file in component_weights(hub, found, each))


def _of_model(hub: HubModel, found: Mapping[str, RemoteFile]) -> Iterator[str]:
    local = {name.removeprefix(hub.path("")): name for name in found if name.startswith(hub.path(""))}
    modules = module_folders(_read(hub, hub.path(_MODULES))) if _MODULES in local else frozenset()
    for name, path in local.items():
        if name in (_CONFIG, _CARD) or is_side_file(PurePosixPath(name), modules):
            yield path
    yield from map(hub.path, _weights(hub, local))


def _weights(hub: HubModel, found: Mapping[str, str]) -> list[str]:
    """The names of the files with the weights of a model, of those in its folder."""
    names = sorted(name for name in found if "/" not in name)
    stem = COMPONENT_STEM if is_component(config_data(hub.folder)) else MODEL_STEM
    index = index_name(stem)
    layout = layout_of(names, Path(hub.repo_id, hub.subfolder), lambda: _read(hub, hub.path(index)), stem)
    missing = [each for each in layout.shards if each not in found]
    if missing:
        raise CheckpointError(
            f"{hub.repo_id}: {hub.path(index)} names {printable(missing[0])}, which the repository lacks",
            remedy="tell its owners, or choose another revision",
        )
    return [*layout.shards, *([index] if layout.index else [])]


def _read(hub: HubModel, path: str) -> bytes:
    return hub.fetch(path).read_bytes()
