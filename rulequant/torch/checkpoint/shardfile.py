"""One file of the output while it is written: its units of work, what they report, and its end."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from rulequant.errors import ResumableError
from rulequant.torch.checkpoint.arrangement import Place
from rulequant.torch.checkpoint.checksums import Digest
from rulequant.torch.checkpoint.cutting import Cutting
from rulequant.torch.checkpoint.partfile import PartFile
from rulequant.torch.checkpoint.step import Step
from rulequant.torch.checkpoint.units import Checked, Hashed, Late, Result, Synced, Unit
from rulequant.torch.checkpoint.writer import header_bytes
from rulequant.verification import Sample

__all__ = ["Begun", "ShardFile"]


class Begun(NamedTuple):
    """A file without a name, in which units of a cutting were carried out that nobody had asked for yet."""

    fd: int
    """Its owner's."""
    results: Mapping[int, Result]
    """Of these units, by their place in the order of the cutting; of a weight that is one unit, of its slice alone."""


@dataclass(slots=True)
class _Open:
    """A step that is not done: how many of its units are, of how many."""

    step: Step
    units: int
    done: int = 0
    late: tuple[Late, ...] = ()
    sample: Sample = field(default_factory=Sample)
    begun: bool = False
    """Whether some of it was done before the file had its name."""
    finishing: bool = False


class ShardFile:
    """A file that is written in place, unit by unit; complete when `next_unit` has no more and all were taken in."""

    def __init__(self, folder: Path, cutting: Cutting, *, sync: bool = False, begun: Begun | None = None) -> None:
        """Create it, or give what is begun its name; `sync` says whether syncing is a unit of its own.

        Raises:
            UsageError: a row of a weight takes more memory than there is.
            CheckpointError: it cannot be created.
        """
        self.name = cutting.shard
        self._cutting, self._sync = cutting, sync
        self._arrangement = cutting.arrangement
        self._open = [_Open(step, cutting.count(step)) for step in cutting.steps]
        self._left = sum(each.units > 0 for each in self._open)
        self._then: deque[tuple[int, Unit]] = deque()
        self._last = -1
        self._places: dict[str, Place] = {}
        self._sha256, self._crc32 = "", dict[str, str]()
        self._size = 0
        self.done_at_once = [each.step for each in self._open if not each.units]
        """The steps that nothing is left to do for."""
        self._file, results = _create(folder / self.name, begun)
        self._first = self._left_of(results)

    def next_unit(self) -> tuple[int, Unit] | None:
        """A unit that may be done now, and the number to take its result in under; None while there is none."""
        if self._then:
            return self._then.popleft()
        found = next(self._first, None)
        if found is None and self._left == 0 and self._last < 0:
            self._seal()
            return self.next_unit()
        return found

    def take(self, number: int, result: Result) -> Step | None:
        """Take the result of a unit in; returns a step that is done by it."""
        if number < 0:
            self._last -= 1
            self._sha256, self._crc32 = result.sha256 or self._sha256, dict(result.crc32 or self._crc32)
            return None
        state = self._open[number]
        state.done += 1
        state.late += result.late
        state.sample = state.sample.plus(result.sample)
        if state.done < state.units:
            return None
        if self._needs_finish(state):
            state.finishing, state.units = True, state.units + 1
            self._then.append((number, self._cutting.finished(state.step)))
            return None
        self._left -= 1
        return state.step

    @property
    def samples(self) -> dict[str, Sample]:
        """How far encoded weights are from the original, by module; for fused experts by parameter."""
        return {each.step.target.removesuffix(".weight"): each.sample for each in self._open if each.sample.values}

    @property
    def is_complete(self) -> bool:
        """Whether all is written, and the file only waits for its name."""
        return self._last == 0

    def close(self) -> tuple[dict[str, int], Digest]:
        """Sync it and give it its name: (bytes by tensor in the order of the file, size and hashes of the file)."""
        self._file.finish()
        tensors = {name: place.nbytes for name, place in self._places.items()}
        return tensors, Digest(self._size, self._sha256, self._crc32)

    def abort(self) -> None:
        """Remove what was written so far; does nothing after `close`."""
        self._file.discard()

    def _needs_finish(self, state: _Open) -> bool:
        """Whether slices were encoded that do not know of the rest; one that is all of a weight knows, unless begun."""
        return state.step.slicing is not None and (state.units > 1 or state.begun) and not state.finishing

    def _left_of(self, results: Mapping[int, Result]) -> Iterator[tuple[int, Unit]]:
        """The units that are not done, once the results of the others are taken in."""
        left = []
        for place, (number, unit) in enumerate(self._cutting.units()):
            if place not in results:
                left.append((number, unit))
                continue
            self._open[number].begun = True
            step = self.take(number, results[place])
            self.done_at_once += [step] if step else []
        return iter(left)

    def _seal(self) -> None:
        """Write the records and the header, once all else is written; then the file may be hashed and synced."""
        found = dict(self._arrangement.places)
        position = self._arrangement.end
        for state in self._open:
            region = self._arrangement.regions.get(state.step.key, 0)
            for late in state.late:
                if late.data is None:
                    found[late.name], region = self._late_place(late, region), region + late.nbytes
                    continue
                self._file.write(late.data, position)
                found[late.name], position = self._late_place(late, position), position + late.nbytes
        self._places = dict(sorted(found.items(), key=lambda each: each[1].start))
        self._file.truncate(position)
        self._size = position
        self._file.write(header_bytes(_entries(self._places), self._arrangement.header_bytes), 0)
        # In this order the first of two workers syncs, which is waiting, and checks; the second does the longest.
        last: list[Unit] = [*([Synced(self.name)] if self._sync else []), Hashed(self.name), Checked(self.name)]
        self._then.extend((-1, each) for each in last)
        self._last = len(self._then)

    def _late_place(self, late: Late, offset: int) -> Place:
        return Place(late.dtype, late.shape, offset - self._arrangement.data_start, late.nbytes)


def _entries(tensors: dict[str, Place]) -> dict[str, object]:
    return {
        name: {"dtype": each.dtype, "shape": list(each.shape), "data_offsets": [each.start, each.start + each.nbytes]}
        for name, each in tensors.items()
    }


def _create(path: Path, begun: Begun | None) -> tuple[PartFile, Mapping[int, Result]]:
    """The file, and what of it is done."""
    if begun is not None:
        with suppress(ResumableError):  # what the disk has against that name, it has against any
            return PartFile(path, begun.fd), begun.results
    return PartFile(path), {}
