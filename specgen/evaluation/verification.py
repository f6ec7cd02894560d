"""Does a preset keep the promises here, on this machine, with these checkpoints?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from specgen.decoding.acceptance import Rule
from specgen.errors import UserError
from specgen.evaluation.comparison import Plan, load_sides, run
from specgen.evaluation.runs import Side
from specgen.evaluation.tables import percent, promised
from specgen.presets import Preset
from specgen.requests import Settings

Say = Callable[[str], None]


@dataclass(frozen=True)
class Check:
    """One promise.

    Attributes:
        name: which.
        ok: whether it holds; None where only a share is reported.
        text: what was found.
        found: the comparison's row.
    """

    name: str
    ok: bool | None
    text: str
    found: dict[str, Any]

    def as_dict(self) -> dict[str, Any]:
        return {"name": self.name, "ok": self.ok, "text": self.text, "found": self.found}


def sides_of(preset: Preset, dtype: str) -> list[Side]:
    """The verifier alone, the preset's own way, and coupled drafting at two more lengths.

    Raises:
        UserError: the preset has no drafter.
    """
    if preset.drafter is None:
        raise UserError(
            f"preset {preset.name} has no drafter, so there is nothing to verify; "
            "give one that drafts, such as embedded"
        )
    settings = Settings.of(preset)
    coupled = replace(settings, rule=Rule.COUPLED.value)
    sides = [
        Side("the verifier alone", preset, coupled, draft=False, dtype=dtype),
        Side("the preset", preset, settings, dtype=dtype),
    ]
    lengths = [n for n in (1, 4) if n != settings.draft_frames or settings != coupled]
    return sides + [
        Side(f"coupled, {n} frames drafted", preset, replace(coupled, draft_frames=n), dtype=dtype)
        for n in lengths
    ]


def verify(preset: Preset, dtypes: Sequence[str], plan: Plan, say: Say) -> list[Check]:
    """Every check, one number format after the other.

    Args:
        preset: what to verify; it must have a drafter.
        dtypes: number formats; the short clips' test is made in the first.
        plan: what to make.
        say: told what happens.
    """
    checks: list[Check] = []
    for i, dtype in enumerate(dtypes):
        say(f"{dtype}:")
        sides = sides_of(preset, dtype)
        here = plan if i == 0 else replace(plan, short_clips=0)
        outcome = run(load_sides(sides if i == 0 else sides[:2], here), here, say)
        if outcome.interrupted:
            raise KeyboardInterrupt
        if outcome.failures:
            text = outcome.failures[0]
            checks.append(Check(f"{dtype}: all clips made", False, text, {}))
        checks += [identity_check(row, dtype) for row in outcome.document["identity"]]
        checks += [likelihood_check(row, dtype) for row in outcome.document["likelihood"]]
        checks += [
            distribution_check(row, dtype, promised(outcome.document, row))
            for row in outcome.document["short"]
        ]
    return checks


def identity_check(row: dict[str, Any], dtype: str) -> Check:
    """Whether a row's tokens are the verifier's own, where that is promised."""
    share = percent(row["tokens_identical_share"])
    text = (
        f"{row['clips_identical']} of {row['clips']} clips, {share} of {row['tokens']:,} tokens "
        "are the verifier's own"
    )
    if row["first_differences"] and row["holds"] is not None:
        first = row["first_differences"][0]
        kind = "rounding ties" if row["holds"] else "NOT a rounding tie"
        text += f"; first at frame {first['frame']}, codebook {first['codebook']}: {kind}"
    if not row["expected_identical"]:
        text += " (another sample of the same law, by its rule)"
    return Check(f"{dtype}: identity, {row['b']}", row["holds"], text, row)


def likelihood_check(row: dict[str, Any], dtype: str) -> Check:
    """Whether a lossless side's tokens are as surprising as the verifier's law says."""
    low, high = row["interval_95"]
    text = (
        f"{row['excess_nats']:+.3f} nats a token off ({low:+.3f} to {high:+.3f}, p = {row['p']:.2g}"
        f", {row['tokens']:,} tokens); {row['detectable_nats']:.3f} would be caught"
    )
    ok = not row["differs"] if row["lossless"] else None
    return Check(f"{dtype}: likelihood, {row['label']}", ok, text, row)


def distribution_check(row: dict[str, Any], dtype: str, must_hold: bool) -> Check:
    """Whether many short clips of a lossless side follow the verifier's law."""
    verdict = f"differ, most in {row['worst']}" if row["differs"] else "no difference"
    text = f"{row['clips']} clips of {row['frames']} frames a side: {verdict} (p = {row['p']:.2g})"
    if row["detectable_shift"] is not None:
        text += (
            f"; a bias of {row['detectable_shift']:.0%} of the tokens is caught in "
            f"{row['power']:.0%} of runs"
        )
    ok = not row["differs"] if must_hold else None
    return Check(f"{dtype}: distribution, {row['b']}", ok, text, row)
