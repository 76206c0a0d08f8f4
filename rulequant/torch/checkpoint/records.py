"""The files by which an output explains itself: its plan, its rules, and a README.md."""

from __future__ import annotations

import json
import os
import re
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from rulequant.plan import Plan
from rulequant.ruleset import RuleSet
from rulequant.scalars import resolve
from rulequant.torch.checkpoint.card import CardFacts, card_text
from rulequant.torch.checkpoint.files import close_read, open_regular, read_exactly
from rulequant.torch.checkpoint.manifest import MANIFEST_NAME
from rulequant.torch.checkpoint.origin import Origin
from rulequant.torch.checkpoint.partfile import copy_file, write_file

__all__ = [
    "CARD_NAME",
    "IMPORT_DIFFUSERS",
    "PLAN_NAME",
    "RULES_NAME",
    "rules_yaml",
    "write_card",
    "write_plan",
    "write_rules",
]

CARD_NAME = "README.md"
PLAN_NAME = "rulequant-plan.json"
RULES_NAME = "rulequant-rules.yaml"
IMPORT_DIFFUSERS = "import rulequant.torch.diffusers  # pip install 'rulequant[torch,diffusers]'\n"
"""The line without which diffusers knows no container of rulequant."""
_SOURCE_CARD_NAME = "README.original.md"
_MAX_CARD_BYTES = 1 << 20
_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")
_ABOUT = {
    RULES_NAME: "the rules, all that they extend merged in",
    PLAN_NAME: "every decision, with its reason",
    MANIFEST_NAME: "sizes and hashes of all files, and what they were made from; `rulequant verify` compares them",
}


def write_plan(plan: Plan, folder: Path) -> None:
    """Write the plan JSON, which `rulequant apply --plan` takes."""
    write_file(folder / PLAN_NAME, (json.dumps(plan.to_dict(), indent=1) + "\n").encode())


def write_rules(rules: RuleSet, folder: Path) -> None:
    """Write the rules as one file without `extends`; no path of this machine is in it."""
    text = f"# Quantization rules of rulequant, sha256 {rules.sha256}\n{rules_yaml(rules)}"
    write_file(folder / RULES_NAME, text.encode())


def rules_yaml(rules: RuleSet) -> str:
    """A rule set as the text of one rule file, which loads as the same."""
    return yaml.dump(rules.to_dict(), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100_000)


def write_card(
    source: Path | None,
    folder: Path,
    plan: Plan,
    *,
    container: str,
    dtype: str,
    bytes_written: int,
    command: str,
    model_class: str | None,
    origin: Origin | None = None,
    library: str = "transformers",
    loading: str | None = None,
) -> None:
    """Write README.md over that of the source; one that is no text, or very long, stays a file of its own."""
    text, link = _source_card(source, folder) if source else (None, None)
    facts = CardFacts(
        plan=plan,
        source=source.resolve().name if source else plan.model,
        container=container,
        dtype=dtype,
        bytes_written=bytes_written,
        command=command,
        version=metadata.version("rulequant"),
        model_class=model_class,
        origin=origin,
        library=library,
        loading=loading,
        files={name: about for name, about in _ABOUT.items() if name == MANIFEST_NAME or (folder / name).exists()},
    )
    write_file(folder / CARD_NAME, card_text(facts, text, link=link).encode())


def _source_card(source: Path, folder: Path) -> tuple[str | None, str | None]:
    """The text of the source's card, or else the name of the file that it was copied to."""
    path = source / CARD_NAME
    if not os.path.lexists(path):
        return None, None
    text = _card_of(path)
    if text is None:
        copy_file(path, folder / _SOURCE_CARD_NAME, root=source)
    return text, None if text is not None else _SOURCE_CARD_NAME


def _card_of(path: Path) -> str | None:
    fd = open_regular(path, root=path.parent)
    try:
        size = os.fstat(fd).st_size
        return bytes(read_exactly(fd, 0, size, path)).decode("utf-8") if size <= _MAX_CARD_BYTES else None
    except UnicodeDecodeError:
        return None
    finally:
        close_read(fd)


class _Dumper(yaml.SafeDumper):
    """YAML without aliases, in which no string means anything else to a reader of YAML 1.2."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002
        return True


def _string(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    # More quotes than PyYAML would set: `1e-3` is a number to YAML 1.2, and `?x` is taken for a key.
    is_plain = _PLAIN.fullmatch(text) and isinstance(resolve(text), str)
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if is_plain else '"')


_Dumper.add_representer(str, _string)
