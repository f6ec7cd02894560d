"""Shards: which rows of a job this process makes."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from specgen.errors import UserError


@dataclass(frozen=True)
class Shard:
    """Shard `index` of `count`, from 1.

    A row belongs to a shard by a hash of its id, so rows may be added, taken away or put into
    another order without moving the rest.
    """

    index: int = 1
    count: int = 1

    def holds(self, row_id: str) -> bool:
        """Whether the row of this id is made here."""
        if self.count == 1:
            return True
        digest = hashlib.sha256(f"shard/{row_id}".encode()).digest()
        return int.from_bytes(digest[:8], "big") % self.count == self.index - 1

    @property
    def folder(self) -> str:
        """The name of the folder for this shard's clips, below the job's."""
        width = max(3, len(str(self.count)))
        return f"shard-{self.index:0{width}d}-of-{self.count:0{width}d}"


def parse_shard(text: str | None, environment: Mapping[str, str] = os.environ) -> Shard:
    """The shard of `--shard i/n`, or of the Slurm array task that this process is, or all.

    A Slurm array may start anywhere and have a step; one that is a list of single tasks does not
    say how many shards there are, so it needs `--shard`.

    Raises:
        UserError: not `i/n`, or i beyond n.
    """
    if text is None:
        return _of_slurm(environment)
    match = re.fullmatch(r"\s*(\d{1,7})\s*/\s*(\d{1,7})\s*", text)
    index, count = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 1 <= index <= count:
        raise UserError(f"--shard must be i/n with 1 <= i <= n, such as 2/8, got {text!r}")
    return Shard(index, count)


def _of_slurm(environment: Mapping[str, str]) -> Shard:
    names = ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT")
    if any(name not in environment for name in names):
        return Shard()
    try:
        task, count = (int(environment[name]) for name in names)
        low = int(environment.get("SLURM_ARRAY_TASK_MIN", "0"))
        step = int(environment.get("SLURM_ARRAY_TASK_STEP", "1"))
        index, rest = divmod(task - low, step)
    except (ValueError, ZeroDivisionError):
        raise UserError("the SLURM_ARRAY_TASK_* variables make no sense; give --shard") from None
    if rest or not 0 <= index < count:
        raise UserError(
            f"this Slurm array does not number its {count} tasks in a row; give --shard i/n"
        )
    return Shard(index + 1, count)
