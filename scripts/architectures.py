"""Write docs/architectures.md: what the bundled rules make of every architecture of the installed transformers.

`python scripts/architectures.py` takes two minutes or so. The reasons of those of which too little is quantized are in
`tests/zoo/below.json`; `--below` prints what is missing there and what is there without need.
"""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
warnings.simplefilter("ignore")

# ruff: noqa: E402  the zoo lies beside the tests
from zoo.classes import architectures
from zoo.page import PAGE, page, reasons
from zoo.survey import ENOUGH, survey


def main() -> None:
    """Survey everything, write the page, and say where the table of reasons is wrong."""
    rows = list(survey(architectures()))
    PAGE.write_text(page(rows), encoding="utf-8")
    below = {each.model_type: each for each in rows if each.share < ENOUGH}
    for name in sorted(below.keys() ^ reasons().keys()):
        what = f"{below[name].share:.1%}, kept: {below[name].kept}" if name in below else "is enough now"
        sys.stderr.write(f"{name}: {what}\n")
    for each in rows:
        for error in each.errors:
            sys.stderr.write(f"{each.model_type}: {error}\n")
    sys.stderr.write(f"{len(rows)} architectures, {len(below)} below {ENOUGH:.0%}\n")


if __name__ == "__main__":
    main()
