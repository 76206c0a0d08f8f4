"""JSON files that end with the sha256 of what they say, so that a changed byte is noticed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

__all__ = ["seal"]


def seal(data: Mapping[str, Any], key: str) -> bytes:
    """The text of the data, and last, under `key`, the sha256 of their compact JSON form.

    The text is a function of the data: what a reader makes of a text has to give that text again.
    """
    compact = json.dumps(data, separators=(",", ":"))
    sealed = {**data, key: hashlib.sha256(compact.encode("ascii")).hexdigest()}
    return (json.dumps(sealed, indent=2) + "\n").encode("ascii")
