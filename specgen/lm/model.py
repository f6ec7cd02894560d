"""The language model over codec tokens."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from specgen.lm.config import LMConfig
from specgen.lm.packed import PackedHeads, PackedLinear, fits, pack_, packs
from specgen.lm.quantized import QuantizedLinear
from specgen.lm.transformer import CrossMemory, Transformer


class MusicLM(nn.Module):
    """K summed embeddings, the transformer, K heads (audiocraft `models/lm.py`).

    The K embedding tables and the K heads are each kept as one table, codebook after codebook, so
    that a column is embedded by one look-up and the heads that a step needs are one slice.
    """

    def __init__(self, config: LMConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.codebooks * (config.card + 1), config.dim)
        self.features: nn.Linear | PackedLinear | None = None
        if config.feature_dim:
            self.features = nn.Linear(config.feature_dim, config.dim, bias=False)
        self.transformer = Transformer(config)
        self.out_norm = nn.LayerNorm(config.dim) if config.norm_first else None
        self.heads: nn.Linear | PackedHeads = nn.Linear(
            config.dim, config.codebooks * config.card, bias=config.bias_heads
        )
        # Not by arange: on the meta device that imports torch's compiler, which takes seconds.
        offsets = torch.tensor([[k * (config.card + 1)] for k in range(config.codebooks)])
        self.register_buffer("offsets", offsets, persistent=False)
        self.offsets: Tensor

    def hidden(
        self, tokens: Tensor, memory: CrossMemory | None, features: Tensor | None = None
    ) -> Tensor:
        """The last layer's output for whole sequences.

        Args:
            tokens: `[N, K, S]` token ids, `card` for the special token.
            memory: see `Transformer.memory`.
            features: `[N, S, feature_dim]`, see `embed`.

        Returns:
            `[N, S, dim]`; position s predicts the tokens of step s + 1.
        """
        return self.finish(self.transformer(self.embed(tokens, features), memory))

    def embed(self, tokens: Tensor, features: Tensor | None = None) -> Tensor:
        """Summed embeddings `[N, n, dim]` of columns `[N, K, n]`, and what is known of the states
        that they were drawn from (`[N, n, feature_dim]`, zero where nothing is)."""
        summed = torch.embedding(self.embedding.weight, tokens + self.offsets).sum(dim=1)
        if features is None or self.features is None:
            return summed
        return summed + self.features.forward(features)

    def finish(self, x: Tensor) -> Tensor:
        """The norm before the heads, where the model has one."""
        return x if self.out_norm is None else self.out_norm(x)

    def head(self, hidden: Tensor, codebook: int) -> Tensor:
        """Logits `[..., card]` of one codebook from hidden states `[..., dim]`."""
        if not isinstance(self.heads, nn.Linear):
            return self.heads.head(hidden, codebook)
        return F.linear(hidden, *self.head_weight(codebook))

    def head_weight(self, codebook: int) -> tuple[Tensor, Tensor | None]:
        """Weight `[card, dim]` and bias `[card]` or None of one codebook's head."""
        if not isinstance(self.heads, nn.Linear):
            head = self.heads.each[codebook]
            return head.weight, head.bias  # type: ignore[return-value]
        card = self.config.card
        low = codebook * card
        bias = None if self.heads.bias is None else self.heads.bias[low : low + card]
        return self.heads.weight[low : low + card], bias

    def all_heads(self, hidden: Tensor) -> Tensor:
        """Logits `[..., K, card]` of every codebook from hidden states `[..., dim]`."""
        logits: Tensor = self.heads.forward(hidden)  # past the module's hooks
        return logits.view(*hidden.shape[:-1], self.config.codebooks, self.config.card)

    def pack(self) -> MusicLM:
        """Lay the products out for decoding on the CPU, in place, where that applies; the numbers
        stay the same, but the model cannot be trained any more (see `specgen.lm.packed`)."""
        if self.device.type == "cpu":
            pack_(self.transformer)
            if isinstance(self.features, nn.Linear) and packs() and fits(self.features.weight):
                self.features = PackedLinear(self.features.weight)
            if isinstance(self.heads, nn.Linear) and packs() and fits(self.heads.weight):
                self.heads = PackedHeads(self.heads, self.config.codebooks)
        return self

    @property
    def device(self) -> torch.device:
        return self.embedding.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.embedding.weight.dtype

    def weight_bytes(self) -> int:
        """Bytes of the weights as they lie in memory."""
        return sum(m.nbytes for m in self._stored()) + sum(p.nbytes for p in self.parameters())

    def parameter_count(self) -> int:
        return sum(m.count for m in self._stored()) + sum(p.numel() for p in self.parameters())

    def _stored(self) -> list[PackedLinear | QuantizedLinear]:
        """The products that hold their weights in a form of their own."""
        return [m for m in self.modules() if isinstance(m, PackedLinear | QuantizedLinear)]
