"""What `import rulequant` gives, and what it does not import."""

from __future__ import annotations

import subprocess
import sys
from importlib import metadata

import pytest

import rulequant
from rulequant.loader import load_rules
from rulequant.plan import Plan
from rulequant.ruleset import RuleSet


def test_exports() -> None:
    """The names are the objects of the modules where they live."""
    assert rulequant.load_rules is load_rules
    assert rulequant.Plan is Plan
    assert rulequant.RuleSet is RuleSet
    assert rulequant.__version__ == metadata.version("rulequant")


def test_all_is_there() -> None:
    """What the package lists it has, and `dir` shows."""
    assert set(rulequant.__all__) <= set(dir(rulequant))
    assert all(getattr(rulequant, name) is not None for name in rulequant.__all__)


def test_unknown_name() -> None:
    """A name that it does not have is an AttributeError."""
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = rulequant.nothing  # type: ignore[attr-defined]


def test_imports_nothing() -> None:
    """The package alone imports neither pydantic nor yaml nor torch, and its exports no torch."""
    code = (
        "import sys, rulequant\n"
        "assert not {'pydantic', 'yaml', 'torch', 'click'} & set(sys.modules)\n"
        "rulequant.load_rules, rulequant.Plan\n"
        "assert not {'torch', 'numpy', 'click', 'rich'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
