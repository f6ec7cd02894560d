"""What to measure: presets and swept values, expanded into cases. Loads no torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

from specgen.benchmarking.given import Given
from specgen.benchmarking.shapes import Pair
from specgen.presets import (
    CodecNode,
    DrafterNode,
    DurationNode,
    Preset,
    PresetNode,
    SamplingNode,
    SpeculationNode,
    VerifierNode,
    fingerprint,
    parse_draft_frames,
    parse_quantize,
)

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
        acceptances: of synthetic pairs.
        peers: other packages that decode what a verifier decodes alone.
    """

    durations: tuple[float, ...] = ()
    batches: tuple[int, ...] = (1,)
    draft_frames: tuple[float | None, ...] = ()
    rules: tuple[str, ...] = ()
    temperatures: tuple[tuple[float, ...], ...] = ()
    acceptances: tuple[Given, ...] = ()
    peers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Draft:
    """How a case drafts; `frames` None is `auto`; `given` is a synthetic pair's acceptance."""

    rule: str
    frames: float | None
    temperatures: tuple[float, ...]
    given: Given | None = None


@dataclass(frozen=True)
class Case:
    """One row to be: a preset's pair, or (`draft` None) one of its models alone.

    Attributes:
        label: what the row is called.
        preset: whose models.
        duration: seconds of each clip.
        batch: clips decoded together.
        draft: how the drafter drafts, None where a model goes alone.
        drafter_alone: whether that is the drafter.
        peer: the package that decodes instead of ours, the verifier alone.
    """

    label: str
    preset: Preset
    duration: float
    batch: int
    draft: Draft | None
    drafter_alone: bool = False
    peer: str | None = None

    @property
    def reference(self) -> tuple[object, ...]:
        """What a verifier alone must share with this case to be what it is compared with."""
        return self._alone(self.preset.node.verifier, True)

    @property
    def draft_reference(self) -> tuple[object, ...] | None:
        """What a drafter alone must share with this pair to say what drafting costs."""
        drafter = self.preset.drafter
        return None if drafter is None else self._alone(drafter, drafter.cfg)

    def _alone(self, node: VerifierNode, guided: bool) -> tuple[object, ...]:
        sampling = self.preset.node.sampling
        return (
            self._place(node.checkpoint),
            node.dtype,
            node.quantize,
            (sampling.temperature, sampling.top_k, sampling.top_p),
            sampling.cfg if guided else 1.0,
            self.duration,
            self.batch,
        )

    def _place(self, checkpoint: str) -> object:
        if is_synthetic(self.preset):
            return checkpoint
        return self.preset.locate(checkpoint) or checkpoint

    @property
    def key(self) -> tuple[object, ...] | None:
        """Of a model alone: cases of one key would measure the same thing."""
        if self.draft is not None or self.peer is not None:
            return None
        return self.draft_reference if self.drafter_alone else self.reference

    @property
    def group(self) -> tuple[float, int]:
        """Cases of one group are run in turn."""
        return self.duration, self.batch


def expand(presets: Sequence[Preset], sweep: Sweep) -> list[Case]:
    """The cases, nothing twice: verifiers alone, drafters alone, peers, then pairs."""
    alone: dict[tuple[object, ...], Case] = {}
    drafters: dict[tuple[object, ...], Case] = {}
    pairs: list[Case] = []
    for preset in sorted(presets, key=lambda p: p.drafter is not None):
        for duration, batch in product(
            sweep.durations or (preset.node.duration.default,), sweep.batches
        ):
            name = titled(preset)
            label = name if preset.drafter is None else f"{name}, verifier alone"
            case = Case(label, preset, duration, batch, None)
            alone.setdefault(case.reference, case)
            if preset.drafter is None:
                continue
            single = replace(case, label=f"{name}, drafter alone", drafter_alone=True)
            assert single.draft_reference is not None
            drafters.setdefault(single.draft_reference, single)
            pairs += (
                Case(name, preset, duration, batch, draft) for draft in _drafts(preset, sweep)
            )
    others = [case for key, case in drafters.items() if key not in alone]
    once = {(c.preset.sha256, c.label, c.duration, c.batch, c.draft): c for c in pairs}
    peers = [
        replace(case, label=f"{case.label}, {name}", peer=name)
        for case in alone.values()
        for name in sweep.peers
    ]
    return [*alone.values(), *others, *peers, *once.values()]


def _drafts(preset: Preset, sweep: Sweep) -> Iterator[Draft]:
    own = preset.node.speculation
    frames = sweep.draft_frames or (parse_draft_frames(own.draft_frames, preset.name),)
    temperatures = sweep.temperatures or (tuple(own.draft_temperatures),)
    given = sweep.acceptances if is_synthetic(preset) else (None,)
    for rule, length, values, one in product(
        sweep.rules or (own.rule,), frames, temperatures, given or (None,)
    ):
        yield Draft(rule, length, values, one)


def quantized(presets: Sequence[Preset], specs: Sequence[str]) -> list[Preset]:
    """Every preset with its models quantised as each of `specs` (`drafter=int8`) says; as they are
    where there is none.

    Raises:
        UserError: a spec that is not understood.
    """
    if not specs:
        return list(presets)
    made: dict[str, Preset] = {}
    for preset, spec in product(presets, specs):
        kinds, node = parse_quantize(spec), preset.node
        verifier = replace(node.verifier, quantize=kinds.get("verifier", node.verifier.quantize))
        drafter = node.drafter and replace(
            node.drafter, quantize=kinds.get("drafter", node.drafter.quantize)
        )
        node = replace(node, verifier=verifier, drafter=drafter)
        made.setdefault(fingerprint(node), replace(preset, node=node, sha256=fingerprint(node)))
    return list(made.values())


def titled(preset: Preset) -> str:
    """A preset's name in a table, with what is quantised."""
    parts = {"verifier": preset.node.verifier, "drafter": preset.drafter}
    said = [f"{r} {p.quantize}" for r, p in parts.items() if p and p.quantize != "none"]
    return ", ".join([preset.path.stem, *said])


_SYNTHETIC = "synthetic:"  # how the checkpoints of a synthetic preset begin


def synthetic_preset(pair: Pair) -> Preset:
    """A preset of random weights, with MusicGen's own sampling."""
    verifier, drafter = pair.verifier, pair.drafter
    name = f"SYNTHETIC {verifier.plain}"
    if drafter is not None:
        name = f"SYNTHETIC {drafter.plain} for {verifier.plain}"
    node = PresetNode(
        verifier=VerifierNode(f"{_SYNTHETIC}{verifier}"),
        drafter=None if drafter is None else DrafterNode(f"{_SYNTHETIC}{drafter}"),
        codec=CodecNode("synthetic"),
        speculation=SpeculationNode(),
        duration=DurationNode(2.0, 300.0),
    )
    return Preset(name, Path(name), node, fingerprint(node))


def is_synthetic(preset: Preset) -> bool:
    """Whether a preset is of random weights."""
    return preset.node.verifier.checkpoint.startswith(_SYNTHETIC)


def sampling_dict(sampling: SamplingNode) -> dict[str, float]:
    """The sampling of a run, for its record."""
    return {
        "temperature": sampling.temperature,
        "top_k": sampling.top_k,
        "top_p": sampling.top_p,
        "cfg": sampling.cfg,
    }
