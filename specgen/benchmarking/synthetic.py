"""Synthetic rows: real shapes, random weights, a given acceptance.

Time does not depend on what the weights are, acceptance does. So the models are random but for
their last norm, whose gain is 0 and whose bias picks one column of the heads: every pass runs
whole, and what comes out of it is a distribution that was written into that column. The verifier's
is even over n entries of each codebook, the drafter's even over n entries of which m are the
verifier's. Under the coupled rule a guess then stands with probability m / (2n - m) (both take the
entry of the greatest noise, so it must lie in both sets), under the textbook rule with m / n (1
minus the total variation). The decode loop runs as ever, nothing in it knows of this; the coins are
independent from one token to the next, which real acceptance is not.
"""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from specgen.benchmarking.shapes import FRAME_RATE, WORDS, Shape
from specgen.checkpoints.base import CodecId, LMCheckpoint
from specgen.decoding.acceptance import Rule, textbook_codebooks
from specgen.devices import choose_device, choose_dtype
from specgen.engine import Engine
from specgen.errors import UserError
from specgen.lm.conditioning import Words
from specgen.lm.model import MusicLM
from specgen.lm.packed import PackedHeads, PackedLinear
from specgen.lm.quantized import check_kind
from specgen.patterns import PatternSpec
from specgen.presets import Preset
from specgen.requests import Settings

SAMPLE_RATE = 32_000
_MAX_FRAMES = 15_000
_ENTRIES = 250  # the size of the even distributions: MusicGen's top-k
_OUTSIDE = -100.0  # logit of the other entries


@dataclass(frozen=True)
class Wanted:
    """An acceptance that a drafter can be set to: one value a codebook, under a rule."""

    values: tuple[float, ...]
    rule: str


@dataclass(frozen=True)
class GridOnly:
    """What is known of the codec of a synthetic row: its grid. It makes no sound."""

    codebooks: int
    card: int
    sample_rate: int = SAMPLE_RATE
    frame_rate: float = FRAME_RATE
    channels: int = 1

    def encode(self, wav: Tensor) -> Tensor:
        raise UserError("a synthetic model has no codec; name a preset")

    def decode(self, codes: Tensor) -> Tensor:
        raise UserError("a synthetic model has no codec; name a preset")


class RandomCondition:
    """Stands for a text encoder: random vectors, the same ones for the same prompt."""

    def __init__(self, dim: int, device: torch.device, dtype: torch.dtype) -> None:
        self.dim, self._device, self._dtype = dim, device, dtype

    def tokenize(self, text: str) -> Words:
        return Words([], [])

    def encode(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """`[P, WORDS, dim]` and a mask `[P, WORDS]` of ones."""
        made = [
            torch.randn(
                WORDS, self.dim, generator=torch.Generator().manual_seed(zlib.crc32(t.encode()))
            )
            for t in texts
        ]
        condition = torch.stack(made).to(self._device, self._dtype)
        return condition, torch.ones(condition.shape[:2], dtype=torch.bool, device=self._device)

    def null(self) -> Tensor:
        """`[1, 1, dim]` zeros."""
        return torch.zeros(1, 1, self.dim, device=self._device, dtype=self._dtype)


def overlap(acceptance: float, entries: int, *, textbook: bool) -> int:
    """How many of n entries drafter and verifier share for a guess to stand this often."""
    share = acceptance if textbook else 2 * acceptance / (1 + acceptance)
    return round(entries * share)


def expected(shared: int, entries: int, *, textbook: bool) -> float:
    """The inverse of `overlap`: the acceptance that sharing m of n entries gives."""
    return shared / entries if textbook else shared / (2 * entries - shared)


def random_model(shape: Shape, device: torch.device, dtype: torch.dtype, seed: int) -> MusicLM:
    """A model of a shape, its weights float16 numbers as in the published checkpoints."""
    torch.manual_seed(seed)
    with _building(device, dtype):
        lm = MusicLM(shape.config).eval().requires_grad_(False)
    for value in lm.parameters():
        if value.dtype == torch.float32:
            value.copy_(value.half())
    return lm


@contextlib.contextmanager
def _building(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            yield
    finally:
        torch.set_default_dtype(before)


def write_distributions(lm: MusicLM, shifts: Sequence[Sequence[int]], entries: int) -> None:
    """Write distributions into the heads' first columns; `choose` then picks one.

    Args:
        lm: not packed yet.
        shifts: for each column, for each codebook, the first of the n entries it is even over.
        entries: n.

    Raises:
        UserError: more columns than the model is wide.
    """
    config, heads = lm.config, lm.heads
    assert isinstance(heads, nn.Linear) and lm.out_norm is not None
    if len(shifts) > config.dim:
        raise UserError(
            f"{len(shifts)} acceptances are more than a model {config.dim} wide can hold; ask for "
            "fewer"
        )
    table = heads.weight.data.view(config.codebooks, config.card, config.dim)
    for column, starts in enumerate(shifts):
        table[:, :, column] = _OUTSIDE
        for k, start in enumerate(starts):
            table[k, start : start + entries, column] = 0.0
    lm.out_norm.weight.data.zero_()
    choose(lm, 0)


def choose(lm: MusicLM, column: int) -> None:
    """Let the model's distributions be those of a column."""
    assert lm.out_norm is not None
    bias = lm.out_norm.bias.data
    bias.zero_()
    bias[column] = 1.0


def shared_entries(card: int) -> int:
    """n for a codebook of `card` entries: two sets of n that share nothing must fit."""
    return min(_ENTRIES, card // 2)


def load(
    preset: Preset,
    wanted: Sequence[Wanted],
    *,
    device: str = "auto",
    dtype: str | None = None,
    threads: int | None = None,
    seed: int = 0,
) -> Engine:
    """A synthetic preset's models, ready to decode.

    Args:
        preset: whose checkpoints are called `synthetic:SHAPE`.
        wanted: the drafter's column i is the i-th of these.
        device, dtype: `dtype` None is float32 on a CPU, float16 on a card.
        threads: CPU threads; None leaves them.
        seed: of the weights.

    Raises:
        UserError: no such device or dtype.
    """
    place = choose_device(device)
    kind = choose_dtype(dtype or ("float32" if place.type == "cpu" else "float16"), place)
    node = preset.node
    for part in (node.verifier, node.drafter):
        check_kind("none" if part is None else part.quantize, place)
    verifier = _checkpoint(node.verifier.checkpoint, "verifier", place, kind, seed)
    entries = shared_entries(verifier.lm.config.card)
    K = verifier.pattern.codebooks
    write_distributions(verifier.lm, [[0] * K], entries)
    drafter = None
    if node.drafter is not None:
        drafter = _checkpoint(node.drafter.checkpoint, preset.name, place, kind, seed + 1)
        write_distributions(
            drafter.lm,
            [_starts(w, drafter.pattern, verifier.pattern, entries) for w in wanted] or [[0] * K],
            entries,
        )
    verifier = verifier.quantized(node.verifier.quantize)
    if drafter is not None and node.drafter is not None:
        drafter = drafter.quantized(node.drafter.quantize)
    for model in (verifier, drafter):
        if model is not None:
            model.lm.pack()
    if place.type == "cpu" and threads is not None:
        torch.set_num_threads(threads)
    return Engine(
        preset=preset,
        settings=Settings.of(preset),
        device=place,
        verifier=verifier,
        drafter=drafter,
        codec=GridOnly(K, verifier.lm.config.card),
        codec_sha256="",
    )


def _starts(wanted: Wanted, drafter: PatternSpec, verifier: PatternSpec, entries: int) -> list[int]:
    by_textbook = textbook_codebooks(Rule(wanted.rule), drafter.of(64), verifier.of(64))
    return [
        entries - overlap(value, entries, textbook=flag)
        for value, flag in zip(wanted.values, by_textbook, strict=True)
    ]


def _checkpoint(
    reference: str, owner: str, device: torch.device, dtype: torch.dtype, seed: int
) -> LMCheckpoint:
    shape = Shape.parse(reference.partition(":")[2])
    config = shape.config
    return LMCheckpoint(
        name=f"SYNTHETIC {shape}",
        lm=random_model(shape, device, dtype, seed),
        conditioner=RandomCondition(config.condition_dim, device, dtype),
        pattern=PatternSpec(shape.pattern, config.codebooks),
        codec=CodecId(SAMPLE_RATE, FRAME_RATE, config.codebooks, config.card, ""),
        max_frames=_MAX_FRAMES,
        sha256=f"{reference} random weights of seed {seed} for {owner}",
    )


def dense_state(model: MusicLM) -> dict[str, Tensor]:
    """The state of a model under its own names, packed products unpacked.

    Raises:
        ValueError: a packed product with a bias, which cannot be had back.
    """
    state = dict(model.state_dict())
    for name, module in model.named_modules():
        if not isinstance(module, PackedLinear) or name == "heads.together":
            continue  # all heads together are those of `heads.each` once more
        weight = module.weight
        if module.count != weight.numel():
            raise ValueError(f"{name}: the bias of a packed product cannot be had back")
        state[f"{name}.weight"] = weight
    if isinstance(model.heads, PackedHeads):
        parts = [state.pop(f"heads.each.{k}.weight") for k in range(model.config.codebooks)]
        state["heads.weight"] = torch.cat(parts)
    return state
