"""Where a checkpoint comes from: the Hub's cache tells, no other folder does."""

from __future__ import annotations

from pathlib import Path

import pytest

from rulequant.torch.checkpoint.origin import Origin, origin_of


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("hub/models--org--name/snapshots/abc", Origin("org/name", "abc")),
        ("hub/models--org--name--with--dashes/snapshots/abc", Origin("org/name--with--dashes", "abc")),
        ("hub/models--gpt2/snapshots/abc", Origin("gpt2", "abc")),
        ("hub/datasets--org--name/snapshots/abc", None),
        ("models--org--name", None),
        ("some/folder", None),
    ],
)
def test_origin_of_a_folder(path: str, expected: Origin | None) -> None:
    """The names of the cache's folders hold the id and the commit."""
    assert origin_of(Path("/x") / path) == expected


@pytest.mark.parametrize(
    ("revision", "expected"),
    [(None, {"repo_id": "o/n", "commit": "c"}), ("v1", {"repo_id": "o/n", "commit": "c", "revision": "v1"})],
    ids=["default", "tag"],
)
def test_as_data(revision: str | None, expected: dict[str, str]) -> None:
    """The revision is there where the user gave one."""
    assert Origin("o/n", "c", revision).to_dict() == expected
