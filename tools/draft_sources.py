"""Sources of drafts other than a drafter, judged on clips of a verifier; see `draft_ideas.py`."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from specgen.decoding.sampling import Sampling, process
from specgen.training.objective import coupled_chance

LAG = 2  # frames until what the verifier drew is known to those that learn from it
SAMPLING = Sampling()  # the presets': temperature 1, top-k 250
GUIDANCE = 3.0


@dataclass
class Clip:
    """A clip of the verifier, and what the models say of it.

    Attributes:
        codes: `[K, T]`, drawn by the verifier alone.
        gumbel: `[K, T, card]`, the noise it was drawn with.
        target: `[K, T, card]` processed guided logits of the verifier.
        draft: `[K, T, card]` guided logits of the drafter, not processed.
        hidden: `[K, T, dim]` of the drafter before its heads (of its conditional half).
        exits: `[L - 1, K, T, card]` guided logits of the verifier's heads after its first layers;
            and `inner`, `[L - 1, 2, K, T, dim]`, their hidden states. Short clips only.
    """

    codes: Tensor
    gumbel: Tensor
    target: Tensor
    draft: Tensor
    hidden: Tensor
    exits: Tensor | None = None
    inner: Tensor | None = None

    @property
    def p(self) -> Tensor:
        return self.target.softmax(dim=-1)


# Judging guesses


def rates(clips: Sequence[Clip], guesses: Iterable[Tensor]) -> Tensor:
    """Share of guesses `[K, T]` that stand, `[clips, K]`."""
    pairs = zip(clips, guesses, strict=True)
    return torch.stack([(guess == clip.codes).double().mean(dim=1) for clip, guess in pairs])


def drawn(clip: Clip, scores: Tensor) -> Tensor:
    """Coupled guesses from unnormalised log-probabilities `[K, T, card]`."""
    return (process(scores, SAMPLING) + clip.gumbel).argmax(dim=-1)


def said(found: Tensor, base: Tensor | None = None) -> dict[str, Any]:
    """Shares by codebook, their mean, and the gain over `base` with its standard error."""
    error = found.mean(dim=1).std() / math.sqrt(len(found))
    out: dict[str, Any] = {
        "accepted": short(found.mean(dim=0)),
        "mean": round(float(found.mean()), 4),
        "mean_error": round(float(error), 4),
        "clips": len(found),
    }
    if base is not None:
        more = (found - base).mean(dim=1)
        out["gain"] = round(float(more.mean()), 4)
        out["gain_error"] = round(float(more.std() / math.sqrt(len(more))), 4)
    return out


def short(values: Iterable[Any]) -> list[float]:
    return [round(float(v), 4) for v in values]


# Repetition: what came after the same tokens, or one repetition ago


def suffix_matches(codes: Tensor, most: int = 8) -> tuple[Tensor, Tensor]:
    """For each coordinate, the frame that its codebook's longest repeated suffix points at, and the
    suffix's length (0: none); the latest of equal ones. `[K, T]` each."""
    source, length = torch.zeros_like(codes), torch.zeros_like(codes)
    for k, row in enumerate(codes.tolist()):
        seen: dict[tuple[int, ...], int] = {}
        for t in range(1, len(row)):
            for n in range(min(most, t), 0, -1):
                at = seen.get(tuple(row[t - n : t]))
                if at is not None:
                    source[k, t], length[k, t] = at, n
                    break
            for n in range(1, min(most, t) + 1):
                seen[tuple(row[t - n : t])] = t
    return source, length


def best_lags(codes: Tensor, span: int = 150, least: int = 10, most: int = 800) -> Tensor:
    """For each frame, the lag at which the last `span` frames repeat best, `[T]`; 0: none yet."""
    T = codes.shape[1]
    lags = range(least, min(most, T - 1) + 1)
    score = torch.zeros(len(lags), T + 1)
    for i, lag in enumerate(lags):
        same = (codes[:, lag:] == codes[:, :-lag]).float().mean(dim=0)
        total = torch.cat([torch.zeros(lag + 1), same]).cumsum(dim=0)
        score[i] = total - total[(torch.arange(T + 1) - span).clamp_min(0)]
    best = score[:, :T].max(dim=0)  # column t sums what is known before frame t
    return (best.indices + least) * (best.values > 0)


def repetition(clips: Sequence[Clip], base: Sequence[Tensor]) -> dict[str, Any]:
    """Literal and coupled repetition; `base` are the drafter's guesses."""
    out: dict[str, list[Tensor]] = defaultdict(list)
    long: dict[int, list[Tensor]] = defaultdict(list)
    for clip, drafted in zip(clips, base, strict=True):
        K, T = clip.codes.shape
        source, length = suffix_matches(clip.codes)
        lag = best_lags(clip.codes)
        ago = (torch.arange(T) - lag).clamp_min(0).expand(K, T)
        for name, at, there in (
            ("suffix", source, length > 0),
            ("lag", ago, (lag > 0).expand(K, T)),
        ):
            literal = clip.codes.gather(1, at)
            again = clip.target[torch.arange(K)[:, None], at]
            coupled = (again + clip.gumbel).argmax(dim=-1)
            for how, guess in (("literal", literal), ("coupled", coupled)):
                right = (guess == clip.codes) & there
                out[f"{name}, {how}"].append(right.double().mean(dim=1))
        for n in (1, 2, 4, 8):
            chosen = length >= n
            right = (clip.codes.gather(1, source) == clip.codes) & chosen
            also = (drafted == clip.codes) & chosen
            long[n].append(torch.stack([chosen.sum(1), right.sum(1), also.sum(1)]).double())
    found = {name: said(torch.stack(parts)) for name, parts in out.items()}
    for n, parts in long.items():
        chosen, right, also = torch.stack(parts).sum(dim=(0, 2))
        found[f"suffix of {n} or more"] = {
            "share_of_tokens": round(float(chosen) / sum(c.codes.numel() for c in clips), 4),
            "literal": round(float(right / chosen), 4),
            "drafter_there": round(float(also / chosen), 4),
        }
    return found


# Counts


@dataclass
class Counts:
    """Counts of tokens after short contexts, smoothed by what is given (a Dirichlet prior).

    Attributes:
        weight: tokens that the prior is worth at each order, the shortest context first.
        soft: count the verifier's distribution (its best entries) instead of the token drawn.
    """

    weight: tuple[float, ...]
    soft: bool = False
    table: dict[tuple[int, ...], Counter[int]] = field(default_factory=dict)

    @staticmethod
    def contexts(codes: Tensor, k: int, t: int) -> list[tuple[int, ...]]:
        """Of coordinate (t, k); delay and flatten both know these tokens when they draw it."""
        before = int(codes[k, t - 1]) if t else -1
        if k == 0:
            longest = (before, int(codes[0, t - 2]) if t > 1 else -1)
            return [(0, k), (1, k, before), (2, k, *longest)]
        coarser = int(codes[k - 1, t])
        return [(0, k), (1, k, before), (2, k, coarser), (3, k, coarser, before)]

    def fresh(self) -> Counts:
        return Counts(self.weight, self.soft)

    def add(self, clip: Clip, t: int) -> None:
        for k in range(len(clip.codes)):
            if self.soft:
                best = clip.target[k, t].softmax(dim=-1).topk(16)
                seen = dict(zip(best.indices.tolist(), best.values.tolist(), strict=True))
            else:
                seen = {int(clip.codes[k, t]): 1.0}
            for key in self.contexts(clip.codes, k, t):
                counter = self.table.setdefault(key, Counter())
                for token, share in seen.items():
                    counter[token] += share  # type: ignore[assignment]

    def mix(self, prior: Tensor, codes: Tensor, k: int, t: int) -> Tensor:
        """`[card]` probabilities."""
        for weight, key in zip(self.weight, self.contexts(codes, k, t), strict=False):
            seen = self.table.get(key)
            if seen and math.isfinite(weight):
                tokens, shares = torch.tensor(list(seen)), torch.tensor(list(seen.values()))
                prior = prior * weight
                prior[tokens] += shares
                prior = prior / (shares.sum() + weight)
        return prior


def counted(clip: Clip, prior: Tensor | None, counts: Counts, learnt: Counts | None) -> Tensor:
    """Coupled guesses `[K, T]` from counts of other clips (`learnt`), then of the piece so far, on
    top of `prior` `[K, T, card]` (None: even)."""
    K, T = clip.codes.shape
    card = clip.gumbel.shape[-1]
    guess = torch.zeros_like(clip.codes)
    for t in range(T):
        if t >= LAG:
            counts.add(clip, t - LAG)
        for k in range(K):
            law = torch.full((card,), 1 / card) if prior is None else prior[k, t]
            if learnt is not None:
                law = learnt.mix(law, clip.codes, k, t)
            law = counts.mix(law, clip.codes, k, t)
            guess[k, t] = (law.log() + clip.gumbel[k, t]).argmax()
    return guess


# What is learnt: scales and biases, heads, probes of inner layers


def pooled(clips: Sequence[Clip], count: int, seed: int) -> Iterable[tuple[Tensor, Tensor, Clip]]:
    """Random batches for training: clip by clip, frames `[n]` of it, forever `count` times."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        clip = clips[int(torch.randint(len(clips), (1,), generator=generator))]
        frames = torch.randint(clip.codes.shape[1], (128,), generator=generator)
        yield frames, clip.p[:, frames], clip


def fit(
    parameters: Sequence[Tensor],
    scores: Callable[[Clip, Tensor], Tensor],
    clips: Sequence[Clip],
    rate: float,
    steps: int,
) -> None:
    """Minimise KL(p || q), then maximise the chance of acceptance.

    Args:
        scores: of a clip at frames `[n]`, `[K, n, card]`.
    """
    for p in parameters:
        p.requires_grad_(True)
    optimiser = torch.optim.Adam(parameters, lr=rate)
    for step, (frames, p, clip) in enumerate(pooled(clips, steps, seed=1)):
        for group in optimiser.param_groups:
            group["lr"] = rate * (1 - step / steps)
        logq = scores(clip, frames).log_softmax(dim=-1)
        if step < steps // 2:
            loss = -(p * logq).sum(dim=-1).mean()
        else:
            loss = -coupled_chance(p, logq.exp()).mean()
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    for p in parameters:
        p.requires_grad_(False)


def online(clips: Sequence[Clip], rate: float, what: str) -> list[Tensor]:
    """Guesses of a drafter whose biases or heads learn from the verifier while it decodes.

    A step along the gradient of KL(p || q) for each token, by the hidden state's length.
    """
    inputs = torch.stack([clip.hidden for clip in clips])  # [N, K, T, dim]
    if what == "bias":
        inputs = torch.ones_like(inputs[..., :1])
    N, K, T, dim = inputs.shape
    inputs = inputs / inputs.norm(dim=-1, keepdim=True)
    change = torch.zeros(N, K, dim, clips[0].gumbel.shape[-1])
    errors: list[Tensor] = []
    guesses = torch.zeros(N, K, T, dtype=torch.long)
    for t in range(T):
        if t >= LAG:
            h = inputs[:, :, t - LAG, :, None]
            change.addcmul_(h, errors[t - LAG][:, :, None], value=rate)
        own = torch.stack([clip.draft[:, t] for clip in clips])
        own = own + torch.einsum("nkd,nkdc->nkc", inputs[:, :, t], change)
        p = torch.stack([clip.target[:, t] for clip in clips]).softmax(dim=-1)
        errors.append(p - own.softmax(dim=-1))
        noise = torch.stack([clip.gumbel[:, t] for clip in clips])
        guesses[:, :, t] = (process(own, SAMPLING) + noise).argmax(dim=-1)
    return list(guesses)


def calibration(learn: Sequence[Clip], test: Sequence[Clip], heads: Tensor) -> dict[str, Any]:
    """The drafter's logits scaled and shifted a codebook and entry, or its heads `[K, card, dim]`
    learnt anew, from clips of the verifier."""
    K, _, card = learn[0].draft.shape
    scale, shift = torch.ones(K, 1, 1), torch.zeros(K, 1, card)
    fit([scale, shift], lambda c, at: c.draft[:, at] * scale + shift, learn, rate=0.02, steps=300)
    out = {"scale and bias": rates(test, (drawn(c, c.draft * scale + shift) for c in test))}
    more = torch.zeros(K, heads.shape[2], card)

    def scores(clip: Clip, at: Tensor | slice) -> Tensor:
        return clip.draft[:, at] + clip.hidden[:, at] @ more

    fit([more], scores, learn, rate=0.003, steps=500)
    out["heads"] = rates(test, (drawn(c, scores(c, slice(None))) for c in test))
    return out


def among_first(clips: Sequence[Clip], count: int) -> Tensor:
    """Chance that the verifier's token is among the drafter's best `count` perturbed entries."""
    found = []
    for clip in clips:
        best = (process(clip.draft, SAMPLING) + clip.gumbel).topk(count, dim=-1).indices
        found.append((best == clip.codes[..., None]).any(dim=-1).double().mean(dim=1))
    return torch.stack(found)
