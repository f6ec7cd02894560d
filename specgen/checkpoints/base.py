"""What every checkpoint format gives: a language model with its condition, pattern and codec."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from specgen.errors import UserError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from specgen.lm.conditioning import Words
    from specgen.lm.config import LMConfig
    from specgen.lm.model import MusicLM
    from specgen.patterns import PatternSpec

GUIDANCE = 3.0  # the coefficient of every MusicGen model, where a file does not say


@dataclass(frozen=True)
class CodecId:
    """Which codec tokens belong to.

    Attributes:
        sample_rate: in hertz.
        frame_rate: frames a second.
        codebooks, card: of the grid that the language model writes.
        fingerprint: of the codec's weights (of its codebooks for EnCodec, see
            `codebooks_fingerprint`); empty where it is not known.
        channels: 2 for two interleaved streams.
    """

    sample_rate: int
    frame_rate: float
    codebooks: int
    card: int
    fingerprint: str
    channels: int = 1


class Conditioner(Protocol):
    """A text encoder as the engine sees it."""

    def tokenize(self, text: str) -> Words:
        """Ids of a prompt, and the words that mean nothing to the model."""
        ...

    def encode(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Vectors `[B, L, dim]` and mask `[B, L]` bool of a batch of prompts."""
        ...

    def null(self) -> Tensor:
        """The null condition of guidance, `[1, 1, dim]`."""
        ...


@dataclass
class LMCheckpoint:
    """A loaded checkpoint, in evaluation mode.

    Attributes:
        name: as its configuration says.
        lm, pattern: the model and its codebook pattern.
        conditioner: its text encoder, a `Conditioner` (loosely typed, since trainers use what their
            word encoder has beyond that).
        codec: the codec its tokens belong to.
        max_frames: longest sequence it was made for.
        sha256: of its weights file.
        training: how it was trained, for model cards.
        guidance: the CFG coefficient that its configuration asks for.
        quantize: how its weights were quantised after loading; `none` of a model as it was stored.
    """

    name: str
    lm: MusicLM
    conditioner: Any
    pattern: PatternSpec
    codec: CodecId
    max_frames: int
    sha256: str = ""
    training: dict[str, Any] = field(default_factory=dict)
    guidance: float = GUIDANCE
    quantize: str = "none"

    def quantized(self, kind: str) -> LMCheckpoint:
        """This model with its weights quantised in place, under a name that says so.

        Raises:
            UserError: torchao is not installed.
        """
        if kind == "none":
            return self
        from specgen.lm.quantized import quantize_

        quantize_(self.lm, kind)
        return replace(self, name=f"{self.name} {kind}", quantize=kind)


class NoText:
    """The condition of a model that reads none."""

    dim = 0

    def tokenize(self, text: str) -> Words:
        """No ids; no word means anything to the model, so none is singled out as unknown."""
        from specgen.lm.conditioning import Words

        return Words([], [])

    def encode(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Vectors of no numbers, `[B, 1, 0]`, and their mask."""
        import torch

        return torch.zeros(len(texts), 1, 0), torch.ones(len(texts), 1, dtype=torch.bool)

    def null(self) -> Tensor:
        """`[1, 1, 0]`."""
        import torch

        return torch.zeros(1, 1, 0)

    def to(self, *_: object, **__: object) -> NoText:
        return self


def file_sha256(path: Path) -> str:
    """Hexadecimal sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def files_sha256(paths: Iterable[Path]) -> str:
    """sha256 of a file, or of the sha256s of several, one a line."""
    sums = [file_sha256(path) for path in paths]
    return sums[0] if len(sums) == 1 else hashlib.sha256("\n".join(sums).encode()).hexdigest()


def codebooks_fingerprint(tables: Iterable[Tensor]) -> str:
    """sha256 of a quantiser's entries: the same for one codec in whatever format it is kept.

    Args:
        tables: `[card, dim]` a codebook, in order.
    """
    import torch

    digest = hashlib.sha256()
    for table in tables:
        raw = table.detach().to("cpu", torch.float32).contiguous().numpy()
        digest.update(raw.astype("<f4", copy=False).tobytes())
    return digest.hexdigest()


class Piece(NamedTuple):
    """A tensor of a file, or `rows` of it."""

    name: str
    rows: slice | None = None


Plan = Mapping[str, Sequence[Piece]]  # a tensor of `MusicLM` -> what it is put together from


def build_lm(
    config: LMConfig,
    plan: Plan,
    tensors: Mapping[str, Tensor],
    where: Path,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
) -> MusicLM:
    """A model with a file's weights, in evaluation mode, without gradients.

    The model is laid out without memory of its own and takes the tensors over one by one; a `dict`
    of tensors is emptied meanwhile, so that no weight is held twice.

    Args:
        config: its dimensions.
        plan: how each of the model's tensors is put together from the file's, by rows.
        tensors: the file's.
        where: the file, for messages.
        device, dtype: of the result; float32 if left out.

    Raises:
        UserError: missing or extra tensors, wrong shapes, numbers that are not finite.
    """
    import torch

    from specgen.lm.model import MusicLM
    from specgen.tensors import bare

    with bare():
        lm = MusicLM(config)
    expected = lm.state_dict()
    check_names({piece.name for pieces in plan.values() for piece in pieces}, tensors, where)
    if plan.keys() != expected.keys():
        wrong = sorted(plan.keys() ^ expected.keys())[0]
        raise UserError(
            f"{where}: {wrong} does not fit the configuration: use one checkpoint's files"
        )
    uses = Counter(piece.name for pieces in plan.values() for piece in pieces)
    state = {}
    for name, pieces in plan.items():
        given = [tensors[p.name] if p.rows is None else tensors[p.name][p.rows] for p in pieces]
        check_shape(given, [piece.name for piece in pieces], expected[name].shape, where)
        whole = given[0] if len(given) == 1 else torch.cat(given)
        state[name] = whole.to(device=device, dtype=dtype or torch.float32)
        if not is_finite(state[name]):
            raise UserError(
                f"{where}: {pieces[0].name} holds numbers that are not finite: fetch it again"
            )
        del given, whole
        for piece in pieces:
            uses[piece.name] -= 1
            if not uses[piece.name] and isinstance(tensors, dict):
                del tensors[piece.name]
    lm.load_state_dict(state, assign=True)
    lm.offsets = torch.arange(config.codebooks, device=device)[:, None] * (config.card + 1)
    return lm.eval().requires_grad_(False)


def check_shape(
    pieces: Sequence[Tensor], names: Sequence[str], expected: Sequence[int], where: Path
) -> None:
    """Refuse tensors whose rows, one after another, do not make the shape that is expected.

    Args:
        names: of the pieces.

    Raises:
        UserError: names the first that is wrong.
    """
    shapes = [list(piece.shape) for piece in pieces]
    narrow = list(expected[1:])
    wrong = [i for i, shape in enumerate(shapes) if not shape or shape[1:] != narrow]
    if not wrong and sum(shape[0] for shape in shapes) != expected[0]:
        usual = expected[0] // len(shapes)
        wrong = [i for i, shape in enumerate(shapes) if shape[0] != usual] or [0]
    if wrong:
        raise UserError(
            f"{where}: {names[wrong[0]]} has the wrong shape {shapes[wrong[0]]} for its "
            "configuration: use the configuration and the weights of one checkpoint"
        )


def is_finite(value: Tensor) -> bool:
    """Whether every number of a tensor is finite, without a copy of it."""
    if not value.numel():
        return True
    low, high = value.aminmax()  # NaN spreads to both
    return bool(low.isfinite()) and bool(high.isfinite())


def check_names(expected: Iterable[str], given: Iterable[str], where: Path) -> None:
    """Refuse tensors that are missing or unknown.

    Raises:
        UserError: names one of them, and how many more there are.
    """
    expected, given = set(expected), set(given)
    wrong = [f"{name} is missing" for name in sorted(expected - given)]
    wrong += [f"{name} is unknown" for name in sorted(given - expected)]
    if wrong:
        more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise UserError(
            f"weights {where} do not fit their configuration ({wrong[0]}{more}): use the "
            "configuration and the weights of one checkpoint"
        )
