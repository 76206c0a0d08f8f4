"""What is written has the dtypes of stock, the same bytes every time, and nothing that cannot be trusted."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tiny_models import ARCHITECTURES, save_tiny
from transformers import BitsAndBytesConfig

from rulequant.errors import CheckpointError
from rulequant.loader import load_rules
from rulequant.torch.checkpoint.apply import apply_to_folder
from rulequant.torch.checkpoint.finish import Applied
from rulequant.torch.factories import NotFiniteError
from rulequant.torch.skeleton import build_skeleton

UP = "model.layers.1.mlp.up_proj.weight"
NF4 = {"method": "bnb_4bit"}
DOUBLE = {"method": "bnb_4bit", "double_quant": True}
INT8 = {"method": "bnb_int8"}


def stream(source: Path, output: Path, scheme: dict[str, Any] = NF4, **options: Any) -> Applied:
    rules = load_rules({"version": 1, "schemes": {"it": scheme}, "scheme": "it"})
    return apply_to_folder(build_skeleton(str(source)), rules, output, **options)


def configure(folder: Path, **changes: Any) -> None:
    """Change keys of config.json; None takes a key away."""
    path = folder / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


def change(folder: Path, name: str, edit: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Save one tensor of a checkpoint anew."""
    tensors = load_file(folder / "model.safetensors")
    tensors[name] = edit(tensors[name].clone()).contiguous()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def with_value(value: float, row: int, column: int) -> Callable[[torch.Tensor], torch.Tensor]:
    def edit(tensor: torch.Tensor) -> torch.Tensor:
        tensor[row, column] = value
        return tensor

    return edit


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    files = sorted(folder.glob("*.safetensors"))
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    """Equal names, dtypes, shapes and bytes."""
    assert sorted(first) == sorted(second)
    for name, tensor in first.items():
        other = second[name]
        assert (name, tensor.dtype, tensor.shape) == (name, other.dtype, other.shape)
        assert tensor.reshape(-1).view(torch.uint8).equal(other.reshape(-1).view(torch.uint8)), name


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny llama in bfloat16, only read."""
    return save_tiny("llama", tmp_path_factory.mktemp("stream") / "llama")


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A tiny llama of a test's own."""
    return save_tiny("llama", tmp_path / "llama")


@pytest.mark.parametrize("scheme", [NF4, INT8], ids=["nf4", "int8"])
@pytest.mark.parametrize(
    ("name", "saved", "declared"),
    [
        ("llama", torch.float32, "bfloat16"),
        ("llama", torch.float16, None),
        ("llama", torch.bfloat16, "float32"),
        ("t5", torch.float16, "float16"),
        ("t5", torch.float32, "float16"),
        ("t5", torch.float32, None),
    ],
    ids=["cast down", "no dtype", "cast up", "kept in float32", "cast, some kept in float32", "float32"],
)
def test_dtypes_are_those_of_stock(
    name: str, saved: torch.dtype, declared: str | None, scheme: dict[str, Any], tmp_path: Path
) -> None:
    """Every tensor has the dtype and the bytes that quantize-on-load and `save_pretrained` give it."""
    source = save_tiny(name, tmp_path / "source", saved)
    configure(source, dtype=declared, torch_dtype=None)
    applied = stream(source, tmp_path / "streamed", scheme)
    skip = [each.name for each in applied.plan.decisions if not each.quantize and each.type == "Linear"]
    config = BitsAndBytesConfig(
        load_in_4bit=scheme is NF4, load_in_8bit=scheme is INT8, bnb_4bit_quant_type="nf4", llm_int8_skip_modules=skip
    )
    stock = getattr(transformers, ARCHITECTURES[name][0]).from_pretrained(source, quantization_config=config)
    stock.save_pretrained(tmp_path / "stock")
    same(tensors_of(tmp_path / "streamed"), tensors_of(tmp_path / "stock"))
    written = json.loads((tmp_path / "streamed" / "config.json").read_text())
    assert written["dtype"] == (declared or str(saved).removeprefix("torch."))
    assert applied.payload_bytes == applied.plan.summary["bytes_after"]


def test_integers_stay(tmp_path: Path) -> None:
    """Counters and the like are written as they are, beside floats that are cast."""
    torch.manual_seed(0)
    config = transformers.MobileViTConfig(
        image_size=32, hidden_sizes=[16, 24, 32], neck_hidden_sizes=[8, 8, 16, 16, 16, 16, 32], num_labels=2
    )
    model = transformers.MobileViTForImageClassification(config)
    for buffer in model.buffers():
        if buffer.dtype == torch.int64:
            buffer.fill_(2**40 + 1)
    model.save_pretrained(tmp_path / "source")
    configure(tmp_path / "source", dtype="bfloat16")
    short = "mobilevit.conv_stem.normalization.num_batches_tracked"
    change(tmp_path / "source", short, lambda each: (each - 2**40).to(torch.int32))
    stream(tmp_path / "source", tmp_path / "out")
    written = tensors_of(tmp_path / "out")
    counters = {name: each for name, each in written.items() if name.endswith("num_batches_tracked")}
    first = counters.pop(short)
    assert (first.dtype, int(first)) == (torch.int32, 1)
    assert counters
    assert all(each.dtype == torch.int64 and int(each) == 2**40 + 1 for each in counters.values())
    assert written["mobilevit.conv_stem.normalization.running_mean"].dtype == torch.bfloat16


def test_tied_duplicate_is_written_once(tmp_path: Path) -> None:
    """An equal lm_head beside embed_tokens is dropped, with the reason; what is written loads."""
    source = save_tiny("llama-tied", tmp_path / "source")
    tensors = load_file(source / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, source / "model.safetensors", {"format": "pt"})
    applied = stream(source, tmp_path / "out")
    assert applied.dropped == {"lm_head.weight": "tied to model.embed_tokens.weight"}
    assert "lm_head.weight" not in tensors_of(tmp_path / "out")
    model, info = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["missing_keys"]
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_different_tied_weights_and_the_remedy(tmp_path: Path) -> None:
    """Where both are there and differ, apply refuses; with the key that it asks for, both are written and load."""
    source = save_tiny("llama-tied", tmp_path / "source")
    tensors = load_file(source / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] + 1
    save_file(tensors, source / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"ties `lm_head\.weight` to `model\.embed_tokens\.weight`.*element 0 on"):
        stream(source, tmp_path / "out")
    configure(source, tie_word_embeddings=False)
    stream(source, tmp_path / "out")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.lm_head.weight.equal(tensors["lm_head.weight"])
    assert model.model.embed_tokens.weight.equal(tensors["model.embed_tokens.weight"])


def test_only_the_head_of_tied_weights(tmp_path: Path) -> None:
    """A source with lm_head alone is written so, and loads with the embedding tied to it."""
    source = save_tiny("llama-tied", tmp_path / "source")
    tensors = load_file(source / "model.safetensors")
    embedding = tensors.pop("model.embed_tokens.weight")
    save_file(tensors | {"lm_head.weight": embedding}, source / "model.safetensors", {"format": "pt"})
    stream(source, tmp_path / "out")
    model, info = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["missing_keys"]
    assert model.model.embed_tokens.weight.equal(embedding)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda each: each.to(torch.float8_e4m3fn), r"has the dtype F8_E4M3: the checkpoint is already quantized"),
        (lambda each: each.to(torch.float8_e5m2), r"has the dtype F8_E5M2: the checkpoint is already quantized"),
        (lambda each: each.to(torch.int8), r"has the dtype I8, which cannot be quantized"),
        (lambda each: each[:, :32], r"has the shape \[128, 32\], config\.json asks for \[128, 64\]"),
        (lambda each: each.T, r"has the shape \[64, 128\], config\.json asks for \[128, 64\]"),
        (lambda each: each.to(torch.complex64), r"has the dtype C64, which cannot be quantized"),
    ],
    ids=["fp8", "fp8 e5m2", "int8", "narrow", "transposed", "complex"],
)
def test_tensor_that_is_no_plain_weight(edit: Any, message: str, own: Path, tmp_path: Path) -> None:
    """A weight in another form is named and refused before anything is written."""
    change(own, UP, edit)
    with pytest.raises(CheckpointError, match=rf"`{re.escape(UP)}` {message}"):
        stream(own, tmp_path / "out")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["llama"]


def test_unquantized_fp8_is_refused_too(own: Path, tmp_path: Path) -> None:
    """An embedding in fp8 lacks its scales as much as a weight."""
    change(own, "model.embed_tokens.weight", lambda each: each.to(torch.float8_e4m3fn))
    with pytest.raises(CheckpointError, match=r"`model\.embed_tokens\.weight` has the dtype F8_E4M3: .* its scales"):
        stream(own, tmp_path / "out")


@pytest.mark.parametrize(
    ("value", "scheme", "message"),
    [
        (float("nan"), NF4, r"the value at \[7, 5\] is nan"),
        (float("inf"), DOUBLE, r"the value at \[7, 5\] is inf"),
        (float("-inf"), INT8, r"the value at \[7, 5\] is -inf"),
        (70000.0, INT8, r"the value 70144 at \[7, 5\] is beyond float16"),
    ],
    ids=["NaN in nf4", "inf in double quantization", "-inf in int8", "beyond float16 in int8"],
)
def test_values_that_cannot_be_encoded(value: float, scheme: Any, message: str, own: Path, tmp_path: Path) -> None:
    """The tensor and the position are named, and nothing is left behind."""
    change(own, UP, with_value(value, 7, 5))
    with pytest.raises(NotFiniteError, match=rf"`{re.escape(UP)}`: {message}"):
        stream(own, tmp_path / "out", scheme)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["llama"]


def test_value_that_the_cast_makes_infinite(tmp_path: Path) -> None:
    """It is the config's dtype that is wrong then, and not the source."""
    source = save_tiny("llama", tmp_path / "source", torch.float32)
    configure(source, dtype="float16")
    change(source, UP, with_value(70000.0, 7, 5))
    with pytest.raises(NotFiniteError, match=r"is inf, cast from F32 to float16, the dtype of config") as raised:
        stream(source, tmp_path / "out")
    assert '"dtype": "bfloat16"' in str(raised.value.remedy)
    change(source, UP, with_value(float("inf"), 7, 5))
    with pytest.raises(NotFiniteError, match=r"is inf\n") as raised:
        stream(source, tmp_path / "out")
    assert "damaged" in str(raised.value.remedy)


def test_missing_weight_that_the_class_forgives(own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A weight that is to be quantized has to be there, even where the class loads without it."""
    monkeypatch.setattr(transformers.LlamaForCausalLM, "_keys_to_ignore_on_load_missing", [r"up_proj"])
    tensors = load_file(own / "model.safetensors")
    del tensors[UP]
    save_file(tensors, own / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=rf"`{re.escape(UP)}` is to be quantized, and no tensor") as raised:
        stream(own, tmp_path / "out")
    assert "skip `model.layers.1.mlp.up_proj`" in str(raised.value.remedy)


def test_shards(llama: Path, tmp_path: Path) -> None:
    """Several shards hold the tensors of the single file; the index is right, and they load."""
    stream(llama, tmp_path / "one", DOUBLE)
    applied = stream(llama, tmp_path / "many", DOUBLE, max_shard_bytes=20_000)
    index = json.loads((tmp_path / "many" / "model.safetensors.index.json").read_text())
    shards = sorted(each.name for each in (tmp_path / "many").glob("*.safetensors"))
    count = len(shards)
    assert count > 5
    assert shards == [f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]
    assert index["weight_map"] == applied.weight_map
    for name, shard in index["weight_map"].items():
        assert name in load_file(tmp_path / "many" / shard)
    single = tensors_of(tmp_path / "one")
    assert index["metadata"]["total_size"] == sum(each.nbytes for each in single.values()) == applied.bytes_written
    same(tensors_of(tmp_path / "many"), single)
    weights = {name.rpartition(".weight.")[0] for name in single if ".weight." in name}
    for name in weights:  # transformers does not ask for it; readers that stream shard by shard do
        assert len({applied.weight_map[each] for each in single if each.startswith(f"{name}.")}) == 1
    first, second = (transformers.AutoModelForCausalLM.from_pretrained(tmp_path / each) for each in ("one", "many"))
    assert [str(each) for each in first.state_dict()] == [str(each) for each in second.state_dict()]


def test_sharded_source_gives_the_same(llama: Path, tmp_path: Path) -> None:
    """How the source is cut changes nothing."""
    model = transformers.AutoModelForCausalLM.from_pretrained(llama)
    model.save_pretrained(tmp_path / "cut", max_shard_size="60KB")
    assert len(list((tmp_path / "cut").glob("*.safetensors"))) > 2
    stream(llama, tmp_path / "one")
    stream(tmp_path / "cut", tmp_path / "other")
    assert (tmp_path / "one/model.safetensors").read_bytes() == (tmp_path / "other/model.safetensors").read_bytes()


def test_two_runs_give_the_same_files(llama: Path, tmp_path: Path) -> None:
    """Every file, the manifest too, for it says nothing of when and where."""
    hashes = []
    for name in ("first", "second"):
        stream(llama, tmp_path / name, DOUBLE, max_shard_bytes=50_000)
        files = sorted(each for each in (tmp_path / name).rglob("*") if each.is_file())
        hashes.append({each.name: hashlib.sha256(each.read_bytes()).hexdigest() for each in files})
    assert hashes[0] == hashes[1]
    assert "rulequant-manifest.json" in hashes[0]
