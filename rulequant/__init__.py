"""Quantization as code: a rule file says which modules of a model are quantized, how, and why the rest is not.

What needs torch is in `rulequant.torch`; importing this package imports nothing else.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rulequant.loader import load_rules
    from rulequant.plan import Plan
    from rulequant.ruleset import RuleSet

    __version__: str

__all__ = ["Plan", "RuleSet", "__version__", "load_rules"]

_HOMES = {"Plan": "rulequant.plan", "RuleSet": "rulequant.ruleset", "load_rules": "rulequant.loader"}


def __getattr__(name: str) -> Any:
    """Import on first use: a command that checks one small file should not wait for the rest."""
    if name == "__version__":
        from importlib.metadata import version

        return version("rulequant")
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
