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
from specgen.evaluation.runs import Made, Run
from specgen.evaluation.two_sample import wilson
from specgen.generation import ConditionedModel
from specgen.patterns import Pattern

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
