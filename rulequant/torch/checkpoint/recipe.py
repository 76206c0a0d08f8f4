"""Everything that decides the bytes of an output: only where all of it is the same, finished shards are taken over."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rulequant.torch.checkpoint.files import printable
from rulequant.torch.checkpoint.header import TensorEntry
from rulequant.torch.checkpoint.shards import ShardJob

__all__ = ["ENCODING_VERSION", "Recipe", "join_recipes", "make_recipe"]

ENCODING_VERSION = 1
"""Counted up when the same recipe comes to mean other bytes without a new version of rulequant."""

_WORDS = {
    "plan_sha256": "another plan",
    "rules_sha256": "other rules",
    "config_sha256": "another config.json of the model",
    "tensors_sha256": "other tensors in the model",
    "content_sha256": "other weights in the model",
    "container": "another container ({old}, now {new})",
    "mean_threads": "another number of threads of torch ({old}, now {new})",
    "max_shard_bytes": "another largest file ({old:,} bytes, now {new:,})",
    "layout_sha256": "another layout of the files",
    "encoding": "another version of rulequant",
}


@dataclass(frozen=True)
class Recipe:
    """What a run makes of what; two runs of equal recipes write equal bytes."""

    plan_sha256: str
    rules_sha256: str
    source: Mapping[str, Mapping[str, int]]
    """`CheckpointReader.fingerprint()`: size and time of change of each file."""
    tensors_sha256: str
    """Of all headers of the source."""
    content_sha256: str
    """Of samples of its weights."""
    config_sha256: str
    """Of the source's config.json, and the dtype of what is not quantized."""
    container: str
    mean_threads: int
    """With which torch takes the mean whose last bits depend on it."""
    max_shard_bytes: int
    layout_sha256: str
    """Of the files of the output, and what goes into each."""
    versions: Mapping[str, str]
    """rulequant's own is among them."""
    encoding: int = ENCODING_VERSION

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready data; what comes back from JSON is equal."""
        return asdict(self)

    def differences(self, found: Mapping[str, Any]) -> list[str]:
        """In words, how the recipe `found` in a staging folder differs from this one; empty where it does not."""
        mine = self.to_dict()
        names = [name for name in mine if found.get(name) != mine[name]]
        if len(names) > 1 and "layout_sha256" in names:
            names.remove("layout_sha256")  # it follows from the rest
        if "content_sha256" in names and not {"source", "tensors_sha256"}.isdisjoint(names):
            names.remove("content_sha256")  # which says less
        return [words for name in names for words in _difference(name, found.get(name), mine[name])]


def make_recipe(
    tensors: Iterable[TensorEntry],
    jobs: Sequence[ShardJob],
    *,
    source: Mapping[str, Mapping[str, int]],
    plan_sha256: str,
    rules_sha256: str,
    content_sha256: str,
    config: Mapping[str, Any],
    container: str,
    mean_threads: int,
    max_shard_bytes: int,
    versions: Mapping[str, str],
) -> Recipe:
    """The recipe of a run that is about to start; `tensors` are the source's, `config` is what decides the dtypes."""
    return Recipe(
        plan_sha256=plan_sha256,
        rules_sha256=rules_sha256,
        source=source,
        tensors_sha256=_digest(_entry(each) for each in tensors),
        content_sha256=content_sha256,
        config_sha256=_digest([config]),
        container=container,
        mean_threads=mean_threads,
        max_shard_bytes=max_shard_bytes,
        layout_sha256=_digest(_layout(jobs)),
        versions=dict(sorted(versions.items())),
    )


def join_recipes(parts: Mapping[str, Recipe], *, plan_sha256: str, rules_sha256: str) -> Recipe:
    """The recipe of an output that holds several, each in a folder of its name."""
    first = next(iter(parts.values()))
    containers = {each.container for each in parts.values()}
    return Recipe(
        plan_sha256=plan_sha256,
        rules_sha256=rules_sha256,
        source={f"{name}/{file}": stamp for name, each in parts.items() for file, stamp in each.source.items()},
        tensors_sha256=_digest([name, each.tensors_sha256] for name, each in parts.items()),
        content_sha256=_digest([name, each.content_sha256] for name, each in parts.items()),
        config_sha256=_digest([name, each.config_sha256] for name, each in parts.items()),
        container=first.container
        if len(containers) == 1
        else ", ".join(f"{each.container} for {name}" for name, each in parts.items()),
        mean_threads=max(each.mean_threads for each in parts.values()),
        max_shard_bytes=first.max_shard_bytes,
        layout_sha256=_digest([name, each.layout_sha256] for name, each in parts.items()),
        versions={package: version for each in parts.values() for package, version in each.versions.items()},
    )


def _layout(jobs: Iterable[ShardJob]) -> Iterator[object]:
    for job in jobs:
        yield job.name
        for step in job.steps:
            names = [entry.name for entry in step.entries]
            yield [names, step.target, list(step.shape), step.dtype, step.kind, step.scheme is None]


def _entry(entry: TensorEntry) -> list[object]:
    return [entry.shard, entry.name, entry.dtype, entry.shape, entry.start, entry.end]


def _digest(parts: Iterable[object]) -> str:
    digest = hashlib.sha256()
    for each in parts:
        digest.update(json.dumps(each, sort_keys=True).encode() + b"\n")
    return digest.hexdigest()


def _difference(name: str, old: object, new: object) -> Iterator[str]:
    if not isinstance(old, Mapping) or not isinstance(new, Mapping):
        yield _WORDS[name].format(old=old, new=new) if type(old) is type(new) else _WORDS["encoding"]
        return
    changed = sorted(key for key in {*old, *new} if old.get(key) != new.get(key))
    if name == "versions":
        yield from (f"another {key} ({printable(old.get(key))}, now {new.get(key)})" for key in changed)
    else:
        more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
        yield f"another {printable(changed[0])}{more} of the model"
