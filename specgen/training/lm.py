"""Training a text-conditioned language model over codec tokens.

    python -m specgen.training.lm presets/train/base-delay.yaml [key=value ...]

The run is budgeted in minutes of training time; its schedule follows the clock, so that it lands on
a rate of zero when the time is up. It saves every few minutes, resumes from what it saved, and
exports its averaged weights as a checkpoint folder each time, so that others can use it meanwhile.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from specgen.checkpoints.files import from_plain, to_plain
from specgen.checkpoints.native import LMCheckpoint, load_lm, read_tensors, save_lm
from specgen.errors import UserError, command
from specgen.training.batches import Crop, CropStyle, TokenItems, draw_crops
from specgen.training.models import LMRecipe, fresh_model, inherit
from specgen.training.objective import Heard, guided_losses, losses, unigram_entropy
from specgen.training.optimise import Average, optimizers, rate_at, set_rate
from specgen.training.targets import Targets


class Trainer:
    """One run's state: the model, its optimiser and average, the step and the seconds spent."""

    def __init__(self, recipe: LMRecipe) -> None:
        self.recipe = recipe
        self.work = Path(recipe.work)
        self.items = TokenItems(Path(recipe.tokens), "train")
        self.held_out = TokenItems(Path(recipe.tokens), "valid")
        self.model = (
            fresh_model(recipe, self.items)
            if recipe.init is None
            else inherit(recipe, load_lm(Path(recipe.init)))
        )
        self.teacher: LMCheckpoint | None = None
        self.targets = [Targets(Path(folder)) for folder in recipe.targets]
        for one in self.targets:
            one.check(recipe.lm.feature_dim)
        modules = list(self._modules().values())
        self.optimizers = optimizers(
            modules,
            recipe.optimizer,
            recipe.learning_rate,
            recipe.weight_decay,
            recipe.embedding_scale,
        )
        self.average = Average(modules, recipe.average)
        self.unigram = unigram_entropy(self.held_out, self.items, recipe.lm.card)
        self.figures: dict[str, Any] = {}
        self.step = 0
        self.seconds = 0.0
        self.heard = 0.0  # seconds of audio trained on
        self.resume()

    @property
    def progress(self) -> float:
        """Share of the budget used, in [0, 1]."""
        recipe = self.recipe
        return min(1.0, max(self.step / recipe.steps, self.seconds / (60 * recipe.minutes)))

    def crops(self) -> list[Crop]:
        """This step's crops: a function of the seed and the step (and of the phase of the run)."""
        recipe = self.recipe
        phase = next(p for p in recipe.phases if self.progress <= p.until)
        style = CropStyle(
            count=phase.batch,
            frames=phase.frames,
            start_share=recipe.start_share,
            condition_dropout=recipe.condition_dropout,
            word_dropout=recipe.word_dropout,
        )
        return draw_crops(self.items, style, np.random.default_rng([recipe.seed, self.step]))

    def update(self) -> dict[str, float]:
        """One optimiser step; returns the losses."""
        recipe = self.recipe
        loss, figures, heard = self.imitate() if self.targets else self.learn()
        rate = recipe.learning_rate * rate_at(self.progress, self.step, recipe.warmup)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.average.sources, recipe.clip_norm)
        for optimizer in self.optimizers:
            set_rate(optimizer, rate)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self.average.update(self.step)
        self.heard += sum(crop.frames for crop in heard) / self.model.codec.frame_rate
        return figures

    def learn(self) -> tuple[Tensor, dict[str, float], list[Crop]]:
        """Loss on this step's crops, from the data and the teacher."""
        recipe = self.recipe
        crops = self.crops()
        if self.teacher is None and recipe.teacher and self.progress >= recipe.distill_from:
            self.teacher = load_lm(Path(recipe.teacher))
        entropies, divergence = losses(self.model, self.items, crops, self.teacher)
        share = recipe.distill_weight if self.teacher else 0.0
        loss = (1 - share) * entropies.mean() + share * divergence
        figures = {"loss": float(entropies.detach().mean())}
        if self.teacher:
            figures["divergence"] = float(divergence.detach())
        return loss, figures, crops

    def imitate(self) -> tuple[Tensor, dict[str, float], list[Crop]]:
        """Loss on this step's crops, from a verifier's guided distributions."""
        recipe, targets = self.recipe, self.targets[self.step % len(self.targets)]
        phase = next(p for p in recipe.phases if self.progress <= p.until)
        rng = np.random.default_rng([recipe.seed, self.step])
        crops, target = targets.draw(phase.batch, phase.frames, rng)
        heard: Heard | None = None
        if recipe.lm.feature_dim:
            unread = rng.random(target.features.shape[:2]) < recipe.own_states
            heard = Heard(target.features, torch.from_numpy(unread))
        entropies, divergence, chance = guided_losses(
            self.model,
            self.items,
            crops,
            target,
            recipe.guidance,
            recipe.whole_columns,
            heard,
        )
        figures = {
            "loss": float(entropies.detach().mean()),
            "divergence": float(divergence.detach()),
            "acceptance": float(chance.detach()),
        }
        if self.progress >= recipe.acceptance_from:
            return 0.1 * divergence - chance, figures, crops
        share = recipe.distill_weight
        return (1 - share) * entropies.mean() + share * divergence, figures, crops

    def run(self) -> LMCheckpoint:
        """Train to the end of the budget, logging to `log.jsonl`; returns the averaged model."""
        recipe = self.recipe
        self.work.mkdir(parents=True, exist_ok=True)
        saved = validated = self.seconds
        seen: dict[str, list[float]] = {}
        with (self.work / "log.jsonl").open("a", buffering=1) as log:
            while self.progress < 1.0:
                began = time.perf_counter()
                for key, value in self.update().items():
                    seen.setdefault(key, []).append(value)
                self.seconds += time.perf_counter() - began
                if self.step % recipe.log_every == 0:
                    means = {key: sum(values) / len(values) for key, values in seen.items()}
                    speed = self.heard / self.seconds
                    if "acceptance" in means:
                        self.figures["training_acceptance"] = means["acceptance"]
                    log.write(self._line({**means, "audio_seconds_per_second": speed}))
                    seen = {}
                if self.seconds - validated > 60 * recipe.validate_every_minutes:
                    log.write(self._line(self.validate()))
                    validated = self.seconds
                if self.seconds - saved > 60 * recipe.save_every_minutes:
                    self.save()
                    saved = self.seconds
                    self.teacher = None  # read again: it may be in training itself
            log.write(self._line(self.validate()))
        self.save()
        self.average.swap()
        return self.model

    def _line(self, values: Mapping[str, Any]) -> str:
        row = {"step": self.step, "seconds": round(self.seconds, 1), "heard": round(self.heard)}
        return json.dumps({**row, **_rounded(values)}) + "\n"

    def validate(self) -> dict[str, Any]:
        """Held-out cross-entropy of the averaged weights, beside the unigram entropy, in nats.

        A drafter that reads its verifier's states is not asked what it would say without them.
        """
        if self.recipe.lm.feature_dim:
            return self.figures
        began = time.perf_counter()
        self.average.swap()
        entropies = held_out_entropy(
            self.model, self.held_out, self.recipe.validation_crops, self.recipe.validation_frames
        )
        self.average.swap()
        self.figures |= {
            "held_out_nats": entropies,
            "held_out_mean_nats": sum(entropies) / len(entropies),
            "unigram_nats": self.unigram,
        }
        self.seconds += time.perf_counter() - began
        return self.figures

    def save(self) -> None:
        """Write the run's state, so that an interruption leaves a matching pair, and the export."""
        names = self._names()
        tensors = {f"now.{name}": value for name, value in names.items()}
        mean = zip(names, self.average.values, strict=True)
        tensors |= {f"mean.{name}": value for name, value in mean}
        name = f"weights-{self.step}.safetensors"
        self.work.mkdir(parents=True, exist_ok=True)
        save_file({k: v.detach() for k, v in tensors.items()}, self.work / (name + ".tmp"))
        os.replace(self.work / (name + ".tmp"), self.work / name)
        state = {
            "step": self.step,
            "seconds": self.seconds,
            "heard": self.heard,
            "weights": name,
            "lm": to_plain(self.recipe.lm),
            "pattern": to_plain(self.recipe.pattern),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }
        torch.save(state, self.work / "state.pt.tmp")
        os.replace(self.work / "state.pt.tmp", self.work / "state.pt")
        for old in self.work.glob("weights-*.safetensors"):
            if old.name != name:
                old.unlink()
        self.export()

    def export(self) -> None:
        """Write the averaged weights as a checkpoint folder, with what a model card needs."""
        self.model.training = {
            "recipe": _card(self.recipe),
            "steps": self.step,
            "training_seconds": round(self.seconds),
            "audio_seconds": round(self.heard),
            **_rounded(self.figures),
        }
        self.average.swap()
        save_lm(self.model, Path(self.recipe.export))
        self.average.swap()

    def resume(self) -> None:
        """Continue from the work folder, if a run was saved there.

        Raises:
            UserError: it holds the run of another model.
        """
        path = self.work / "state.pt"
        if not path.is_file():
            return
        state = torch.load(path, weights_only=True)
        shape = (to_plain(self.recipe.lm), to_plain(self.recipe.pattern))
        if (state["lm"], state["pattern"]) != shape:
            raise UserError(f"{path} is a run of another model: choose another work folder")
        tensors = read_tensors(self.work / state["weights"])
        with torch.no_grad():
            for (name, value), mean in zip(self._names().items(), self.average.values, strict=True):
                value.copy_(tensors[f"now.{name}"])
                mean.copy_(tensors[f"mean.{name}"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.step, self.seconds, self.heard = state["step"], state["seconds"], state["heard"]

    def _names(self) -> dict[str, Tensor]:
        modules = self._modules().items()
        return {f"{p}.{name}": v for p, module in modules for name, v in module.named_parameters()}

    def _modules(self) -> dict[str, torch.nn.Module]:
        """What learns: the model, and its text encoder if it has one."""
        parts = {"lm": self.model.lm, "conditioner": self.model.conditioner}
        return {name: part for name, part in parts.items() if isinstance(part, torch.nn.Module)}


def _rounded(values: Mapping[str, Any]) -> dict[str, Any]:
    def one(value: Any) -> Any:
        return [round(v, 5) for v in value] if isinstance(value, list) else round(value, 5)

    return {key: one(value) for key, value in values.items()}


def _card(recipe: LMRecipe) -> dict[str, Any]:
    names = (
        "init",
        "teacher",
        "targets",
        "guidance",
        "distill_weight",
        "whole_columns",
        "minutes",
        "seed",
        "optimizer",
        "learning_rate",
    )
    return {name: to_plain(getattr(recipe, name)) for name in names}


def held_out_crops(items: TokenItems, count: int, frames: int) -> list[Crop]:
    """Fixed crops spread over a split's items, with captions, half from the items' starts."""
    crops = []
    for i, row in enumerate(np.linspace(0, len(items.rows) - 1, count).astype(int).tolist()):
        item = items.rows[row]
        size = min(frames, item["length"])
        start = 0 if i % 2 else (item["length"] - size) // 2
        crops.append(Crop(row, start, size, item["captions"][i % len(item["captions"])]))
    return crops


@torch.inference_mode()
def held_out_entropy(
    model: LMCheckpoint, items: TokenItems, count: int, frames: int
) -> list[float]:
    """Cross-entropy of each codebook, in nats, on `count` fixed crops of `frames` frames."""
    crops = held_out_crops(items, count, frames)
    parts = [losses(model, items, [crop])[0] for crop in crops]
    return [float(value) for value in torch.stack(parts).mean(dim=0)]


def train_lm(recipe: Mapping[str, Any]) -> None:
    """Train (or go on training) the recipe's model and write its checkpoint folder.

    Raises:
        UserError: a wrong recipe, or inputs that are missing or do not fit.
    """
    settings = from_plain(LMRecipe, recipe, f"recipe {recipe.get('name', 'lm')}")
    torch.set_num_threads(settings.threads)
    Trainer(settings).run()


@command
def main(arguments: Sequence[str]) -> None:
    """The command line in the module's docstring."""
    from specgen.training.recipes import load_recipe

    if not arguments:
        raise UserError("name a recipe, as in: python -m specgen.training.lm RECIPE.yaml")
    kind, values = load_recipe(Path(arguments[0]), arguments[1:])
    if kind != "lm":
        raise UserError(f"{arguments[0]} is a recipe of kind {kind}: this command trains an lm")
    train_lm(values)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
