"""Write rulequant/known_types.txt: the module classes of the installed torch and transformers, read from their source.

Nothing of transformers is imported: importing 500 model files takes minutes. A class counts when it derives, by
whatever chain of names within these packages, from a class called Module.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from rulequant.known_types import FILE

PLACES = (
    ("torch", "nn/modules/*.py"),
    ("torch", "ao/nn/**/*.py"),
    ("transformers", "pytorch_utils.py"),
    ("transformers", "activations.py"),
    ("transformers", "modeling_*.py"),
    ("transformers", "models/**/modeling_*.py"),
)


def class_bases() -> Iterator[tuple[str, list[str]]]:
    """(class, names of its bases) of every class in the places."""
    for package, pattern in PLACES:
        spec = find_spec(package)
        folder = Path(str(spec.origin)).parent if spec else Path()
        for path in sorted(folder.glob(pattern)):
            for node in ast.parse(path.read_text(encoding="utf-8")).body:
                if isinstance(node, ast.ClassDef):
                    yield node.name, [ast.unparse(each).split("[")[0].rpartition(".")[2] for each in node.bases]


def module_classes() -> list[str]:
    """The classes that derive from Module."""
    bases: dict[str, set[str]] = {}
    for name, names in class_bases():
        bases.setdefault(name, set()).update(names)
    modules = {"Module"}
    grown = True
    while grown:
        more = {name for name, names in bases.items() if names & modules} - modules
        modules |= more
        grown = bool(more)
    return sorted(each for each in modules if not each.startswith("_"))


def render() -> str:
    """The text of the file."""
    versions = ", ".join(f"{each} {metadata.version(each).partition('+')[0]}" for each in ("torch", "transformers"))
    return f"# Module classes of {versions}; written by scripts/known_types.py.\n" + "\n".join(module_classes()) + "\n"


if __name__ == "__main__":
    FILE.write_text(render(), encoding="utf-8")
