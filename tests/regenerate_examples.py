"""Write the expected findings of all examples anew: `python tests/regenerate_examples.py`; then read the diff."""

from __future__ import annotations

import os

from example_files import EXAMPLES, INVALID, MODEL, VALID, expected_texts

if __name__ == "__main__":
    wanted = {}
    for path in [*VALID, *INVALID, *MODEL]:
        os.chdir(path.parent)
        wanted |= expected_texts(path)
    for stale in set(EXAMPLES.glob("*/*.expected")) - {path for path, text in wanted.items() if text}:
        stale.unlink()
    for path, text in wanted.items():
        if text:
            path.write_text(text, encoding="utf-8", newline="\n")
    print(f"{len(wanted)} examples")
