"""What the arguments MODEL and RULES stand for."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from rulequant.cli import terminal
from rulequant.cli.sparingly import go_on_sparingly
from rulequant.errors import MissingExtraError, ModelError, UsageError
from rulequant.escaping import printable

if TYPE_CHECKING:
    from rulequant.diagnostics import Diagnostic
    from rulequant.inventory import Inventory
    from rulequant.library import Choice
    from rulequant.ruleset import RuleSet
    from rulequant.tasks import Task
    from rulequant.torch.pipeline import Pipeline
    from rulequant.torch.skeleton import Skeleton

__all__ = [
    "bundled_for",
    "load_ruleset",
    "read_inventory",
    "read_model",
    "read_modules",
    "read_rules",
    "require_extra",
    "rules_for",
    "torch_extra",
]

EXTRA = frozenset(
    {"accelerate", "bitsandbytes", "huggingface_hub", "numpy", "rich", "safetensors", "torch", "transformers"}
)
MODEL_FORMS = "give a checkpoint folder, an inventory file, a Hub id, or package.module:callable"
INSTALL = "pip install 'rulequant[torch]'"


def read_model(
    model: str, *, trust_remote_code: bool = False, revision: str | None = None, real: bool = False
) -> Inventory | Skeleton | Pipeline:
    """MODEL: an inventory file, for which no torch is imported, a model on meta, or a pipeline.

    What a callable returns has its weights, if `real`.

    Raises:
        ModelError: there is no such model, or it cannot be read.
        MissingExtraError: it takes torch, which is not installed.
    """
    from rulequant.inventory_file import is_inventory, load_inventory

    if os.path.isfile(model):  # noqa: PTH113  Path raises for a name that is too long
        path = Path(model)
        if not is_inventory(path):
            raise _no_inventory(path)
        return load_inventory(path)
    _check_path(model)
    with torch_extra(f"reading {model}"):
        if not real and os.path.isdir(model):  # noqa: PTH112
            go_on_sparingly()
        from rulequant.torch.pipeline import open_model

        if not os.path.exists(model) and ":" not in model:  # noqa: PTH110
            terminal.note(f"{printable(model)} is no folder here: asking the Hub")
        return open_model(model, trust_remote_code=trust_remote_code, revision=revision, real=real)


def read_modules(model: str, *, trust_remote_code: bool = False, revision: str | None = None) -> Inventory | Pipeline:
    """The inventory of MODEL, or the pipeline that it is; raises as `read_model`."""
    from rulequant.inventory import Inventory

    found = read_model(model, trust_remote_code=trust_remote_code, revision=revision)
    if isinstance(found, Inventory):
        return found
    from rulequant.torch.skeleton import Skeleton

    return found.inventory() if isinstance(found, Skeleton) else found


def read_inventory(model: str, *, trust_remote_code: bool = False, revision: str | None = None) -> Inventory:
    """The inventory of MODEL, which is to be one model; raises as `read_model`."""
    from rulequant.inventory import Inventory

    found = read_modules(model, trust_remote_code=trust_remote_code, revision=revision)
    if isinstance(found, Inventory):
        return found
    parts = ", ".join(f"{model.rstrip('/')}/{each}" for each in found.models)
    raise ModelError(f"{model} is a pipeline of several models", remedy=f"give one of them: {parts}")


def rules_for(pipeline: Pipeline, rules: str | None) -> RuleSet:
    """The rules that say which component gets which, once their warnings are told.

    Raises:
        UsageError: RULES are absent, or for one model.
        DiagnosticsError: a rule file has errors.
    """
    from rulequant.torch.pipeline import check_rules_for

    ruleset, warnings = load_ruleset(rules) if rules is not None else (None, [])
    ready = check_rules_for(pipeline, ruleset)
    terminal.problems(warnings)
    return ready


def _no_inventory(path: Path) -> ModelError:
    if path.suffix in {".yaml", ".yml"}:
        return ModelError(f"{path} is a rule file, and MODEL comes first", remedy="write MODEL RULES, in this order")
    if path.name == "config.json" or path.suffix == ".safetensors":
        return ModelError(f"{path} is a file, not a checkpoint folder", remedy=f"give its folder: {path.parent}")
    return ModelError(f"{path} is not an inventory file", remedy="write one with `rulequant inventory MODEL -o FILE`")


def _check_path(model: str) -> None:
    """Say at once what takes no torch to find out; importing it takes seconds."""
    path, exists = Path(model), os.path.exists(model)  # noqa: PTH110  Path raises for a name that is too long
    if exists and path.is_dir() and not (path / "config.json").is_file() and not (path / "model_index.json").is_file():
        raise ModelError(f"{path} holds no config.json", remedy="give the folder of a transformers checkpoint")
    looks_like_path = model.startswith((".", "/", "~")) or model.endswith((".json", ".yaml", ".safetensors"))
    if looks_like_path and not exists:
        if path.suffix in {".yaml", ".yml"}:
            raise ModelError(f"{model}: no such file, and rule files come after MODEL", remedy=MODEL_FORMS)
        raise ModelError(f"{model}: no such file or folder", remedy=_near_files(path, MODEL_FORMS))


def _near_files(path: Path, otherwise: str) -> str:
    from rulequant.diagnostics import did_you_mean

    try:
        names = os.listdir(path.parent)  # noqa: PTH208  names are all it takes
    except FileNotFoundError:
        return f"{path.parent} does not exist either"
    except OSError:
        return otherwise
    return did_you_mean(path.name, names) or otherwise


@contextmanager
def torch_extra(what: str) -> Iterator[None]:
    """Around imports of `rulequant.torch`: says what to install, and keeps the libraries from chatting.

    Raises:
        MissingExtraError: a package of the extra is missing, or broken; any other ImportError passes as it is.
    """
    _quiet()
    try:
        yield
    except ImportError as error:
        package = (error.name or "").partition(".")[0]
        if package in EXTRA and not _is_installed(package):
            raise MissingExtraError(f"{what} needs {package}, which is not installed", remedy=INSTALL) from error
        broken = _raised_in(error)
        if broken not in EXTRA:
            raise
        text = f"{what} needs {broken}, which is installed and cannot be imported: {printable(str(error))}"
        raise MissingExtraError(text, remedy=f"install it anew, with all that it needs: {INSTALL}") from error


def _raised_in(error: ImportError) -> str:
    """The package whose own code, or library, could not be imported."""
    trace = error.__traceback__
    name = ""
    while trace is not None:
        module = str(trace.tb_frame.f_globals.get("__name__", "")).partition(".")[0]
        name = name if module in ("", "importlib") else module
        trace = trace.tb_next
    return name


def require_extra(what: str) -> None:
    """Say at once, and without importing anything, that a package of the extra is missing.

    Raises:
        MissingExtraError: so it is.
    """
    missing = [each for each in ("torch", *sorted(EXTRA - {"rich"})) if not _is_installed(each)]
    if missing:
        raise MissingExtraError(f"{what} needs {missing[0]}, which is not installed", remedy=INSTALL)


def _is_installed(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except (ImportError, ValueError):  # it is half imported
        return False


def _quiet() -> None:
    """Warnings and progress bars of the libraries are about their own doings; what matters rulequant says itself."""
    import logging
    import warnings

    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    if os.environ.get("RULEQUANT_DEBUG", "") in {"", "0"}:
        os.environ.setdefault("HF_HUB_VERBOSITY", "critical")  # it sets its logger's level itself, when it is imported
        for name in ("bitsandbytes", "diffusers", "torch", "transformers", "huggingface_hub"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        if not sys.warnoptions:
            warnings.simplefilter("ignore")


def read_rules(rules: str | None, inventory: Inventory) -> tuple[RuleSet, list[Diagnostic]]:
    """The rule set of RULES with its warnings; the bundled one for the model where RULES is absent.

    Raises:
        DiagnosticsError: a rule file has errors.
        UsageError: there is no such file or bundled name, or the model has no type to choose by.
    """
    return load_ruleset(bundled_for(inventory).name if rules is None else rules)


def load_ruleset(rules: str) -> tuple[RuleSet, list[Diagnostic]]:
    """The rule set of a file or bundled name, with its warnings.

    Raises:
        DiagnosticsError: a rule file has errors.
        UsageError: there is no such file or bundled name.
    """
    from rulequant.diagnostics import DiagnosticsError, Severity
    from rulequant.loader import check_rules

    _check_rules_name(rules)
    ruleset, diagnostics = check_rules(rules)
    errors = [each for each in diagnostics if each.severity is Severity.ERROR]
    if ruleset is None or errors:
        raise DiagnosticsError(errors)
    return ruleset, diagnostics


def bundled_for(inventory: Inventory) -> Choice:
    """The bundled rule file for a model; where its family has none, the default for its task, and a note that says so.

    Raises:
        UsageError: the model has no type to choose by.
    """
    from rulequant.library import choose
    from rulequant.tasks import task_of

    if inventory.model_type is None:
        task = task_of(inventory)
        remedy = f"give RULES: a rule file, which `rulequant init MODEL -o rules.yaml` starts, or `{task}`"
        raise UsageError(f"{inventory.model} has no model_type to choose rules by", remedy=remedy)
    choice = choose(inventory)
    if choice.default:
        _note_default(inventory, choice.default)
    return choice


def _note_default(inventory: Inventory, task: Task) -> None:
    from rulequant.library import nearest_types
    from rulequant.tasks import TASKS

    near = nearest_types(inventory.model_type or "")
    nearest = f" (nearest: {', '.join(near)})" if near else ""
    terminal.note(
        f"no bundled rule file is for the model_type `{printable(inventory.model_type or '')}`{nearest}: taking "
        f"`{task}`, the default for {TASKS[task]}"
    )
    terminal.note("  `rulequant init MODEL -o rules.yaml` writes a file for it to start from")


def _check_rules_name(rules: str) -> None:
    from rulequant.bundled import PREFIX, bundled_path
    from rulequant.loader import bundled_remedy

    if os.path.exists(rules) or bundled_path(rules.removeprefix(PREFIX)):  # noqa: PTH110
        return
    if rules.endswith((".yaml", ".yml")) or "/" in rules or os.sep in rules:
        raise UsageError(
            f"{rules}: no such rule file", remedy=_near_files(Path(rules), "`rulequant rules` lists the bundled ones")
        )
    raise UsageError(f"`{rules}` is neither a rule file nor the name of a bundled one", remedy=bundled_remedy(rules))
