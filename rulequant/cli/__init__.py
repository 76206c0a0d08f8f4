"""The command line: each command in its own file, imported when it is called."""

from __future__ import annotations

__all__: list[str] = []
