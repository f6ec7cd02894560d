"""The network against the original package's own output (tools/musicnn_reference.py)."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from specgen.errors import UserError
from specgen.evaluation import musicnn
from tests.evaluation.clips import chord

REFERENCE = json.loads((Path(__file__).parent / "data" / "musicnn.json").read_text())


@pytest.fixture(scope="module")
def network() -> musicnn.Musicnn:
    return musicnn.load()


@pytest.mark.parametrize("gain", list(REFERENCE))
def test_agrees_with_the_package(network: musicnn.Musicnn, gain: str) -> None:
    """To 1e-3 in every unit of the embedding, 2e-4 in every tag (weights are in float16)."""
    file = io.BytesIO()
    soundfile.write(file, chord(float(gain)), 16_000, format="WAV", subtype="PCM_16")
    file.seek(0)
    wave, _ = soundfile.read(file, dtype="float32")
    patch = musicnn.log_mel(torch.from_numpy(wave))[: musicnn.PATCH]
    with torch.inference_mode():
        hidden, tags = network(patch[None])
    expected = REFERENCE[gain]
    assert np.abs(hidden[0].numpy() - expected["penultimate"]).max() < 1e-3
    assert np.abs(tags[0].numpy() - expected["taggram"]).max() < 2e-4


def test_clips_of_any_length_give_one_row(network: musicnn.Musicnn) -> None:
    wave = torch.from_numpy(chord(0.5))
    rows = [musicnn.analyse(network, wave[:n]) for n in (1600, 16_000, 48_000, 64_000)]
    for hidden, tags in rows:
        assert hidden.shape == (200,) and tags.shape == (50,)
        assert torch.isfinite(hidden).all() and (tags >= 0).all() and (tags <= 1).all()
    assert not torch.equal(rows[2][0], rows[3][0])


def test_missing_or_corrupt_weights_are_named(tmp_path: Path) -> None:
    for content in (None, b"nonsense"):
        path = tmp_path / "model.safetensors"
        if content:
            path.write_bytes(content)
        with pytest.raises(UserError, match="reinstall"):
            musicnn.load(path)


def test_the_licence_lies_beside_the_weights() -> None:
    text = (musicnn.WEIGHTS.parent / "LICENSE").read_text()
    assert "Jordi Pons" in text and "Permission to use" in text
