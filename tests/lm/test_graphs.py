"""Recorded passes, on any device: buffers, buckets and filled-up blocks change nothing.

Only the recording itself needs a card (tests/gpu); here a recorder stands in that keeps its rules:
a result stays in one buffer, and is gone when anything else is replayed.
"""

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from specgen.decoding.acceptance import Rule
from specgen.decoding.lane import MAX_BLOCK, Role
from specgen.decoding.loop import Decoded, Drafting, capacity, decode
from specgen.decoding.recorded import RecordedDraft
from specgen.decoding.sampling import Sampling
from specgen.lm import session as sessions
from specgen.lm.config import LMConfig
from specgen.lm.features import Features
from specgen.lm.graphs import SWITCH, WIDTHS, Call, GraphedPass, Recordings, bucket, recorder
from specgen.lm.model import MusicLM
from specgen.lm.session import LMSession
from specgen.patterns import PatternSpec

CONFIG = LMConfig(4, 16, 16, 2, 2, 32, condition_dim=8, positions="rope")
READER = replace(CONFIG, layers=1, condition_dim=0, feature_dim=2 * CONFIG.dim)
READERS = {"attends": READER, "does not": replace(READER, attention=False)}


@torch.inference_mode()
def void(result: Tensor) -> Tensor:
    return result.fill_(torch.nan if result.is_floating_point() else 0)


class Strict:
    """Records as CUDA does: one buffer a recording, void after the next replay of any."""

    def __init__(self) -> None:
        self.results: list[Tensor] = []
        self.replays = 0

    def __call__(self, call: Call) -> Call:
        result = void(call().clone())  # recording computes nothing
        self.results.append(result)

        @torch.inference_mode()
        def replay() -> Tensor:
            self.replays += 1
            for other in self.results:
                void(other)
            return result.copy_(call())

        return replay


def made(seed: int, config: LMConfig = CONFIG) -> MusicLM:
    torch.manual_seed(seed)
    lm = MusicLM(config).double().eval().requires_grad_(False)
    lm.heads.weight.mul_(3)
    return lm


@pytest.fixture
def strict(monkeypatch: pytest.MonkeyPatch) -> Strict:
    kept = Strict()
    monkeypatch.setattr(sessions, "recorder", lambda device: kept)
    return kept


def session(lm: MusicLM, rows: int, places: int) -> LMSession:
    generator = torch.Generator().manual_seed(9)
    condition = torch.randn(8, 3, 8, generator=generator, dtype=torch.float64)[:rows]
    null = torch.zeros(1, 1, 8, dtype=torch.float64)
    return LMSession(lm, rows=rows, capacity=places, condition=condition, null=null, guidance=2.0)


def decoded(verifier: PatternSpec, steps: int, sampling: Sampling, **options: Any) -> Decoded:
    frames, delay = [30, 17, 24], PatternSpec("delay", 4)
    places = capacity(verifier, max(frames))
    lead = session(made(0), len(frames), places)
    reader = options.pop("reader", None)
    if reader is not None:
        follow = LMSession(made(1, reader), rows=len(frames), capacity=places, verifier=lead)
    else:
        follow = session(made(1), len(frames), capacity(delay, max(frames)))
    generator = torch.Generator().manual_seed(1)
    prompt = torch.randint(16, (3, 4, 5), generator=generator) if options.pop("given") else None
    return decode(
        Role(lead, verifier),
        Role(follow, delay),
        frames=frames,
        seeds=[5, 6, 7],
        sampling=sampling,
        drafting=Drafting(steps=steps, **options),
        prompt=prompt,
    )


DECODES = {
    "sampled": {},
    "given": {"given": True},
    "greedy": {"sampling": Sampling(0)},
    "tempered": {"temperatures": (1.0, 0.5, 0.7, 1.3)},
    "mixed": {"rule": Rule.MIXED},
}


@pytest.mark.parametrize("kind", DECODES)
@pytest.mark.parametrize(("verifier", "steps"), [("flatten", 1), ("flatten", 9), ("delay", 3)])
def test_a_decode_is_the_same(
    verifier: str, steps: int, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, options = PatternSpec(verifier, 4), DECODES[kind]
    arguments = {"sampling": Sampling(1.0, 8), "given": False} | options
    plain = decoded(spec, steps, **arguments)
    kept, done = recorded_steps(monkeypatch)
    recorded = decoded(spec, steps, **arguments)
    assert kept.replays > 20
    assert (sum(done) > 10) == (kind != "mixed")  # drafts are recorded where the rule lets them
    same_work(plain, recorded)


@pytest.mark.parametrize("kind", READERS)
@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("steps", [1, 4])
def test_a_drafter_that_reads_states_is_the_same(
    steps: int, given: bool, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, options = PatternSpec("delay", 4), {"sampling": Sampling(1.0, 8), "given": given}
    plain = decoded(spec, steps, reader=READERS[kind], **options)
    kept, done = recorded_steps(monkeypatch)
    recorded = decoded(spec, steps, reader=READERS[kind], **options)
    assert kept.replays > 20 and sum(done) > 10
    same_work(plain, recorded)
    monkeypatch.setattr(Features, "keep", lambda *_: None)  # then it guesses otherwise
    deaf = decoded(spec, steps, reader=READERS[kind], **options)
    assert accepted(deaf) != accepted(plain)


def recorded_steps(monkeypatch: pytest.MonkeyPatch) -> tuple[Strict, list[bool]]:
    """From here on passes are recorded: by what, and whether each step of a draft was."""
    kept, done = Strict(), list[bool]()
    step = RecordedDraft.step

    def counted(*arguments: Any) -> bool:
        done.append(step(*arguments))
        return done[-1]

    monkeypatch.setattr(sessions, "recorder", lambda device: kept)
    monkeypatch.setattr(RecordedDraft, "step", counted)
    return kept, done


def same_work(one: Decoded, other: Decoded) -> None:
    """The same tokens, and the same guesses on the way."""
    assert all(torch.equal(a, b) for a, b in zip(one.codes, other.codes, strict=True))
    assert accepted(one) == accepted(other)


def accepted(one: Decoded) -> list[list[int]]:
    return [row.accepted for row in one.stats]


@pytest.mark.parametrize("past", [None, 3])
def test_blocks_of_any_size_equal_the_whole(past: int | None, strict: Strict) -> None:
    lm = made(2, LMConfig(4, 16, 16, 2, 2, 32, positions="sin", past_context=past))
    sequence = torch.randint(17, (2, 4, 170))
    expected = lm.hidden(sequence, None)
    running = LMSession(lm, rows=2, capacity=220)
    for _ in range(3):  # run, record, replay
        for at, end in ((0, 60), (60, 61), (61, 62), (62, 69), (65, 108), (108, 109), (109, 170)):
            hidden = running.feed(sequence[..., at:end], [at, at])[:, : end - at]
            assert torch.allclose(hidden, expected[:, at:end], atol=1e-12)
    assert strict.replays >= 10


def test_ragged_rows_and_fewer_rows(strict: Strict) -> None:
    lm = made(3)
    torch.manual_seed(4)
    sequence = torch.randint(17, (3, 4, 12))
    one = session(lm, 3, 70)
    for _ in range(3):
        one.feed(sequence[..., :4], [0, 0, 0])
        block = torch.stack([sequence[0, :, 4:6], sequence[1, :, 2:4]])
        ragged = one.feed(block, [4, 2])[:, :2].clone()
    other = session(lm, 3, 70)
    whole = other.feed(sequence[..., :6], [0, 0, 0])[:, :6]
    assert torch.allclose(ragged[:2], whole[:2, 4:6], atol=1e-12)
    assert torch.allclose(ragged[2:], whole[2:4, 2:4], atol=1e-12)


def test_a_new_mask_voids_what_was_recorded(strict: Strict) -> None:
    lm = made(5)
    sequence = torch.randint(17, (1, 4, 6))
    running = session(lm, 1, 70)
    for _ in range(3):
        before = running.feed(sequence, [0])[:, :6].clone()
    vectors = torch.randn(3, 8, dtype=torch.float64)
    mask = torch.tensor([True, False, False])
    running.admit(0, vectors, mask)
    after = running.feed(sequence, [0])[:, :6]
    memory = lm.transformer.memory(vectors[None], mask[None])
    assert torch.allclose(after[:1], lm.hidden(sequence, memory), atol=1e-12)
    assert not torch.allclose(after, before)


@given(st.integers(1, 20_000), st.integers(1, 20_000))
def test_buckets(reach: int, capacity: int) -> None:
    reach = min(reach, capacity)
    size = bucket(reach, capacity)
    assert reach <= size <= capacity
    assert size <= max(192, 4 / 3 * reach + 64)
    assert size == capacity or size % 64 == 0


def test_few_buckets_serve_a_long_piece() -> None:
    assert len({bucket(reach, 6_050) for reach in range(1, 6_051)}) <= 20


def test_widths_reach_the_widest_block() -> None:
    assert list(WIDTHS) == sorted(set(WIDTHS)) and WIDTHS[-1] == MAX_BLOCK


def test_the_switch(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    monkeypatch.delenv(SWITCH, raising=False)
    assert recorder(cpu) is None
    monkeypatch.setenv(SWITCH, "dry")
    dry = recorder(cpu)
    assert dry is not None
    calls: list[int] = []
    dry(lambda: calls.append(1) or torch.zeros(1))()  # type: ignore[func-returns-value]
    assert calls == [1]
    monkeypatch.setenv(SWITCH, "off")
    assert recorder(torch.device("cuda")) is None


def test_a_pass_is_run_recorded_and_then_replayed() -> None:
    ran: list[int] = []

    def run(tokens: Tensor, starts: Tensor, reach: int) -> Tensor:
        ran.append(reach)
        return tokens.sum(dim=1) + starts[:, None]

    kept = Strict()
    recordings = Recordings(kept)
    passes = GraphedPass(
        lambda *a: run(*a).double(),
        recordings,
        codebooks=2,
        special=9,
        capacity=300,
        device=torch.device("cpu"),
    )
    columns = torch.tensor([[[1, 2], [3, 4]]])
    for at in range(5):
        assert passes(columns + at, [at])[:, :2].tolist() == [[4 + 3 * at, 6 + 3 * at]]
    assert len(kept.results) == 1 and kept.replays == 4 and set(ran) == {128}
    recordings.forget()
    passes(columns, [0])
    assert kept.replays == 4
