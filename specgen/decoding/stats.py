"""What a decode did: the counts that speed and acceptance are computed from."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any


@dataclass
class DecodeStats:
    """Counts of one row's decode (or of several, added).

    Attributes:
        codebooks: K.
        drafted: per codebook, guesses that the verifier judged.
        accepted: per codebook, those that stood.
        bonus: tokens the verifier wrote where there was no guess.
        rounds: drafting and verifying, once each.
        verifier_passes, drafter_steps: forward passes of each model.
        close_calls: tokens that were decided in double precision (`specgen.decoding.ties`).
    """

    codebooks: int
    drafted: list[int] = field(default_factory=list)
    accepted: list[int] = field(default_factory=list)
    bonus: int = 0
    rounds: int = 0
    verifier_passes: int = 0
    drafter_steps: int = 0
    close_calls: int = 0

    def __post_init__(self) -> None:
        self.drafted = self.drafted or [0] * self.codebooks
        self.accepted = self.accepted or [0] * self.codebooks

    @property
    def corrected(self) -> int:
        """Guesses that the verifier replaced."""
        return sum(self.drafted) - sum(self.accepted)

    @property
    def tokens(self) -> int:
        """Tokens made."""
        return sum(self.drafted) + self.bonus

    @property
    def acceptance(self) -> float | None:
        """Share of judged guesses that stood; None if there were none."""
        return _share(sum(self.accepted), sum(self.drafted))

    @property
    def acceptance_per_codebook(self) -> list[float | None]:
        return [_share(a, d) for a, d in zip(self.accepted, self.drafted, strict=True)]

    @property
    def tokens_per_pass(self) -> float | None:
        """Mean tokens committed a verifier pass."""
        return _share(self.tokens, self.verifier_passes)

    def as_dict(self) -> dict[str, Any]:
        """The sidecar's `stats` (design: field names that scripts rely on)."""
        return {
            "rounds": self.rounds,
            "drafted": sum(self.drafted),
            "accepted": sum(self.accepted),
            "corrected": self.corrected,
            "bonus": self.bonus,
            "acceptance": self.acceptance,
            "acceptance_per_codebook": self.acceptance_per_codebook,
            "tokens_per_pass": self.tokens_per_pass,
            "drafter_steps": self.drafter_steps,
            "verifier_passes": self.verifier_passes,
            "close_calls": self.close_calls,
        }

    @classmethod
    def total(cls, parts: Iterable[DecodeStats]) -> DecodeStats:
        """The sum over rows or clips.

        Raises:
            ValueError: nothing to add.
        """
        parts = list(parts)
        if not parts:
            raise ValueError("no statistics to add")
        return cls(
            parts[0].codebooks,
            [sum(column) for column in zip(*(p.drafted for p in parts), strict=True)],
            [sum(column) for column in zip(*(p.accepted for p in parts), strict=True)],
            sum(p.bonus for p in parts),
            sum(p.rounds for p in parts),
            sum(p.verifier_passes for p in parts),
            sum(p.drafter_steps for p in parts),
            sum(p.close_calls for p in parts),
        )


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None
