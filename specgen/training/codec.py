"""Training the embedded codec, exporting it, and turning a data set into tokens with it.

python -m specgen.training.codec presets/train/codec.yaml [key=value ...]
python -m specgen.training.codec export presets/train/codec.yaml [key=value ...]
python -m specgen.training.codec tokenize CODEC_FOLDER DATA_FOLDER OUT_FOLDER
"""

import dataclasses
import json
import math
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from safetensors.torch import load_file, save_file
from torch import Tensor

from specgen.codec.embedded import CodecConfig, EmbeddedCodec, load_codec, save_codec
from specgen.codec.spectral import SpectralDecoder, SpectralEncoder
from specgen.errors import UserError
from specgen.training.batches import read_rows
from specgen.training.losses import SpectralLoss, log_mel_error, si_sdr, waveform_loss


@dataclass
class CodecRecipe:
    """A training run, over after `minutes` of training or `steps` updates, whichever is first."""

    codec: CodecConfig = field(default_factory=CodecConfig)
    data: str = "runs/data"
    work: str = "runs/codec"
    export: str = "specgen/checkpoints/embedded/codec"
    seed: int = 1
    minutes: float = 30.0
    steps: int = 1_000_000
    batch: int = 12
    crop_frames: int = 50
    learning_rate: float = 1.5e-3
    final_learning_rate: float = 1e-5
    warmup: int = 100
    clip_norm: float = 1.0
    quantize_from: int = 250
    start_vectors: int = 16384
    revive_every: int = 50
    waveform_weight: float = 1.0
    spectral_weight: float = 1.0
    commitment_weight: float = 0.1
    mel_scales: dict[int, int] = field(default_factory=lambda: {2048: 80, 1024: 80, 512: 64})
    power_floor: float = 1e-8
    log_every: int = 20
    save_every_minutes: float = 2.0
    validate_every_minutes: float = 4.0
    validation_clips: int = 12
    threads: int = 1


class AudioItems:
    """The items of one split of a data folder (`audio.i16`, `index.jsonl`), memory-mapped."""

    def __init__(self, folder: Path, split: str | None, shortest: int = 1) -> None:
        index, audio = folder / "index.jsonl", folder / "audio.i16"
        if not index.is_file() or not audio.is_file():
            raise UserError(f"{folder} holds no data set (audio.i16, index.jsonl): render it first")
        self.samples: NDArray[np.int16] = np.memmap(audio, dtype="<i2", mode="r")
        self.rows = [
            row
            for row in read_rows(index)
            if (split is None or row["split"] == split) and row["length"] >= shortest
        ]
        if not self.rows:
            raise UserError(f"{index} has no {split} items of {shortest} samples or more")

    def clip(self, row: int, start: int, length: int) -> Tensor:
        """Samples `[length]` float32 in [-1, 1) from an item."""
        first = self.rows[row]["offset"] + start
        return torch.from_numpy(self.samples[first : first + length].astype(np.float32) / 32768)

    def crops(self, batch: int, frames: int, frame_size: int, generator: torch.Generator) -> Tensor:
        """Random crops `[batch, frames * frame_size]`, starting at frame boundaries.

        The notes of rendered music start on frame boundaries; the codec should see them there.
        """
        length = frames * frame_size
        clips = []
        for row in torch.randint(len(self.rows), (batch,), generator=generator).tolist():
            room = (self.rows[row]["length"] - length) // frame_size
            start = int(torch.randint(room + 1, (1,), generator=generator)) * frame_size
            clips.append(self.clip(row, start, length))
        return torch.stack(clips)


def _generator(seed: int, step: int) -> torch.Generator:
    # A function of the step, so that a resumed run sees what an unbroken one would have seen.
    return torch.Generator().manual_seed(seed * 1_000_003 + step)


@torch.no_grad()
def set_levels(codec: EmbeddedCodec, wav: Tensor) -> None:
    """Give the spectral networks the data's mean magnitude in each frequency bin. `wav [B, N]`."""
    if isinstance(codec.encoder, SpectralEncoder) and isinstance(codec.decoder, SpectralDecoder):
        mean = codec.encoder.transform(wav).abs().mean((0, 1)).clamp(min=1e-4)
        codec.encoder.level.copy_(mean)
        codec.decoder.level.copy_(mean)


class Trainer:
    """One training run's state: the codec, its optimiser, the step and the seconds spent."""

    def __init__(self, recipe: CodecRecipe) -> None:
        self.recipe = recipe
        self.work = Path(recipe.work)
        config = recipe.codec
        length = recipe.crop_frames * config.frame_size
        self.items = AudioItems(Path(recipe.data), "train", length)
        torch.manual_seed(recipe.seed)
        self.codec = EmbeddedCodec(config)
        set_levels(self.codec, self._crops(-1, 64))
        self.losses = SpectralLoss(dict(recipe.mel_scales), config.sample_rate, recipe.power_floor)
        self.optimizer = torch.optim.AdamW(
            self.codec.parameters(), lr=recipe.learning_rate, betas=(0.8, 0.98), weight_decay=1e-2
        )
        self.step = 0
        self.seconds = 0.0
        self.resume()

    def _crops(self, step: int, batch: int) -> Tensor:
        generator = _generator(self.recipe.seed, step)
        config = self.recipe.codec
        return self.items.crops(batch, self.recipe.crop_frames, config.frame_size, generator)

    @property
    def progress(self) -> float:
        """Share of the budget used, in [0, 1]."""
        recipe = self.recipe
        return min(1.0, max(self.step / recipe.steps, self.seconds / (60 * recipe.minutes)))

    def learning_rate(self) -> float:
        """Linear warm-up, then a cosine down to the final rate at the budget's end."""
        recipe = self.recipe
        cosine = 0.5 * (1 + math.cos(math.pi * self.progress))
        rate = recipe.final_learning_rate
        rate += (recipe.learning_rate - recipe.final_learning_rate) * cosine
        return rate * min(1.0, (self.step + 1) / recipe.warmup)

    def update(self) -> dict[str, float]:
        """One optimiser step; returns the losses."""
        recipe, codec = self.recipe, self.codec
        quantizer = codec.quantizer
        wav = self._crops(self.step, recipe.batch)
        if self.step == recipe.quantize_from:
            self._start_quantizer()
        latents = codec.encoder(wav)
        commitment = latents.new_zeros(())
        fed = latents
        if self.step >= recipe.quantize_from:
            fed, codes, commitment = quantizer(latents)
            quantizer.adapt(latents.detach(), codes)
            if self.step % recipe.revive_every == 0:
                quantizer.revive(latents.detach(), _generator(recipe.seed, -2 - self.step))
        decoded = codec.decoder(fed)
        waveform = waveform_loss(decoded, wav, recipe.power_floor)
        spectral = self.losses(decoded, wav)
        loss = (
            recipe.waveform_weight * waveform
            + recipe.spectral_weight * spectral
            + recipe.commitment_weight * commitment
        )
        self.optimizer.param_groups[0]["lr"] = self.learning_rate()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(codec.parameters(), recipe.clip_norm)
        self.optimizer.step()
        self.step += 1
        return {
            "loss": loss.item(),
            "waveform": waveform.item(),
            "spectral": spectral.item(),
            "commitment": commitment.item(),
        }

    @torch.no_grad()
    def _start_quantizer(self) -> None:
        frames = self.recipe.crop_frames
        rounds = -(-self.recipe.start_vectors // (32 * frames))
        latents = [self.codec.encoder(self._crops(-1000 - i, 32)) for i in range(rounds)]
        vectors = torch.cat(latents).reshape(-1, self.recipe.codec.dim)
        self.codec.quantizer.start(vectors, _generator(self.recipe.seed, -2))

    def save(self) -> None:
        """Write weights and optimiser state so that an interruption leaves a matching pair."""
        self.work.mkdir(parents=True, exist_ok=True)
        weights = dict(self.codec.state_dict())
        weights["quantizer.counts"] = self.codec.quantizer.counts
        weights["quantizer.sums"] = self.codec.quantizer.sums
        name = f"weights-{self.step}.safetensors"
        save_file(weights, self.work / (name + ".partial"))
        os.replace(self.work / (name + ".partial"), self.work / name)
        state = {
            "step": self.step,
            "seconds": self.seconds,
            "weights": name,
            "codec": dataclasses.asdict(self.recipe.codec),
            "optimizer": self.optimizer.state_dict(),
        }
        torch.save(state, self.work / "state.pt.partial")
        os.replace(self.work / "state.pt.partial", self.work / "state.pt")
        for old in self.work.glob("weights-*.safetensors"):
            if old.name != name:
                old.unlink()

    def resume(self) -> None:
        """Continue from the work folder, if a run was saved there."""
        path = self.work / "state.pt"
        if not path.is_file():
            return
        state = torch.load(path, weights_only=True)
        if state["codec"] != dataclasses.asdict(self.recipe.codec):
            raise UserError(f"{path} is a run of another codec shape: choose another work folder")
        weights = load_file(self.work / state["weights"])
        self.codec.quantizer.counts.copy_(weights.pop("quantizer.counts"))
        self.codec.quantizer.sums.copy_(weights.pop("quantizer.sums"))
        self.codec.load_state_dict(weights)
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.seconds = state["step"], state["seconds"]

    def run(self) -> None:
        """Train to the end of the budget, with a log line every so often (`log.jsonl`)."""
        recipe = self.recipe
        self.work.mkdir(parents=True, exist_ok=True)
        saved = validated = self.seconds
        sums: dict[str, float] = {}
        summed = 0
        with (self.work / "log.jsonl").open("a", buffering=1) as log:
            while self.progress < 1.0:
                began = time.perf_counter()
                for key, value in self.update().items():
                    sums[key] = sums.get(key, 0.0) + value
                summed += 1
                self.seconds += time.perf_counter() - began
                if self.step % recipe.log_every == 0:
                    means = {key: value / summed for key, value in sums.items()}
                    log.write(self._line({**means, "learning_rate": self.learning_rate()}))
                    sums, summed = {}, 0
                if self.seconds - saved > 60 * recipe.save_every_minutes:
                    self.save()
                    saved = self.seconds
                if self.seconds - validated > 60 * recipe.validate_every_minutes:
                    log.write(self._line(self.validate()))
                    validated = self.seconds
            log.write(self._line(self.validate()))
        self.save()

    def _line(self, values: Mapping[str, float]) -> str:
        row = {"step": self.step, "seconds": round(self.seconds, 1)}
        return json.dumps(row | {key: round(value, 6) for key, value in values.items()}) + "\n"

    def validate(self) -> dict[str, float]:
        """Figures on held-out clips (the quantiser in use once it has started)."""
        began = time.perf_counter()
        quantised = self.step > self.recipe.quantize_from
        figures = evaluate(
            self.codec, Path(self.recipe.data), "valid", self.recipe.validation_clips, quantised
        )
        self.seconds += time.perf_counter() - began
        return figures


@torch.inference_mode()
def evaluate(
    codec: EmbeddedCodec, data: Path, split: str, clips: int, quantised: bool = True
) -> dict[str, float]:
    """Mean SI-SDR (dB), log-mel error (dB), perplexity and used entries of each codebook.

    On the first 10 seconds of `clips` items spread evenly over the split.
    """
    items = AudioItems(data, split, 10 * codec.sample_rate)
    picks = np.unique(np.linspace(0, len(items.rows) - 1, clips).astype(int))
    ratios, errors, columns = [], [], []
    for row in picks.tolist():
        wav = items.clip(row, 0, 10 * codec.sample_rate)[None]
        latents = codec.encoder(wav)
        codes = codec.quantizer.encode(latents)
        decoded = codec.decoder(codec.quantizer.decode(codes) if quantised else latents)
        ratios.append(si_sdr(decoded, wav).item())
        errors.append(log_mel_error(decoded, wav, codec.sample_rate).item())
        columns.append(codes[0])
    figures = {
        "valid_clips": float(len(picks)),
        "valid_si_sdr": float(np.mean(ratios)),
        "valid_log_mel_error": float(np.mean(errors)),
    }
    for k, column in enumerate(torch.cat(columns, 1)):
        share = torch.bincount(column, minlength=codec.card) / len(column)
        entropy = -(share * share.clamp(min=1e-12).log2()).sum().item()
        figures[f"entropy_{k}"] = entropy
        figures[f"used_{k}"] = float((share > 0).sum())
    return figures


def tokenize_dataset(
    codec_folder: Path, data_folder: Path, out_folder: Path, batch: int = 8
) -> None:
    """Encode every item whole: `codes.npy` int16 `[frames, K]` and `index.jsonl` (frame offsets).

    An item's last incomplete frame is padded with silence. Items of one length share a batch.
    """
    codec = load_codec(codec_folder)
    items = AudioItems(data_folder, None)
    lengths = [codec.frames(row["length"]) for row in items.rows]
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    out_folder.mkdir(parents=True, exist_ok=True)
    partial = out_folder / "codes.npy.partial"
    codes = np.lib.format.open_memmap(
        partial, "w+", np.dtype("<i2"), (int(offsets[-1]), codec.codebooks)
    )
    order = sorted(range(len(items.rows)), key=lambda row: items.rows[row]["length"])
    groups: list[list[int]] = []
    for row in order:
        length = items.rows[row]["length"]
        if not groups or len(groups[-1]) == batch or items.rows[groups[-1][0]]["length"] != length:
            groups.append([])
        groups[-1].append(row)
    for group in groups:
        wav = torch.stack([items.clip(row, 0, items.rows[row]["length"]) for row in group])
        for row, grid in zip(group, codec.encode(wav[:, None]), strict=True):
            codes[offsets[row] : offsets[row + 1]] = grid.T.numpy()
    codes.flush()
    os.replace(partial, out_folder / "codes.npy")
    keep = ("id", "tune", "split", "state", "captions")
    lines = [
        json.dumps(
            {key: row[key] for key in keep if key in row}
            | {"offset": int(offset), "length": length}
        )
        for row, offset, length in zip(items.rows, offsets[:-1], lengths, strict=True)
    ]
    partial = out_folder / "index.jsonl.partial"
    partial.write_text("\n".join(lines) + "\n")
    os.replace(partial, out_folder / "index.jsonl")


def read_recipe(recipe: Mapping[str, Any]) -> CodecRecipe:
    """The validated recipe; raises `UserError` for unknown keys or wrong types."""
    try:
        merged = OmegaConf.merge(OmegaConf.structured(CodecRecipe), dict(recipe))
        return cast(CodecRecipe, OmegaConf.to_object(merged))
    except (OmegaConfBaseException, ValueError) as error:
        raise UserError(f"codec recipe is invalid: {str(error).splitlines()[0]}") from None


def train_codec(recipe: Mapping[str, Any]) -> None:
    """Train (or go on training) the recipe's codec, then write its checkpoint folder."""
    settings = read_recipe(recipe)
    torch.set_num_threads(settings.threads)
    trainer = Trainer(settings)
    trainer.run()
    save_codec(trainer.codec, Path(settings.export))


def export_codec(recipe: Mapping[str, Any]) -> None:
    """Write the checkpoint folder from a run's last saved state, without training."""
    settings = read_recipe(recipe)
    save_codec(Trainer(settings).codec, Path(settings.export))


def main(arguments: list[str]) -> None:
    """The command line in the module's docstring."""
    if arguments[:1] == ["tokenize"] and len(arguments) == 4:
        torch.set_num_threads(1)
        codec_folder, data_folder, out_folder = map(Path, arguments[1:])
        tokenize_dataset(codec_folder, data_folder, out_folder)
        return
    task = train_codec
    if arguments[:1] == ["export"]:
        task, arguments = export_codec, arguments[1:]
    if not arguments or not Path(arguments[0]).is_file():
        raise UserError("name a recipe, as in: python -m specgen.training.codec RECIPE.yaml")
    merged = OmegaConf.merge(OmegaConf.load(arguments[0]), OmegaConf.from_dotlist(arguments[1:]))
    task(cast(dict[str, Any], OmegaConf.to_container(merged)))


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        sys.exit(f"error: {error}")
