"""Output shards as jobs of their own: which steps go into which file, and one of them written."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rulequant.torch.checkpoint.files import hash_file
from rulequant.torch.checkpoint.partfile import explained
from rulequant.torch.checkpoint.reader import CheckpointReader
from rulequant.torch.checkpoint.stream import Step, encode_step
from rulequant.torch.checkpoint.writer import ShardWriter, estimate_header, plan_shards, shard_names

__all__ = ["ShardJob", "ShardResult", "plan_jobs", "write_shard"]

_ENCODED_NAMES = 8
"""More tensors than any encoded weight becomes; for estimates only."""


@dataclass(frozen=True)
class ShardJob:
    """One file of the output: its name, and the steps whose tensors it holds, in order."""

    name: str
    steps: tuple[Step, ...]

    @property
    def source_bytes(self) -> int:
        """Bytes that are read for it."""
        return sum(step.source_bytes for step in self.steps)


@dataclass(frozen=True)
class ShardResult:
    """What a shard holds once it is on the disk."""

    name: str
    tensors: Mapping[str, int]
    """Bytes by tensor name, in the order of the file."""
    size: int
    """Bytes of the file."""
    sha256: str

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors, without the header."""
        return sum(self.tensors.values())

    @property
    def payload_bytes(self) -> int:
        """The same without the JSON records of 4-bit tensors."""
        return sum(size for name, size in self.tensors.items() if ".quant_state." not in name)


def plan_jobs(steps: Sequence[Step], max_shard_bytes: int) -> list[ShardJob]:
    """Consecutive steps grouped into shards of at most so many bytes, save for a single larger tensor."""
    by_key = {step.key: step for step in steps}
    groups = plan_shards(((step.key, step.nbytes) for step in steps), max_shard_bytes)
    names = shard_names(len(groups))
    return [ShardJob(name, tuple(by_key[key] for key in group)) for name, group in zip(names, groups, strict=True)]


def write_shard(
    reader: CheckpointReader, job: ShardJob, folder: Path, done: Callable[[Step], None] = lambda _: None
) -> ShardResult:
    """Encode the steps of a shard one by one into its file; `done` is called after each.

    Raises:
        NotFiniteError: a weight holds a value that its method cannot encode.
        CheckpointError: the source or the disk failed.
    """
    sizes: dict[str, int] = {}
    with ShardWriter(folder / job.name, header_reserve=_header_reserve(job.steps)) as writer:
        for step in job.steps:
            for tensor in encode_step(reader, step):
                writer.add(tensor.name, tensor.dtype, tensor.shape, tensor.data)
                sizes[tensor.name] = tensor.data.nbytes
            done(step)
    path = folder / job.name
    with explained(path):
        # Right after writing: the bytes are read from the memory that the system still holds them in.
        return ShardResult(job.name, sizes, path.stat().st_size, hash_file(path, root=folder))


def _header_reserve(steps: Sequence[Step]) -> int:
    entries: list[tuple[str, str, tuple[int, ...]]] = []
    for step in steps:
        if step.scheme is None:
            entries.append((step.key, step.entries[0].dtype + "____", step.entries[0].shape))
        else:
            # Names of unknown suffixes: as many as there can be, each longer than any.
            longest = f"{max(step.prefix, step.key, key=len)}{'x' * 48}"
            entries += [(f"{longest}{number}", "BF16____", (0, 0, 0)) for number in range(_ENCODED_NAMES)]
    return estimate_header(entries)
