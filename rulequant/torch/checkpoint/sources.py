"""What apply reads, by kind: a folder of transformers or diffusers, or a model that a callable returned."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

from rulequant.containers import ContainerName
from rulequant.errors import CheckpointError, ModelError
from rulequant.inventory import Inventory
from rulequant.plan import Plan
from rulequant.torch.checkpoint.container import Container, choose_container, own_container
from rulequant.torch.checkpoint.diffusion_container import component_container
from rulequant.torch.checkpoint.files import printable
from rulequant.torch.checkpoint.keys import KeyMap, map_keys
from rulequant.torch.checkpoint.layout import COMPONENT_STEM, MODEL_STEM
from rulequant.torch.checkpoint.memory import MemoryReader
from rulequant.torch.checkpoint.reader import CheckpointReader
from rulequant.torch.checkpoint.records import IMPORT_DIFFUSERS
from rulequant.torch.checkpoint.sidefiles import source_config
from rulequant.torch.skeleton import Skeleton

__all__ = ["Source", "container_for", "source_of"]


class Source(Protocol):
    """A model with its weights, and what of it belongs beside them."""

    @property
    def library(self) -> str:
        """What loads the output: transformers, diffusers, or rulequant itself."""

    @property
    def stem(self) -> str:
        """What the names of the files with its weights begin with."""

    @property
    def folder(self) -> Path | None:
        """Where it is on the disk, if it is."""

    def config(self) -> dict[str, Any] | None:
        """Its config.json, if it has one.

        Raises:
            CheckpointError: it cannot be read, or the model is already quantized.
        """

    def container(self, plan: Plan, wanted: ContainerName, inventory: Inventory) -> Container:
        """Who loads the output, and the plan with the bytes there.

        Raises:
            DiagnosticsError: the plan quantizes nothing, or the wanted one cannot express it.
        """

    def open(self) -> CheckpointReader:
        """Its weights."""

    def attach(self, fingerprint: Mapping[str, Mapping[str, int]]) -> CheckpointReader:
        """The weights, as they were when they were opened; tensors need not be known by name."""

    def keys(self, reader: CheckpointReader) -> KeyMap:
        """Which tensor of the weights is which of the model.

        Raises:
            CheckpointError: they do not fit together.
        """

    def loading(self, container: str) -> str | None:
        """Python that loads the output in a container, for its card; None where the class of transformers says it."""


def source_of(skeleton: Skeleton) -> Source:
    """The source of a skeleton.

    Raises:
        ModelError: it has no weights: it is a model on the Hub that was not downloaded.
    """
    if skeleton.folder is not None:
        kind = _Folder if skeleton.dtypes is None else _Component
        return kind(skeleton, skeleton.folder)
    if skeleton.hub is not None:
        raise ModelError(f"{skeleton.name} is not downloaded")
    return _Called(skeleton)


def container_for(skeleton: Skeleton, plan: Plan, wanted: ContainerName) -> Container:
    """Who loads the output of a model whose weights may still be on the Hub; raises as `Source.container`."""
    return source_of(skeleton.at(skeleton.folder or Path())).container(plan, wanted, skeleton.inventory())


@dataclass(frozen=True)
class _Folder:
    """A checkpoint folder of transformers."""

    skeleton: Skeleton
    folder: Path
    library: ClassVar[str] = "transformers"
    stem: ClassVar[str] = MODEL_STEM

    def config(self) -> dict[str, Any]:
        return source_config(self.folder)

    def container(self, plan: Plan, wanted: ContainerName, inventory: Inventory) -> Container:
        return choose_container(self.skeleton, plan, wanted, inventory=inventory)

    def open(self) -> CheckpointReader:
        return CheckpointReader.open(self.folder, self.stem)

    def attach(self, fingerprint: Mapping[str, Mapping[str, int]]) -> CheckpointReader:
        return CheckpointReader.attach(self.folder, fingerprint)

    def keys(self, reader: CheckpointReader) -> KeyMap:
        return map_keys(self.skeleton, reader.tensors)

    def loading(self, container: str) -> str | None:
        del container
        return None


@dataclass(frozen=True)
class _Component(_Folder):
    """A model of diffusers: a folder that has the class in its config.json, and its own names of files."""

    library: ClassVar[str] = "diffusers"
    stem: ClassVar[str] = COMPONENT_STEM

    def container(self, plan: Plan, wanted: ContainerName, inventory: Inventory) -> Container:
        """Plain `bitsandbytes` wherever diffusers' own quantizer can express the plan, otherwise `rulequant`."""
        del inventory
        return component_container(self.skeleton, plan, wanted)

    def keys(self, reader: CheckpointReader) -> KeyMap:
        """Names are those of the model: diffusers renames nothing that it saved itself."""
        names, found = set(self.skeleton.tensors), set(reader.tensors)
        kind = type(self.skeleton.model).__name__
        for name in sorted(names ^ found):
            problem = "is in no shard" if name in names else f"is in the shards, and {kind} does not have it"
            raise CheckpointError(
                f"{printable(self.folder)}: `{printable(name)}` {problem}",
                remedy=f"save it anew with the installed diffusers: {kind}.from_pretrained(…).save_pretrained(…)",
            )
        return KeyMap({name: name for name in reader.tensors})

    def loading(self, container: str) -> str:
        kind, dtype = type(self.skeleton.model).__name__, self.skeleton.dtype
        return (
            f"{IMPORT_DIFFUSERS if container == 'rulequant' else ''}import torch\nfrom diffusers import {kind}\n\n"
            f'model = {kind}.from_pretrained("path/to/this/folder", torch_dtype={dtype})'
        )


@dataclass(frozen=True)
class _Called:
    """A model that a callable returned, with its weights in memory."""

    skeleton: Skeleton
    folder: Path | None = None
    library: ClassVar[str] = "rulequant"
    stem: ClassVar[str] = MODEL_STEM

    def config(self) -> None:
        return None

    def container(self, plan: Plan, wanted: ContainerName, inventory: Inventory) -> Container:
        """Its own: there is no config.json by which transformers could load it."""
        own = own_container(plan, inventory, wanted)
        whole = next((each for each in plan.quantized if not each.name), None)
        if whole:
            raise ModelError(
                f"the model itself is a {whole.type}, which has no parent to be replaced in",
                remedy="wrap it: nn.Sequential(model)",
            )
        return own

    def open(self) -> CheckpointReader:
        return MemoryReader(self.skeleton.name, self.skeleton.model)

    def attach(self, fingerprint: Mapping[str, Mapping[str, int]]) -> CheckpointReader:
        del fingerprint
        return self.open()

    def keys(self, reader: CheckpointReader) -> KeyMap:
        return KeyMap({name: name for name in reader.tensors})

    def loading(self, container: str) -> str:
        del container
        return (
            "import rulequant.torch  # pip install 'rulequant[torch]'\n\n"
            f'model = rulequant.torch.load_quantized("{self.skeleton.name}", "path/to/this/folder")'
        )
