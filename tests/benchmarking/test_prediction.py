"""The cost model: its play of the loop against the loop itself, its prices, its rooflines."""

from __future__ import annotations

import json
import statistics
from typing import Any

import pytest

from specgen.benchmarking.cards import CARDS, REFERENCE, find, pass_seconds, roof
from specgen.benchmarking.cases import Sweep, expand, synthetic_preset
from specgen.benchmarking.costs import Book, _key, on_a_line
from specgen.benchmarking.given import Given
from specgen.benchmarking.prediction import Passes, Prices, play, predict
from specgen.benchmarking.shapes import Pair, Shape
from specgen.benchmarking.synthetic import Wanted, load
from specgen.benchmarking.trials import Plan, Trial
from specgen.decoding.loop import Drafting, decode
from specgen.decoding.sampling import Sampling
from specgen.patterns import PatternSpec
from tests.benchmarking.conftest import Bench

FLATTEN, DELAY, PARALLEL = (PatternSpec(kind, 4) for kind in ("flatten", "delay", "parallel"))


@pytest.mark.parametrize(
    ("pair", "steps"), [("tiny:flatten,tiny:delay", 8), ("tiny:delay,tiny:parallel", 3)]
)
def test_the_play_makes_the_loops_passes(pair: str, steps: int) -> None:
    """Means over 12 decodes and 60 plays: the bound is over four standard errors."""
    chance, rows, frames = (0.9, 0.8, 0.7, 0.6), 12, 60
    preset = synthetic_preset(Pair.parse(pair))
    case = expand([preset], Sweep(acceptances=(Given(chance, "given"),), batches=(rows,)))[-1]
    engine = load(preset, [Wanted(chance, "coupled")], device="cpu")
    trial = Trial(case, engine, Drafting(steps=steps), column=0)
    lead, follow = trial.roles(["a"] * rows)
    made = decode(
        lead, follow, frames=[frames] * rows, seeds=list(range(rows)), sampling=Sampling(),
        drafting=trial.drafting,
    )  # fmt: skip
    assert follow is not None
    plays = [
        play(lead.pattern, follow.pattern, frames=frames, steps=steps, chance=chance, seed=i)
        for i in range(60)
    ]
    passes = statistics.fmean(s.verifier_passes for s in made.stats)
    drafts = statistics.fmean(s.drafter_steps for s in made.stats)
    assert statistics.fmean(p.rounds for p in plays) == pytest.approx(passes, rel=0.08)
    assert statistics.fmean(p.draft for p in plays) == pytest.approx(drafts, rel=0.08)


def test_when_everything_is_accepted_the_passes_are_known() -> None:
    """16 flatten steps, 3 drafted and one more a round; the 16th needs no draft, so neither does
    the last column of the drafter."""
    passes = play(FLATTEN, DELAY, frames=4, steps=3, chance=(1.0,) * 4)
    assert passes.rounds == 4 and passes.draft == 6 and passes.tokens_per_pass == 4.0
    nothing = play(FLATTEN, PARALLEL, frames=4, steps=1, chance=(0.0,) * 4)
    assert nothing.rounds == 16
    alone = play(DELAY, None, frames=5, steps=0)
    assert alone.verify == {1: 8} and alone.draft == 0
    assert play(FLATTEN, DELAY, frames=4, steps=0, chance=(1.0,) * 4).verify == {1: 16}


def test_rows_of_a_batch_wait_for_each_other() -> None:
    options: dict[str, Any] = {"frames": 50, "steps": 4, "chance": (0.7,) * 4}
    one = statistics.fmean(play(FLATTEN, DELAY, **options, seed=i).rounds for i in range(8))
    many = play(FLATTEN, DELAY, **options, batch=8)
    assert one < many.rounds < 1.4 * one


def test_prices_lie_on_the_line_between_measured_ones() -> None:
    prices = Prices({1: 1.0, 5: 2.0, 9: 4.0}, draft=0.5)
    assert [prices.of(n) for n in (1, 3, 5, 7, 9, 11)] == [1.0, 1.5, 2.0, 3.0, 4.0, 5.0]
    assert Prices({1: 3.0}, 0.0).of(7) == 3.0
    passes = Passes(8)
    passes.verify.update({5: 2})
    passes.draft = 3
    assert passes.seconds(prices.of, prices.draft) == 2 * 2.0 + 3 * 0.5


def test_the_best_draft_length_is_found() -> None:
    cheap = Prices({1: 1.0, 49: 1.0}, draft=0.01)
    dear = Prices({1: 1.0, 49: 1.0}, draft=50.0)
    options: dict[str, Any] = {"frames": 40, "steps": [0, 4, 16], "chance": (0.95,) * 4}
    assert predict(FLATTEN, DELAY, cheap, **options).steps == 16
    alone = predict(FLATTEN, DELAY, dear, **options)
    assert alone.steps == 0 and alone.seconds == 160.0


def test_a_roofline_is_bytes_over_bandwidth() -> None:
    card, large = find("a4000"), Shape.parse("large:delay")
    read = 2 * large.read_parameters() / card.bandwidth
    step = pass_seconds(large, card, columns=1, share=1.0, positions=0, rows=2)
    assert step == pytest.approx(read, rel=1e-3)
    half = pass_seconds(large, card, columns=1, share=0.5, positions=0, rows=2)
    assert half == pytest.approx(2 * step)
    wide = pass_seconds(large, card, columns=512, share=1.0, positions=0, rows=2)
    assert wide == pytest.approx(2 * large.read_parameters() * 1024 / card.flops)  # by products
    alone = roof(Pair.parse("large:delay"), card, seconds=1.0)
    assert alone.seconds == pytest.approx(53 * step, rel=0.01)
    pair = roof(Pair.parse("large:delay,small:delay"), card, seconds=1.0, chance=(0.9,) * 4)
    assert pair.alone_seconds == pytest.approx(alone.seconds) and pair.seconds < alone.seconds


def test_cards_have_sources_and_the_reference_pairs_their_memory() -> None:
    assert all(card.source and card.bandwidth > 1e11 for card in CARDS.values())
    found = roof(Pair.parse(REFERENCE[2]), find("A4000"), seconds=10.0, chance=(0.7,) * 4)
    assert 13e9 < found.memory < 16e9


@pytest.mark.parametrize("form", ["table", "md", "json"])
def test_a_roofline_says_that_it_is_predicted(run_bench: Bench, form: str) -> None:
    text = run_bench("--card", "A4000", "-d", "1", "--acceptance", "0.8", "--output", form)
    if form == "json":
        document = json.loads(text)
        assert document["prediction"] is True and len(document["rows"]) == 2 * len(REFERENCE)
        assert {row["bandwidth_share"] for row in document["rows"]} == {1.0, 0.7}
        assert document["card"]["source"]
    else:
        assert text.startswith("PREDICTED roofline, nothing measured: RTX A4000, 448 GB/s, 16 GB")
        assert "large:flatten" in text and "80 %" in text


def test_prices_are_timed_in_rounds_of_the_pair() -> None:
    """Every length in turn, drafts and passes, which take along what is guessed beyond it; for a
    fixed length, that one alone: 5 columns, and up to 3 more of the frame behind."""
    preset = synthetic_preset(Pair.parse("tiny:flatten,tiny:delay"))
    given = Given((0.8,) * 4, "given")
    cases = expand([preset], Sweep((1.2,), acceptances=(given,), draft_frames=(None, 1)))[-2:]
    engine = load(preset, [Wanted(given.values, "coupled")], device="cpu")
    book = Book(Plan(("a",)))
    trials = [
        Trial(case, engine, Drafting(steps=s), 0) for case, s in zip(cases, (None, 4), strict=True)
    ]
    book.look(trials[1])
    prices = book.prices(trials[1], alone=1e-4)
    assert min(book._times[_key(trials[1])].verify) == 5
    assert set(prices.verify) <= {1, 5, 6, 7, 8} and len(prices.verify) == 3
    assert prices.verify[1] == 1e-4 and prices.draft > 0
    book.look(trials[0])
    seen = book.prices(trials[0], alone=1e-4).verify
    assert min(seen) == 1 and max(seen) >= 17 and all(seconds > 0 for seconds in seen.values())
    sizes = book._times[_key(trials[0])].verify
    for length in (1, 2, 4, 8, 16):
        assert any(length < size <= length + 4 for size in sizes)


def test_a_stretched_sample_does_not_bend_the_line_of_prices() -> None:
    seen = {3: [1.3, 1.31, 9.0], 5: [1.5, 1.49], 9: [1.9, 1.91, 1.89]}
    assert on_a_line(seen) == pytest.approx({3: 1.3, 9: 1.9}, abs=0.02)
    assert on_a_line({4: [2.0, 2.2, 8.0]}) == {4: 2.2} and on_a_line({}) == {}
    falling = on_a_line({2: [2.0], 8: [1.0]})
    assert falling[2] == falling[8]
