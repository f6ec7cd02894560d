"""Are two sides' tokens the same, and where not, is it a rounding tie or a fault?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from specgen.audio.reading import continuations, melodies
from specgen.decoding.acceptance import Rule
from specgen.decoding.loop import decode
from specgen.decoding.sampling import Sampling
from specgen.engine import Engine, Request
from specgen.errors import UserError
from specgen.evaluation.comparison import Plan, load_sides, run
from specgen.evaluation.runs import Made, Run, Side
from specgen.evaluation.tables import percent, promised
from specgen.evaluation.two_sample import wilson
from specgen.generation import ConditionedModel
from specgen.patterns import Pattern
from specgen.presets import Preset
from specgen.requests import Settings

TIE = 1e-4  # margin of two perturbed logits below which float32 rounding decides
_MARGINS = 8  # differing clips whose margins are computed: each costs a decode

Codes = NDArray[np.int64]


@dataclass(frozen=True)
class Difference:
    """The first differing token of a clip, in the verifier's order.

    Attributes:
        request: which clip.
        t, k: frame and codebook, from 0.
        tokens: of each side.
        margin: between the two best perturbed logits of the verifier alone; None if not computed.
    """

    request: Request
    t: int
    k: int
    tokens: tuple[int, int]
    margin: float | None = None

    @property
    def tie(self) -> bool | None:
        return None if self.margin is None else self.margin < TIE

    def as_dict(self) -> dict[str, Any]:
        return {
            "id": self.request.id,
            "prompt": self.request.prompt,
            "seed": self.request.seed,
            "frame": self.t,
            "codebook": self.k + 1,
            "tokens": list(self.tokens),
            "margin": self.margin,
            "rounding_tie": self.tie,
        }


@dataclass(frozen=True)
class Identity:
    """How much of two sides is the same.

    Attributes:
        a, b: labels.
        expected: whether the sides must be identical (one verifier, one sampling, coupled).
        float32: whether all models compute in float32, where a difference must be a tie.
        clips, clips_same, tokens, tokens_same: counts.
        per_codebook: share of identical tokens.
        differences: the first of each differing clip.
    """

    a: str
    b: str
    expected: bool
    float32: bool
    clips: int
    clips_same: int
    tokens: int
    tokens_same: int
    per_codebook: list[float]
    differences: list[Difference] = field(default_factory=list)

    @property
    def holds(self) -> bool | None:
        """Whether the promise is kept; None where nothing is promised.

        In float32 every difference must be a rounding tie. In 16 bit only a share is reported.
        """
        if not self.expected or not self.clips:
            return None
        if not self.differences:
            return True
        return all(d.tie for d in self.differences) if self.float32 else None

    def as_dict(self) -> dict[str, Any]:
        low, high = wilson(self.clips_same, self.clips) if self.clips else (0.0, 1.0)
        return {
            "a": self.a,
            "b": self.b,
            "expected_identical": self.expected,
            "float32": self.float32,
            "holds": self.holds,
            "clips": self.clips,
            "clips_identical": self.clips_same,
            "clips_identical_interval_95": [low, high],
            "tokens": self.tokens,
            "tokens_identical": self.tokens_same,
            "tokens_identical_share": self.tokens_same / self.tokens if self.tokens else None,
            "per_codebook": self.per_codebook,
            "first_differences": [d.as_dict() for d in self.differences],
        }


def first_difference(a: Codes, b: Codes, pattern: Pattern) -> tuple[int, int] | None:
    """The first differing coordinate (t, k) of two `[K, T]` grids, in the pattern's order."""
    differ = a != b
    for step in pattern.layout:
        for t, k in step:
            if differ[k, t]:
                return t, k
    return None


def compare(a: Run, b: Run) -> Identity:
    """Clip by clip and token by token; margins are added by `with_margins`."""
    shared = sorted(a.clips.keys() & b.clips.keys())
    pairs: list[tuple[Made, Made]] = [(a.clips[i], b.clips[i]) for i in shared]
    same = [x.codes == y.codes for x, y in pairs]
    differences = []
    for (x, y), equal in zip(pairs, same, strict=True):
        if equal.all() or a.engine is None:
            continue
        pattern = a.engine.verifier.pattern.of(x.codes.shape[1])
        at = first_difference(x.codes, y.codes, pattern)
        assert at is not None
        t, k = at
        tokens = (int(x.codes[k, t]), int(y.codes[k, t]))
        differences.append(Difference(x.request, t, k, tokens))
    per_codebook = np.mean([s.mean(axis=1) for s in same], axis=0).tolist() if same else []
    return Identity(
        a.label,
        b.label,
        _must_match(a.engine, b.engine),
        all(_float32(run.engine) for run in (a, b)),
        len(same),
        sum(bool(s.all()) for s in same),
        sum(s.size for s in same),
        sum(int(s.sum()) for s in same),
        per_codebook,
        differences,
    )


def _must_match(a: Engine | None, b: Engine | None) -> bool:
    """Both draw the verifier's own tokens, of the same verifier with the same sampling."""
    if a is None or b is None:
        return False
    own = [e.drafter is None or e.settings.rule == Rule.COUPLED for e in (a, b)]
    one_model = a.verifier.sha256 == b.verifier.sha256
    one_sampling = a.settings.sampling == b.settings.sampling
    return all(own) and a.lossless and b.lossless and one_model and one_sampling


def _float32(engine: Engine | None) -> bool:
    return engine is not None and engine.verifier.lm.dtype == torch.float32


def with_margins(found: Identity, engine: Engine, say: Callable[[str], None]) -> Identity:
    """The same with margins at the first differences: the verifier alone decodes those clips."""
    if not found.expected or not found.differences:
        return found
    longest = max(engine.frames(d.request.duration or 0.0) for d in found.differences)
    if longest > engine.verifier.max_frames or any(d.request.sections for d in found.differences):
        return found  # made in windows, of which the plain decode here knows nothing
    say(f"{found.b}: decoding {min(len(found.differences), _MARGINS)} differing clips for margins")
    known: Sequence[Difference] = [
        replace(d, margin=float(margins(engine, d.request)[d.k, d.t]))
        for d in found.differences[:_MARGINS]
    ]
    return replace(found, differences=[*known, *found.differences[_MARGINS:]])


def margins(engine: Engine, request: Request) -> torch.Tensor:
    """`[K, T]` gaps between the two best perturbed logits when the verifier decodes alone.

    What the clip goes on from has none (NaN).
    """
    request = engine.check(request)
    frames, sampling = engine.frames(request.duration or 0.0), engine.settings.sampling
    (start,) = continuations([request.continue_from], engine.codec, engine.device)
    tunes = melodies([request.melody], engine.melody_rate()) if request.melody else ()
    cast = ConditionedModel.of(engine.verifier, [request.prompt], frames, sampling.cfg, tunes=tunes)
    with torch.inference_mode():
        made = decode(
            cast.role,
            frames=[frames],
            seeds=[request.seed],
            sampling=Sampling(sampling.temperature, sampling.top_k, sampling.top_p),
            prompt=None if start is None else start.codes[None],
            margins=True,
        )
    assert made.margins is not None
    return made.margins[0]


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
