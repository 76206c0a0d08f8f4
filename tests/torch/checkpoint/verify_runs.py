"""Outputs to verify, and what is done to them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from apply_runs import RULES
from safetensors.torch import load_file, save_file

from rulequant.torch.checkpoint.manifest import MANIFEST_NAME, load_manifest, write_manifest
from rulequant.torch.checkpoint.verify.folder import verify_folder
from rulequant.verification import Verified

__all__ = ["INT8", "MIXED", "codes", "edit_json", "edit_tensors", "flip", "reseal", "verify"]


INT8 = {"int8": {"method": "bnb_int8"}}
MIXED = RULES | {"schemes": RULES["schemes"] | INT8, "rules": [{"modules": "**.o_proj", "scheme": "int8"}]}
"""nf4 and int8 in one model."""


def verify(folder: Path, against: Path | None = None, **options: Any) -> Verified:
    return verify_folder(folder, against=str(against) if against else None, **options)


def codes(found: Verified) -> list[str]:
    return sorted({each.code for each in found.diagnostics})


def flip(path: Path, position: int) -> None:
    """Change one bit of one byte."""
    with path.open("r+b") as stream:
        stream.seek(position)
        byte = stream.read(1)[0]
        stream.seek(position)
        stream.write(bytes([byte ^ 1 << position % 8]))


def reseal(folder: Path) -> None:
    """Write the manifest anew over changed files, as somebody with bad intent would."""
    manifest = load_manifest(folder)
    (folder / MANIFEST_NAME).unlink()
    write_manifest(
        folder,
        source=manifest.source,
        rules_sha256=manifest.rules_sha256,
        plan_sha256=manifest.plan_sha256,
        versions={name: each for name, each in manifest.versions.items() if name != "rulequant"},
    )


def edit_json(path: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    data = json.loads(path.read_text())
    edit(data)
    path.write_text(json.dumps(data))


def edit_tensors(folder: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path, {"format": "pt"})
