"""What `apply` writes while another process finds out what the model is: a guess at the plan, by RULES."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from rulequant.plan import Plan

if TYPE_CHECKING:
    from rulequant.cli.jobs import Request
    from rulequant.inventory import Inventory
    from rulequant.torch.checkpoint.crew import Crew

__all__ = ["begin_ahead", "draft_for"]

WORTHWHILE = 128 << 20
"""Bytes of weights; fewer are encoded as fast as a process begins."""


@contextmanager
def draft_for(request: Request, *, wanted: bool) -> Iterator[int | None]:
    """The descriptor of a file that may become one of the output, where it is worth while to begin it; else None."""
    from rulequant.torch.checkpoint.ahead import open_draft
    from rulequant.torch.checkpoint.staging import Staging

    nbytes = 0
    with suppress(OSError):
        nbytes = sum(each.stat().st_size for each in Path(request.model).glob("model*.safetensors"))
    interrupted = Staging(request.output).folder.exists()  # whose files may be taken over
    if not wanted or interrupted or nbytes < WORTHWHILE:
        yield None
        return
    with open_draft(request.output.absolute().parent, nbytes) as draft:
        yield draft


def begin_ahead(request: Request, crew: Crew, fd: int, memory: int) -> None:
    """Have the crew write into a file what workers of so much memory will probably be asked for.

    What is wrong with the rules or the checkpoint is told by the process that makes the plan; here it ends the guess.
    """
    from rulequant.torch.checkpoint.ahead import Draft, guess_dtype, guess_inventory, guess_steps
    from rulequant.torch.checkpoint.header import FLOATS
    from rulequant.torch.checkpoint.reader import CheckpointReader
    from rulequant.torch.checkpoint.sidefiles import source_config

    with suppress(Exception):
        folder = Path(request.model)
        config = source_config(folder)
        with CheckpointReader.open(folder) as reader:
            dtype = guess_dtype(reader, config)
            if any(each.dtype in FLOATS - {dtype} and len(each.shape) > 1 for each in reader.tensors.values()):
                crew.expect_torch()
            inventory = guess_inventory(reader, config, request.model)
            plan = request.plan if isinstance(request.plan, Plan) else _guess_plan(request.rules, inventory)
            steps = guess_steps(plan, inventory, reader, dtype)
            crew.write_ahead(folder, Draft(fd, steps, reader.fingerprint(), memory, request.max_shard_bytes))


def _guess_plan(rules: str | None, inventory: Inventory) -> Plan:
    from rulequant.cli.inputs import load_ruleset
    from rulequant.library import choose
    from rulequant.planner import make_plan

    ruleset, _ = load_ruleset(choose(inventory).name if rules is None else rules)
    return make_plan(ruleset, inventory)
