"""How many verifier steps to draft ahead: a fixed number, or the one that pays best."""

from __future__ import annotations

import copy

MAX_STEPS = 48  # a verify pass has one column more, and must fit into `lane.MAX_BLOCK`
_DRIFT = 0.05  # share of the last round in the scale of all prices, which grow with the sequence
_SHAPE = 0.002  # share of the last round in how prices relate to each other, at least
_SPIKE = 2.0  # times what is expected: the most that a time counts for
_FORGET = 0.98  # of a row's acceptance, a round that judged guesses
_PRIOR_JUDGED = 16.0  # weight of what other pieces have shown, in judged steps
_LONG = 120.0  # judged steps that their acceptance goes back
_SWITCH = 0.03  # how much faster the other way must be, with drafts or without
_BESIDE = 8  # rounds after a change of kind that are compared with those before it
_FAR = 4.0  # times as dear: no matter of columns, the machine has changed its pace in between
_TRIAL, _WASTE = 6, 0.005  # rounds that the other way is tried for; what trying may cost
_SHORTEST_PAUSE, _LONGEST_PAUSE = 16, 384  # rounds between trials


class Line:
    """A running least-squares line cost = fixed + slope * size, older points weighing less.

    Args:
        fixed, slope: the guess that it starts as,
        firm: and how many points that is worth at each of three sizes.
        least: share of the mean that `fixed` is at least, so that noise makes no pass free.
    """

    def __init__(self, fixed: float, slope: float, firm: float = 8.0, least: float = 0.0) -> None:
        self.fixed, self.slope, self._least = fixed, slope, least
        self._sums = [0.0] * 5  # n, x, y, xx, xy
        for x in (1.0, 8.0, 16.0):
            self._enter(x, self.at(x), firm)

    def at(self, size: float) -> float:
        return self.fixed + self.slope * size

    def add(self, size: float, cost: float) -> None:
        """Take in a measured cost."""
        self._sums = [(1 - _SHAPE) * s for s in self._sums]
        self._enter(size, cost, 1.0)
        n, x, y, xx, xy = self._sums
        spread = n * xx - x * x
        if spread > 1e-6 * n * n:
            self.slope = max((n * xy - x * y) / spread, 0.0)
        self.fixed = max((y - self.slope * x) / n, self._least * y / n)

    def _enter(self, size: float, cost: float, weight: float) -> None:
        for i, value in enumerate((1.0, size, cost, size * size, size * cost)):
            self._sums[i] += weight * value


class Mean:
    """A running mean that starts as a guess; values far above it count little.

    Args:
        guess: where it starts.
        least: share of a new value, at least.
    """

    def __init__(self, guess: float, least: float) -> None:
        self.value, self._least, self._count = guess, least, 0

    def add(self, value: float) -> None:
        """Take in a value."""
        if self._count:
            if value < self.value / _SPIKE:
                self.value = value  # those before were stretched
            value = min(value, _SPIKE * self.value)
        self.value += max(self._least, 1 / (4 + self._count)) * (value - self.value)
        self._count += 1


class FixedLength:
    """Always the same number of steps."""

    def __init__(self, steps: int) -> None:
        if steps < 1:
            raise ValueError(f"the draft length must be at least 1, got {steps}")
        self.steps = steps

    def choose(self, rows: int) -> int:
        return self.steps

    def observe(
        self, *, length: int, reached: int, accepted: int, judged: int, draft_steps: int
    ) -> None:
        """A fixed length learns nothing."""


class Costs:
    """What a round costs, in units of any kind: a verify pass over some columns, a drafter step.

    They start as the shape seen on CPUs at embedded sizes, in units of a one-column pass; clocked
    by the loop, they become seconds. Shape and scale are kept apart: the scale follows the length
    of the sequence and the load of the machine within some rounds, and means nothing for the
    choice; the shape is learnt slowly and stays. Passes of more columns than one lie on a line;
    that of one may lie beside it.
    """

    def __init__(self) -> None:
        self._line = Line(0.9, 0.12, firm=2.0, least=0.05)
        self._single = Mean(1.0, 0.05)  # a pass of one column, over what the line says
        self._draft = Mean(0.35, _SHAPE)
        self._scale = 0.0
        self._drafted: bool | None = None  # whether the last round did
        self._pace = self._other = 0.0  # of rounds like the last, and of the other kind before
        self._since, self._alone = 0, False  # rounds since then, and whether they had one column
        self._before = 0  # rounds of the other kind in a row

    def verify(self, columns: float) -> float:
        """The price of a verify pass over some columns."""
        return (self._scale or 1.0) * self._shape(columns)

    @property
    def draft_step(self) -> float:
        """The price of a drafter step."""
        return (self._scale or 1.0) * self._draft.value

    def _shape(self, columns: float) -> float:
        return self._line.at(columns) * (self._single.value if columns == 1 else 1.0)

    def clock(
        self, *, draft_steps: int, draft_seconds: float, columns: int, verify_seconds: float
    ) -> None:
        """Take in one round's times; what something else on the machine stretched counts little.

        The first round with a draft after some without finds no weights in the cache, and the first
        without has more than usual there: neither tells what those that follow cost. Nor does the
        very first of all, in which much is made or found for the first time.
        """
        changed, self._drafted = self._drafted != bool(draft_steps), bool(draft_steps)
        pace = verify_seconds / self._shape(columns)
        if not self._scale or pace < self._scale / _SPIKE:
            self._scale = pace  # the first one, or those before were stretched
        self._scale += _DRIFT * (min(pace, _SPIKE * self._scale) - self._scale)
        if changed:
            return
        self._compare(columns == 1, verify_seconds / self._line.at(columns))
        cost = min(verify_seconds / self._scale, _SPIKE * self._shape(columns))
        if columns > 1:
            self._line.add(columns, cost)
        if draft_steps:
            self._draft.add(draft_seconds / draft_steps / self._scale)

    def _compare(self, alone: bool, pace: float) -> None:
        """Learn what one column costs over what the line says, where rounds of both kinds lie side
        by side in time. Elsewhere the scale, which follows the kind at hand, hides it."""
        if alone != self._alone:
            self._other, self._before = self._pace, self._since
            self._pace, self._since, self._alone = 0.0, 0, alone
        if not self._pace or pace < self._pace / _SPIKE:
            self._pace = pace
        self._pace += max(_DRIFT, 1 / (2 + self._since)) * (
            min(pace, _SPIKE * self._pace) - self._pace
        )
        self._since += 1
        if self._since <= min(_BESIDE, self._before):  # no oftener than there are to compare with
            single, block = (self._pace, self._other) if alone else (self._other, self._pace)
            if 1 / _FAR < single / block < _FAR:
                self._single.add(single / block)


class Learnt:
    """What decodes have taught about a pair; the next piece starts with it.

    Attributes:
        accepted, judged: steps of all pieces, older ones weighing less.
        pays: whether drafts did when that was last found out.
    """

    def __init__(self) -> None:
        self.accepted, self.judged = 0.7 * _PRIOR_JUDGED, _PRIOR_JUDGED
        self.pays = True
        self._costs: dict[int, Costs] = {}
        self._last = Costs()
        self._lines: tuple[Line, Line] | None = None

    def costs(self, rows: int) -> Costs:
        """The prices of rounds of so many rows; at first what those before had."""
        if rows not in self._costs:
            self._costs[rows] = copy.deepcopy(self._last)
        self._last = self._costs[rows]
        return self._last

    def lines(self, ratio: float) -> tuple[Line, Line]:
        """By the length of a draft, where a drafter step covers `ratio` verifier steps: drafter
        steps, and verifier steps that have guesses then."""
        if self._lines is None:
            # A guess: where a step covers several, half of what it covers lies beyond the draft.
            beyond = max(0.0, 0.5 * (ratio - 1))
            self._lines = Line(beyond / ratio, 1 / ratio), Line(beyond, 1.0)
        return self._lines

    def add(self, accepted: int, judged: int) -> None:
        """Take in a round's judged steps."""
        keep = min(1.0, _LONG / (self.judged + judged))
        self.accepted = keep * (self.accepted + accepted)
        self.judged = keep * (self.judged + judged)


class AutoLength:
    """Maximises one row's expected committed steps per unit of time.

    With a share a of steps accepted, guesses for n steps commit (1 - a^(n+1)) / (1 - a) steps a
    round (Leviathan et al. 2023, eq. 1); they cost one verify pass over n + 1 columns and the
    drafter's steps. A draft of m steps leaves guesses for n >= m. Where no draft pays, m is 0 (the
    verifier alone). The other way, with drafts or without, is tried for some rounds now and then:
    the closer the call, the more often.

    Args:
        ratio: verifier steps that one drafter step covers (K for delay to flatten).
        learnt: of the pieces before, and of those beside if shared by a batch. A fresh one, never
            clocked, makes the choice, and with it the sample under a rule whose sample depends on
            the draft length, the same in every run, batch and order.
    """

    def __init__(self, ratio: float, learnt: Learnt) -> None:
        self._learnt, (self._drafts, self._reach) = learnt, learnt.lines(ratio)
        self._accepted = self._judged = 0.0
        self._drafting = learnt.pays
        self._trial = 0  # rounds of the trial that goes on
        self._pause: int | None = None  # rounds until the next; to be found out
        self._alone = True  # no draft in the last round

    def observe(
        self, *, length: int, reached: int, accepted: int, judged: int, draft_steps: int
    ) -> None:
        """Learn from one round.

        Args:
            length: of its draft.
            reached: steps that had guesses.
            accepted, judged: steps accepted, of those judged.
            draft_steps: of the drafter.
        """
        if judged:
            self._accepted = _FORGET * self._accepted + accepted
            self._judged = _FORGET * self._judged + judged
            self._learnt.add(accepted, judged)
        # A first draft has more to catch up with than those that follow it.
        if length and not self._alone:
            self._drafts.add(length, draft_steps)
            self._reach.add(length, reached)
        self._alone = not length

    def choose(self, rows: int) -> int:
        """The draft length with the highest expected pace, in verifier steps."""
        learnt = self._learnt
        costs, known = learnt.costs(rows), _PRIOR_JUDGED / learnt.judged
        rate = (self._accepted + known * learnt.accepted) / (self._judged + _PRIOR_JUDGED)
        rate = min(rate, 0.98)

        alone = 1 / costs.verify(1)
        best, pace = self._best(rate, costs)
        this, other = (best, 0) if self._drafting else (0, best)
        gain = pace / alone - 1 if self._drafting else alone / pace - 1
        if gain < -_SWITCH:
            self._drafting = self._learnt.pays = not self._drafting
            self._trial, self._pause = 0, None
            return other
        if self._pause is None:
            self._pause = min(max(_SHORTEST_PAUSE, int(_TRIAL * gain / _WASTE)), _LONGEST_PAUSE)
        if self._pause:
            self._pause -= 1
            return this
        self._trial += 1
        if self._trial == _TRIAL:
            self._trial, self._pause = 0, None
        return other

    def _best(self, rate: float, costs: Costs) -> tuple[int, float]:
        """The best draft of one step or more, and its pace."""
        best, fastest = 0, 0.0
        for m in range(1, MAX_STEPS + 1):
            columns = min(self._reach.at(m), MAX_STEPS) + 1
            committed = (1 - rate**columns) / (1 - rate)
            pace = committed / (costs.verify(columns) + costs.draft_step * self._drafts.at(m))
            if pace < fastest:
                break  # the steps grow ever more slowly, the price does not
            best, fastest = m, pace
        return best, fastest
