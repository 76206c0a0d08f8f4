"""A model on the Hub at one commit: its config in the Hub's cache, and the dtype of weights that are still remote."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub import HfApi, constants, hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    LocalEntryNotFoundError,
    NotASafetensorsRepoError,
    SafetensorsParsingError,
)

from rulequant.errors import CheckpointError, ModelError
from rulequant.torch.checkpoint.layout import INDEX_NAME, SINGLE_NAME, natural_key, parse_index
from rulequant.torch.hub.answers import explained

__all__ = ["HubModel", "open_hub_model", "remote_dtypes"]


@dataclass(frozen=True)
class HubModel:
    """A repository at the commit that its revision was when it was first asked for."""

    repo_id: str
    commit: str
    folder: Path
    """The commit's snapshot in the Hub's cache; of the files it has those that were asked for so far."""
    revision: str | None = None
    """As the user gave it."""
    token: str | bool | None = field(default=None, repr=False)
    """None: HF_TOKEN, or what `hf auth login` stored."""

    def fetch(self, name: str) -> Path:
        """A file of the commit, from the cache where it is there; `explained` is for the caller to put around.

        Raises:
            EntryNotFoundError: the commit has no such file.
        """
        return Path(hf_hub_download(self.repo_id, name, revision=self.commit, token=self.token))


def open_hub_model(
    repo_id: str, *, revision: str | None = None, token: str | bool | None = None, entry: str = "config.json"
) -> HubModel:
    """Find the commit of a revision, and fetch its config; where the Hub cannot be reached, from the cache.

    Raises:
        ModelError: the Hub has no such model or revision, or does not let the user read it.
    """
    with explained(repo_id, revision):
        try:
            path = Path(hf_hub_download(repo_id, entry, revision=revision, token=token))
        except LocalEntryNotFoundError:
            raise
        except EntryNotFoundError as error:
            raise _no_config(repo_id, entry, revision, token) from error
    # models--ORG--NAME/snapshots/COMMIT/config.json, the layout that the Hub's documentation promises.
    return HubModel(repo_id, path.parent.name, path.parent, revision, token)


def _no_config(repo_id: str, entry: str, revision: str | None, token: str | bool | None) -> ModelError:
    """What a repository without config.json is instead."""
    if HfApi(token=token).file_exists(repo_id, "model_index.json", revision=revision):
        return ModelError(
            f"{repo_id} is a pipeline of several models, which is not read from the Hub",
            remedy=f"download it first: hf download {repo_id} --local-dir FOLDER",
        )
    return ModelError(
        f"{repo_id} holds no {entry}",
        remedy=f"give a checkpoint of transformers: see {constants.ENDPOINT}/{repo_id}",
    )


def remote_dtypes(hub: HubModel) -> Iterator[str]:
    """The dtype of each tensor, as safetensors spells it, in natural order of the names; none for other formats.

    Only headers are read, by ranged requests, and only those of the shards that the caller goes through.

    Raises:
        ModelError: the Hub does not answer.
        CheckpointError: what it has is no safetensors file, or not what its index says.
    """
    with explained(hub.repo_id):
        try:
            index = parse_index(hub.fetch(INDEX_NAME).read_bytes(), Path(hub.repo_id, INDEX_NAME)).weight_map
        except LocalEntryNotFoundError:
            raise
        except EntryNotFoundError:
            index = {}
        headers = {} if index else {SINGLE_NAME: _header(hub, SINGLE_NAME)}
        shards = index or dict.fromkeys(headers[SINGLE_NAME], SINGLE_NAME)
        for name in sorted(shards, key=natural_key):
            shard = shards[name]
            if shard not in headers:
                headers[shard] = _header(hub, shard)
            if name in headers[shard]:  # what an index gets wrong is told when the weights are read
                yield headers[shard][name]


def _header(hub: HubModel, shard: str) -> dict[str, str]:
    """The dtype of each tensor of a file; empty where there is no such file."""
    try:
        header = HfApi(token=hub.token).parse_safetensors_file_metadata(hub.repo_id, shard, revision=hub.commit)
    except (EntryNotFoundError, NotASafetensorsRepoError):
        return {}
    except SafetensorsParsingError as error:
        raise CheckpointError(f"{hub.repo_id}: {shard} is no safetensors file: {error}") from error
    return {name: str(each.dtype) for name, each in header.tensors.items()}
