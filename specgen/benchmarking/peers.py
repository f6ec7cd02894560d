"""Other packages that decode the same models: same weights, same conditions, same machine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Protocol

import torch
from torch import Tensor

from specgen.checkpoints.base import LMCheckpoint
from specgen.decoding.loop import decode
from specgen.decoding.sampling import Sampling
from specgen.errors import UserError
from specgen.generation import ConditionedModel
from specgen.presets import SamplingNode

Run = Callable[[int], list[Tensor]]


class Peer(Protocol):
    """A package that can decode."""

    name: str

    def ready(
        self, model: LMCheckpoint, prompts: Sequence[str], frames: int, sampling: SamplingNode
    ) -> Run:
        """Set up a decode; what comes back runs it with a seed, to `[K, T]` tokens a prompt."""
        ...


def make(name: str, model: LMCheckpoint, sampling: SamplingNode) -> Peer:
    """A peer by name.

    Raises:
        UserError: it is unknown, not installed, or cannot hold this model.
    """
    if sampling.cfg == 1 or sampling.top_p:
        raise UserError("peers are compared with guidance and without top-p; change the sampling")
    if name == "audiocraft":
        return _Audiocraft(model)
    if name == "transformers":
        return _Transformers(model)
    raise UserError(f"peer {name!r} is unknown; use {', '.join(NAMES)}")


NAMES = ("audiocraft", "transformers")
_FRAMES = 24  # of the piece that both decode greedily


def agreement(peer: Peer, model: LMCheckpoint, prompt: str, sampling: SamplingNode) -> float:
    """Share of equal tokens in a short greedy piece, theirs and ours: 1 but for rounding."""
    greedy = replace(sampling, temperature=0.0)
    theirs = peer.ready(model, [prompt], _FRAMES, greedy)(0)[0].cpu()
    role = ConditionedModel.of(model, [prompt], _FRAMES, sampling.cfg).role
    ours = decode(role, frames=[_FRAMES], seeds=[0], sampling=Sampling(0.0)).codes[0].cpu()
    return float((ours == theirs).float().mean())


def _conditions(model: LMCheckpoint, prompts: Sequence[str]) -> Tensor:
    """`[2 P, L, dim]` conditions as wide as the model; the null conditions are the second half.

    Null conditions repeat one vector, which attention reads as it reads the one alone. Prompts of
    a batch are padded to the longest, with zeros, as in audiocraft.
    """
    with torch.inference_mode():
        condition, _ = model.conditioner.encode(list(prompts))
        null = model.conditioner.null().expand(*condition.shape[:2], -1)
        both = torch.cat([condition, null]).to(model.lm.device, model.lm.dtype)
        return torch.nn.functional.pad(both, (0, model.lm.config.dim - both.shape[-1]))


class _Audiocraft:
    def __init__(self, model: LMCheckpoint) -> None:
        from specgen.benchmarking import audiocraft_peer as audiocraft

        if not audiocraft.installed():
            raise UserError(f"audiocraft is not installed; {audiocraft.INSTALL}")
        try:
            # MusicGen's configurations stream with fused attention; with rotary positions that is
            # wrong in audiocraft 1.3.0 (docs/speed.md), so such models take the other.
            self._model = audiocraft.build(
                model.lm,
                model.pattern,
                torch.zeros(1, 1, 1, device=model.lm.device),
                fused_attention=model.lm.config.positions == "sin",
            )
        except ValueError as error:
            raise UserError(f"audiocraft cannot hold {model.name}: {error}") from None
        self._described = audiocraft.described
        self.name = f"audiocraft {_version('audiocraft')}"

    def ready(
        self, model: LMCheckpoint, prompts: Sequence[str], frames: int, sampling: SamplingNode
    ) -> Run:
        self._model.condition_provider.condition = _conditions(model, prompts)

        def run(seed: int) -> list[Tensor]:
            torch.manual_seed(seed)
            codes = self._model.generate(
                conditions=self._described(len(prompts)),
                max_gen_len=frames,
                use_sampling=sampling.temperature > 0,
                temp=sampling.temperature,
                top_k=min(sampling.top_k, model.lm.config.card),
                cfg_coef=sampling.cfg,
            )
            return list(codes)

        return run


class _Transformers:
    def __init__(self, model: LMCheckpoint) -> None:
        from specgen.benchmarking import transformers_peer as transformers

        if not transformers.installed():
            raise UserError(f"transformers is not installed; {transformers.INSTALL}")
        reason = transformers.refusal(model.lm.config, model.pattern)
        if reason is not None:
            raise UserError(f"transformers cannot hold {model.name}: {reason}")
        self._model: Any = transformers.build(model.lm)
        self._generate = transformers.generate
        self.name = f"transformers {_version('transformers')}"

    def ready(
        self, model: LMCheckpoint, prompts: Sequence[str], frames: int, sampling: SamplingNode
    ) -> Run:
        both = _conditions(model, prompts)

        def run(seed: int) -> list[Tensor]:
            torch.manual_seed(seed)
            codes = self._generate(
                self._model,
                both,
                frames,
                guidance=sampling.cfg,
                sampled=sampling.temperature > 0,
                top_k=min(sampling.top_k, model.lm.config.card),
            )
            return list(codes)

        return run


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "of unknown version"
