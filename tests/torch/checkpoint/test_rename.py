"""A folder is renamed, or refused, and never put in the place of another."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from rulequant.torch.checkpoint import rename as rename_module
from rulequant.torch.checkpoint.rename import rename_without_replacing


@pytest.mark.parametrize("atomic", [True, False], ids=["renameat2", "plain rename"])
def test_what_exists_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, atomic: bool) -> None:
    """Not even an empty folder, which a plain rename would replace."""
    if not atomic:
        monkeypatch.setattr(rename_module, "_renameat2", lambda *_: False)
    for name in ("new", "there"):
        (tmp_path / name).mkdir()
    with pytest.raises(OSError, match="File exists") as caught:
        rename_without_replacing(tmp_path / "new", tmp_path / "there")
    assert caught.value.errno == errno.EEXIST
    rename_without_replacing(tmp_path / "new", tmp_path / "elsewhere")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["elsewhere", "there"]


def test_a_rename_that_fails_for_another_reason_is_told(tmp_path: Path) -> None:
    """Not only a taken name can stand in the way."""
    with pytest.raises(OSError, match="No such file or directory") as caught:
        rename_without_replacing(tmp_path / "gone", tmp_path / "out")
    assert caught.value.errno == errno.ENOENT
