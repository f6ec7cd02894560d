"""What passes cost here, and what the cost model makes of it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable
from typing import Any

import torch

from specgen.benchmarking.prediction import Prices, predict
from specgen.benchmarking.timing import Samples
from specgen.benchmarking.trials import Plan, Trial
from specgen.decoding.draft_length import MAX_STEPS
from specgen.decoding.lane import Role
from specgen.decoding.loop import steps_per_frame
from specgen.decoding.sampling import Sampling, process

AUTO_FRAMES = (1, 2, 3, 4, 6, 8, 12)  # draft lengths tried in place of `auto`
_REPEATS = 7


def draft_steps(trial: Trial) -> list[int]:
    """The draft lengths, in verifier steps, that a pair's prediction chooses from."""
    if trial.drafting.steps is not None:
        return [trial.drafting.steps]
    per_frame = steps_per_frame(trial.lead.pattern)
    return [0, *(f * per_frame for f in AUTO_FRAMES if f * per_frame <= MAX_STEPS)]


@torch.inference_mode()
def block_seconds(role: Role, batch: int, columns: Iterable[int], frames: int) -> dict[int, float]:
    """Seconds of a verifier pass of some columns, its logits and draws with it, at half the length.

    Args:
        role: the verifier, its cache empty.
        batch: rows.
        columns: how many, for each pass; they are timed in turn.
        frames: T.
    """
    scorer, pattern = role.scorer, role.pattern.of(frames)
    sampling = Sampling()
    start = pattern.steps // 2
    device, K = scorer.device, role.pattern.codebooks

    def one(n: int) -> float:
        n = min(n, pattern.steps - 1 - start)
        places = [
            (r, place, c.k)
            for r in range(batch)
            for place in range(n)
            for c in pattern.layout[start + place + 1]
        ]
        rows, at, codebooks = (list(x) for x in zip(*places, strict=True))
        tokens = torch.zeros(batch, K, n, dtype=torch.long, device=device)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        began = time.perf_counter()
        logits = scorer.logits(scorer.feed(tokens, [start] * batch), rows, at, codebooks)
        process(logits, sampling).argmax(dim=-1).tolist()  # waits for the device
        return time.perf_counter() - began

    sizes = sorted(set(columns))
    taken: dict[int, list[float]] = {n: [] for n in sizes}
    for _ in range(_REPEATS + 2):
        for n in sizes:
            taken[n].append(one(n))
    return {n: statistics.median(values[2:]) for n, values in taken.items()}


class Book:
    """The prices of one group of trials: each verifier's block passes are measured once.

    A pass of one column costs what a step of the verifier alone costs, all that goes with a step
    included; a pass of n columns costs more by what its forward pass and draws take longer. A
    draft step costs what a step of the drafter alone costs.
    """

    def __init__(self, plan: Plan, trials: Iterable[Trial]) -> None:
        self._plan = plan
        self._sizes: dict[tuple[object, ...], set[int]] = {}
        for trial in trials:
            if trial.follow is not None:
                sizes = self._sizes.setdefault(trial.case.reference, {1})
                sizes.update(steps + 1 for steps in draft_steps(trial))
        self._blocks: dict[tuple[object, ...], dict[int, float]] = {}

    def prices(self, trial: Trial, verify_step: float, draft_step: float) -> Prices:
        """Prices of a pair's passes, from the seconds of a step of each model alone."""
        key = trial.case.reference
        if key not in self._blocks:
            prompts = [r.prompt for r in self._plan.requests(trial.case, 0)]
            self._blocks[key] = block_seconds(
                trial.roles(prompts)[0], trial.case.batch, self._sizes[key], trial.frames
            )
        block = self._blocks[key]
        more = {n: max(0.0, seconds - block[1]) for n, seconds in block.items()}
        return Prices({n: verify_step + extra for n, extra in more.items()}, draft_step)

    def predict(
        self,
        trial: Trial,
        alone: tuple[Trial, Samples],
        drafter: tuple[Trial, Samples],
        chance: list[float],
        measured: float,
    ) -> dict[str, Any]:
        """A pair's `predicted` field.

        Args:
            trial: the pair.
            alone, drafter: its verifier and its drafter alone, with their times.
            chance: acceptance of each codebook.
            measured: seconds, to say how far off the prediction is.
        """
        follow = trial.follow
        assert follow is not None
        prices = self.prices(trial, _step_seconds(*alone), _step_seconds(*drafter))
        found = predict(
            trial.lead.pattern,
            follow.pattern,
            prices,
            frames=trial.frames,
            steps=draft_steps(trial),
            chance=chance,
            batch=trial.case.batch,
        )
        return {
            "seconds": found.seconds,
            "relative_error": found.seconds / measured - 1,
            "draft_frames": found.steps / steps_per_frame(trial.lead.pattern),
            "tokens_per_pass": found.passes.tokens_per_pass,
            "draft_step_seconds": prices.draft,
            "verify_pass_seconds": {str(n): s for n, s in sorted(prices.verify.items())},
            "acceptance_per_codebook": chance,
        }


def _step_seconds(trial: Trial, samples: Samples) -> float:
    return samples.median / statistics.fmean(verify for verify, _ in trial.passes)
