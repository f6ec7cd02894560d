"""What a named card could do at best: a roofline for the shapes of the reference table.

Everything here is a prediction from data sheets. A pass takes as long as its weights and caches
take to be read, or its products to be computed, whichever is longer.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from specgen.benchmarking.prediction import Passes, Prices, predict
from specgen.benchmarking.rows import SCHEMA
from specgen.benchmarking.shapes import FRAME_RATE, Pair, Shape, cache_bytes
from specgen.benchmarking.tables import grid
from specgen.decoding.loop import draft_steps, steps_per_frame
from specgen.errors import UserError
from specgen.patterns import PatternSpec

ITEM = 2  # bytes a number: 16 bit
AUTO_FRAMES = (0, 0.25, 0.5, 0.75, 1, 2, 3, 4, 6, 8, 12)
_SEEDS = 3  # plays of coins that a prediction is the mean of


@dataclass(frozen=True)
class Card:
    """A card by its data sheet.

    Attributes:
        name: in full.
        bandwidth: bytes a second of its memory.
        memory: bytes.
        flops: dense 16-bit tensor operations a second, sums in float32 where the sheet tells.
        source: where that is written.
    """

    name: str
    bandwidth: float
    memory: float
    flops: float
    source: str


CARDS = {
    "A4000": Card("RTX A4000", 448e9, 16e9, 76.7e12, "NVIDIA RTX A4000 datasheet, 2021"),
    "A10": Card("A10", 600e9, 24e9, 125e12, "NVIDIA A10 datasheet, 2021"),
    "A100": Card("A100 80GB SXM", 2039e9, 80e9, 312e12, "NVIDIA A100 datasheet, 2021"),
    "H100": Card("H100 SXM", 3350e9, 80e9, 989e12, "NVIDIA H100 datasheet, 2023"),
    "H200": Card("H200 SXM", 4800e9, 141e9, 989e12, "NVIDIA H200 datasheet, 2024"),
    "L4": Card("L4", 300e9, 24e9, 121e12, "NVIDIA L4 datasheet, 2023"),
    "T4": Card("T4", 320e9, 16e9, 65e12, "NVIDIA T4 datasheet, 2018"),
    "3090": Card("GeForce RTX 3090", 936e9, 24e9, 71e12, "NVIDIA GA102 whitepaper, 2020"),
    "4090": Card("GeForce RTX 4090", 1008e9, 24e9, 165e12, "NVIDIA Ada whitepaper, 2022"),
}

# The rows of the reference table.
REFERENCE = ("large:flatten", "large:delay", "large:flatten,large:delay", "large:delay,small:delay")


def find(name: str) -> Card:
    """A card by its short name.

    Raises:
        UserError: it is not in the table.
    """
    if name.upper() not in CARDS:
        raise UserError(f"card {name!r} is unknown; there are: {', '.join(CARDS)}")
    return CARDS[name.upper()]


@dataclass(frozen=True)
class Roof:
    """A predicted row.

    Attributes:
        pair: the shapes.
        chance: acceptance it is drawn for, one value a codebook; () without a drafter.
        share: of the card's bandwidth that passes are taken to reach.
        seconds: of decoding.
        alone_seconds: of the verifier alone.
        frames: draft length, 0 where the verifier goes alone.
        tokens_per_pass: of the verifier.
        verify, draft: seconds of a verifier pass of one column and of a drafter's.
        memory: bytes of weights, caches and noise.
    """

    pair: Pair
    chance: tuple[float, ...]
    share: float
    seconds: float
    alone_seconds: float
    frames: float
    tokens_per_pass: float
    verify: float
    draft: float
    memory: float


def pass_seconds(
    shape: Shape, card: Card, *, columns: int, share: float, positions: float, rows: int
) -> float:
    """Seconds of a forward pass of `columns` columns of `rows` sequences, at least.

    Args:
        shape: the model, at 16 bit.
        card: where.
        columns: new positions.
        share: of the card's bandwidth that is reached.
        positions: that lie in the cache of each sequence.
        rows: sequences, the twins of guidance included.
    """
    flat = shape.pattern == "flatten"
    heads = min(1.0, columns / shape.config.codebooks) if flat else 1.0
    weights = shape.read_parameters(heads)
    moved = ITEM * weights + cache_bytes(shape.config, ITEM) * (positions + columns) * rows
    computed = 2 * weights * columns * rows
    return max(moved / (share * card.bandwidth), computed / card.flops)


def roof(
    pair: Pair,
    card: Card,
    *,
    seconds: float,
    chance: Sequence[float] = (),
    share: float = 1.0,
    batch: int = 1,
) -> Roof:
    """The best that a card could do for a pair, by the draft length that suits it best.

    Args:
        pair: the shapes.
        card: where.
        seconds: of audio of each clip.
        chance: acceptance of each codebook.
        share: of the bandwidth that is reached.
        batch: clips at a time; with guidance, two sequences each.
    """
    frames, rows = round(seconds * FRAME_RATE), 2 * batch
    verifier, drafter = pair.verifier, pair.drafter
    lead = PatternSpec(verifier.pattern, verifier.config.codebooks)
    middle = lead.of(frames).steps / 2
    lengths = AUTO_FRAMES if drafter is not None else (0,)
    steps = list(dict.fromkeys(draft_steps(f or None, lead) or 0 for f in lengths))
    verify = {
        n: pass_seconds(verifier, card, columns=n, share=share, positions=middle, rows=rows)
        for n in {1, *(m + 1 for m in steps)}
    }
    follow, draft = None, 0.0
    if drafter is not None:
        follow = PatternSpec(drafter.pattern, drafter.config.codebooks)
        behind = follow.of(frames).steps / 2
        draft = pass_seconds(drafter, card, columns=1, share=share, positions=behind, rows=rows)
    prices = Prices(verify, draft)
    found = [
        predict(
            lead,
            follow,
            prices,
            frames=frames,
            steps=steps,
            chance=chance,
            batch=batch,
            seed=seed,
        )
        for seed in range(_SEEDS if drafter is not None else 1)
    ]
    alone = predict(lead, None, prices, frames=frames, steps=[0])
    played: list[Passes] = [one.passes for one in found]
    return Roof(
        pair,
        tuple(chance) if drafter is not None else (),
        share,
        sum(one.seconds for one in found) / len(found),
        alone.seconds,
        found[0].steps / steps_per_frame(lead),
        sum(p.tokens_per_pass for p in played) / len(played),
        verify[1],
        draft,
        _memory(pair, frames, rows, batch),
    )


def _memory(pair: Pair, frames: int, rows: int, batch: int) -> float:
    total = 4.0 * batch * frames * pair.verifier.config.codebooks * pair.verifier.config.card
    for shape in (pair.verifier, pair.drafter):
        if shape is not None:
            steps = PatternSpec(shape.pattern, shape.config.codebooks).of(frames).steps
            total += ITEM * shape.parameters
            total += cache_bytes(shape.config, ITEM) * steps * rows
    return total


SHARES = (1.0, 0.7)  # of the bandwidth: the roof, and what a good engine reaches
UNSTATED = 0.7  # the acceptance that a roofline is drawn for where none is given


def report(
    card: Card,
    pairs: Sequence[Pair],
    chances: Sequence[Sequence[float]],
    *,
    seconds: float,
    batch: int,
    form: str,
    width: int | None = None,
) -> str:
    """The roofline of a card: `form` is table, md or json."""
    found = [
        roof(pair, card, seconds=seconds, chance=chance, share=share, batch=batch)
        for pair in pairs
        for chance in (chances if pair.drafter is not None else [()])
        for share in SHARES
    ]
    head = (
        f"PREDICTED roofline, nothing measured: {card.name}, {card.bandwidth / 1e9:g} GB/s, "
        f"{card.memory / 1e9:g} GB, {card.flops / 1e12:g} TFLOP/s ({card.source}); 16 bit, "
        f"guidance, {seconds:g} s of audio, batch {batch}, draft length the best of "
        f"{', '.join(map(str, AUTO_FRAMES))} frames"
    )
    if form == "json":
        rows = [
            {
                "verifier": str(one.pair.verifier),
                "drafter": one.pair.drafter and str(one.pair.drafter),
                "acceptance_per_codebook": list(one.chance) or None,
                "bandwidth_share": one.share,
                "predicted_seconds": one.seconds,
                "predicted_speedup": one.alone_seconds / one.seconds if one.chance else None,
                "draft_frames": one.frames if one.chance else None,
                "tokens_per_pass": one.tokens_per_pass,
                "verify_pass_seconds": one.verify,
                "draft_step_seconds": one.draft if one.chance else None,
                "memory_bytes": round(one.memory),
                "fits": one.memory < card.memory,
            }
            for one in found
        ]
        document = {
            "schema": SCHEMA,
            "prediction": True,
            "card": asdict(card),
            "duration_seconds": seconds,
            "batch": batch,
            "rows": rows,
        }
        return json.dumps(document, indent=1, allow_nan=False)
    lines = [line(one, card, seconds) for one in found]
    return f"{head}\n\n{grid(form, titles(), lines, left=2, width=width)}"


def titles() -> list[str]:
    """Of the columns of `line`."""
    return [
        "verifier",
        "drafter",
        "acceptance",
        "of the bandwidth",
        "seconds PREDICTED",
        "x real time",
        "speed-up",
        "draft frames",
        "tokens/pass",
        "verify ms",
        "draft ms",
        "GB",
        "fits",
    ]


def line(found: Roof, card: Card, seconds: float) -> list[str]:
    """A predicted row as cells."""
    pair, drafter = found.pair, found.pair.drafter
    alone = drafter is None
    values = [f"{100 * c:.0f}" for c in found.chance]
    shown = values[:1] if len(set(values)) == 1 else values
    return [
        str(pair.verifier),
        "-" if alone else str(drafter),
        "-" if alone else " ".join(shown) + " %",
        f"{100 * found.share:.0f} %",
        f"{found.seconds:.2f}",
        f"{seconds / found.seconds:.2f}",
        "-" if alone else f"{found.alone_seconds / found.seconds:.2f}",
        "-" if alone else f"{found.frames:g}",
        f"{found.tokens_per_pass:.2f}",
        f"{1000 * found.verify:.2f}",
        "-" if alone else f"{1000 * found.draft:.2f}",
        f"{found.memory / 1e9:.1f}",
        "yes" if found.memory < card.memory else "NO",
    ]
