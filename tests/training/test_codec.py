import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from specgen.codec import load_codec
from specgen.errors import UserError
from specgen.training.codec import (
    AudioItems,
    Trainer,
    evaluate,
    main,
    read_recipe,
    tokenize_dataset,
    train_codec,
)
from specgen.training.codec_report import report
from specgen.training.losses import LogMel, log_mel_error, mel_filters, si_sdr, waveform_loss

SECONDS = 11


@pytest.fixture(scope="module")
def tones(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder of decaying tones on the frame grid, the last item 100 samples longer."""
    folder = tmp_path_factory.mktemp("tones")
    random = np.random.default_rng(0)
    rows, parts, offset = [], [], 0
    for item, split in enumerate(["train"] * 5 + ["valid", "test"]):
        notes = []
        for _ in range(SECONDS * 5):
            time = np.arange(3200) / 16000
            hertz = 220 * 2 ** (random.integers(0, 24) / 12)
            notes.append(0.3 * np.sin(2 * np.pi * hertz * time) * np.exp(-8 * time))
        wav = np.concatenate([*notes, np.zeros(100 if split == "test" else 0)])
        parts.append((wav * 32767).astype("<i2"))
        row = {"id": f"i{item}", "tune": f"t{item}", "split": split, "offset": offset}
        rows.append(row | {"length": len(wav), "state": {"key": "D"}, "captions": ["tones"]})
        offset += len(wav)
    np.concatenate(parts).tofile(folder / "audio.i16")
    (folder / "index.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def recipe(tones: Path, work: Path, **changes: Any) -> dict[str, Any]:
    codec = {"card": 16, "dim": 8, "encoder_width": 24, "encoder_blocks": 1}
    codec |= {"decoder_width": 24, "decoder_blocks": 1}
    settings = {"codec": codec, "data": str(tones), "work": str(work / "run"), "steps": 30}
    settings |= {"export": str(work / "export"), "batch": 4, "crop_frames": 10, "warmup": 5}
    settings |= {"quantize_from": 12, "start_vectors": 320, "log_every": 5, "validation_clips": 1}
    return settings | {"learning_rate": 5e-3, "mel_scales": {512: 40}} | changes


def test_a_short_run_learns_logs_and_exports(tones: Path, tmp_path: Path) -> None:
    train_codec(recipe(tones, tmp_path))
    rows = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if "loss" in row]
    assert len(losses) == 6 and losses[-1] < losses[0] - 0.1
    assert rows[-1]["valid_clips"] == 1 and rows[-1]["used_0"] > 1
    codec = load_codec(tmp_path / "export")
    figures = evaluate(codec, tones, "valid", 1)
    assert figures["valid_log_mel_error"] == pytest.approx(rows[-1]["valid_log_mel_error"], abs=0.3)


def test_a_resumed_run_ends_as_an_unbroken_one(tones: Path, tmp_path: Path) -> None:
    unbroken = Trainer(read_recipe(recipe(tones, tmp_path / "a")))
    for _ in range(20):
        unbroken.update()
    for steps in (7, 8, 5):
        broken = Trainer(read_recipe(recipe(tones, tmp_path / "b")))
        for _ in range(steps):
            broken.update()
        broken.save()
    assert broken.step == unbroken.step == 20
    for name, value in unbroken.codec.state_dict().items():
        assert torch.equal(value, broken.codec.state_dict()[name]), name
    assert torch.equal(unbroken.codec.quantizer.counts, broken.codec.quantizer.counts)
    names = sorted(path.name for path in (tmp_path / "b" / "run").iterdir())
    assert names == ["state.pt", "weights-20.safetensors"]


def test_a_run_of_another_shape_is_not_continued(tones: Path, tmp_path: Path) -> None:
    Trainer(read_recipe(recipe(tones, tmp_path))).save()
    changed = recipe(tones, tmp_path)
    changed["codec"] = changed["codec"] | {"card": 32}
    with pytest.raises(UserError, match="another codec shape"):
        Trainer(read_recipe(changed))


def test_the_budget_ends_a_run_and_the_rate(tones: Path, tmp_path: Path) -> None:
    trainer = Trainer(read_recipe(recipe(tones, tmp_path, minutes=2.0, steps=1000)))
    assert trainer.learning_rate() == pytest.approx(5e-3 / 5)
    trainer.step, trainer.seconds = 100, 60.0
    assert trainer.progress == 0.5
    trainer.seconds = 130.0
    assert trainer.progress == 1.0
    assert trainer.learning_rate() == pytest.approx(1e-5)


def test_every_item_becomes_tokens(tones: Path, tmp_path: Path) -> None:
    train_codec(recipe(tones, tmp_path, steps=14))
    tokenize_dataset(tmp_path / "export", tones, tmp_path / "tokens", batch=3)
    codes = np.load(tmp_path / "tokens" / "codes.npy")
    rows = [
        json.loads(line) for line in (tmp_path / "tokens" / "index.jsonl").read_text().splitlines()
    ]
    assert codes.dtype == np.int16 and codes.shape == (7 * SECONDS * 50 + 1, 4)
    assert [row["length"] for row in rows] == [SECONDS * 50] * 6 + [SECONDS * 50 + 1]
    assert rows[3]["captions"] == ["tones"] and rows[3]["state"] == {"key": "D"}
    codec, items = load_codec(tmp_path / "export"), AudioItems(tones, None)
    for i, row in enumerate(rows):
        wav = items.clip(i, 0, items.rows[i]["length"])
        grid = codes[row["offset"] : row["offset"] + row["length"]]
        assert np.mean(codec.encode(wav[None, None])[0].T.numpy() == grid) > 0.999


def test_the_report_draws_and_measures(tones: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    train_codec(recipe(tones, tmp_path, steps=14))
    pictures = tmp_path / "pictures"
    figures = report(tmp_path / "export", tones, tmp_path / "run" / "log.jsonl", pictures)
    names = sorted(path.name for path in pictures.iterdir())
    assert names == ["codec-loss.png", "codec-spectrograms.png"]
    assert figures["bytes"] == (tmp_path / "export" / "model.safetensors").stat().st_size
    assert len(figures["repeated_share"]) == 4
    assert json.loads(json.dumps(figures)) == figures


def test_crops_start_on_frames_and_depend_on_the_generator_alone(tones: Path) -> None:
    items = AudioItems(tones, "train")
    first = items.crops(6, 10, 320, torch.Generator().manual_seed(4))
    again = items.crops(6, 10, 320, torch.Generator().manual_seed(4))
    assert first.shape == (6, 3200) and torch.equal(first, again)
    whole = torch.stack([items.clip(row, 0, SECONDS * 16000) for row in range(5)])
    frames = whole.unfold(1, 3200, 320).reshape(-1, 3200)
    for crop in first:
        assert (frames == crop).all(1).any()


def test_bad_recipes_and_missing_data_are_told_in_one_line(tmp_path: Path) -> None:
    for wrong in ({"minuets": 3}, {"batch": "many"}, {"codec": {"kin": "x"}}):
        with pytest.raises(UserError, match="recipe is invalid") as caught:
            read_recipe(wrong)
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="render it first"):
        AudioItems(tmp_path, "train")
    with pytest.raises(UserError, match="name a recipe"):
        main([str(tmp_path / "none.yaml")])


def test_mel_filters_cover_the_band() -> None:
    filters = mel_filters(257, 64, 16000)
    assert torch.allclose(filters.sum(0), torch.ones(64), atol=1e-5)
    assert (filters.argmax(0).diff() >= 0).all()


def test_log_mel_levels_and_errors() -> None:
    time = torch.arange(16000) / 16000
    sine = torch.sin(2 * torch.pi * 1000 * time)[None]
    peak = LogMel(1024, 256, 80, 16000, 0.0)(sine).max()
    assert -2 < peak <= 0.0
    half = log_mel_error(0.5 * sine, sine, 16000).item()
    assert 0 < half <= 20 * np.log10(2) + 1e-3
    assert log_mel_error(sine, sine, 16000).item() == 0
    assert log_mel_error(torch.zeros(1, 16000), torch.zeros(1, 16000), 16000).item() == 0


def test_waveform_figures() -> None:
    generator = torch.Generator().manual_seed(0)
    wav = torch.randn(2, 50000, generator=generator)
    noisy = wav + 0.1**0.5 * torch.randn(2, 50000, generator=generator)
    assert si_sdr(3 * noisy, wav).tolist() == pytest.approx([10, 10], abs=0.2)
    assert waveform_loss(noisy, wav, 1e-8).item() == pytest.approx(-1, abs=0.02)
    assert waveform_loss(0 * wav, 0 * wav, 1e-8).item() == 0
