"""RQ326 and RQ327: skips that are taken back from a parent."""

from __future__ import annotations

from rulequant.codes.entry import Code, error, warning

__all__ = ["CODES"]

CODES: tuple[Code, ...] = (
    error(
        "RQ326",
        "no such skip to take back",
        what="`remove_skips` takes patterns of skips that the file inherits, letter by letter as they stand there. "
        "`rulequant show PARENT` prints them.",
        why="The parent has dropped or rewritten the skip, or the pattern is misspelt: what the file seems to take "
        "back stays, or is not there any more.",
        wrong="""
extends: whisper
remove_skips: ["**.conv1"]
""",
        right="""
extends: whisper
remove_skips: ["**.encoder.conv{1,2}"]
""",
    ),
    warning(
        "RQ327",
        "another skip takes the place of one that is taken back",
        what="A skip of a parent that is not taken back selects everything that the one under `remove_skips` selected.",
        why="The modules stay as they are.",
    ),
)
