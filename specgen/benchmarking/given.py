"""Acceptance that is not measured here: given, or taken from a results file. Loads no torch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from specgen.errors import UserError


@dataclass(frozen=True)
class Given:
    """The acceptance that a synthetic row is run with.

    Attributes:
        values: share of guesses that stand, one a codebook.
        source: where it comes from, in words.
    """

    values: tuple[float, ...]
    source: str

    @classmethod
    def parse(cls, text: str, codebooks: int) -> Given:
        """Read `0.7`, or one value a codebook: `0.8,0.7,0.6,0.6`.

        Raises:
            UserError: not numbers from 0 to 1, or the wrong number of them.
        """
        try:
            values = tuple(float(part) for part in text.split(","))
        except ValueError:
            raise UserError(f"--acceptance {text!r}: {text} is no number; give 0.7") from None
        return cls(_fit(values, codebooks, f"--acceptance {text!r}"), "given")

    @classmethod
    def read(cls, text: str, codebooks: int) -> Given:
        """Read `FILE.json:ROW`: a row of a results file of `specgen bench`, by its label.

        Of several rows of that label the first that states an acceptance counts.

        Raises:
            UserError: no such file or row, or a row without a measured acceptance.
        """
        name, colon, label = text.rpartition(":")
        if not colon:
            raise UserError(f"--acceptance-from {text!r} must be FILE.json:ROW")
        try:
            document = json.loads(Path(name).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise UserError(
                f"--acceptance-from: cannot read {name}: {reason}; name a results file"
            ) from None
        rows: list[Any] = document.get("rows", []) if isinstance(document, dict) else []
        stated = [
            row
            for row in rows
            if isinstance(row, dict) and row.get("acceptance_per_codebook") and row.get("label")
        ]
        found = next((row for row in stated if row["label"] == label), None)
        if found is None:
            known = ", ".join(dict.fromkeys(row["label"] for row in stated)) or "none"
            raise UserError(
                f"--acceptance-from: {name} has no row {label!r} with a measured acceptance; "
                f"rows that have one: {known}"
            )
        if found.get("synthetic"):
            raise UserError(
                f"--acceptance-from: row {label!r} of {name} is synthetic; name a measured one"
            )
        values = tuple(0.0 if v is None else float(v) for v in found["acceptance_per_codebook"])
        return cls(_fit(values, codebooks, f"{name}: {label}"), f"{name}: {label}")

    def __str__(self) -> str:
        if len(set(self.values)) == 1:
            return f"{self.values[0]:g}"
        return " ".join(f"{value:.3g}" for value in self.values)


def _fit(values: Sequence[float], codebooks: int, where: str) -> tuple[float, ...]:
    if any(not 0 <= value <= 1 for value in values):
        raise UserError(f"{where}: acceptance lies between 0 and 1")
    if len(values) not in (1, codebooks):
        raise UserError(f"{where}: one value, or {codebooks} (one a codebook), got {len(values)}")
    return tuple(values) * (codebooks if len(values) == 1 else 1)
