"""Looking factories up: built-in methods and a stranger's come through the same entry points."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tiny_models import save_tiny
from torch import nn

import rulequant.torch
import rulequant.torch.transformers  # registers the quantizer
from rulequant import schemes
from rulequant.errors import UsageError
from rulequant.schemes import BUILTIN
from rulequant.torch.factories import ENTRY_POINTS, LayerFactory, factory_for


def test_builtin_methods_are_the_entry_points_of_the_distribution() -> None:
    """The table of built-ins and the two groups of entry points name the same methods and the same classes."""
    ours = metadata.distribution("rulequant").entry_points
    provided = {each.name: each.load() for each in ours if each.group == schemes.ENTRY_POINTS}
    assert provided == dict(BUILTIN)
    assert {each.name for each in ours if each.group == ENTRY_POINTS} == set(BUILTIN)


@pytest.mark.parametrize("method", sorted(BUILTIN))
def test_builtin_factories_follow_the_protocol(method: str) -> None:
    """rulequant's own methods are found as a stranger's are."""
    assert isinstance(factory_for(method), LayerFactory)


PACKAGE = '''
"""A method of its own: weights rounded to a multiple of a step, in one byte."""
from typing import ClassVar, Literal

import torch
from torch import nn

from rulequant.schemes import Scheme
from rulequant.torch.factories import NotFiniteError


class Grid(Scheme):
    method: Literal["grid"] = "grid"
    step: float = 0.5
    kinds: ClassVar[frozenset[str]] = frozenset({"linear"})

    def encoded_bytes(self, info, tensor):
        return tensor.numel + 4


class GridLinear(nn.Linear):
    def forward(self, x):
        return nn.functional.linear(x, self.weight.to(x.dtype) * self.step.to(x.dtype), self.bias)


class GridFactory:
    tensor_names = ("weight", "step")

    def build(self, module, scheme):
        with torch.device("meta"):
            layer = GridLinear(module.in_features, module.out_features, bias=False)
        layer.bias = module.bias
        layer.weight.requires_grad_(False)
        return layer.train(module.training)

    def check(self, weight, scheme):
        if not torch.isfinite(weight).all():
            raise NotFiniteError("not a number")

    def encode(self, weight, kind, scheme):
        self.check(weight, scheme)
        values = (weight / scheme.step).round().clamp(-127, 127).to(torch.int8)
        return {"weight": values, "step": torch.tensor(scheme.step)}

    def attach(self, layer, encoded):
        layer.weight = nn.Parameter(encoded["weight"], requires_grad=False)
        layer.register_buffer("step", encoded["step"])

    def decode(self, encoded, kind):
        return encoded["weight"].float() * encoded["step"]


class Halfway:
    def build(self, module, scheme): ...


broken = 1 // 0 if __name__ == "grid_broken" else None
'''


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Install a tiny package, as pip would lay it out, with the entry points that are asked for."""

    def install(factory: str = "grid_method:GridFactory", *, name: str = "grid-method") -> None:
        (tmp_path / "grid_method.py").write_text(PACKAGE)
        (tmp_path / "grid_broken.py").write_text(PACKAGE)
        (tmp_path / "grid_missing.py").write_text("import a_package_that_nobody_has\n")
        info = tmp_path / f"{name.replace('-', '_')}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(
            f"[rulequant.schemes]\ngrid = grid_method:Grid\n[rulequant.factories]\ngrid = {factory}\n"
        )
        forget()

    def forget() -> None:
        factory_for.cache_clear()
        schemes._provided.cache_clear()

    monkeypatch.syspath_prepend(str(tmp_path))
    yield install
    monkeypatch.undo()
    forget()


GRID = {"version": 1, "schemes": {"coarse": {"method": "grid", "step": 0.25}}, "scheme": "coarse"}


def test_a_third_party_adds_a_method(installed: Any) -> None:
    """A package with the two entry points gives rule files a method, and `apply` uses it."""
    installed()
    model = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4)).eval()
    before = model[0].weight.detach().clone()
    plan = rulequant.torch.apply(model, GRID)
    assert [each.name for each in plan.quantized] == ["0", "2"]
    assert type(model[0]).__name__ == "GridLinear"
    assert plan.by_name["0"].bytes_after == model[0].weight.nbytes + model[0].step.nbytes + model[0].bias.nbytes
    assert torch.allclose(factory_for("grid").decode(model[0].state_dict(), "linear"), (before / 0.25).round() * 0.25)
    assert model(torch.randn(2, 16)).isfinite().all()


def test_a_third_party_method_survives_a_checkpoint(installed: Any, tmp_path: Path) -> None:
    """What a stranger's factory encodes is written, and loaded by transformers into the stranger's layers."""
    installed()
    source = save_tiny("llama", tmp_path / "source")
    fine = {**GRID, "schemes": {"fine": {"method": "grid", "step": 0.01}}, "scheme": "fine"}
    rulequant.torch.apply_checkpoint(source, fine, tmp_path / "out")
    model, info = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"))
    original = transformers.AutoModelForCausalLM.from_pretrained(source).model.layers[0].mlp.up_proj
    layer = model.model.layers[0].mlp.up_proj
    assert type(layer).__name__ == "GridLinear"
    assert torch.equal(layer.weight, (original.weight / 0.01).round().to(torch.int8))
    assert layer.weight.any()


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        (
            "grid_method:Halfway",
            r"`grid` \(grid_method:Halfway\) lacks `tensor_names`, `check`, `encode`, `attach`, `decode`",
        ),
        ("grid_method:Nothing", r"cannot be loaded: AttributeError"),
        ("grid_broken:GridFactory", r"cannot be loaded: ZeroDivisionError"),
        ("grid_missing:GridFactory", r"cannot be loaded: ModuleNotFoundError: No module named 'a_package_that"),
    ],
    ids=["no-factory", "no-such-name", "raises-on-import", "import-missing"],
)
def test_a_broken_factory_is_named(installed: Any, factory: str, message: str) -> None:
    """What a package provides in place of a factory is told with its entry point."""
    installed(factory)
    with pytest.raises(UsageError, match=message):
        rulequant.torch.apply(nn.Sequential(nn.Linear(16, 8)), GRID)


def test_two_packages_for_one_method_are_refused(installed: Any) -> None:
    """Which one wins would depend on the order of sys.path."""
    installed()
    installed("grid_method:Halfway", name="grid-method-too")
    with pytest.raises(UsageError, match="several packages provide a layer factory for the method `grid`"):
        factory_for("grid")


def test_an_unknown_method_lists_the_installed_ones() -> None:
    """The remedy names what there is."""
    with pytest.raises(UsageError, match=r"method `gptq`\n  installed methods: bnb_4bit, bnb_int8"):
        factory_for("gptq")
