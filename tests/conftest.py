"""A complete preset of tiny random models, so that everything around them is tested in seconds."""

import os
import signal
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

from specgen.checkpoints.native import LMCheckpoint, codec_id, save_lm
from specgen.codec.embedded import CodecConfig, EmbeddedCodec, save_codec
from specgen.lm.conditioning import WordEncoder, WordEncoderConfig
from specgen.lm.config import LMConfig
from specgen.lm.model import MusicLM
from specgen.patterns import PatternSpec

# A shell lets its background jobs ignore Ctrl-C; tests of it, and what they start, must not.
signal.signal(signal.SIGINT, signal.default_int_handler)

WORDS = ("a", "jig", "on", "the", "violin", "flute", "slow", "air")
PRESET = """\
schema: 1
description: tiny random models
verifier: {{checkpoint: {verifier}}}
drafter: {{checkpoint: drafter}}
codec: {{checkpoint: codec}}
sampling: {{temperature: 1.0, top_k: 20, cfg: 2.0}}
speculation: {{rule: coupled, draft_frames: 2}}
duration: {{default: 0.4, max: 2.0}}
"""


def make_codec(folder: Path, seed: int = 0, **options: int) -> None:
    torch.manual_seed(seed)
    shape = {"card": 32, "dim": 8, "encoder_width": 16, "encoder_blocks": 1}
    config = CodecConfig(**{**shape, "decoder_width": 16, "decoder_blocks": 1, **options})
    codec = EmbeddedCodec(config)
    codec.quantizer.entries.normal_()
    save_codec(codec, folder)


def make_lm(folder: Path, kind: str, seed: int, codec: Path, dim: int = 32) -> None:
    torch.manual_seed(seed)
    identity = codec_id(codec)
    config = LMConfig(
        identity.codebooks, identity.card, dim, 2, 2, 2 * dim, condition_dim=16, positions="rope"
    )
    lm = MusicLM(config)
    with torch.no_grad():
        lm.heads.weight.mul_(4)
    words = WordEncoder(WordEncoderConfig(WORDS, {"fiddle": "violin"}, dim=16))
    pattern = PatternSpec(kind, identity.codebooks)
    save_lm(LMCheckpoint(folder.name, lm, words, pattern, identity, 100), folder)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `dual.yaml` (delay drafts for flatten), `delay.yaml` and their checkpoints."""
    folder = tmp_path_factory.mktemp("tiny")
    make_codec(folder / "codec")
    make_lm(folder / "flatten", "flatten", 1, folder / "codec")
    make_lm(folder / "delay", "delay", 2, folder / "codec")
    make_lm(folder / "drafter", "delay", 3, folder / "codec", dim=16)
    (folder / "dual.yaml").write_text(PRESET.format(verifier="flatten"))
    (folder / "delay.yaml").write_text(PRESET.format(verifier="delay"))
    return folder


@pytest.fixture
def tiny(tiny_folder: Path) -> str:
    """Path of the tiny dual-pattern preset."""
    return str(tiny_folder / "dual.yaml")
