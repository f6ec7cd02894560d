"""How many verifier steps to draft ahead: a fixed number, or the one that pays best."""

from __future__ import annotations

MAX_STEPS = 48  # a verify pass has one column more, and must fit into `lane.MAX_BLOCK`
_PRIOR_JUDGED = 8.0  # weight of the prior acceptance, in judged steps
_FORGET = 0.98
_PROBE = 24  # rounds without a draft before one is tried again


class Line:
    """A running least-squares line cost = fixed + slope * size, older points weighing less.

    It starts as a guess of the line's *shape*; the first measured cost sets its scale, and the
    guess then fades as points come in.
    """

    def __init__(self, fixed: float, slope: float) -> None:
        self.fixed, self.slope = fixed, slope
        self._sums = [0.0] * 5  # n, x, y, xx, xy
        self._measured = False

    def at(self, size: float) -> float:
        return self.fixed + self.slope * size

    def add(self, size: float, cost: float) -> None:
        """Take in a measured cost."""
        if not self._measured:
            self._measured = True
            scale = cost / self.at(size)
            for x in (1.0, 8.0, 16.0):
                self._enter(x, scale * self.at(x))
        self._sums = [_FORGET * s for s in self._sums]
        self._enter(size, cost)
        n, x, y, xx, xy = self._sums
        spread = n * xx - x * x
        if spread > 1e-6 * n * n:
            self.slope = max((n * xy - x * y) / spread, 0.0)
        self.fixed = max((y - self.slope * x) / n, 0.05 * y / n)

    def _enter(self, size: float, cost: float) -> None:
        for i, value in enumerate((1.0, size, cost, size * size, size * cost)):
            self._sums[i] += value


class FixedLength:
    """Always the same number of steps."""

    def __init__(self, steps: int) -> None:
        if steps < 1:
            raise ValueError(f"the draft length must be at least 1, got {steps}")
        self.steps = steps

    def choose(self) -> int:
        return self.steps

    def observe(self, *, length: int, accepted: int, judged: int, draft_steps: int) -> None:
        """A fixed length learns nothing."""


class Costs:
    """What a round costs, in units of any kind: a verify pass over some columns, a drafter step.

    They start as the shape seen on CPUs at embedded sizes, in units of a one-column pass; clocked
    by the loop, they become seconds.
    """

    def __init__(self) -> None:
        self.verify = Line(0.9, 0.1)
        self.draft_step = 0.25
        self._clocked = False

    def clock(
        self, *, draft_steps: int, draft_seconds: float, columns: int, verify_seconds: float
    ) -> None:
        """Take in one round's times."""
        if not self._clocked:
            self._clocked = True
            self.draft_step *= verify_seconds / self.verify.at(columns)
        self.verify.add(columns, verify_seconds)
        if draft_steps:
            self.draft_step += 0.1 * (draft_seconds / draft_steps - self.draft_step)


class AutoLength:
    """Maximises one row's expected committed steps per unit of time.

    With a share a of steps accepted, a draft of m steps commits (1 - a^(m+1)) / (1 - a) steps a
    round (Leviathan et al. 2023, eq. 1); it costs one verify pass over m + 1 columns and the
    drafter's steps. The acceptance and the drafter steps a draft takes are the row's own. Where no
    draft pays, m is 0 (the verifier alone), with a draft now and then to see whether it would.

    Args:
        steps_a_draft_step: verifier steps that one drafter step covers (K for delay to flatten).
        costs: shared by the rows of a batch if clocked. Left unclocked, the choice, and with it the
            sample under a rule whose sample depends on the draft length, is the same in every run
            and every batch.
    """

    def __init__(self, steps_a_draft_step: float, costs: Costs) -> None:
        self._costs = costs
        self._idle = 0
        self._accepted, self._judged = 0.65 * _PRIOR_JUDGED, _PRIOR_JUDGED
        self._draft_steps = Line(1.0, 1.0 / steps_a_draft_step)

    def observe(self, *, length: int, accepted: int, judged: int, draft_steps: int) -> None:
        """Learn from one round: steps accepted of those judged, and drafter steps."""
        self._accepted = _FORGET * self._accepted + accepted
        self._judged = _FORGET * self._judged + judged
        if length:
            self._draft_steps.add(length, draft_steps)

    def choose(self) -> int:
        """The draft length with the highest expected pace, in verifier steps."""
        rate = min(self._accepted / self._judged, 0.98)
        costs = self._costs

        def pace(m: int) -> float:
            committed = (1 - rate ** (m + 1)) / (1 - rate)
            drafting = costs.draft_step * self._draft_steps.at(m) if m else 0.0
            return committed / (costs.verify.at(m + 1) + drafting)

        best = max(range(1, MAX_STEPS + 1), key=pace)
        self._idle = 0 if pace(best) > pace(0) or self._idle >= _PROBE else self._idle + 1
        return 0 if self._idle else best
