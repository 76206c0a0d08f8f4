"""An output is refused where it cannot be, before anything is read or written."""

from __future__ import annotations

from pathlib import Path

import pytest

from rulequant.errors import CheckpointError
from rulequant.torch.checkpoint import place as place_module
from rulequant.torch.checkpoint.place import check_output


@pytest.mark.parametrize("output", ["gone/out", "file/out"])
def test_an_output_without_a_folder_to_be_in_is_refused(tmp_path: Path, output: str) -> None:
    """Folders are not made on the way: a typing mistake would go unseen."""
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="is not a folder, so the output cannot be made in it"):
        check_output(tmp_path / output)


def test_an_output_in_a_folder_without_permission_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Told before any work is done. (Played, because root may write everywhere.)"""
    monkeypatch.setattr(place_module.os, "access", lambda path, mode: False)
    with pytest.raises(CheckpointError, match="out: no permission to write in") as caught:
        check_output(tmp_path / "out")
    assert "change its permissions" in (caught.value.remedy or "")


@pytest.mark.parametrize(
    ("output", "relation"),
    [
        pytest.param("model", "is the source itself", id="the same"),
        pytest.param("model/../model", "is the source itself", id="the same, spelt otherwise"),
        pytest.param("link", "contains the source|is the source itself", id="a link to it"),
        pytest.param("model/out", "lies inside the source", id="inside"),
        pytest.param("model/sub/out", "lies inside the source", id="deep inside"),
        pytest.param("link/out", "lies inside the source", id="inside, through a link"),
        pytest.param(".", "contains the source", id="around"),
    ],
)
def test_an_output_that_overlaps_with_the_source_is_refused(tmp_path: Path, output: str, relation: str) -> None:
    """The source is never written to, by whatever name it is called."""
    (tmp_path / "model" / "sub").mkdir(parents=True)
    (tmp_path / "link").symlink_to("model")
    with pytest.raises(CheckpointError, match=rf"the output ({relation}), .*model, which is never") as caught:
        check_output(tmp_path / output, tmp_path / "model")
    assert caught.value.remedy == "choose an output outside of the source"


def test_an_output_beside_the_source_is_fine(tmp_path: Path) -> None:
    """A common beginning of two names is no overlap, and a source that is no folder none either."""
    (tmp_path / "model").mkdir()
    check_output(tmp_path / "model-nf4", tmp_path / "model")
    check_output(tmp_path / "mod", tmp_path / "model")
    check_output(tmp_path / "out", tmp_path / "gone")
