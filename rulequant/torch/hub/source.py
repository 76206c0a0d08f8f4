"""A model on the Hub at one commit: its config in the Hub's cache, and the dtypes of weights that are still remote."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from huggingface_hub import HfApi, constants, hf_hub_download, is_offline_mode
from huggingface_hub.errors import (
    EntryNotFoundError,
    LocalEntryNotFoundError,
    NotASafetensorsRepoError,
    SafetensorsParsingError,
)

from rulequant.errors import CheckpointError, ModelError
from rulequant.torch.checkpoint.files import printable
from rulequant.torch.checkpoint.layout import MODEL_STEM, index_name, natural_key, parse_index, single_name
from rulequant.torch.hub.answers import explained
from rulequant.torch.model_index import INDEX

__all__ = ["HubModel", "open_hub_model", "remote_dtypes"]


@dataclass(frozen=True)
class HubModel:
    """A repository at the commit that its revision was when it was first asked for; or a folder in it."""

    repo_id: str
    commit: str
    snapshot: Path
    """The commit in the Hub's cache; of the files it has those that were asked for so far."""
    revision: str | None = None
    """As the user gave it."""
    token: str | bool | None = field(default=None, repr=False)
    """None: HF_TOKEN, or what `hf auth login` stored."""
    subfolder: str = ""
    """Where in the repository the model is: the folder of a component, of a pipeline."""

    @property
    def folder(self) -> Path:
        """Where the model is, in the Hub's cache."""
        return self.snapshot / self.subfolder

    @property
    def is_pipeline(self) -> bool:
        """Whether it is a pipeline of several models."""
        return (self.folder / INDEX).is_file() and not (self.folder / "config.json").is_file()

    def path(self, name: str) -> str:
        """The path in the repository of a file of the model."""
        return f"{self.subfolder}/{name}" if self.subfolder else name

    def fetch(self, path: str) -> Path:
        """A file of the commit, from the cache where it is there; `explained` is for the caller to put around.

        Raises:
            EntryNotFoundError: the commit has no such file.
        """
        return Path(hf_hub_download(self.repo_id, path, revision=self.commit, token=self.token))

    def component(self, name: str) -> HubModel:
        """A component of a pipeline, whose config is fetched.

        Raises:
            ModelError: there is none of that name, or the Hub does not answer.
        """
        found = replace(self, subfolder=name)
        with explained(self.repo_id):
            try:
                found.fetch(found.path("config.json"))
            except LocalEntryNotFoundError:
                raise
            except EntryNotFoundError as error:
                raise ModelError(
                    f"{self.repo_id} has no model in a folder `{printable(name)}`",
                    remedy=f"see {constants.ENDPOINT}/{self.repo_id}/tree/{self.revision or 'main'}",
                ) from error
        return found


def open_hub_model(repo_id: str, *, revision: str | None = None, token: str | bool | None = None) -> HubModel:
    """Find the commit of a revision, and fetch its config, or for a pipeline its index.

    Where the Hub cannot be reached, they are taken from the cache.

    Raises:
        ModelError: the Hub has no such model or revision, or does not let the user read it.
    """
    with explained(repo_id, revision):
        path = _first(repo_id, ("config.json", INDEX), revision, token)
    # models--ORG--NAME/snapshots/COMMIT/config.json, the layout that the Hub's documentation promises.
    return HubModel(repo_id, path.parent.name, path.parent, revision, token)


def _first(repo_id: str, entries: Sequence[str], revision: str | None, token: str | bool | None) -> Path:
    """The first of some files that the repository has; offline, that the cache has."""
    absent: LocalEntryNotFoundError | None = None
    for entry in entries:
        found = _fetched(repo_id, entry, revision, token)
        if isinstance(found, Path):
            return found
        if isinstance(found, LocalEntryNotFoundError):
            absent = absent or found
            if not is_offline_mode():
                raise found
    if absent:
        raise absent
    raise ModelError(
        f"{repo_id} holds no {entries[0]}",
        remedy=f"give a checkpoint of transformers: see {constants.ENDPOINT}/{repo_id}",
    )


def _fetched(repo_id: str, entry: str, revision: str | None, token: str | bool | None) -> Path | EntryNotFoundError:
    try:
        return Path(hf_hub_download(repo_id, entry, revision=revision, token=token))
    except EntryNotFoundError as error:
        return error


def remote_dtypes(hub: HubModel, stem: str = MODEL_STEM) -> Iterator[tuple[str, str]]:
    """(name, dtype as safetensors spells it) of each tensor, in natural order of the names; none for other formats.

    Only headers are read, by ranged requests, and only those of the shards that the caller goes through.

    Raises:
        ModelError: the Hub does not answer.
        CheckpointError: what it has is no safetensors file, or not what its index says.
    """
    with explained(hub.repo_id):
        try:
            path = hub.path(index_name(stem))
            index = parse_index(hub.fetch(path).read_bytes(), Path(hub.repo_id, path)).weight_map
        except LocalEntryNotFoundError:
            raise
        except EntryNotFoundError:
            index = {}
        single = single_name(stem)
        headers = {} if index else {single: _header(hub, single)}
        shards = index or dict.fromkeys(headers[single], single)
        for name in sorted(shards, key=natural_key):
            shard = shards[name]
            if shard not in headers:
                headers[shard] = _header(hub, shard)
            if name in headers[shard]:  # what an index gets wrong is told when the weights are read
                yield name, headers[shard][name]


def _header(hub: HubModel, shard: str) -> dict[str, str]:
    """The dtype of each tensor of a file; empty where there is no such file."""
    try:
        api = HfApi(token=hub.token)
        header = api.parse_safetensors_file_metadata(hub.repo_id, hub.path(shard), revision=hub.commit)
    except (EntryNotFoundError, NotASafetensorsRepoError):
        return {}
    except SafetensorsParsingError as error:
        raise CheckpointError(f"{hub.repo_id}: {shard} is no safetensors file: {error}") from error
    return {name: str(each.dtype) for name, each in header.tensors.items()}
