"""Runs of apply on a tiny checkpoint, and what tests ask of folders."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from tiny_models import save_tiny

from rulequant.loader import load_rules
from rulequant.plan import Plan
from rulequant.planner import make_plan
from rulequant.torch.checkpoint.apply import apply_to_folder
from rulequant.torch.checkpoint.finish import Applied
from rulequant.torch.skeleton import build_skeleton

__all__ = ["RULES", "configure", "files_of", "plan_of", "run", "save_with_extras", "state"]

RULES: dict[str, Any] = {"version": 1, "name": "test", "schemes": {"it": {"method": "bnb_4bit"}}, "scheme": "it"}
EXTRAS = {
    "README.md": "---\nlicense: mit\n---\nhello\n",
    "tokenizer.json": "{}",
    "1_Pooling/config.json": '{"pooling_mode_mean_tokens": true}',
    "modules.json": '[{"path": ""}, {"path": "1_Pooling"}]',
    "pytorch_model.bin": "no pickle",
    "pytorch_model.bin.index.json": "{}",
    "onnx/model.onnx": "no model",
    ".gitattributes": "*",
    "rulequant-plan.json": "of an earlier run",
}


def save_with_extras(folder: Path) -> Path:
    """A tiny llama in bfloat16, with files beside the weights."""
    save_tiny("llama", folder)
    for name, text in EXTRAS.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    return folder


def run(source: Path, output: Path, rules: Any = RULES, **options: Any) -> Applied:
    ready = rules if isinstance(rules, Plan) else load_rules(rules)
    return apply_to_folder(build_skeleton(str(source)), ready, output, **options)


def plan_of(source: Path, rules: Any = RULES) -> Plan:
    return make_plan(load_rules(rules), build_skeleton(str(source)).inventory())


def configure(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def state(folder: Path) -> dict[str, tuple[str, int, int]]:
    """Hash, time of change and mode of every file and folder."""
    found = {}
    for path in sorted([folder, *folder.rglob("*")]):
        facts = path.lstat()
        text = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        found[str(path.relative_to(folder))] = text, facts.st_mtime_ns, facts.st_mode
    return found


def files_of(folder: Path) -> list[str]:
    return sorted(str(each.relative_to(folder)) for each in folder.rglob("*") if each.is_file())
