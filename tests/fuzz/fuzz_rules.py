"""An atheris target: bytes as a rule file. Only diagnostics may come out of it, each with a place in the text.

Run by hand, with rulequant and atheris (https://github.com/google/atheris) installed:

    python tests/fuzz/fuzz_rules.py -max_len=4096 -timeout=10 -max_total_time=180 CORPUS rules tests/examples/valid

New inputs go to CORPUS, a folder of yours; the others are only read. A crash leaves its input as `crash-*`.
"""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["rulequant", "yaml", "bracex", "fnmatch2"]):
    from rulequant import source
    from rulequant.lint import lint
    from rulequant.loader import Loader

FILE = "rules.yaml"


def check(content: bytes) -> None:
    """Read, resolve and lint one file.

    Raises:
        AssertionError: a diagnostic points outside the text, or there is neither a rule set nor an error.
    """
    document, problems = source.parse(content, file=FILE)
    if document is None and not problems:
        raise AssertionError("neither a document nor a problem")
    loader = Loader()
    loaded = loader.load_text(content, file=FILE)
    rules = loader.resolve(loaded) if loaded else None
    if rules is None and not loader.diagnostics:
        raise AssertionError("neither a rule set nor a problem")
    if loaded and rules:
        loader.diagnostics += lint(loader.chain(loaded) or [], rules)
    last = content.count(b"\n") + content.count(b"\r") + 1
    for each in loader.diagnostics:
        each.concise()
        if each.location and each.location.file == FILE and not 1 <= each.location.line <= last:
            raise AssertionError(f"outside the text: {each.concise()}")


if __name__ == "__main__":
    atheris.Setup(sys.argv, check)
    atheris.Fuzz()
