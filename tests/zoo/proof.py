"""How far an architecture comes: its tiny model runs, runs quantized, and runs alike when it was applied and loaded.

Everything that the engine lets through is quantized, by no rule but the types.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import rulequant.torch
import rulequant.torch.transformers  # registers the quantizer
from rulequant.errors import RulequantError
from zoo.classes import Architecture
from zoo.forward import Run, prepare, quiet
from zoo.special import add_files

__all__ = ["REFUSED", "Proof", "Stage", "prove", "refused", "without"]

REFUSED = Path(__file__).with_name("refused.json")
"""{model_type: what is said} of the architectures whose tiny model runs and does not make the round trip."""
_WITHOUT = Path(__file__).with_name("without.json")
"""{model_type: why} of the architectures of which no tiny model runs here."""
EVERYTHING: dict[str, Any] = {
    "version": 1,
    "quantizable_types": ["Linear", "Conv1D", "FalconLinear", "*Experts"],
    "schemes": {"nf4": {"method": "bnb_4bit", "blocksize": 32}},
    "scheme": "nf4",
}
"""No skip at all: what may not be quantized is left to the engine to find."""
_DECIDES = frozenset({"fastspeech2_conformer", "fastspeech2_conformer_with_hifigan", "sam3_tracker_video"})
"""Those of which a small error decides how many frames they put out, or whether they see an object at all."""
_TELLS_NOTHING = frozenset({"jev", "qwen2_5_omni"})
"""Those whose `from_pretrained` cannot return what it found missing or unexpected."""


class Stage(IntEnum):
    """What works of an architecture, each in addition to the one before."""

    NOTHING = 0
    RUNS = 1
    QUANTIZED = 2
    ROUND_TRIP = 3


@dataclass(frozen=True)
class Proof:
    """The last stage that an architecture reached, and what keeps it from the next."""

    stage: Stage
    obstacle: str = ""

    @property
    def gist(self) -> str:
        """The obstacle without the names in it, and without what can be done about it."""
        line = re.sub(r"`[^`]*`", "`…`", self.obstacle.partition("\n")[0])
        return re.sub(r"\S*/\S+", "…", re.sub(r"^/\S+: ", "", line))


class _Different(Exception):
    """A model runs, and puts out something else than it should."""


def prove(architecture: Architecture, cut: str, number: int, folder: Path) -> Proof:
    """Try all stages with one tiny model; `folder` is empty and takes the checkpoints.

    The container is `rulequant`: what plain transformers makes of the other on a CPU is up to bitsandbytes' kernels.
    """
    stage = Stage.NOTHING
    try:
        run = prepare(architecture, cut, number)
        original = run.first_outputs()
        with quiet():
            run.model.save_pretrained(folder / "source")
            add_files(run.model, folder / "source")
        stage = Stage.RUNS
        rulequant.torch.apply(run.model, EVERYTHING)
        in_memory = run.outputs()
        _check_close(original, in_memory, decides=architecture.model_type in _DECIDES)
        stage = Stage.QUANTIZED
        with quiet():
            rulequant.torch.apply_checkpoint(folder / "source", EVERYTHING, folder / "output", container="rulequant")
        _check_equal(in_memory, Run(cut, number, _loaded(architecture, folder / "output"), run.inputs).outputs())
    except RulequantError as error:
        return Proof(stage, str(error))
    except Exception as error:
        return Proof(stage, f"{type(error).__name__}: {error}")
    return Proof(Stage.ROUND_TRIP)


def refused() -> dict[str, str]:
    """Why the tiny models of some architectures do not make the round trip."""
    found: dict[str, str] = json.loads(REFUSED.read_text(encoding="utf-8"))
    return found


def without() -> dict[str, str]:
    """Why some architectures have no tiny model that runs."""
    found: dict[str, str] = json.loads(_WITHOUT.read_text(encoding="utf-8"))
    return found


def _loaded(architecture: Architecture, folder: Path) -> nn.Module:
    load = architecture.load_class().from_pretrained
    with quiet():
        if architecture.model_type in _TELLS_NOTHING:
            model, info = load(folder, dtype=torch.float32), {}
        else:
            model, info = load(folder, dtype=torch.float32, output_loading_info=True)
    lost = {key: sorted(info[key]) for key in ("missing_keys", "unexpected_keys") if info.get(key)}
    if lost:
        raise _Different(f"it is loaded with {lost}")
    loaded: nn.Module = model.eval()
    return loaded


def _check_close(original: Sequence[Tensor], quantized: Sequence[Tensor], *, decides: bool) -> None:
    """The error is that of 4-bit weights."""
    pairs = [(a, b) for a, b in zip(original, quantized, strict=True) if a.isfinite().all()]
    if not all(b.isfinite().all() for _, b in pairs):
        raise _Different("it puts out what is not finite when it is quantized")
    if decides:
        return
    if any(a.shape != b.shape for a, b in pairs):
        raise _Different("it puts out other shapes when it is quantized")
    # A similarity alone is a single number, which may lie near zero.
    many = [(a, b) for a, b in pairs if a.numel() > 1]
    worst = max((float((a - b).norm() / a.norm().clamp(min=1e-6)) for a, b in many), default=0.0)
    if worst >= 1:
        raise _Different(f"it has an error of {worst:.2f} when it is quantized")


def _check_equal(in_memory: list[Tensor], loaded: list[Tensor]) -> None:
    """Not a bit differs."""
    try:
        torch.testing.assert_close(loaded, in_memory, rtol=0, atol=0, equal_nan=True)
    except AssertionError as error:
        raise _Different(f"what was applied and loaded puts out something else: {error}") from None
