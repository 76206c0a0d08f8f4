"""QLoRA: peft trains adapters on mixed models, whose quantized weights stay as they are; what is saved loads again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from moe_models import save_moe
from tiny_models import save_tiny

from rulequant.torch import apply_checkpoint
from rulequant.torch.transformers import RuleQuantConfig

pytestmark = [
    # peft 0.21 asks transformers 5.23 by the old names.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning"),
]

RULES: dict[str, Any] = {
    "version": 1,
    "quantizable_types": ["Linear", "*Experts"],
    "skip_modules": [
        {"modules": ["**.router", "**.mlp.gate"], "optional": True, "reason": "routers decide"},
        {"modules": "**.o_proj", "reason": "to have a plain layer in the mix"},
    ],
    "schemes": {
        "nf4": {"method": "bnb_4bit", "double_quant": True},
        "fp4": {"method": "bnb_4bit", "quant_type": "fp4"},
        "int8": {"method": "bnb_int8"},
    },
    "scheme": "nf4",
    "rules": [
        {"modules": "**.k_proj", "scheme": "fp4"},
        {"modules": "**.v_proj", "scheme": "int8"},
        {"modules": "**.experts", "layers": 1, "scheme": "int8", "optional": True},
    ],
}
"""nf4, fp4, int8 and full precision side by side; fused experts in nf4 and in int8."""
LORA = {"r": 4, "task_type": "CAUSAL_LM", "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"]}
IDS = torch.arange(3, 19).reshape(2, 8)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Tiny checkpoints by name."""
    folder = tmp_path_factory.mktemp("qlora")
    names = ("mixtral", "gpt_oss", "llama4_text")
    return {"llama": save_tiny("llama", folder / "llama")} | {name: save_moe(name, folder / name) for name in names}


def _loaded(source: Path, *, on_the_fly: bool = True, checkpointing: bool = False) -> Any:
    config = {"quantization_config": RuleQuantConfig(RULES)} if on_the_fly else {}
    model = transformers.AutoModelForCausalLM.from_pretrained(source, **config)
    return peft.prepare_model_for_kbit_training(
        model, checkpointing, gradient_checkpointing_kwargs={"use_reentrant": False} if checkpointing else None
    )


def _trained(model: Any, steps: int = 3) -> list[float]:
    """The loss before each step, and after the last."""
    model.train()
    optimizer = torch.optim.AdamW([each for each in model.parameters() if each.requires_grad], lr=1e-2)
    losses = []
    for _ in range(steps):
        loss = model(input_ids=IDS, labels=IDS).loss
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return [*losses, model(input_ids=IDS, labels=IDS).loss.item()]


def _packed(model: Any) -> dict[str, bytes]:
    return {
        name: each.detach().reshape(-1).view(torch.uint8).numpy().tobytes()
        for name, each in model.named_parameters()
        if not each.is_floating_point()
    }


@pytest.mark.parametrize(
    ("name", "checkpointing"),
    [
        pytest.param("llama", False, id="llama"),
        pytest.param("mixtral", False, id="mixtral"),
        pytest.param("mixtral", True, id="mixtral-checkpointed"),
        pytest.param("gpt_oss", True, id="gpt_oss-checkpointed"),
    ],
)
def test_steps_lower_the_loss_and_the_adapter_reloads(
    name: str, checkpointing: bool, sources: dict[str, Path], tmp_path: Path
) -> None:
    """Steps of LoRA lower the loss, change no quantized weight, and the saved adapter gives the same logits."""
    model = _loaded(sources[name], checkpointing=checkpointing)
    before = _packed(model)
    assert before
    adapted = peft.get_peft_model(model, peft.LoraConfig(**LORA))
    losses = _trained(adapted)
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0] - 0.05
    after = {
        key.removeprefix("base_model.model.").replace(".base_layer", ""): each for key, each in _packed(adapted).items()
    }
    assert after == before

    adapted.save_pretrained(tmp_path / "adapter")
    assert (tmp_path / "adapter/adapter_model.safetensors").stat().st_size < 100_000
    again = peft.PeftModel.from_pretrained(_loaded(sources[name]), tmp_path / "adapter").eval()
    with torch.no_grad():
        assert again(input_ids=IDS).logits.equal(adapted.eval()(input_ids=IDS).logits)


def test_each_layer_gets_the_adapter_of_its_method(sources: dict[str, Path]) -> None:
    """peft tells 4-bit, int8 and plain layers apart in one model, which it does by flags of the whole."""
    model = _loaded(sources["mixtral"])
    assert (model.is_loaded_in_4bit, model.is_loaded_in_8bit) == (True, True)
    attention = peft.get_peft_model(model, peft.LoraConfig(**LORA)).base_model.model.model.layers[0].self_attn
    kinds = {
        name: f"{type(each).__module__.rpartition('.')[2]}.{type(each).__name__}"
        for name, each in attention.named_children()
    }
    assert kinds == {
        "q_proj": "bnb.Linear4bit", "k_proj": "bnb.Linear4bit", "v_proj": "bnb.Linear8bitLt", "o_proj": "layer.Linear",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "container"), [("llama", "rulequant"), ("mixtral", "rulequant"), ("llama4_text", "bitsandbytes")]
)
def test_written_checkpoints_train(name: str, container: Any, sources: dict[str, Path], tmp_path: Path) -> None:
    """What apply wrote trains in the same way: rulequant's own container, and a plain one."""
    nf4 = {"skip_modules": RULES["skip_modules"], "rules": [], "quantizable_types": RULES["quantizable_types"]}
    rules = RULES if container == "rulequant" else RULES | nf4
    plan = apply_checkpoint(sources[name], rules, tmp_path / "out")
    assert plan.container == container
    adapted = peft.get_peft_model(_loaded(tmp_path / "out", on_the_fly=False), peft.LoraConfig(**LORA))
    losses = _trained(adapted)
    assert losses[-1] < losses[0] - 0.05


@contextmanager
def _autocast(on: bool) -> Iterator[None]:
    if not on:
        yield
        return
    with torch.autocast("cpu", torch.bfloat16):
        yield


@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "autocast"])
@pytest.mark.parametrize("name", ["mixtral", "gpt_oss", "llama4_text"])
def test_experts_follow_the_dtype_of_the_states(name: str, autocast: bool, tmp_path: Path) -> None:
    """A bfloat16 model whose other weights were cast to float32, as peft casts them, computes and trains."""
    rules = RULES | {"skip_modules": [], "rules": []}
    model = transformers.AutoModelForCausalLM.from_pretrained(
        save_moe(name, tmp_path / "source"), quantization_config=RuleQuantConfig(rules)
    )
    with torch.no_grad():
        usual = model(input_ids=IDS).logits.float()
    prepared = peft.prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    with torch.no_grad(), _autocast(autocast):
        cast = prepared(input_ids=IDS).logits.float()
    assert (cast - usual).norm() < 0.05 * usual.norm()
