"""Every dimension and option of a language model, as plain data."""

from __future__ import annotations

from dataclasses import dataclass

POSITIONS = ("sin", "rope", "sin_rope")
ACTIVATIONS = ("gelu", "relu", "silu")


@dataclass(frozen=True)
class LMConfig:
    """Options of MusicGen's decoder, named as in audiocraft's `transformer_lm` where it has them.

    Attributes:
        codebooks: K.
        card: entries a codebook; `card` itself is the special token.
        dim, heads, layers, ff_dim: the transformer's width, heads, depth and feed-forward width.
        condition_dim: width of the condition that the cross-attention reads (in audiocraft always
            `dim`, after a projection; any width works here). 0: no cross-attention.
        activation: of the feed-forward.
        norm_first: pre-norm (all MusicGen models) or post-norm.
        bias_attn, bias_ff, bias_heads: biases of the attention, feed-forward and output layers.
        positions: `sin` (added to the input), `rope` (rotates queries and keys) or `sin_rope`.
        max_period, positional_scale: of either position code.
        qk_norm, qk_norm_cross: layer norm on queries and keys before their product.
        kv_repeat: query heads that share one key/value head (grouped keys).
        layer_scale: whether each block's output is scaled by a learnt vector.
        past_context: earlier steps that a step attends to beside itself; None: all.
        feature_dim: width of what a drafter reads of its verifier beside a column's tokens: the
            states that the verifier drew them from, conditional and null (Li et al. 2024, "EAGLE").
            Such a drafter also has its verifier's embeddings and heads. 0: an ordinary model.
        attention: whether a column sees those before it. Only a drafter with a `feature_dim` can do
            without: its verifier's states have seen them.

    Raises:
        ValueError: options that contradict each other.
    """

    codebooks: int
    card: int
    dim: int
    heads: int
    layers: int
    ff_dim: int
    condition_dim: int = 0
    activation: str = "gelu"
    norm_first: bool = True
    bias_attn: bool = False
    bias_ff: bool = False
    bias_heads: bool = False
    positions: str = "sin"
    max_period: float = 10_000.0
    positional_scale: float = 1.0
    qk_norm: bool = False
    qk_norm_cross: bool = False
    kv_repeat: int = 1
    layer_scale: bool = False
    past_context: int | None = None
    feature_dim: int = 0
    attention: bool = True

    def __post_init__(self) -> None:
        for name in ("codebooks", "card", "dim", "heads", "layers", "ff_dim", "kv_repeat"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.dim % (2 * self.heads):
            raise ValueError(f"dim {self.dim} is no even multiple of heads {self.heads}")
        if self.heads % self.kv_repeat:
            raise ValueError(f"heads {self.heads} is no multiple of kv_repeat {self.kv_repeat}")
        if self.qk_norm and self.kv_repeat > 1:
            raise ValueError("qk_norm and kv_repeat cannot be combined")
        if self.past_context is not None and self.past_context < 1:
            raise ValueError(f"past_context must be at least 1 or None, got {self.past_context}")
        if self.feature_dim < 0:
            raise ValueError(f"feature_dim must be 0 or more, got {self.feature_dim}")
        if not self.attention and not self.feature_dim:
            raise ValueError("a model without a feature_dim needs attention")
        if self.positions not in POSITIONS:
            raise ValueError(
                f"positions {self.positions!r} is unknown; known: {', '.join(POSITIONS)}"
            )
        if self.activation not in ACTIVATIONS:
            raise ValueError(
                f"activation {self.activation!r} is unknown; known: {', '.join(ACTIVATIONS)}"
            )

    @property
    def head_dim(self) -> int:
        return self.dim // self.heads

    @property
    def kv_heads(self) -> int:
        return self.heads // self.kv_repeat if self.attention else 0

    @property
    def special(self) -> int:
        """Id of the special token, which fills the places of a sequence that hold no real token."""
        return self.card
