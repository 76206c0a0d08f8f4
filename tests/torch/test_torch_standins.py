"""Layers in place of embeddings and convolutions: the class keeps its own forward, or is refused with the reason."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
import transformers
from accelerate.hooks import ModelHook, add_hook_to_module
from small_models import rules_with, small
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from transformers.models.bart.modeling_bart import BartLearnedPositionalEmbedding, BartScaledWordEmbedding
from transformers.models.gemma3n.modeling_gemma3n import Gemma3nTextScaledWordEmbedding
from transformers.models.lasr.modeling_lasr import LasrEncoderCTCHead
from transformers.models.marian.modeling_marian import MarianSinusoidalPositionalEmbedding
from transformers.models.ovis2.modeling_ovis2 import Ovis2VisualEmbeddingTable
from transformers.models.voxtral_realtime.modeling_voxtral_realtime import VoxtralRealtimeCausalConv1d
from transformers.models.whisper.modeling_whisper import WhisperPositionalEmbedding

import rulequant.torch
from rulequant.errors import UsageError
from rulequant.plan import Decision
from rulequant.torch.standins import StandIn

METHODS = pytest.mark.parametrize("method", ["bnb_4bit", "bnb_int8"])


def rules(method: str = "bnb_4bit", **scheme: Any) -> dict[str, Any]:
    return rules_with(quantizable_types=["*"], schemes={"nf4": {"method": method} | scheme})


def quantized(module: nn.Module, method: str = "bnb_4bit", **scheme: Any) -> Any:
    """The layer that takes a module's place."""
    model = nn.ModuleDict({"it": module})
    rulequant.torch.apply(model, rules(method, **scheme))
    assert isinstance(model["it"], StandIn)
    return model["it"]


def reference(module: nn.Module, layer: Any) -> Any:
    """The module with the weight that the layer stands for."""
    plain = copy.deepcopy(module)
    plain.weight = nn.Parameter(layer.decoded().to(module.weight.dtype))
    return plain


def decision(module: nn.Module) -> Decision:
    return rulequant.torch.plan(nn.ModuleDict({"it": module}), rules()).by_name["it"]


@METHODS
@pytest.mark.parametrize(
    ("module", "batch"),
    [
        (BartScaledWordEmbedding(50, 24, 1, embed_scale=8.0), torch.arange(12).reshape(3, 4)),
        (BartLearnedPositionalEmbedding(30, 24), torch.arange(12).reshape(3, 4)),
        (Gemma3nTextScaledWordEmbedding(50, 24, 0, embed_scale=5.0), torch.arange(12).reshape(3, 4)),
        (LasrEncoderCTCHead(16, 32, 1), torch.ones(2, 7, 16)),
    ],
    ids=["scaled", "shifted", "asks-for-the-dtype", "transposes"],
)
def test_a_subclass_keeps_its_own_forward(method: str, module: nn.Module, batch: Tensor) -> None:
    """What a subclass does before and after the look-up or the convolution is done as before."""
    with torch.no_grad():
        layer = quantized(copy.deepcopy(module), method)
        assert type(layer).__name__ == type(module).__name__
        assert isinstance(layer, type(module))
        assert torch.equal(layer(batch), reference(module, layer)(batch))


def test_a_cast_subclass_scales_in_the_new_dtype() -> None:
    """`self.weight.dtype` is that of the plain weight to the class, also after the model was cast."""
    module = Gemma3nTextScaledWordEmbedding(50, 24, 0, embed_scale=5.1).to(torch.bfloat16)
    layer = quantized(copy.deepcopy(module))
    assert layer(torch.arange(3)).dtype == torch.bfloat16
    assert layer.float()(torch.arange(3)).dtype == torch.float32
    assert layer.weight.dtype == torch.uint8


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (nn.Embedding(8, 8, max_norm=1.0), "its max_norm rescales rows of the weight as they are looked up"),
        (nn.EmbeddingBag(8, 8), "an EmbeddingBag reduces the rows that it looks up, and only Embedding has"),
        (nn.ConvTranspose1d(8, 8, 3), "its convolution is transposed, and only Conv1d has a quantized layer"),
        (WhisperPositionalEmbedding(8, 8), "WhisperPositionalEmbedding.forward computes with its weight itself"),
        (
            MarianSinusoidalPositionalEmbedding(8, 8),
            "MarianSinusoidalPositionalEmbedding.create_weight computes with its weight itself",
        ),
        (Ovis2VisualEmbeddingTable(8, 8), "Ovis2VisualEmbeddingTable.forward computes with its weight itself"),
        (
            VoxtralRealtimeCausalConv1d(8, 8, 3, "key"),
            "VoxtralRealtimeCausalConv1d.forward hands itself on to other code, which may use its weight",
        ),
        (parametrizations.weight_norm(nn.Conv1d(8, 8, 3)), "bnb_4bit has no layer for ParametrizedConv1d"),
        (type("Hidden", (nn.Embedding,), {})(8, 8), "the source of Hidden cannot be read"),
    ],
    ids=[
        "max-norm",
        "bag",
        "transposed",
        "own-rows",
        "own-sinusoids",
        "own-matmul",
        "hands-on",
        "weight-norm",
        "no-source",
    ],
)
def test_what_cannot_be_served_is_refused(module: nn.Module, reason: str) -> None:
    """A class whose code needs the plain weight stays, and the plan says why; nothing breaks."""
    found = decision(module)
    assert found.reason == "unsupported"
    assert (found.detail or "").startswith(reason)


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_the_older_weight_norm_is_refused() -> None:
    """Its weight is no parameter, but computed by a hook before each forward."""
    found = decision(nn.utils.weight_norm(nn.Conv1d(8, 8, 3)))
    assert (found.reason, found.detail) == ("unsupported", "its weight is missing, not a plain parameter")


@METHODS
def test_copies_and_pickles(method: str) -> None:
    """Layers survive deepcopy and pickle, those of subclasses by the class that they were made of."""
    for module in (nn.Embedding(50, 24), BartScaledWordEmbedding(50, 24, 1, embed_scale=8.0)):
        layer, ids = quantized(module, method), torch.arange(12)
        for again in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
            assert type(again) is type(layer)
            assert torch.equal(again(ids), layer(ids))


class Doubling(ModelHook):
    """An accelerate hook that shows in the output."""

    def post_forward(self, module: nn.Module, output: Tensor) -> Tensor:
        return output * 2


@METHODS
def test_hooks_of_accelerate_run_the_new_layer(method: str) -> None:
    """A hook replaces `forward` on the instance; the layer gets its own, not that of the module it replaces."""
    plain = nn.Embedding(50, 24)
    expected = quantized(copy.deepcopy(plain), method)(torch.arange(5)) * 2
    add_hook_to_module(plain, Doubling())
    layer = quantized(plain, method)
    assert torch.equal(layer(torch.arange(5)), expected)


def test_a_quantized_input_embedding_is_not_resized() -> None:
    """Resizing would take the packed bytes for rows: it is refused, other calls go through."""
    model = small("llama")
    rulequant.torch.apply(model, rules_with(quantizable_types=["Embedding"]))
    assert model.resize_token_embeddings() is model.get_input_embeddings()
    assert model.resize_token_embeddings(99) is model.get_input_embeddings()
    with pytest.raises(UsageError, match=r"the input embedding \(Embedding4bit\) is quantized, and cannot be resized"):
        model.resize_token_embeddings(128)
    plain = small("llama")
    rulequant.torch.apply(plain, rules_with(quantizable_types=["Linear"]))
    assert plain.resize_token_embeddings(128).num_embeddings == 128


def test_tied_embeddings_stay() -> None:
    """A table that is the head's weight too needs its plain weight, whatever the types say."""
    model = small("llama-tied", meta=True)
    found = rulequant.torch.plan(model, rules_with(quantizable_types=["Embedding"], output_embeddings="quantize"))
    assert found.by_name["model.embed_tokens"].reason == "tied"


@pytest.mark.parametrize("name", ["Gemma3nTextScaledWordEmbedding", "BartScaledWordEmbedding"])
def test_listing_the_base_does_not_take_subclasses(name: str) -> None:
    """`Embedding` is `nn.Embedding`; a subclass is listed by its own name."""
    module = {each.__name__: each for each in (Gemma3nTextScaledWordEmbedding, BartScaledWordEmbedding)}[name](8, 8, 0)
    model = nn.ModuleDict({"it": module})
    assert rulequant.torch.plan(model, rules_with(quantizable_types=["Embedding"])).by_name["it"].reason == "type"
    assert rulequant.torch.plan(model, rules_with(quantizable_types=[name])).by_name["it"].quantize


def test_a_convolution_passes_gradients() -> None:
    """Adapters before a quantized convolution learn through it."""
    layer = quantized(nn.Conv1d(8, 16, 3))
    states = torch.randn(2, 8, 20, requires_grad=True)
    layer(states).sum().backward()
    assert states.grad is not None
    assert states.grad.abs().sum() > 0


def test_compute_dtype_of_a_convolution() -> None:
    """The weight is dequantized to `compute_dtype`, and the result has the dtype of the input."""
    layer = quantized(nn.Conv1d(8, 16, 3), compute_dtype="bfloat16")
    states = torch.randn(2, 8, 20)
    bias = layer.bias.bfloat16()
    expected = nn.functional.conv1d(states.bfloat16(), layer.decoded().bfloat16(), bias).float()
    assert torch.equal(layer(states), expected)


def test_metadata_read_by_a_parent_keeps_a_layer() -> None:
    """Whoever asks a child for `weight.dtype` would get that of the packed bytes, so the child stays."""
    config = transformers.Qwen2AudioEncoderConfig(
        d_model=32, encoder_layers=1, encoder_attention_heads=2, encoder_ffn_dim=32, num_mel_bins=8,
        max_source_positions=16,
    )  # fmt: skip
    with torch.device("meta"):
        model = transformers.models.qwen2_audio.modeling_qwen2_audio.Qwen2AudioEncoder(config)
    found = rulequant.torch.plan(model, rules_with(quantizable_types=["Conv1d"])).by_name
    assert found["conv1"].detail == "Qwen2AudioEncoder.forward reads its weight directly"
    assert found["conv2"].quantize
