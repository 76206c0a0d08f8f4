"""Files read once for their sha256 and the checksums of their tensors."""

from __future__ import annotations

import hashlib
import zlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from rulequant.errors import CheckpointError
from rulequant.torch.checkpoint import checksums
from rulequant.torch.checkpoint.checksums import digest_file

TENSORS = {
    "a.big": torch.arange(1000, dtype=torch.float32),
    "b.empty": torch.empty(0),
    "c.byte": torch.tensor([7], dtype=torch.uint8),
    "d.scalar": torch.tensor(1.5),
    "e.empty": torch.empty(0, 3),
}


@pytest.mark.parametrize("chunk", [1, 7, 4096, 1 << 20])
def test_every_tensor_has_its_crc32_whatever_the_pieces(
    chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tensors longer and shorter than a piece, and empty ones between and at the end."""
    monkeypatch.setattr(checksums, "_CHUNK", chunk)
    path = tmp_path / "model.safetensors"
    save_file(TENSORS, path)
    pieces: list[int] = []
    found = digest_file(path, root=tmp_path, told=pieces.append)
    data = path.read_bytes()
    assert found.size == sum(pieces) == len(data)
    assert found.sha256 == hashlib.sha256(data).hexdigest()
    assert found.crc32 == {name: f"{zlib.crc32(each.numpy().tobytes()):08x}" for name, each in TENSORS.items()}


@pytest.mark.parametrize(
    ("name", "data"),
    [("model.safetensors", b"no header"), ("model.safetensors", b""), ("config.json", b"{}")],
    ids=["damaged", "empty", "other"],
)
def test_a_file_without_readable_header_has_only_its_sha256(name: str, data: bytes, tmp_path: Path) -> None:
    """A damaged shard is still hashed, to be told from the one that was written."""
    (tmp_path / name).write_bytes(data)
    assert digest_file(tmp_path / name, root=tmp_path) == (len(data), hashlib.sha256(data).hexdigest(), {})


def test_a_link_out_is_refused(tmp_path: Path) -> None:
    """As everywhere."""
    (tmp_path / "x").symlink_to("/etc/passwd")
    with pytest.raises(CheckpointError, match="leads out of the checkpoint's folder"):
        digest_file(tmp_path / "x", root=tmp_path)
