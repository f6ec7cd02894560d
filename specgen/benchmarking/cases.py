"""What to measure: presets and swept values, expanded into cases. Loads no torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

from specgen.config import Preset, SamplingNode, parse_draft_frames

# The rows of the reference table at the embedded sizes: each verifier alone, then the pairs.
DEFAULT_PRESETS = (
    "embedded-flatten",
    "embedded-base-delay",
    "embedded",
    "embedded-dual",
    "embedded-delay",
)


@dataclass(frozen=True)
class Sweep:
    """Values to go through; an empty one means each preset's own value.

    Attributes:
        durations: seconds.
        batches: clips decoded together.
        draft_frames: None in it is `auto`.
        rules, temperatures: of the draft.
    """

    durations: tuple[float, ...] = ()
    batches: tuple[int, ...] = (1,)
    draft_frames: tuple[int | None, ...] = ()
    rules: tuple[str, ...] = ()
    temperatures: tuple[tuple[float, ...], ...] = ()


@dataclass(frozen=True)
class Draft:
    """How a case drafts; `frames` None is `auto`."""

    rule: str
    frames: int | None
    temperatures: tuple[float, ...]


@dataclass(frozen=True)
class Case:
    """One row to be: a preset's pair, or (`draft` None) its verifier alone."""

    label: str
    preset: Preset
    duration: float
    batch: int
    draft: Draft | None

    @property
    def reference(self) -> tuple[object, ...]:
        """What a verifier alone must share with this case to be what it is compared with."""
        node = self.preset.node
        sampling = node.sampling
        return (
            self.preset.folder(node.verifier.checkpoint),
            node.verifier.dtype,
            (sampling.temperature, sampling.top_k, sampling.top_p, sampling.cfg),
            self.duration,
            self.batch,
        )

    @property
    def group(self) -> tuple[float, int]:
        """Cases of one group are run in turn."""
        return self.duration, self.batch


def expand(presets: Sequence[Preset], sweep: Sweep) -> list[Case]:
    """The cases, each pair's verifier alone among them, nothing twice, alone before pairs."""
    alone: dict[tuple[object, ...], Case] = {}
    pairs: list[Case] = []
    for preset in sorted(presets, key=lambda p: p.drafter is not None):
        for duration, batch in product(
            sweep.durations or (preset.node.duration.default,), sweep.batches
        ):
            name = preset.path.stem
            label = name if preset.drafter is None else f"{name}, verifier alone"
            case = Case(label, preset, duration, batch, None)
            alone.setdefault(case.reference, case)
            if preset.drafter is not None:
                pairs += (
                    Case(name, preset, duration, batch, draft) for draft in _drafts(preset, sweep)
                )
    once = {(c.preset.sha256, c.label, c.duration, c.batch, c.draft): c for c in pairs}
    return [*alone.values(), *once.values()]


def _drafts(preset: Preset, sweep: Sweep) -> Iterator[Draft]:
    own = preset.node.speculation
    frames = sweep.draft_frames or (parse_draft_frames(own.draft_frames, preset.name),)
    temperatures = sweep.temperatures or (tuple(own.draft_temperatures),)
    for rule, length, values in product(sweep.rules or (own.rule,), frames, temperatures):
        yield Draft(rule, length, values)


def sampling_dict(sampling: SamplingNode) -> dict[str, float]:
    """The sampling of a run, for its record."""
    return {
        "temperature": sampling.temperature,
        "top_k": sampling.top_k,
        "top_p": sampling.top_p,
        "cfg": sampling.cfg,
    }
