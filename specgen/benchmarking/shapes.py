"""Named shapes of language models: what a synthetic row times, and what a roofline is drawn for.

Loads no torch. MusicGen's sizes are those of audiocraft's `config/model/lm/model_scale/` (Copet et
al. 2023, section 3.1); "300M", "1.5B" and "3.3B" are the names the paper gives them, the counts
here are of the decoder alone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from specgen.errors import UserError
from specgen.lm.config import LMConfig

FRAME_RATE = 50.0
WORDS = 20  # condition tokens of a prompt
ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "float64": 8}


def _musicgen(dim: int, heads: int, layers: int) -> LMConfig:
    return LMConfig(4, 2048, dim, heads, layers, 4 * dim, condition_dim=dim)


SHAPES = {
    "small": _musicgen(1024, 16, 24),
    "medium": _musicgen(1536, 24, 48),
    "large": _musicgen(2048, 32, 48),
    "embedded-small": LMConfig(4, 1024, 128, 4, 2, 384, condition_dim=96, positions="rope"),
    "embedded-base": LMConfig(4, 1024, 256, 4, 5, 1024, condition_dim=128, positions="rope"),
    # For tests: every code path in milliseconds.
    "tiny": LMConfig(4, 64, 32, 2, 2, 64, condition_dim=32),
}
ALIASES = {
    "musicgen-small": "small",
    "300m": "small",
    "musicgen-medium": "medium",
    "1.5b": "medium",
    "musicgen-large": "large",
    "3.3b": "large",
}
PATTERNS = ("delay", "flatten", "parallel")


@dataclass(frozen=True)
class Shape:
    """A model without weights: its dimensions and the kind of its pattern.

    Attributes:
        name: one of `SHAPES`.
        pattern: one of `PATTERNS`.
        config: its dimensions.
    """

    name: str
    pattern: str
    config: LMConfig

    @classmethod
    def parse(cls, text: str) -> Shape:
        """Read `NAME:PATTERN`, such as `large:flatten`; `NAME` alone is a delay model.

        Raises:
            UserError: an unknown name or pattern.
        """
        name, _, pattern = text.strip().lower().partition(":")
        name, pattern = ALIASES.get(name, name), pattern or "delay"
        if name not in SHAPES:
            raise UserError(f"shape {name!r} is unknown; there are: {', '.join(SHAPES)}")
        if pattern not in PATTERNS:
            raise UserError(
                f"shape {text!r}: pattern {pattern!r} is unknown; use {', '.join(PATTERNS)}"
            )
        return cls(name, pattern, SHAPES[name])

    def __str__(self) -> str:
        return f"{self.name}:{self.pattern}"

    @property
    def plain(self) -> str:
        """The shape as a file's name has it."""
        return f"{self.name}-{self.pattern}"

    @property
    def parameters(self) -> int:
        """Numbers in the weights."""
        return _parameters(self.config)

    def read_parameters(self, heads: float = 1.0) -> int:
        """Weights that one pass reads: all but the embedding tables (a few rows of them) and the
        products that make the cross-attention's memory (once a prompt).

        Args:
            heads: the share of the K heads that the pass needs: a flatten step, 1 / K.
        """
        return read_parameters(self.config, heads)

    def cache_bytes(self, item: int) -> int:
        """Bytes that one position of one sequence holds in the cache, `item` bytes a number."""
        return cache_bytes(self.config, item)


def read_parameters(config: LMConfig, heads: float = 1.0) -> int:
    """See `Shape.read_parameters`."""
    kv = 2 * config.kv_heads * config.head_dim
    attention = config.dim * (2 * config.dim + kv) if config.attention else 0
    cross = 2 * config.dim**2 if config.condition_dim else 0
    layer = attention + cross + 2 * config.dim * config.ff_dim
    return config.layers * layer + round(heads * config.codebooks * config.card * config.dim)


def cache_bytes(config: LMConfig, item: int) -> int:
    """See `Shape.cache_bytes`."""
    return 2 * config.layers * config.kv_heads * config.head_dim * item


def _parameters(config: LMConfig) -> int:
    memory = 2 * config.condition_dim * config.dim
    norms = 2 * config.dim * (1 + config.attention + bool(config.condition_dim))
    tables = config.codebooks * (config.card + 1) * config.dim
    return read_parameters(config) + config.layers * (memory + norms) + tables + 2 * config.dim


@dataclass(frozen=True)
class Pair:
    """A verifier, and perhaps a drafter, without weights."""

    verifier: Shape
    drafter: Shape | None = None

    @classmethod
    def parse(cls, text: str) -> Pair:
        """Read `SHAPE` or `SHAPE,DRAFTER_SHAPE`.

        Raises:
            UserError: an unknown shape, more than two, or two that do not write the same grid.
        """
        parts = [Shape.parse(part) for part in text.split(",")]
        if len(parts) > 2:
            raise UserError(f"--synthetic {text!r}: give a verifier and at most one drafter")
        if len(parts) == 1:
            return cls(parts[0])
        verifier, drafter = parts
        ours, theirs = verifier.config, drafter.config
        if (ours.codebooks, ours.card) != (theirs.codebooks, theirs.card):
            raise UserError(
                f"--synthetic {text!r}: {verifier.name} writes {ours.codebooks} codebooks of "
                f"{ours.card} entries, {drafter.name} {theirs.codebooks} of {theirs.card}; choose "
                "shapes of one codec"
            )
        return cls(verifier, drafter)

    def __str__(self) -> str:
        return str(self.verifier) if self.drafter is None else f"{self.verifier},{self.drafter}"

    @property
    def alone(self) -> Pair:
        return replace(self, drafter=None)
