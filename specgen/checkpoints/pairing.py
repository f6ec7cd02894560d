"""Whether a preset's models can work together, and what they need."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from specgen.checkpoints.base import CodecId, LMCheckpoint
from specgen.checkpoints.registry import load_codec, load_lm
from specgen.errors import UserError

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from torch import Tensor

    from specgen.lm.config import LMConfig
    from specgen.patterns import PatternSpec
    from specgen.presets import Preset, VerifierNode

STATES = "its verifier's states"
BORROWED = ("embedding.weight", "heads.weight", "heads.bias")
_SHARED = ("sample_rate", "frame_rate", "codebooks", "card", "channels")


@dataclass(frozen=True)
class Side:
    """A part of a preset, once it has been loaded and let go.

    Attributes:
        role: verifier, drafter or codec.
        name: as its checkpoint says.
        codec: the codec that it is, or whose tokens it writes.
        pattern: its pattern's kind; None of a codec.
        text: what it reads its prompt through; None of a codec.
        guidance: CFG coefficient of its configuration; None of a codec.
        max_frames: longest piece; None of a codec.
        weights: bytes.
        frame: bytes that a frame of one guided row takes in its cache.
    """

    role: str
    name: str
    codec: CodecId
    pattern: str | None
    text: str | None
    guidance: float | None
    max_frames: int | None
    weights: int
    frame: int

    def bytes(self, seconds: float) -> int:
        """Memory for one guided row of so many seconds."""
        return self.weights + round(self.frame * seconds * self.codec.frame_rate)


def inspect(preset: Preset) -> list[Side]:
    """Load a preset's parts, one after another, and say what they are.

    Raises:
        UserError: a part that cannot be had or loaded.
    """
    import torch

    parts = {"verifier": preset.node.verifier}
    if preset.drafter is not None:
        parts["drafter"] = preset.drafter
    dtypes = {role: getattr(torch, part.dtype) for role, part in parts.items()}
    kinds = {role: part.quantize for role, part in parts.items()}
    sides = []
    for role, model in load_models(preset, parts, "cpu", dtypes, kinds):
        sides.append(_side(role, model))
        del model  # before the next is loaded
    codec, identity = load_codec(preset.fetch(preset.node.codec.checkpoint), sides[0].codec)
    weights = sum(p.nbytes for p in codec.parameters())
    name = type(codec).__name__.removesuffix("Codec")
    sides.append(Side("codec", name, identity, None, None, None, None, weights, 0))
    return sides


def _side(role: str, model: LMCheckpoint) -> Side:
    from specgen.decoding.loop import steps_per_frame

    config = model.lm.config
    step = 2 * config.layers * config.kv_heads * config.head_dim * model.lm.dtype.itemsize
    return Side(
        role,
        model.name,
        model.codec,
        model.pattern.kind,
        STATES if config.feature_dim else text_name(model.conditioner),
        model.guidance,
        model.max_frames,
        model.lm.weight_bytes(),
        2 * step * steps_per_frame(model.pattern),
    )


def text_name(conditioner: Any) -> str:
    """What a model reads its prompt through, in a word or two."""
    inner = getattr(conditioner, "text", conditioner)
    name = getattr(inner, "name", None)
    kinds = {"WordEncoder": "its own words", "NoText": "nothing"}
    return str(name) if name else kinds.get(type(inner).__name__, type(inner).__name__)


def load_models(
    preset: Preset,
    parts: Mapping[str, VerifierNode],
    device: torch.device | str,
    dtypes: Mapping[str, torch.dtype],
    kinds: Mapping[str, str],
) -> Iterator[tuple[str, LMCheckpoint]]:
    """A preset's verifier, then its drafter, each quantised before the next is loaded, unless the
    drafter has tables in common with the verifier as they are stored.

    Args:
        parts: `verifier` and, if wanted, `drafter`.
        dtypes, kinds: what each is loaded in, and how it is quantised then.

    Raises:
        UserError: a part that cannot be had or loaded.
    """

    def load(role: str, folder: Path, verifier: LMCheckpoint | None = None) -> LMCheckpoint:
        return load_lm(folder, device, dtypes[role], verifier)

    verifier = load("verifier", preset.fetch(parts["verifier"].checkpoint))
    folder = preset.fetch(parts["drafter"].checkpoint) if "drafter" in parts else None
    follows = folder is not None and reads_states(folder)
    drafter = load("drafter", folder, verifier) if folder is not None and follows else None
    verifier = verifier.quantized(kinds["verifier"])
    yield "verifier", verifier
    del verifier
    if folder is not None:
        yield "drafter", (drafter or load("drafter", folder)).quantized(kinds["drafter"])


def reads_states(folder: Path) -> bool:
    """Whether a checkpoint is a drafter that reads its verifier's states."""
    from specgen.checkpoints import native, registry

    if registry.identify(folder) != registry.NATIVE:
        return False
    return bool(native.read_config(folder).lm.get("feature_dim"))


def borrowed(verifier: LMCheckpoint) -> dict[str, Tensor]:
    """The tables that a drafter with a `feature_dim` has in common with its verifier, which must
    not be packed yet."""
    held = verifier.lm.state_dict()
    return {name: held[name] for name in BORROWED if name in held}


def check_follows(
    name: str, config: LMConfig, pattern: PatternSpec, verifier: LMCheckpoint | None
) -> None:
    """Refuse a verifier whose states a drafter cannot read, or whose tables it cannot use.

    Raises:
        UserError: says what differs.
    """
    if verifier is None:
        raise UserError(f"{name} only drafts, with its verifier's tables: name it as a drafter")
    theirs = verifier.lm.config
    wanted = (config.codebooks, config.card, config.dim, config.feature_dim, config.bias_heads)
    there = (theirs.codebooks, theirs.card, theirs.dim, 2 * theirs.dim, theirs.bias_heads)
    if wanted != there or pattern != verifier.pattern:
        raise UserError(
            f"{name} reads the states of a {pattern.kind} model {config.dim} wide with "
            f"{config.codebooks} x {config.card} tokens, not those of {verifier.name} "
            f"({verifier.pattern.kind}, {theirs.dim} wide, {theirs.codebooks} x {theirs.card}): "
            "choose the verifier that it was made for"
        )


def check_together(models: Sequence[tuple[str, str, CodecId]], codec: CodecId) -> None:
    """Refuse models that do not speak of the same tokens.

    Args:
        models: role, name, and the codec that each was trained with.
        codec: the one that is to be used.

    Raises:
        UserError: names all that differs.
    """
    wrong = []
    for role, name, trained in models:
        for field in _SHARED:
            ours, theirs = getattr(codec, field), getattr(trained, field)
            if ours != theirs:
                wrong.append(
                    f"{role} {name} was made for a codec with {field} {theirs}, the preset's has "
                    f"{ours}"
                )
        if trained.fingerprint and trained.fingerprint != codec.fingerprint:
            wrong.append(
                f"{role} {name} was trained on the tokens of another codec than the preset's"
            )
    if wrong:
        raise UserError(f"{'; '.join(wrong)}; choose models of one codec")
