"""The bundled files as paths: there without being read."""

from __future__ import annotations

from rulequant.bundled import bundled_names, bundled_path


def test_names_are_sorted_and_exist() -> None:
    """Each name is a file of that stem."""
    names = bundled_names()
    assert "causal_lm" in names
    assert list(names) == sorted(names)
    paths = [bundled_path(each) for each in names]
    assert [path.stem for path in paths if path is not None and path.is_file()] == list(names)


def test_other_names_are_none() -> None:
    """Neither an unknown name nor a path into other folders is a bundled file."""
    assert bundled_path("lama") is None
    assert bundled_path("") is None
    assert bundled_path("../rules/llama") is None
    assert bundled_path("llama.yaml") is None
