"""Imports that transformers makes and no skeleton needs, left out: torch's compiler, its parallel tensors, scipy.

Nothing is hidden for good: a package that is asked for more than it has in this form is imported after all.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib import import_module
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from threading import Thread
from types import ModuleType
from typing import Any

from rulequant.errors import RulequantError

__all__ = ["import_sparingly", "lies_in_the_input", "spare_imports"]

_FOR_THE_COMPILER = ("disable", "assume_constant_result", "allow_in_graph")
"""Decorators that only matter to code that is compiled; in torch.compiler, and in torch._dynamo, which they import."""
_OF_PLANNING = ("numpy", "rulequant.library", "rulequant.loader", "rulequant.planner")
"""Without torch."""


def import_sparingly() -> None:
    """Import what making a plan takes, in a process that builds models on meta, and ends."""
    with _loading_libraries():
        for name in _OF_PLANNING:
            import_module(name)
    spare_imports()


def lies_in_the_input(error: BaseException) -> bool:
    """Whether an error has nothing to do with what is imported, all the way down to its first cause."""
    first = error
    while cause := first.__cause__ or (None if first.__suppress_context__ else first.__context__):
        first = cause
    return isinstance(first, RulequantError | ValueError | KeyError | OSError)


@contextmanager
def _loading_libraries() -> Iterator[None]:
    """Have the system load torch's largest library while Python imports something else: a quarter of torch's import.

    Of a build for CUDA torch itself chooses the libraries that this one needs, so nothing is done there.
    """
    found = find_spec("torch")
    folder = Path(found.origin).parent / "lib" if found and found.origin else Path()
    largest = folder / "libtorch_cpu.so"
    if not largest.is_file() or (folder / "libtorch_cuda.so").exists():
        yield
        return
    thread = Thread(target=_load, args=(largest,))
    thread.start()
    try:
        yield
    finally:
        thread.join()


def _load(library: Path) -> None:
    with suppress(OSError):  # which torch's own import meets again
        ctypes.CDLL(str(library))


def spare_imports() -> None:
    """Leave them out, in such a process.

    transformers is told that torch was built without its distributed package, as some builds are. What was imported
    before stays as it is.
    """
    import torch

    if _defer("torch._dynamo", dict.fromkeys(_FOR_THE_COMPILER, _undecorated)):
        for name in _FOR_THE_COMPILER:
            setattr(torch.compiler, name, _undecorated)
        torch.distributed.is_available = _no
    # For the losses of models that detect objects.
    _defer("scipy.optimize", {"linear_sum_assignment": _linear_sum_assignment})


def _defer(package: str, names: Mapping[str, Any]) -> bool:
    """Have a package imported only when it is asked for more than these names; False where that cannot be."""
    if package in sys.modules:
        return False
    try:
        spec = find_spec(package)
    except ImportError:
        return False
    if spec is None or spec.loader is None:
        return False
    deferred = sys.modules[package] = _Deferred(spec)
    vars(deferred).update(names)
    parent, _, name = package.rpartition(".")
    if parent:
        setattr(sys.modules[parent], name, deferred)
    return True


class _Deferred(ModuleType):
    """A package whose modules can be imported; its own code runs when a name is asked for that it lacks."""

    def __init__(self, spec: ModuleSpec) -> None:
        super().__init__(spec.name)
        self.__spec__, self.__loader__, self.__file__ = spec, spec.loader, spec.origin
        self.__package__ = spec.name
        self.__path__ = spec.submodule_search_locations or []

    def __getattr__(self, name: str) -> Any:
        spec = self.__spec__
        if name.startswith("__") or spec is None or spec.loader is None:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        # From here on it is a module like any other.
        self.__class__ = ModuleType  # type: ignore[assignment]
        spec.loader.exec_module(self)
        return getattr(self, name)


def _undecorated(function: Callable[..., Any] | None = None, *_: Any, **__: Any) -> Any:
    """The function itself, or what gives it: both `@decorator` and `@decorator(option=...)` are written."""
    return _undecorated if function is None else function


def _linear_sum_assignment(*arguments: Any, **options: Any) -> Any:
    optimize: Any = sys.modules["scipy.optimize"]
    del optimize.linear_sum_assignment  # to ask for what it lacks imports it
    return optimize.linear_sum_assignment(*arguments, **options)


def _no() -> bool:
    return False
