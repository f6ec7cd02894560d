"""The textbook rule as it is usually written, applied across patterns: its bias, exactly.

No decode loop and no sampling: sums over all values, small enough to be read. `grid_law` is held
against the real loop under `rejection` (test_naive.py), which it must equal.
"""

from collections.abc import Callable
from itertools import product

import numpy as np
import torch
from numpy.typing import NDArray

from specgen.patterns import Coord, PatternSpec
from tests.decoding.mocks import TableScorer

Array = NDArray[np.float64]
Draw = Callable[[], Array]


def softmax_law(rng: np.random.Generator, card: int, spread: float) -> Array:
    """A random distribution: softmax of `spread` times normal numbers."""
    weight = np.exp(spread * rng.normal(size=card))
    return np.asarray(weight / weight.sum())


def residual(p: Array, q: Array) -> Array:
    """What the textbook rule draws from after a refusal."""
    left = np.maximum(p - q, 0)
    return np.asarray(left / left.sum()) if left.sum() else p


def two_tokens(law: Draw, *, keep: bool = False) -> float:
    """Total variation for two tokens that drafter and verifier take in opposite orders.

    The drafter draws a ~ q(a), then b ~ q(b | a). The verifier judges b by p(b), then a by p(a|b).
    If b is refused, the usual rule throws a away and the verifier draws it anew; with `keep` the
    guess a stays and is judged like any other.

    Args:
        law: draws a random distribution of one token.
    """
    q_a, p_b = law(), law()
    card = len(q_a)
    q_b = np.stack([law() for _ in range(card)])  # [a, b]
    p_a = np.stack([law() for _ in range(card)])  # [b, a]
    made = np.zeros((card, card))  # [b, a]

    def judge_a(b: int, a: int, weight: float) -> None:
        stands = min(1.0, p_a[b, a] / q_a[a])
        made[b, a] += weight * stands
        made[b] += weight * (1 - stands) * residual(p_a[b], q_a)

    for a, b in product(range(card), repeat=2):
        drafted = q_a[a] * q_b[a, b]
        stands = min(1.0, p_b[b] / q_b[a, b])
        judge_a(b, a, drafted * stands)
        for other, share in enumerate(residual(p_b, q_b[a])):
            weight = drafted * (1 - stands) * share
            if keep:
                judge_a(other, a, weight)
            else:
                made[other] += weight * p_a[other]
    return float(np.abs(made - p_b[:, None] * p_a).sum() / 2)


class Conditionals:
    """A toy model's distributions of each token, given the grid's tokens at earlier steps."""

    def __init__(self, scorer: TableScorer, spec: PatternSpec, frames: int) -> None:
        self.scorer, self.pattern = scorer, spec.of(frames)
        self._known: dict[tuple[int, ...], Array] = {}

    def of(self, grid: dict[Coord, int], coord: Coord) -> Array:
        """The law of `coord`; `grid` holds every token of the steps before it."""
        layout = self.pattern.layout
        step = self.pattern.step_of[coord.k][coord.t]
        key = (step, coord.k, *(grid[c] for coords in layout[:step] for c in coords))
        if key not in self._known:
            state = torch.zeros(1, dtype=torch.int64)
            for coords in layout[:step]:
                column = torch.full((1, self.scorer.codebooks), self.scorer.card)
                for c in coords:
                    column[0, c.k] = grid[c]
                state = self.scorer.fold(state, column)
            table = self.scorer.table[int(state) % self.scorer.size, coord.k]
            self._known[key] = table.softmax(dim=-1).numpy()
        return self._known[key]


def grid_law(
    drafter: Conditionals, verifier: Conditionals, *, redraft: bool = True
) -> dict[tuple[int, ...], float]:
    """The law of what the usual rule makes; a verifier that writes one token a step.

    A round drafts all that is open, in the drafter's order and with sight of what is final at
    earlier drafter steps; the first refusal is replaced from the residual and voids all other
    guesses. Without `redraft` the verifier goes on alone after the first refusal.

    Returns:
        Probabilities of grids, their tokens in the order `[K, T]`.
    """
    card = verifier.scorer.card
    order = [c for coords in verifier.pattern.layout for c in coords]
    drafted = [c for coords in drafter.pattern.layout for c in coords]
    known: dict[tuple[int, ...], dict[tuple[int, ...], float]] = {}

    alone: dict[tuple[int, ...], dict[tuple[int, ...], float]] = {}

    def plainly(prefix: tuple[int, ...]) -> dict[tuple[int, ...], float]:
        """Law of the whole given its first tokens, by the verifier alone."""
        if len(prefix) == len(order):
            return {prefix: 1.0}
        if prefix not in alone:
            grid = dict(zip(order, prefix, strict=False))
            alone[prefix] = {
                whole: float(p) * rest
                for token, p in enumerate(verifier.of(grid, order[len(prefix)]))
                for whole, rest in plainly((*prefix, token)).items()
            }
        return alone[prefix]

    def from_prefix(prefix: tuple[int, ...]) -> dict[tuple[int, ...], float]:
        """Law of the whole, in the verifier's order, given its first tokens."""
        if len(prefix) == len(order):
            return {prefix: 1.0}
        if prefix in known:
            return known[prefix]
        made: dict[tuple[int, ...], float] = {}

        def add(weight: float, law: dict[tuple[int, ...], float]) -> None:
            for grid, p in law.items():
                made[grid] = made.get(grid, 0.0) + weight * p

        final = dict(zip(order, prefix, strict=False))
        open_ones = [c for c in drafted if c not in final]
        for values in product(range(card), repeat=len(open_ones)):
            grid = {**final, **dict(zip(open_ones, values, strict=True))}
            weight = 1.0
            for c in open_ones:
                weight *= float(drafter.of(grid, c)[grid[c]])
            whole = tuple(grid[c] for c in order)
            for place in range(len(prefix), len(order)):
                c = order[place]
                p, q = verifier.of(grid, c), drafter.of(grid, c)
                stands = min(1.0, float(p[grid[c]] / q[grid[c]]))
                for other, share in enumerate(residual(p, q)):
                    refused = weight * (1 - stands) * share
                    if refused:
                        beginning = (*whole[:place], other)
                        add(refused, from_prefix(beginning) if redraft else plainly(beginning))
                weight *= stands
            add(weight, {whole: 1.0})
        known[prefix] = made
        return made

    where = [
        Coord(t, k)
        for k in range(verifier.pattern.codebooks)
        for t in range(verifier.pattern.frames)
    ]
    index = [order.index(c) for c in where]
    return {tuple(grid[i] for i in index): p for grid, p in from_prefix(()).items()}


def own_law(model: Conditionals) -> dict[tuple[int, ...], float]:
    """The law of sampling a model plainly, as `grid_law` gives it."""
    spec, frames = model.pattern, model.pattern.frames
    where = [Coord(t, k) for k in range(spec.codebooks) for t in range(frames)]
    made = {}
    for values in product(range(model.scorer.card), repeat=len(where)):
        grid = dict(zip(where, values, strict=True))
        made[values] = float(np.prod([model.of(grid, c)[grid[c]] for c in where]))
    return made


def grid_bias(
    drafter: PatternSpec,
    verifier: PatternSpec,
    *,
    frames: int,
    seed: int,
    card: int = 2,
    spread: float = 1.0,
    redraft: bool = True,
) -> float:
    """Total variation that the usual rule brings; models as in `enumerate_decodes`."""

    def conditionals(which: int, spec: PatternSpec) -> Conditionals:
        scorer = TableScorer(2 * seed + which, 1, spec.codebooks, card, 0, spread=spread)
        return Conditionals(scorer, spec, frames)

    target = conditionals(0, verifier)
    made, wanted = grid_law(conditionals(1, drafter), target, redraft=redraft), own_law(target)
    assert abs(sum(made.values()) - 1) < 1e-12
    return float(sum(abs(made.get(grid, 0.0) - p) for grid, p in wanted.items()) / 2)
