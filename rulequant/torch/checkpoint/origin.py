"""Where on the Hub a checkpoint comes from, for the records of what is made of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

__all__ = ["Origin", "argument_of", "origin_of"]


@dataclass(frozen=True, slots=True)
class Origin:
    """A repository on the Hub at a commit; `revision` is the branch or tag that the user asked for."""

    repo_id: str
    commit: str
    revision: str | None = None

    def to_dict(self) -> dict[str, str]:
        """For the manifest."""
        data = {"repo_id": self.repo_id, "commit": self.commit}
        return data | ({"revision": self.revision} if self.revision else {})


def origin_of(folder: Path) -> Origin | None:
    """The origin of a folder in the Hub's own cache, `models--ORG--NAME/snapshots/COMMIT`; None for any other."""
    parts = folder.absolute().parts
    if len(parts) < 3 or parts[-2] != "snapshots" or not parts[-3].startswith("models--"):
        return None
    organization, separator, name = parts[-3].removeprefix("models--").partition("--")
    return Origin(f"{organization}/{name}" if separator else organization, parts[-1])


def argument_of(folder: Path | None, name: str, origin: Origin | None) -> str:
    """MODEL of the command that makes an output again."""
    if folder is None:
        return name
    return f"{origin.repo_id} --revision {origin.commit}" if origin else "SOURCE"
