"""What a language-model recipe says, and the model it starts from."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from specgen.checkpoints.base import NoText
from specgen.checkpoints.native import LMCheckpoint, codec_id
from specgen.checkpoints.pairing import borrowed, check_follows
from specgen.decoding.loop import steps_per_frame
from specgen.errors import UserError
from specgen.lm.conditioning import WordEncoder, WordEncoderConfig, close_synonyms
from specgen.lm.config import LMConfig
from specgen.lm.model import MusicLM
from specgen.patterns import PatternSpec
from specgen.training.batches import TokenItems
from specgen.training.optimise import initialise


@dataclass(frozen=True)
class Phase:
    """A part of a run, up to the share `until` of its budget: `batch` crops of `frames` frames.

    Short crops first: attention is cheaper, and most of what is learnt early is near.
    """

    until: float
    batch: int
    frames: int


PHASES = (Phase(0.45, 6, 100), Phase(0.85, 4, 200), Phase(1.0, 2, 500))


@dataclass(frozen=True)
class LMRecipe:
    """A training run. It ends after `minutes` of training or `steps` updates, whichever is first.

    Attributes:
        name: of the checkpoint.
        lm, pattern: the model and its codebook pattern.
        tokens: folder of the tokenised data set; `codec`: the checkpoint folder that made it.
        work: folder of the run's state and log; `export`: the checkpoint folder it writes.
        init: checkpoint folder to start from (its vocabulary too), if any; of a drafter with a
            `feature_dim`, its verifier.
        teacher: checkpoint folder whose distributions are learnt, if any.
        distill_weight: share of KL(teacher || model) in the loss; the rest is cross-entropy.
        distill_from: share of the run after which the teacher is loaded and listened to.
        targets: folders of verifiers' guided distributions (`specgen.training.targets`), taken in
            turn; crops come from there, and `distill_weight` is the share of KL(target || model).
        guidance: the model's own CFG coefficient when it learns targets; None: it learns them
            outright, to draft without guidance.
        acceptance_from: share of the run after which the chance of acceptance itself is maximised,
            the divergence weighing a tenth; `whole_columns`: that of all guesses of a column.
        own_states: share of the columns beside which a drafter with a `feature_dim` finds a state
            of its own instead of its verifier's, as in a draft beyond the first (Zhang et al. 2024,
            "Learning Harmonized Representations for Speculative Sampling").
        encoder_layers, encoder_kernel: of the word encoder; `max_words`: longest prompt.
        phases: length and number of the crops, part by part of the run.
        start_share: share of crops that begin their item; `condition_dropout`: of crops that see
            the null condition (classifier-free guidance); `word_dropout`: of words left out.
        learning_rate: peak; after `warmup` steps it falls as a cosine to 0 at the budget's end.
        optimizer: `adamw` or `muon`.
        embedding_scale: how much faster the embeddings learn.
        average: decay of the averaged weights.
        max_frames: longest piece the model is good for.
    """

    name: str
    lm: LMConfig
    pattern: PatternSpec
    work: str
    export: str
    tokens: str = "runs/tokens"
    codec: str = "specgen/checkpoints/embedded/codec"
    init: str | None = None
    teacher: str | None = None
    distill_weight: float = 0.0
    distill_from: float = 0.0
    targets: tuple[str, ...] = ()
    guidance: float | None = None
    acceptance_from: float = 1.0
    whole_columns: bool = False
    own_states: float = 0.3
    encoder_layers: int = 1
    encoder_kernel: int = 5
    max_words: int = 64
    seed: int = 1
    minutes: float = 15.0
    steps: int = 1_000_000
    phases: tuple[Phase, ...] = PHASES
    start_share: float = 0.4
    condition_dropout: float = 0.1
    word_dropout: float = 0.05
    learning_rate: float = 4e-3
    optimizer: str = "muon"
    embedding_scale: float = 12.0
    warmup: int = 40
    weight_decay: float = 0.05
    clip_norm: float = 1.0
    average: float = 0.98
    max_frames: int = 600
    log_every: int = 20
    save_every_minutes: float = 2.0
    validate_every_minutes: float = 3.0
    validation_crops: int = 24
    validation_frames: int = 200
    threads: int = 1

    def __post_init__(self) -> None:
        if self.pattern.codebooks != self.lm.codebooks:
            raise ValueError("lm and pattern do not have the same number of codebooks")
        if not self.phases or self.phases[-1].until < 1:
            raise ValueError("the last of the phases must last until 1")
        if self.optimizer not in ("adamw", "muon"):
            raise ValueError(f"optimizer {self.optimizer!r} is unknown; known: adamw, muon")
        if self.distill_weight and self.teacher is None and not self.targets:
            raise ValueError("distill_weight needs a teacher or targets")
        if self.lm.feature_dim and not self.targets:
            raise ValueError("a model with a feature_dim needs targets, which keep states")
        if not 0 <= self.distill_weight <= 1:
            raise ValueError(f"distill_weight must be from 0 to 1, got {self.distill_weight}")


def fresh_model(recipe: LMRecipe, items: TokenItems) -> LMCheckpoint:
    """The recipe's model with fresh weights, its vocabulary read from the items' captions."""
    from specgen.training.data.captions import synonyms

    vocabulary = tuple(items.vocabulary())
    words = WordEncoderConfig(
        vocabulary=vocabulary,
        synonyms=close_synonyms(synonyms(), vocabulary),
        dim=recipe.lm.condition_dim,
        layers=recipe.encoder_layers,
        kernel=recipe.encoder_kernel,
        max_words=recipe.max_words,
    )
    torch.manual_seed(recipe.seed)
    lm, conditioner = MusicLM(recipe.lm), WordEncoder(words)
    initialise(lm, recipe.lm.layers)
    codec = codec_id(Path(recipe.codec))
    return LMCheckpoint(recipe.name, lm, conditioner, recipe.pattern, codec, recipe.max_frames)


def inherit(recipe: LMRecipe, parent: LMCheckpoint) -> LMCheckpoint:
    """The recipe's model with the weights of another of the same shape.

    Between different patterns the special token changes its part (in `flatten` three of the four
    places of every column hold it): it starts as the mean of its codebook's embeddings, so that the
    layers above see columns like those they know. And a frame takes more steps: see `stretch`.

    Raises:
        UserError: the shapes differ.
    """
    if recipe.lm.feature_dim:
        return follower(recipe, parent)
    if parent.lm.config != recipe.lm:
        raise UserError(f"recipe {recipe.name}: init {recipe.init} is a model of another shape")
    parent.lm.requires_grad_(True).train()
    parent.conditioner.requires_grad_(True).train()
    if parent.pattern != recipe.pattern:
        tables = parent.lm.embedding.weight.data.view(recipe.lm.codebooks, recipe.lm.card + 1, -1)
        tables[:, -1] = tables[:, :-1].mean(dim=1)
        stretch(parent.lm, steps_per_frame(recipe.pattern) / steps_per_frame(parent.pattern))
    codec = codec_id(Path(recipe.codec))
    return replace(
        parent, name=recipe.name, pattern=recipe.pattern, codec=codec, training={}, sha256=""
    )


def follower(recipe: LMRecipe, verifier: LMCheckpoint) -> LMCheckpoint:
    """A fresh drafter that reads its verifier's states, between the verifier's own embeddings and
    heads, which do not learn.

    Raises:
        UserError: it could not follow that verifier.
    """
    check_follows(recipe.name, recipe.lm, recipe.pattern, verifier)
    torch.manual_seed(recipe.seed)
    lm = MusicLM(recipe.lm)
    initialise(lm, recipe.lm.layers)
    lm.load_state_dict(borrowed(verifier), strict=False)
    for part in (lm.embedding, lm.heads):
        part.requires_grad_(False)
    codec = codec_id(Path(recipe.codec))
    return LMCheckpoint(recipe.name, lm, NoText(), recipe.pattern, codec, recipe.max_frames)


def stretch(lm: MusicLM, factor: float) -> None:
    """Make rotary attention look `factor` times as many positions back as it did.

    RoPE's frequencies fall by one ratio from pair to pair, so handing each pair's weights on to a
    slower pair stretches all distances alike; `max_period` decides how many pairs that takes, and
    the nearest whole number is used. The slowest pairs, which hardly turn, come round to the front.
    """
    config = lm.config
    if config.positions == "sin":
        return
    pairs = config.head_dim // 2
    shift = round(math.log(factor) / math.log(config.max_period) * pairs)
    turned = config.dim + config.kv_heads * config.head_dim
    for block in lm.transformer.blocks:
        weight = block.get_submodule("attention.qkv").get_parameter("weight").data[:turned]
        weight.copy_(weight.view(-1, pairs, 2, config.dim).roll(shift, dims=1).view_as(weight))
