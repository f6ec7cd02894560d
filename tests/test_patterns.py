"""Patterns, held against audiocraft's own providers and against their definitions."""

import importlib.metadata
import importlib.util
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from specgen.patterns import Coord, Pattern, PatternSpec, contaminated


@pytest.fixture(scope="module")
def reference() -> ModuleType:
    """audiocraft's pattern module alone: it needs little more than torch."""
    try:
        files = importlib.metadata.files("audiocraft") or []
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("audiocraft is not installed (pip install --no-deps audiocraft==1.3.0)")
    path = next(f for f in files if f.name == "codebooks_patterns.py").locate()
    spec = importlib.util.spec_from_file_location("audiocraft_patterns", str(path))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def same(ours: PatternSpec, provider: Any, frames: int) -> None:
    pattern, theirs = ours.of(frames), provider.get_pattern(frames)
    special = 99
    codes = torch.randint(0, 50, (2, ours.codebooks, frames))
    sequence, _, mask = theirs.build_pattern_sequence(codes, special)
    assert torch.equal(pattern.build(codes, special), sequence)
    assert torch.equal(pattern.mask, mask)
    back, _, _ = theirs.revert_pattern_sequence(sequence, special)
    assert torch.equal(pattern.revert(sequence), back)
    assert torch.equal(back, codes)
    # logits read at step s predict step s + 1
    logits = torch.randn(2, 7, ours.codebooks, pattern.steps)
    aligned, _, _ = theirs.revert_pattern_logits(logits, float("nan"))
    shifted = torch.cat([torch.zeros(2, 7, ours.codebooks, 1), logits[..., :-1]], dim=-1)
    assert torch.equal(pattern.revert(shifted.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), aligned)


rising = st.lists(st.integers(0, 5), min_size=4, max_size=4).map(sorted)


@settings(deadline=None, max_examples=40)
@given(frames=st.integers(1, 30), codebooks=st.integers(1, 8))
def test_default_patterns_are_audiocrafts(
    reference: ModuleType, frames: int, codebooks: int
) -> None:
    K = codebooks
    same(PatternSpec("delay", K), reference.DelayedPatternProvider(K), frames)
    same(PatternSpec("parallel", K), reference.ParallelPatternProvider(K), frames)
    same(PatternSpec("flatten", K), reference.UnrolledPatternProvider(K), frames)
    if K > 1:
        same(PatternSpec("coarse_first", K), reference.CoarseFirstPattern(K), frames)
    if K % 2 == 0:
        same(PatternSpec("stack", K), reference.MusicLMPattern(K, 2), frames)


@settings(deadline=None, max_examples=40)
@given(
    frames=st.integers(1, 20),
    delays=rising,
    flattening=rising,
    first=st.integers(0, 3),
    empty=st.integers(0, 3),
)
def test_options_are_audiocrafts(
    reference: ModuleType,
    frames: int,
    delays: list[int],
    flattening: list[int],
    first: int,
    empty: int,
) -> None:
    same(
        PatternSpec("delay", 4, delays=tuple(delays), empty_initial=empty),
        reference.DelayedPatternProvider(4, delays, empty_initial=empty),
        frames,
    )
    if first <= frames:
        same(
            PatternSpec("delay", 4, flatten_first=first),
            reference.DelayedPatternProvider(4, flatten_first=first),
            frames,
        )
    same(
        PatternSpec("coarse_first", 4, delays=tuple(delays[1:])),
        reference.CoarseFirstPattern(4, delays[1:]),
        frames,
    )
    same(
        PatternSpec("flatten", 4, flattening=tuple(flattening)),
        reference.UnrolledPatternProvider(4, flattening),
        frames,
    )
    together = [delays[flattening.index(inner)] for inner in flattening]
    same(
        PatternSpec("flatten", 4, flattening=tuple(flattening), delays=tuple(together)),
        reference.UnrolledPatternProvider(4, flattening, together),
        frames,
    )


SPECS = [
    PatternSpec("parallel", 4),
    PatternSpec("delay", 4),
    PatternSpec("delay", 4, delays=(0, 0, 2, 5)),
    PatternSpec("flatten", 4),
    PatternSpec("flatten", 4, flattening=(0, 1, 1, 2)),
    PatternSpec("coarse_first", 4),
    PatternSpec("stack", 4),
    PatternSpec("stack_delay", 4),
]


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.kind)
@pytest.mark.parametrize("frames", [1, 2, 9])
def test_every_coordinate_has_one_step(spec: PatternSpec, frames: int) -> None:
    pattern = spec.of(frames)
    seen = [coord for step in pattern.layout for coord in step]
    assert sorted(seen) == [Coord(t, k) for t in range(frames) for k in range(4)]
    for s, coords in enumerate(pattern.layout):
        assert all(pattern.step_of[k][t] == s for t, k in coords)
    assert pattern.layout[0] == ()


def test_step_counts() -> None:
    assert PatternSpec("flatten", 4).of(10).steps == 41
    assert PatternSpec("delay", 4).of(10).steps == 14
    assert PatternSpec("parallel", 4).of(10).steps == 11


@pytest.mark.parametrize("drafter", SPECS, ids=lambda spec: f"{spec.kind}-")
@pytest.mark.parametrize("verifier", SPECS, ids=lambda spec: spec.kind)
def test_contaminated_by_its_definition(drafter: PatternSpec, verifier: PatternSpec) -> None:
    frames = 7
    draft, verify = drafter.of(frames), verifier.of(frames)
    coords = [Coord(t, k) for t in range(frames) for k in range(4)]
    expected = tuple(
        any(
            verify.step_of[e.k][e.t] < verify.step_of[c.k][c.t]
            and draft.step_of[e.k][e.t] > draft.step_of[c.k][c.t]
            for c in coords
            if c.k == k
            for e in coords
        )
        for k in range(4)
    )
    assert contaminated(draft, verify) == expected


def test_contaminated_codebooks_of_the_usual_pairs() -> None:
    delay, flatten, parallel = (
        PatternSpec(kind, 4).of(20) for kind in ("delay", "flatten", "parallel")
    )
    assert contaminated(delay, flatten) == (True, True, False, False)
    assert contaminated(parallel, flatten) == (False,) * 4
    assert contaminated(delay, delay) == (False,) * 4
    assert contaminated(flatten, flatten) == (False,) * 4


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"kind": "zigzag"}, "unknown"),
        ({"kind": "delay", "codebooks": 0}, "at least one"),
        ({"kind": "delay", "delays": (0, 1)}, "4 values"),
        ({"kind": "delay", "delays": (3, 2, 1, 0)}, "rise"),
        ({"kind": "delay", "delays": (-1, 0, 1, 2)}, "rise"),
        ({"kind": "coarse_first", "delays": (0, 0, 0, 0)}, "3 values"),
        ({"kind": "stack", "group": 3}, "multiple"),
        ({"kind": "delay", "empty_initial": -1}, "negative"),
    ],
)
def test_wrong_options(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        PatternSpec(**{"codebooks": 4, **options})


def test_wrong_layouts() -> None:
    spec = PatternSpec("flatten", 2)
    good = spec.of(2).layout
    for layout, said in (
        (good[1:], "empty step"),
        (good[:-1], "every codebook"),
        ((*good, (Coord(1, 1),)), "returns"),
        (((), (Coord(0, 0), Coord(1, 0))), "twice"),
        (((), (Coord(1, 0),)), "skips"),
    ):
        with pytest.raises(ValueError, match=said):
            Pattern(spec, 2, layout)
    with pytest.raises(ValueError, match="at least one frame"):
        spec.of(0)
    with pytest.raises(ValueError, match="same delay"):
        PatternSpec("flatten", 2, flattening=(0, 0), delays=(0, 1)).of(3)
