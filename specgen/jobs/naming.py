"""File names of a job's clips, from a template."""

from __future__ import annotations

import re
from dataclasses import dataclass

from specgen.errors import UserError
from specgen.jobs.rows import Row, slug, unsafe_name

FIELDS = ("id", "slug", "seed", "index")
_PARTS = re.compile(r"\{([^{}]*)\}")


@dataclass(frozen=True)
class Template:
    """A file name without suffix, with `{id}`, `{slug}`, `{seed}` and `{index}` in it.

    `{index}` is the row's place in the prompt file, in six digits: it alone depends on order.

    Raises:
        UserError: an unknown field, or letters that no file name may have.
    """

    text: str = "{id}"

    def __post_init__(self) -> None:
        for field in _PARTS.findall(self.text):
            if field not in FIELDS:
                known = ", ".join(f"{{{name}}}" for name in FIELDS)
                raise UserError(f"--name: {{{field}}} is unknown; use {known}")
        if not _PARTS.search(self.text):
            raise UserError(f"--name {self.text!r} is the same for every clip; put {{id}} into it")
        reason = unsafe_name(_PARTS.sub("0", self.text))
        if reason:
            raise UserError(f"--name: {reason}")

    def render(self, row: Row, index: int) -> str:
        """The name of a row's clip; `unsafe_name` tells whether it can be used."""
        values = {
            "id": row.id,
            "slug": slug(row.prompt),
            "seed": str(row.seed),
            "index": f"{index:06d}",
        }
        return _PARTS.sub(lambda match: values[match[1]], self.text)
