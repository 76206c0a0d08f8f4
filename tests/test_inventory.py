"""Modules and tensors: names, counts and bytes."""

from __future__ import annotations

import inventories
import pytest

from rulequant.errors import ModelError
from rulequant.inventory import ITEM_SIZES, ModuleInfo, TensorInfo


@pytest.mark.parametrize(
    ("dtype", "size"),
    [
        pytest.param("bool", 1, id="bool"),
        pytest.param("float8_e4m3fn", 1, id="float8"),
        pytest.param("bfloat16", 2, id="bfloat16"),
        pytest.param("float32", 4, id="float32"),
        pytest.param("complex128", 16, id="complex128"),
    ],
)
def test_bytes_follow_the_dtype(dtype: str, size: int) -> None:
    """A tensor takes its elements times the size of one."""
    tensor = TensorInfo("weight", (3, 5), dtype)
    assert (tensor.numel, tensor.nbytes) == (15, 15 * size)
    assert ITEM_SIZES[dtype] == size


def test_a_scalar_has_one_element() -> None:
    """The empty shape is a scalar, and a shape with a zero has nothing in it."""
    assert TensorInfo("scale", (), "float32").nbytes == 4
    assert TensorInfo("weight", (0, 5), "float32").nbytes == 0


def test_a_tied_tensor_is_stored_elsewhere() -> None:
    """A tied parameter counts neither bytes nor parameters: its first owner does."""
    head = inventories.llama(tied=True).by_name["lm_head"]
    assert (head.parameters, head.nbytes) == (0, 0)
    assert head.tensors[0].numel == 256 * 64


def test_an_unknown_dtype_is_named() -> None:
    """A dtype of unknown size is an error about the model, and names the tensor."""
    with pytest.raises(ModelError, match=r"the tensor `weight` has the dtype `float3`\n  known dtypes: bool, "):
        _ = TensorInfo("weight", (2,), "float3").nbytes


def test_buffers_have_bytes_and_no_parameters() -> None:
    """A persistent buffer is in the checkpoint and is no parameter."""
    info = ModuleInfo("bn", "BatchNorm2d", tensors=(TensorInfo("running_mean", (8,), "float32", buffer=True),))
    assert (info.parameters, info.nbytes) == (0, 32)


def test_tensors_are_found_by_local_name() -> None:
    """A tensor that the module lacks is None."""
    info = inventories.linear("fc", 4, 2, bias=True)
    assert info.tensor("bias") == TensorInfo("bias", (4,), "bfloat16")
    assert info.tensor("scale") is None


def test_modules_are_found_by_every_name() -> None:
    """`by_name` knows the aliases too."""
    info = inventories.linear("a.fc", 4, 2, aliases=("b.fc", "c"))
    inventory = inventories.of(ModuleInfo("", "Net"), info)
    assert info.names == ("a.fc", "b.fc", "c")
    assert list(inventory.by_name) == ["", "a.fc", "b.fc", "c"]
    assert inventory.by_name["b.fc"] is info


def test_owners_are_the_modules_with_tensors() -> None:
    """Containers own nothing; the parameters of all owners are those of the model."""
    inventory = inventories.llama(layers=3)
    owners = list(inventory.owners)
    assert len(owners) == 3 * 9 + 3
    assert inventory.parameters == sum(each.parameters for each in owners) == 3 * 36_992 + 64 + 2 * 256 * 64
