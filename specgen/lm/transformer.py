"""MusicGen's transformer decoder (Copet et al. 2023; audiocraft `modules/transformer.py`).

The arithmetic is audiocraft's, with one fused matrix product for queries, keys and values, and
cross-attention keys and values made once a prompt. This is the model over whole sequences, which
training uses; `specgen.lm.step` runs the same blocks on a cache, column by column.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from specgen.lm.config import LMConfig
from specgen.lm.packed import stored_bytes

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "relu": F.relu,
    "silu": F.silu,
}
# Bytes that a CPU reads in the time that folding saves in calls, whatever the model's size.
_CALLS = 3 * 2**19


@dataclass
class CrossMemory:
    """What the cross-attention reads: keys and values of every layer, made once a prompt.

    Attributes:
        keys, values: one `[N, heads, L, head_dim]` tensor a layer; folded (see
            `CrossAttention.fold`), `[N, dim, heads L]` and `[N, heads L, dim]`.
        mask: `[N, 1, 1, L]` added to the scores, or None when every place is real.
        folded: whether they hold the query and output products too (for `specgen.lm.step`).
        null: what the null condition adds to a sequence, `[dim]` a layer: it has a single place,
            which is read whole, whatever asks. Then the N rows are those of real conditions only,
            and behind each sequence comes a twin that follows the null condition. None: no twins.
    """

    keys: list[Tensor]
    values: list[Tensor]
    mask: Tensor | None
    folded: bool = False
    null: list[Tensor] | None = None


def hiding(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """What is added to scores of places `[N, L]`, folded or not, so that only real ones are read:
    `[N, 1, 1, L]`, or None where all are real."""
    if mask is None or bool(mask.all()):
        return None
    added = torch.zeros(mask.shape, dtype=dtype, device=mask.device)
    return added.masked_fill_(~mask, -torch.inf)[:, None, None]


def sinusoids(positions: Tensor, dim: int, max_period: float, dtype: torch.dtype) -> Tensor:
    """Cosines, then sines, of `positions`, as audiocraft orders them: `[..., dim]`."""
    half = dim // 2
    power = torch.arange(half, device=positions.device, dtype=dtype) / (half - 1)
    phase = positions.to(dtype)[..., None] / (max_period**power)
    return torch.cat([phase.cos(), phase.sin()], dim=-1)


def rotations(positions: Tensor, head_dim: int, max_period: float, scale: float) -> Tensor:
    """RoPE's rotations (Su et al. 2021) at `positions` `[...]`: `[..., head_dim / 2]` complex."""
    power = torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.float32) / head_dim
    angle = positions.float()[..., None] / (max_period**power)
    return torch.polar(torch.ones_like(angle), angle) * scale + (1.0 - scale)


def rotate(x: Tensor, turn: Tensor) -> Tensor:
    """Turn neighbouring pairs of `x` `[N, n, heads, head_dim]`, in float32 at least."""
    wide = x if x.dtype in (torch.float32, torch.float64) else x.float()
    pairs = torch.view_as_complex(wide.reshape(*wide.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * turn).flatten(-2).type_as(x)


def rotate_(x: Tensor, turn: Tensor) -> None:
    """`rotate` in place, without a copy where the dtype allows it."""
    if x.dtype in (torch.float32, torch.float64):
        torch.view_as_complex(x.view(*x.shape[:-1], -1, 2)).mul_(turn)
    else:
        x.copy_(rotate(x, turn))


def norm_queries_keys(qkv: Tensor, q_norm: nn.LayerNorm, k_norm: nn.LayerNorm) -> Tensor:
    """Normalised queries and keys beside untouched values, `[..., 3 dim]`."""
    q, k, v = qkv.chunk(3, dim=-1)
    return torch.cat([q_norm(q), k_norm(k), v], dim=-1)


class SelfAttention(nn.Module):
    """Causal self-attention over a whole sequence."""

    def __init__(self, config: LMConfig) -> None:
        super().__init__()
        self.config = config
        kv = config.kv_heads * config.head_dim
        self.qkv = nn.Linear(config.dim, config.dim + 2 * kv, bias=config.bias_attn)
        self.out = nn.Linear(config.dim, config.dim, bias=config.bias_attn)
        self.q_norm = nn.LayerNorm(config.dim) if config.qk_norm else None
        self.k_norm = nn.LayerNorm(config.dim) if config.qk_norm else None

    def forward(self, x: Tensor, turn: Tensor | None) -> Tensor:
        config = self.config
        qkv = self.qkv(x)
        if self.q_norm is not None and self.k_norm is not None:
            qkv = norm_queries_keys(qkv, self.q_norm, self.k_norm)
        heads = qkv.unflatten(-1, (-1, config.head_dim))  # [N, n, heads + 2 kv_heads, head_dim]
        turned = config.heads + config.kv_heads
        qk, v = heads[:, :, :turned], heads[:, :, turned:]
        if turn is not None:
            qk = rotate(qk, turn)
        seen = None
        if config.past_context is not None:
            seen = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device)
            seen = seen.tril().triu(-config.past_context)
        mixed = F.scaled_dot_product_attention(
            qk[:, :, : config.heads].transpose(1, 2),
            qk[:, :, config.heads :].transpose(1, 2),
            v.transpose(1, 2),
            attn_mask=seen,
            is_causal=seen is None and x.shape[1] > 1,
            enable_gqa=config.kv_repeat > 1,
        )
        return self.out(mixed.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class CrossAttention(nn.Module):
    """Attention from the sequence to the condition."""

    def __init__(self, config: LMConfig) -> None:
        super().__init__()
        self.config = config
        self.q = nn.Linear(config.dim, config.dim, bias=config.bias_attn)
        self.kv = nn.Linear(config.condition_dim, 2 * config.dim, bias=config.bias_attn)
        self.out = nn.Linear(config.dim, config.dim, bias=config.bias_attn)
        self.q_norm = nn.LayerNorm(config.dim) if config.qk_norm_cross else None
        self.k_norm = nn.LayerNorm(config.dim) if config.qk_norm_cross else None

    def _heads(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], self.config.heads, -1).transpose(1, 2)

    def memory(self, condition: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (`[N, heads, L, head_dim]`) of a condition `[N, L, condition_dim]`."""
        k, v = self.kv(condition).chunk(2, dim=-1)
        if self.k_norm is not None:
            k = self.k_norm(k)
        return self._heads(k).contiguous(), self._heads(v).contiguous()

    def alone(self, place: Tensor) -> Tensor:
        """What a condition of a single place `[condition_dim]` gives, whatever asks: `[dim]`."""
        return self.out(self.kv(place[None])[:, self.config.dim :])[0]  # type: ignore[no-any-return]

    def fold(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Keys with the query product in them, values with the output product in them.

        The scores are x Wq' K' and what is added is P V Wo'; both weights meet the prompt before
        they meet the sequence, so for a short prompt two thin products replace two square ones.

        Args:
            keys, values: of `memory`.

        Returns:
            `[N, dim, heads L]`, scaled, a row of memory for each place, which is how a single
            column reads it fastest; and `[N, heads L, dim]`.
        """
        N, heads, _, head_dim = keys.shape
        queries = self.q.weight.view(heads, head_dim, -1)
        outputs = self.out.weight.view(-1, heads, head_dim)
        asked = torch.einsum("nhld,hdc->nhlc", keys, queries).reshape(N, -1, queries.shape[-1])
        given = torch.einsum("nhld,chd->nhlc", values, outputs).reshape(N, -1, outputs.shape[0])
        return (asked * head_dim**-0.5).contiguous().mT, given.contiguous()

    def forward(self, x: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        q = self.q(x)
        if self.q_norm is not None:
            q = self.q_norm(q)
        mixed = F.scaled_dot_product_attention(self._heads(q), keys, values, attn_mask=mask)
        return self.out(mixed.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class Block(nn.Module):
    """Self-attention and cross-attention, where there are, and feed-forward; pre- or post-norm."""

    def __init__(self, config: LMConfig) -> None:
        super().__init__()
        self.norm_first = config.norm_first
        self.activation = _ACTIVATIONS[config.activation]
        self.norm1 = nn.LayerNorm(config.dim) if config.attention else None
        self.attention = SelfAttention(config) if config.attention else None
        conditioned = config.condition_dim > 0
        self.norm_cross = nn.LayerNorm(config.dim) if conditioned else None
        self.cross = CrossAttention(config) if conditioned else None
        self.norm2 = nn.LayerNorm(config.dim)
        self.up = nn.Linear(config.dim, config.ff_dim, bias=config.bias_ff)
        self.down = nn.Linear(config.ff_dim, config.dim, bias=config.bias_ff)
        if config.layer_scale:
            if config.attention:
                self.scale1 = nn.Parameter(torch.full((config.dim,), 1e-4))
            self.scale2 = nn.Parameter(torch.full((config.dim,), 1e-4))
            if conditioned:
                self.scale_cross = nn.Parameter(torch.full((config.dim,), 1e-4))
        self.scaled = config.layer_scale

    def forward(
        self, x: Tensor, layer: int, turn: Tensor | None, memory: CrossMemory | None
    ) -> Tensor:
        first = self.norm_first
        x_in = x  # audiocraft's post-norm block queries the condition with the block's own input
        if self.attention is not None and self.norm1 is not None:
            h = self.attention(self.norm1(x) if first else x, turn)
            x = x + (h * self.scale1 if self.scaled else h)
            x = x if first else self.norm1(x)
        if self.cross is not None and self.norm_cross is not None and memory is not None:
            query = self.norm_cross(x) if first else x_in
            h = self.cross(query, memory.keys[layer], memory.values[layer], memory.mask)
            x = x + (h * self.scale_cross if self.scaled else h)
            x = x if first else self.norm_cross(x)
        h = self.down(self.activation(self.up(self.norm2(x) if first else x)))
        x = x + (h * self.scale2 if self.scaled else h)
        if not first:
            x = self.norm2(x)
        return x


@dataclass(frozen=True)
class PositionTables:
    """What position codes add to the input (`[reach, dim]`) and turn queries and keys by
    (`[reach, head_dim / 2]`), by position; None where a model has no such code."""

    sines: Tensor | None
    turns: Tensor | None
    reach: int
    device: torch.device

    def at(
        self, positions: Tensor | slice, dtype: torch.dtype
    ) -> tuple[Tensor | None, Tensor | None]:
        """For `positions` `[N, n]` (or a slice, the same for all rows), all below `reach`:
        `[N, n, dim]` of `dtype` and `[N, n, 1, head_dim / 2]` complex (without N), or None each."""
        return (
            self.sines[positions].to(dtype) if self.sines is not None else None,
            self.turns[positions].unsqueeze(-2) if self.turns is not None else None,
        )


class Transformer(nn.Module):
    """The stack of blocks, with its position code."""

    def __init__(self, config: LMConfig) -> None:
        super().__init__()
        self.config = config
        self.blocks = nn.ModuleList([Block(config) for _ in range(config.layers)])
        self.compiled = False  # whether decoding compiles its leaves (specgen.lm.compiled)
        self._tables: PositionTables | None = None

    def memory(
        self,
        condition: Tensor,
        mask: Tensor | None = None,
        *,
        fold: bool = False,
        null: Tensor | None = None,
    ) -> CrossMemory | None:
        """Keys and values of every layer's cross-attention.

        Args:
            condition: `[N, L, condition_dim]`.
            mask: `[N, L]` bool, True where a place is real; None: all are.
            fold: fold them (see `folds`).
            null: `[condition_dim]`, the one place of the null condition that a twin of each row
                follows, or None.
        """
        config = self.config
        if not config.condition_dim:
            return None
        crosses = [block.cross for block in self.blocks if isinstance(block, Block)]
        pairs = [cross.memory(condition) for cross in crosses if cross is not None]
        if fold:
            pairs = [c.fold(*p) for c, p in zip(crosses, pairs, strict=True) if c is not None]
        keys, values = [k for k, _ in pairs], [v for _, v in pairs]
        nulls = None if null is None else [c.alone(null) for c in crosses if c is not None]
        return CrossMemory(keys, values, hiding(mask, condition.dtype), fold, nulls)

    def folds(self, rows: int, length: int) -> bool:
        """Whether folding `rows` conditions of `length` places is the same
        arithmetic and pays: folded, every row reads numbers of its own, not folded, all rows read
        the query and output weights together, which may be packed."""
        config = self.config
        crosses = [b.cross for b in self.blocks if isinstance(b, Block) and b.cross is not None]
        if not crosses or config.bias_attn or config.qk_norm_cross:
            return False
        if self.dtype not in (torch.float32, torch.float64):
            return False
        folded = 2 * rows * config.dim * config.heads * length * self.dtype.itemsize
        return folded <= stored_bytes(crosses[0].q) + stored_bytes(crosses[0].out) + _CALLS

    def position_tables(self, capacity: int) -> PositionTables:
        """What the position codes are read off, for positions below `capacity`."""
        config, device = self.config, self.device
        known = self._tables
        if known is None or known.reach < capacity or known.device != device:
            # Outside inference mode, so that the tables of a model that has decoded can train too.
            with torch.inference_mode(False):
                every = torch.arange(max(capacity, 64), device=device)
                sines = turns = None
                if config.positions in ("sin", "sin_rope"):
                    table = sinusoids(every, config.dim, config.max_period, torch.float32)
                    sines = table * config.positional_scale
                if config.positions in ("rope", "sin_rope") and config.attention:
                    scale = config.positional_scale
                    turns = rotations(every, config.head_dim, config.max_period, scale)
                known = self._tables = PositionTables(sines, turns, len(every), device)
        return known

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    def forward(self, x: Tensor, memory: CrossMemory | None) -> Tensor:
        """Run whole sequences.

        Args:
            x: `[N, n, dim]` input embeddings.
            memory: the condition, or None for a model without cross-attention.

        Returns:
            `[N, n, dim]`.
        """
        positions = torch.arange(x.shape[1], device=x.device)[None]
        added, turn = self.position_tables(x.shape[1]).at(positions, x.dtype)
        if added is not None:
            x = x + added
        for layer, block in enumerate(self.blocks):
            x = block(x, layer, turn, memory)
        return x
