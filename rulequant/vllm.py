"""What vLLM cannot load of a plan: it reads bitsandbytes checkpoints by rules of its own.

Seen in vllm/model_executor/layers/quantization/bitsandbytes.py and model_loader/bitsandbytes_loader.py of vLLM 0.11
and later (https://github.com/vllm-project/vllm): layers that it merges are quantized as a whole or not at all, fused
experts are always taken for 4-bit ones in NF4, and packed bytes for uint8. Skip lists are compared with names of its
own, which for models with images are others than in transformers (`hf_to_vllm_mapper`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from rulequant.diagnostics import Diagnostic, Severity
from rulequant.inventory import Inventory, ModuleInfo
from rulequant.plan import Decision, Plan
from rulequant.schemes import Bnb4bit

__all__ = ["MERGED", "called_by_vllm", "misread_by_vllm", "skipped_by_vllm", "vllm_notes"]

MERGED: Mapping[str, tuple[str, ...]] = {
    "qkv_proj": ("q_proj", "k_proj", "v_proj"),
    "gate_up_proj": ("gate_proj", "up_proj"),
    "fused_qkv_a_proj": ("q_a_proj", "kv_a_proj_with_mqa"),
}
"""Layers that vLLM merges, by the name of the whole, under which it looks them up in a skip list."""


_LANGUAGE_MODEL = "model.language_model."


def called_by_vllm(names: Iterable[str]) -> dict[str, str]:
    """What vLLM calls modules, by the names that they have in transformers.

    A model whose language model is one part of several, as with images, has `language_model.model.layers` there for
    `model.language_model.layers` (vllm/model_executor/models/llava.py, qwen2_vl.py, gemma3_mm.py, mistral3.py).
    """
    known = tuple(names)
    if not any(each.startswith(_LANGUAGE_MODEL) for each in known):
        return {each: each for each in known}
    return {each: _moved(each) for each in known}


def _moved(name: str) -> str:
    if name.startswith(_LANGUAGE_MODEL):
        return f"language_model.model.{name.removeprefix(_LANGUAGE_MODEL)}"
    return f"language_model.{name}" if name == "lm_head" else name.removeprefix("model.")


def skipped_by_vllm(name: str, entries: Iterable[str]) -> bool:
    """Whether vLLM leaves a module as it is: an entry is one of the components of its name, or the start of it."""
    components = name.split(".")
    starts = {".".join(components[:end]) for end in range(1, len(components) + 1)}
    return any(each in components or each in starts for each in entries)


def vllm_notes(plan: Plan, inventory: Inventory) -> Iterator[Diagnostic]:
    """Why vLLM would not load the checkpoint that the plan's container holds; nothing where it would."""
    if plan.container != "bitsandbytes":
        yield _note("RQ451", "vLLM loads bitsandbytes checkpoints, and this one is of the container rulequant", None)
        return
    yield from _split_decisions(plan)
    yield from _experts(plan, inventory)
    yield from _storage(plan)


def misread_by_vllm(name: str) -> Diagnostic:
    """What to say where a skip list takes a regular expression, which vLLM compares with names as it stands."""
    return _note("RQ553", f"vLLM reads the skip list of config.json literally, and so quantizes {name}", None)


def _split_decisions(plan: Plan) -> Iterator[Diagnostic]:
    """Parts of one merged layer of which some are quantized and some are not."""
    found: list[tuple[str, Sequence[Decision]]] = []
    for parent in dict.fromkeys(each.name.rpartition(".")[0] for each in plan.decisions):
        for whole, names in MERGED.items():
            together = [plan.by_name[name] for each in names if (name := f"{parent}.{each}") in plan.by_name]
            if len({each.quantize for each in together}) > 1:
                found.append((f"{parent}.{whole}", together))
    if found:
        (whole, parts), more = found[0], len(found) - 1
        verdicts = ", ".join(f"{each.name.rpartition('.')[2]} {each.scheme or 'not'}" for each in parts)
        others = f", and so {more:,} more" if more else ""
        yield _note(
            "RQ452",
            f"vLLM merges the parts of {whole}, which are not quantized alike ({verdicts}){others}",
            "quantize all parts of a merged layer or none, if vLLM is to load the checkpoint",
        )


def _experts(plan: Plan, inventory: Inventory) -> Iterator[Diagnostic]:
    """Fused experts that are not all NF4, with one block size."""
    experts = [each for each in inventory.owners if _holds_experts(each)]
    wrong = next((each for each in experts if not _is_nf4(each, plan)), None)
    if wrong:
        scheme = plan.by_name[wrong.name].scheme
        found = f"has the scheme `{scheme}`" if scheme else "stays as it is"
        yield _note(
            "RQ453",
            f"vLLM takes all fused experts for NF4, and {wrong.name} {found}",
            "give all experts a scheme with quant_type nf4, if vLLM is to load the checkpoint",
        )


def _holds_experts(info: ModuleInfo) -> bool:
    """Whether a module holds fused experts, those that rulequant cannot take one by one among them."""
    return info.kind == "experts" or (
        info.type.endswith("Experts") and any(len(each.shape) == 3 for each in info.tensors)
    )


def _is_nf4(info: ModuleInfo, plan: Plan) -> bool:
    scheme = plan.schemes.get(plan.by_name[info.name].scheme or "")
    return isinstance(scheme, Bnb4bit) and scheme.quant_type == "nf4"


def _storage(plan: Plan) -> Iterator[Diagnostic]:
    used = dict.fromkeys(each.scheme for each in plan.quantized if each.scheme)
    for name in used:
        scheme = plan.schemes[name]
        if isinstance(scheme, Bnb4bit) and scheme.quant_storage != "uint8":
            yield _note(
                "RQ454",
                f"vLLM takes packed bytes for uint8, and `{name}` stores them as {scheme.quant_storage}",
                "leave out quant_storage, if vLLM is to load the checkpoint",
            )


def _note(code: str, message: str, remedy: str | None) -> Diagnostic:
    return Diagnostic(code, message, severity=Severity.NOTE, remedy=remedy)
