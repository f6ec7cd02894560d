"""What needs a CUDA card: the CPU's tokens in float64, and identity on the card itself.

Without a card two of them run on the CPU, so that what they call cannot change unseen; with
SPECGEN_TEST_DEVICE=cpu all do.
"""

import copy
import os
import warnings
from typing import Any

import pytest
import torch

from specgen.decoding.lane import Role
from specgen.decoding.loop import Drafting, capacity, decode
from specgen.decoding.noise import NoiseField, Purpose
from specgen.decoding.sampling import Sampling
from specgen.lm.config import LMConfig
from specgen.lm.graphs import SWITCH
from specgen.lm.model import MusicLM
from specgen.lm.session import LMSession
from specgen.patterns import PatternSpec

CUDA = torch.cuda.is_available()
DEVICE = os.environ.get("SPECGEN_TEST_DEVICE", "cuda" if CUDA else "cpu")
needs_card = pytest.mark.skipif(
    not CUDA and "SPECGEN_TEST_DEVICE" not in os.environ, reason="needs a CUDA device"
)
only_card = pytest.mark.skipif(not CUDA, reason="looks into CUDA itself")

FLATTEN, DELAY = PatternSpec("flatten", 4), PatternSpec("delay", 4)
FRAMES = [40, 23, 31]


def model(seed: int, dtype: torch.dtype, **options: Any) -> MusicLM:
    torch.manual_seed(seed)
    config = LMConfig(4, 64, 64, 4, 2, 128, condition_dim=16, positions="rope", **options)
    lm = MusicLM(config).to(dtype).eval()
    with torch.no_grad():
        lm.heads.weight.mul_(3)
    return lm


def run(
    verifier: MusicLM,
    drafter: MusicLM | None,
    device: str,
    *,
    verifier_pattern: PatternSpec = FLATTEN,
    steps: int | None = 6,
) -> list[torch.Tensor]:
    torch.manual_seed(3)
    condition = torch.randn(len(FRAMES), 5, 16, dtype=torch.float64)

    def role(lm: MusicLM, pattern: PatternSpec, verifier: LMSession | None = None) -> Role:
        lm = copy.deepcopy(lm).to(device)
        session = LMSession(
            lm,
            rows=len(FRAMES),
            capacity=capacity(pattern, max(FRAMES)),
            condition=condition.to(device, lm.dtype),
            null=torch.zeros(1, 1, 16, device=device, dtype=lm.dtype),
            guidance=2.0,
            verifier=verifier,
        )
        return Role(session, pattern)

    lead = role(verifier, verifier_pattern)
    assert isinstance(lead.scorer, LMSession)
    decoded = decode(
        lead,
        None if drafter is None else role(drafter, DELAY, lead.scorer),
        frames=FRAMES,
        seeds=[5, 6, 7],
        sampling=Sampling(1.0, 32),
        drafting=Drafting(steps=steps),
    )
    return [codes.cpu() for codes in decoded.codes]


def test_noise_is_the_same_bits_as_on_the_cpu() -> None:
    def field(device: str) -> torch.Tensor:
        made = NoiseField(1, 100, 4, 64, Purpose.TOKEN, torch.device(device))
        made.admit(0, 9)
        return made.at([0, 0, 0], [(0, 0), (70, 3), (99, 1)]).cpu()

    assert torch.equal(field(DEVICE), field("cpu"))


def test_float64_tokens_are_those_of_the_cpu() -> None:
    verifier = model(0, torch.float64)
    for there, here in zip(run(verifier, None, DEVICE), run(verifier, None, "cpu"), strict=True):
        assert torch.equal(there, here)


@needs_card
@pytest.mark.parametrize("pattern", [FLATTEN, DELAY], ids=["flatten", "delay"])
@pytest.mark.parametrize("steps", [1, 4, 9, None])
def test_speculative_tokens_are_the_verifiers_own(pattern: PatternSpec, steps: int | None) -> None:
    verifier, drafter = model(0, torch.float64), model(1, torch.float64)
    alone = run(verifier, None, DEVICE, verifier_pattern=pattern)
    drafted = run(verifier, drafter, DEVICE, verifier_pattern=pattern, steps=steps)
    assert all(torch.equal(a, b) for a, b in zip(alone, drafted, strict=True))


@needs_card
@pytest.mark.parametrize("attention", [True, False])
@pytest.mark.parametrize("steps", [1, 3, None])
def test_a_drafter_may_read_the_verifiers_states(steps: int | None, attention: bool) -> None:
    verifier = model(0, torch.float64)
    drafter = model(1, torch.float64, feature_dim=128, attention=attention)
    alone = run(verifier, None, DEVICE, verifier_pattern=DELAY)
    drafted = run(verifier, drafter, DEVICE, verifier_pattern=DELAY, steps=steps)
    assert all(torch.equal(a, b) for a, b in zip(alone, drafted, strict=True))


@needs_card
def test_float32_tokens_are_those_of_the_cpu() -> None:
    """Both round in their own way, and read close calls again in float64."""
    verifier, drafter = model(0, torch.float32), model(1, torch.float32)
    there, here = run(verifier, drafter, DEVICE), run(verifier, None, "cpu")
    assert all(torch.equal(a, b) for a, b in zip(there, here, strict=True))


@needs_card
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bit_mostly_agrees(dtype: torch.dtype) -> None:
    """Near-ties may part the paths; a wrong cache or mask would part them in the first frames."""
    verifier, drafter = model(0, dtype), model(1, dtype)
    alone = run(verifier, None, DEVICE)
    drafted = run(verifier, drafter, DEVICE)
    assert all(torch.equal(a[:, :3], b[:, :3]) for a, b in zip(alone, drafted, strict=True))


@only_card
@pytest.mark.parametrize("pattern", [FLATTEN, DELAY], ids=["flatten", "delay"])
@pytest.mark.parametrize("drafted", [True, False], ids=["drafted", "alone"])
def test_graphs_change_nothing(
    pattern: PatternSpec, drafted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    verifier = model(0, torch.float64)
    drafter = model(1, torch.float64) if drafted else None
    captures: list[int] = []
    begin = torch.cuda.CUDAGraph.capture_begin

    def counted(self: torch.cuda.CUDAGraph, *args: object, **options: object) -> None:
        captures.append(1)
        begin(self, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(torch.cuda.CUDAGraph, "capture_begin", counted)
    found = {}
    for switch in ("on", "dry", "off"):
        captures.clear()
        monkeypatch.setenv(SWITCH, switch)
        found[switch] = run(verifier, drafter, "cuda", verifier_pattern=pattern)
        assert bool(captures) == (switch == "on")
    for switch in ("dry", "off"):
        assert all(torch.equal(a, b) for a, b in zip(found["on"], found[switch], strict=True))


@only_card
def test_a_draft_waits_for_nothing() -> None:
    """One synchronisation a round: `torch.cuda.set_sync_debug_mode` raises at any other."""
    verifier, drafter = model(0, torch.float32), model(1, torch.float32)
    run(verifier, drafter, "cuda")  # what libraries set up at first
    waits: list[str] = []
    rounds = 0

    def counted(values: torch.Tensor) -> list[object]:
        nonlocal rounds
        rounds += 1
        torch.cuda.set_sync_debug_mode("default")
        try:
            return tolist(values)  # the round's own
        finally:
            torch.cuda.set_sync_debug_mode("warn")

    tolist = torch.Tensor.tolist
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.Tensor, "tolist", counted)
            torch.cuda.set_sync_debug_mode("warn")
            try:
                run(verifier, drafter, "cuda")
            finally:
                torch.cuda.set_sync_debug_mode("default")
        waits = [str(one.message) for one in seen if "synchroniz" in str(one.message)]
    assert rounds > 5
    # What is copied when pieces enter and leave (conditions, sequences, codes) may wait.
    assert len(waits) < rounds
