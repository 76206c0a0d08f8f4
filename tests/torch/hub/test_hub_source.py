"""A model on the Hub from its config alone: commits, tokens, dtypes, and one clear message for each refusal."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import transformers
from hub_server import Hub, Repo
from huggingface_hub import constants

from rulequant.errors import CheckpointError, ModelError
from rulequant.torch.skeleton import build_skeleton


def without_dtype(source: Path, folder: Path) -> Path:
    """The checkpoint with a config.json that says no dtype."""
    shutil.copytree(source, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({key: value for key, value in config.items() if key != "dtype"}))
    return folder


def test_the_config_alone_is_fetched(hub: Hub, checkpoint: Path) -> None:
    """A plan needs config.json, and nothing else is asked for; the commit is the one of `main`."""
    repo = hub.add("org/tiny", checkpoint)
    skeleton = build_skeleton("org/tiny")
    assert skeleton.inventory().modules == build_skeleton(str(checkpoint)).inventory().modules
    assert {each.path for each in hub.requests} == {"/org/tiny/resolve/main/config.json"}
    assert skeleton.hub is not None
    assert (skeleton.name, skeleton.folder, skeleton.hub.commit) == ("org/tiny", None, repo.refs["main"])


@pytest.mark.parametrize("shards", [1, 3])
def test_without_a_dtype_the_headers_tell(hub: Hub, checkpoint: Path, tmp_path: Path, shards: int) -> None:
    """The plan's bytes are those of the downloaded folder, and of the weights only headers are read."""
    folder = tmp_path / "sharded"
    if shards > 1:
        model = transformers.LlamaForCausalLM.from_pretrained(checkpoint, dtype="auto")
        model.save_pretrained(folder, max_shard_size="80KB")
    source = without_dtype(folder if shards > 1 else checkpoint, tmp_path / "source")
    assert len(list(source.glob("*.safetensors"))) == shards
    hub.add("org/tiny", source)
    skeleton, local = build_skeleton("org/tiny"), build_skeleton(str(source))
    assert skeleton.dtype == local.dtype
    assert skeleton.inventory().modules == local.inventory().modules
    weights = [each for each in hub.requests if each.path.endswith(".safetensors") and each.method == "GET"]
    assert weights
    assert all(each.range for each in weights)


def test_without_a_dtype_the_cache_tells(
    hub: Hub, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Offline the headers are those of the weights in the cache; where it has none, the message says why."""
    hub.add("org/tiny", without_dtype(checkpoint, tmp_path / "source"))
    skeleton = build_skeleton("org/tiny")
    assert skeleton.hub is not None
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match="org/tiny is no folder here, and not in the Hub's cache"):
        build_skeleton("org/tiny")
    shutil.copy(checkpoint / "model.safetensors", skeleton.hub.folder)
    assert build_skeleton("org/tiny").dtype == skeleton.dtype


def test_without_safetensors_the_dtype_is_float32(hub: Hub, checkpoint: Path, tmp_path: Path) -> None:
    """As for a folder that has none."""
    source = without_dtype(checkpoint, tmp_path / "source")
    (source / "model.safetensors").unlink()
    hub.add("org/tiny", source)
    assert str(build_skeleton("org/tiny").dtype) == str(build_skeleton(str(source)).dtype) == "torch.float32"


def test_weights_that_are_no_safetensors(hub: Hub, checkpoint: Path, tmp_path: Path) -> None:
    """A header that cannot be read is told with the name of the file."""
    source = without_dtype(checkpoint, tmp_path / "source")
    (source / "model.safetensors").write_bytes(b"\0" * 100)
    hub.add("org/tiny", source)
    with pytest.raises(CheckpointError, match=r"org/tiny: model\.safetensors is no safetensors file"):
        build_skeleton("org/tiny")


def test_a_revision_is_a_branch_a_tag_or_a_commit(hub: Hub, checkpoint: Path) -> None:
    """Each means a commit, and the model is the one of that commit."""
    repo = hub.add("org/tiny", checkpoint)
    (first,) = repo.commits
    config = json.loads(repo.commits[first]["config.json"]) | {"num_hidden_layers": 1}
    second = "b" * 40
    repo.commits[second] = repo.commits[first] | {"config.json": json.dumps(config).encode()}
    repo.refs |= {"main": second, "v1": first, "refs/pr/1": second}
    layers = {}
    for revision in (None, "v1", "refs/pr/1", first):
        skeleton = build_skeleton("org/tiny", revision=revision)
        assert skeleton.hub is not None
        layers[revision] = (skeleton.hub.commit, len(skeleton.model.model.layers))  # type: ignore[union-attr, arg-type]
    assert layers == {None: (second, 1), "v1": (first, 2), "refs/pr/1": (second, 1), first: (first, 2)}


def test_an_unknown_revision(hub: Hub, checkpoint: Path) -> None:
    """The message says where the revisions are listed."""
    hub.add("org/tiny", checkpoint)
    with pytest.raises(ModelError, match=r"org/tiny has no revision `v9`\n  give a branch, a tag or a commit: http"):
        build_skeleton("org/tiny", revision="v9")


@pytest.mark.parametrize("way", ["argument", "HF_TOKEN", "hf auth login"])
def test_a_private_model(hub: Hub, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    """The token comes from where the Hub's users keep it, or from the caller."""
    hub.add("org/tiny", checkpoint, token="hf_secret")
    with pytest.raises(ModelError, match=r"no model org/tiny, or it is private .*\n.*log in with `hf auth login`"):
        build_skeleton("org/tiny")
    if way == "HF_TOKEN":
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
    elif way == "hf auth login":
        (tmp_path / "token").write_text("hf_secret")
    assert build_skeleton("org/tiny", token="hf_secret" if way == "argument" else None).hub


def test_the_token_is_in_no_message_and_no_repr(hub: Hub, checkpoint: Path) -> None:
    """A skeleton may be printed and logged."""
    hub.add("org/tiny", checkpoint, token="hf_secret")
    assert "hf_secret" not in repr(build_skeleton("org/tiny", token="hf_secret"))


@pytest.mark.parametrize(
    ("options", "token", "message"),
    [
        ({"token": "x", "gated": True}, None, r"is gated: .*\n  ask for access at http.*/org/tiny, then log in"),
        ({"token": "x", "gated": True}, "y", r"is gated: .*\n  ask for access at http.*with the account of the token"),
        ({"token": "x"}, "y", r"no model org/tiny, or it is private .*\n.*that the token in use may read it"),
        ({"token": "x"}, "wrong", r"the Hub does not accept the token in use\n  log in with `hf auth login`"),
    ],
    ids=["gated", "gated-for-this-token", "private-for-this-token", "invalid-token"],
)
def test_models_that_may_not_be_read(
    hub: Hub,
    checkpoint: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, object],
    token: str | None,
    message: str,
) -> None:
    """What is in the way, and what the user can do about it."""
    hub.add("org/tiny", checkpoint, **options)
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(ModelError, match=message):
        build_skeleton("org/tiny")


def test_a_model_that_is_not_there(hub: Hub) -> None:
    """The Hub does not tell it from a private one."""
    with pytest.raises(ModelError, match=r"the Hub has no model org/nothing, or it is private"):
        build_skeleton("org/nothing")


def test_a_repository_without_config(hub: Hub) -> None:
    """Datasets and models of other libraries have none."""
    hub.repos["org/odd"] = Repo({"c" * 40: {"README.md": b""}}, {"main": "c" * 40})
    with pytest.raises(ModelError, match=r"org/odd holds no config\.json\n  give a checkpoint of transformers"):
        build_skeleton("org/odd")


def test_a_pipeline_is_no_model(hub: Hub) -> None:
    """A repository of diffusers says so itself, and each component has a name."""
    hub.repos["org/flux"] = Repo({"c" * 40: {"model_index.json": b"{}"}}, {"main": "c" * 40})
    with pytest.raises(ModelError, match=r"org/flux is a pipeline of several models\n.* org/flux/COMPONENT"):
        build_skeleton("org/flux")
    with pytest.raises(ModelError, match=r"org/flux/vae: no such folder\n.*\n.* has no model in a folder `vae`"):
        build_skeleton("org/flux/vae")


def test_an_unknown_model_type(hub: Hub) -> None:
    """The config is checked as that of a folder is."""
    hub.repos["org/odd"] = Repo({"c" * 40: {"config.json": b'{"model_type": "bret"}'}}, {"main": "c" * 40})
    with pytest.raises(ModelError, match=r"does not know the model_type 'bret'\n  did you mean `bert`"):
        build_skeleton("org/odd")


def test_offline_the_cache_is_used(hub: Hub, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was asked for once is there without the Hub: with HF_HUB_OFFLINE, and when it cannot be reached."""
    hub.add("org/tiny", checkpoint)
    before = build_skeleton("org/tiny").inventory()
    refused = "http://127.0.0.1:1"
    with monkeypatch.context() as patch:
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", refused + "/{repo_id}/resolve/{revision}/{filename}")
        assert build_skeleton("org/tiny").inventory() == before
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    asked = len(hub.requests)
    assert build_skeleton("org/tiny").inventory() == before
    assert len(hub.requests) == asked


def test_offline_without_cache(hub: Hub, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message names the variable and the cache."""
    hub.add("org/tiny", checkpoint)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match=r"not in the Hub's cache .*cache; HF_HUB_OFFLINE is set.*\n  unset HF_HUB_"):
        build_skeleton("org/tiny")


def test_a_hub_that_does_not_answer(hub: Hub) -> None:
    """The message names the endpoint that was tried."""
    hub.down = True
    with pytest.raises(
        ModelError, match=r"the Hub \(http://127\.0\.0\.1:\d+\) cannot be reached: .*\n  check the network"
    ):
        build_skeleton("org/tiny")


def test_a_hub_that_is_none(hub: Hub, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that answers without the headers of a Hub is told from one that is down."""
    hub.add("org/tiny", checkpoint)
    monkeypatch.setattr("hub_server._Handler.send_header", _without_commit)
    with pytest.raises(ModelError, match=r"missing the 'X-Repo-Commit' header.*\n  HF_ENDPOINT is http.*: is it a Hub"):
        build_skeleton("org/tiny")


def _without_commit(handler: object, name: str, value: str) -> None:
    from http.server import BaseHTTPRequestHandler

    if name != "X-Repo-Commit":
        BaseHTTPRequestHandler.send_header(handler, name, value)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("status", "message"),
    [(429, "the Hub has too many requests from here"), (503, "the Hub answers with HTTP status 503")],
)
def test_a_busy_hub(hub: Hub, checkpoint: Path, status: int, message: str) -> None:
    """It is asked again for a while, and then the message says to wait."""
    hub.add("org/tiny", checkpoint)
    hub.busy = [status, status]
    assert build_skeleton("org/tiny").hub
    shutil.rmtree(constants.HF_HUB_CACHE)
    hub.busy = [status] * 50
    with pytest.raises(ModelError, match=message + r"\n  wait a while, then run it again"):
        build_skeleton("org/tiny")


def test_a_name_that_cannot_be_an_id(hub: Hub) -> None:
    """Nothing is asked of the Hub."""
    with pytest.raises(ModelError, match="is no folder here, and cannot be the id of a model on the Hub"):
        build_skeleton("what is this?")
    assert not hub.requests
