"""apply holds a few tensors at a time, however large the model."""

from __future__ import annotations

import ctypes
import json
import sys
from pathlib import Path

import pytest
import torch
from children import in_child
from safetensors.torch import save_file

from rulequant.loader import load_rules
from rulequant.torch.checkpoint.apply import apply_to_folder
from rulequant.torch.skeleton import build_skeleton

HIDDEN, INTERMEDIATE, LAYERS = 1536, 4096, 4
LARGEST = HIDDEN * INTERMEDIATE * 2
"""Bytes of the largest tensor, in bfloat16."""
FACTOR = 14
"""bitsandbytes' quantization on the CPU takes 9 times its input; beside it there are the source and the output."""
M_MMAP_THRESHOLD = -3


def wide_llama(folder: Path) -> int:
    """A llama of few layers with wide matrices and hardly a vocabulary; returns its bytes."""
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "dtype": "bfloat16", "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE, "num_hidden_layers": LAYERS, "num_attention_heads": 12,
        "num_key_value_heads": 12, "vocab_size": 64, "tie_word_embeddings": True,
    }  # fmt: skip
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    tensors = {
        name: torch.full(tuple(each.shape), 0.01, dtype=torch.bfloat16)
        for name, each in build_skeleton(str(folder)).tensors.items()
        if name != "lm_head.weight"
    }
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return sum(each.nbytes for each in tensors.values())


class Meter:
    """The resident memory when the first tensor is about to be read, and the most that it came to since, in bytes."""

    floor = 0

    def start(self, total_bytes: int, tensors: int) -> None:
        """Forget the peak of what came before; see proc(5), clear_refs."""
        Path("/proc/self/clear_refs").write_text("5")
        self.floor = self.read("VmRSS")

    def advance(self, tensor: str, nbytes: int) -> None:
        pass

    def read(self, key: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(each.split()[1]) for each in lines if each.startswith(key)) * 1024


def measure(source: Path, output: Path) -> int:
    """The bytes above the floor that are in use: what is freed goes back to the system, as large blocks do."""
    # Else glibc learns to keep them: https://man7.org/linux/man-pages/man3/mallopt.3.html
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 1 << 20)
    meter = Meter()
    rules = load_rules({"version": 1, "schemes": {"it": {"method": "bnb_4bit", "double_quant": True}}, "scheme": "it"})
    apply_to_folder(build_skeleton(str(source)), rules, output, progress=meter)
    return meter.read("VmHWM") - meter.floor


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_is_that_of_a_few_tensors(tmp_path: Path) -> None:
    """The peak is the imports plus a few times the largest tensor, and less than the checkpoint."""
    total = wide_llama(tmp_path / "wide")
    assert total > FACTOR * LARGEST  # else a reader of the whole file would pass
    code, text = in_child(measure, tmp_path / "wide", tmp_path / "out", report=tmp_path / "report")
    assert code == 0
    assert int(text) < FACTOR * LARGEST, f"{int(text) / LARGEST:.1f} times the largest tensor"
