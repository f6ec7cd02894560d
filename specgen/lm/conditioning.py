"""The text condition of the embedded models: a small word encoder trained with its language model.

MusicGen reads its prompt through a frozen T5; a model of a few million parameters cannot afford
one. The embedded models know the couple of hundred words their captions are made of, a table of
synonyms for them, and name every other word to the user.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from specgen.errors import UserError

_WORD = re.compile(r"[^\W\d_]+|\d+(?:/\d+)?")


def split_words(text: str) -> list[str]:
    """The words of a text in lower case: letters, whole numbers, and metres such as 6/8."""
    return _WORD.findall(text.lower())


class Words(NamedTuple):
    """A prompt as the encoder reads it: `ids` of known words in order, and `unknown` ones."""

    ids: list[int]
    unknown: list[str]


@dataclass(frozen=True)
class WordEncoderConfig:
    """Plain data that a `WordEncoder` is built from.

    Attributes:
        vocabulary: the words of the training captions; a word's id is its place.
        synonyms: other words -> a word of the vocabulary.
        dim: width of the condition.
        layers: residual convolution blocks over neighbouring words.
        kernel: words that a block looks at, odd.
        max_words: longest prompt.

    Raises:
        ValueError: an option out of range, or a synonym for a word that is not in the vocabulary.
    """

    vocabulary: tuple[str, ...]
    synonyms: dict[str, str] = field(default_factory=dict)
    dim: int = 128
    layers: int = 1
    kernel: int = 5
    max_words: int = 64

    def __post_init__(self) -> None:
        if not self.vocabulary or len(set(self.vocabulary)) != len(self.vocabulary):
            raise ValueError("the vocabulary is empty or names a word twice")
        known = set(self.vocabulary)
        lost = sorted(word for word in self.synonyms.values() if word not in known)
        if lost:
            raise ValueError(f"synonyms lead to {lost[0]!r}, which is not in the vocabulary")
        if self.dim < 1 or self.layers < 0 or self.kernel < 1 or self.max_words < 1:
            raise ValueError("dim, kernel and max_words must be at least 1, layers at least 0")
        if self.kernel % 2 == 0:
            raise ValueError(f"kernel must be odd, got {self.kernel}")


class Neighbours(nn.Module):
    """A residual block: convolution over `kernel` neighbouring words, GELU, projection."""

    def __init__(self, dim: int, kernel: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.mix = nn.Conv1d(dim, dim, kernel, padding=kernel // 2)
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Tensor, real: Tensor) -> Tensor:
        """`x [B, L, dim]`, `real [B, L, 1]` 1 where a word stands: padding reads as silence."""
        h = self.mix((self.norm(x) * real).transpose(1, 2)).transpose(1, 2)
        return x + self.out(F.gelu(h))  # type: ignore[no-any-return]


class WordEncoder(nn.Module):
    """Words to a condition sequence, one vector a known word.

    A word's vector depends on its near neighbours only ("guitar chords" against "on the guitar"),
    not on its place in the prompt, so prompts of any order and length read like captions.
    """

    def __init__(self, config: WordEncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(len(config.vocabulary), config.dim)
        self.blocks = nn.ModuleList(
            [Neighbours(config.dim, config.kernel) for _ in range(config.layers)]
        )
        self.norm = nn.LayerNorm(config.dim)
        self.nothing = nn.Parameter(torch.randn(config.dim) * 0.5)
        self._ids = {word: i for i, word in enumerate(config.vocabulary)}

    def find(self, word: str) -> int | None:
        """Id of a lower-case word, its synonym, its singular or its plural; None if unknown."""
        forms = [word, word + "s"]
        forms += [word[: -len(end)] + new for end, new in _PLURALS if word.endswith(end)]
        for form in forms:
            form = self.config.synonyms.get(form, form)
            if form in self._ids:
                return self._ids[form]
        return None

    def tokenize(self, text: str) -> Words:
        """Read a prompt; unknown words are returned (once each, in order), not silently dropped.

        Raises:
            UserError: more than `max_words` words.
        """
        found = split_words(text)
        limit = self.config.max_words
        if len(found) > limit:
            raise UserError(
                f"the prompt has {len(found)} words, the model reads up to {limit}: shorten it"
            )
        known = [(word, self.find(word)) for word in found]
        return Words(
            [i for _, i in known if i is not None],
            list(dict.fromkeys(word for word, i in known if i is None)),
        )

    def embed(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Vectors `[B, L, dim]` of word ids `[B, L]`; `mask [B, L]` bool marks real words."""
        real = mask[..., None].to(self.embedding.weight.dtype)
        x = self.embedding(ids)
        for block in self.blocks:
            x = block(x, real)
        return self.norm(x)  # type: ignore[no-any-return]

    def null(self) -> Tensor:
        """The learnt null condition of classifier-free guidance, `[1, 1, dim]`."""
        return self.norm(self.nothing)[None, None]  # type: ignore[no-any-return]

    def forward(self, sentences: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Condition of a batch of word ids, for training; an empty sentence is the null condition.

        Returns:
            Vectors `[B, L, dim]` and mask `[B, L]` bool.
        """
        device = self.embedding.weight.device
        length = max(1, *map(len, sentences))
        ids = torch.zeros(len(sentences), length, dtype=torch.long)
        mask = torch.zeros(len(sentences), length, dtype=torch.bool)
        for row, sentence in enumerate(sentences):
            ids[row, : len(sentence)] = torch.tensor(sentence, dtype=torch.long)
            mask[row, : len(sentence)] = True
        ids, mask = ids.to(device), mask.to(device)
        vectors = self.embed(ids, mask)
        empty = ~mask.any(dim=1)
        vectors = torch.where(empty[:, None, None], self.null(), vectors)
        mask = mask | (empty[:, None] & (torch.arange(length, device=device) == 0))
        return vectors, mask

    @torch.inference_mode()
    def encode(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Condition of a batch of prompts; a prompt without a known word is the null condition.

        Each prompt is encoded by itself, so that its vectors do not depend on its neighbours, not
        even by rounding.

        Returns:
            Vectors `[B, L, dim]`, zero where padded, and mask `[B, L]` bool.

        Raises:
            UserError: a prompt of too many words.
        """
        rows = [self([self.tokenize(text).ids])[0][0] for text in texts]
        lengths = torch.tensor([len(row) for row in rows])
        vectors = nn.utils.rnn.pad_sequence(rows, batch_first=True)
        mask = torch.arange(vectors.shape[1])[None] < lengths[:, None]
        return vectors, mask.to(vectors.device)


_PLURALS = (("s", ""), ("es", ""), ("ies", "y"))


def close_synonyms(synonyms: Mapping[str, str], vocabulary: Sequence[str]) -> dict[str, str]:
    """The synonyms that lead into the vocabulary, chains resolved, known words left out."""
    known = set(vocabulary)
    closed: dict[str, str] = {}
    for word in synonyms:
        target, seen = synonyms[word], {word}
        while target not in known and target in synonyms and target not in seen:
            seen.add(target)
            target = synonyms[target]
        if target in known and word not in known:
            closed[word] = target
    return closed
