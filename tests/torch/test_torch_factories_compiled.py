"""bitsandbytes' compiled kernel called directly: the bits of its operation, and nothing written that does not fit."""

from __future__ import annotations

import ctypes
from typing import Any

import bitsandbytes
import pytest
import torch

from rulequant.torch.factories import compiled
from rulequant.torch.factories.compiled import compiled_kernel
from rulequant.torch.kernels import quant_map

DTYPES = [torch.bfloat16, torch.float16, torch.float32]


@pytest.fixture(autouse=True)
def _asked_anew() -> Any:
    compiled_kernel.cache_clear()
    yield
    compiled_kernel.cache_clear()


def _encoded(blocks: int, blocksize: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    packed = torch.randint(0, 256, (blocks * blocksize // 2,), dtype=torch.uint8, generator=generator)
    return packed, torch.randn(blocks, generator=generator).exp()


@pytest.mark.parametrize("blocksize", [32, 64, 128, 256, 512, 1024])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("quant_type", ["nf4", "fp4"])
def test_it_gives_the_bits_of_the_operation(quant_type: str, dtype: torch.dtype, blocksize: int) -> None:
    """In memory that begins anywhere, and not a value beside it."""
    kernel = compiled_kernel(quant_type, dtype)
    assert kernel is not None
    packed, absmax = _encoded(37, blocksize)
    memory = torch.full((37 * blocksize + 5,), -7, dtype=dtype)
    kernel(packed, absmax, memory[3:-2], blocksize)
    decode = torch.ops.bitsandbytes.dequantize_4bit.default
    expected = decode(packed.unsqueeze(1), absmax, blocksize, quant_type, (37, blocksize), dtype)
    assert memory[3:-2].equal(expected.view(-1))
    assert memory[[0, 1, 2, -2, -1]].unique().tolist() == [-7]


@pytest.mark.parametrize("blocksize", [2048, 4096])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("quant_type", ["nf4", "fp4"])
def test_it_decodes_the_largest_blocks(quant_type: str, dtype: torch.dtype, blocksize: int) -> None:
    """For which the operation does not use it: a block a row they are right too."""
    kernel = compiled_kernel(quant_type, dtype)
    assert kernel is not None
    packed, absmax = _encoded(9, blocksize)
    out = torch.empty(9 * blocksize, dtype=dtype)
    kernel(packed, absmax, out, blocksize)
    codes = quant_map(quant_type)[torch.stack((packed >> 4, packed & 15), 1).view(-1).long()]
    assert out.equal((codes.view(9, -1) * absmax[:, None]).to(dtype).view(-1))


@pytest.mark.parametrize(
    "change",
    [
        lambda packed, absmax, out: (packed[:-1], absmax, out),
        lambda packed, absmax, out: (packed, absmax[:-1], out),
        lambda packed, absmax, out: (packed, absmax, out[:-1]),
        lambda packed, absmax, out: (packed.view(torch.int8), absmax, out),
        lambda packed, absmax, out: (packed, absmax.double(), out),
        lambda packed, absmax, out: (packed, absmax, out.half()),
        lambda packed, absmax, out: (packed, absmax.repeat_interleave(2)[::2], out),
        lambda packed, absmax, out: (packed, absmax, out.view(4, -1)),
        lambda packed, absmax, out: (packed, absmax, out.to("meta")),
    ],
    ids=["packed", "absmax", "out", "int8", "double", "half", "strided", "two dimensions", "meta"],
)
def test_what_does_not_fit_is_refused(change: Any) -> None:
    """A wrong call would read or write memory of others."""
    kernel = compiled_kernel("nf4", torch.bfloat16)
    assert kernel is not None
    with pytest.raises(ValueError, match="cannot decode"):
        kernel(*change(*_encoded(4, 64), torch.empty(256, dtype=torch.bfloat16)), 64)


@pytest.mark.parametrize("version", ["0.48.2", "0.51.0", "1.0"])
def test_of_other_versions_it_is_not_called(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its arguments there are not known."""
    monkeypatch.setattr(bitsandbytes, "__version__", version)
    assert compiled_kernel("nf4", torch.bfloat16) is None


def test_without_the_library_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where bitsandbytes found no library, or an older one, what it has instead is no function of C."""
    for library in (object(), ctypes.CDLL(None), type("Library", (), {"__getattr__": lambda *_: print})()):
        monkeypatch.setattr(compiled.cextension, "lib", library)
        compiled_kernel.cache_clear()
        assert compiled_kernel("nf4", torch.bfloat16) is None


def test_other_dtypes_have_none() -> None:
    """bitsandbytes decodes to three."""
    assert compiled_kernel("nf4", torch.float64) is None
