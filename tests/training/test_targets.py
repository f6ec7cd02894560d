"""Targets: a teacher's guided distributions, and a drafter that learns them."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from specgen.checkpoints.native import LMCheckpoint, load_lm, read_tensors
from specgen.decoding.sampling import Sampling, process
from specgen.errors import UserError
from specgen.patterns import PatternSpec
from specgen.training.batches import Crop, TokenItems, write_batch
from specgen.training.lm import Trainer
from specgen.training.objective import (
    Heard,
    column_chance,
    coupled_chance,
    grid_logits,
    guided_losses,
    states,
)
from specgen.training.targets import TargetMeta, Targets, write_targets
from tests.training.test_lm import CARD, FRAMES, K, recipe, settings, tokens

__all__ = ["recipe", "tokens"]  # fixtures

META = TargetMeta("teacher", guidance=3.0, top_k=4, frames=12, crops=6, codebooks=K)


@pytest.fixture
def teacher(recipe: dict[str, Any]) -> LMCheckpoint:
    """A flatten model that has seen a little."""
    pattern = {"kind": "flatten", "codebooks": K}
    Trainer(settings(recipe, pattern=pattern, steps=40, work=recipe["work"] + "-teacher")).run()
    return load_lm(Path(recipe["export"]))


@pytest.fixture
def targets(teacher: LMCheckpoint, tokens: Path, tmp_path: Path) -> Targets:
    write_targets(teacher, TokenItems(tokens, "train"), tmp_path / "targets", META)
    return Targets(tmp_path / "targets")


def test_targets_are_the_processed_guided_distribution(
    teacher: LMCheckpoint, targets: Targets, tokens: Path
) -> None:
    items = TokenItems(tokens, "train")
    crops = targets.finished()
    assert len(crops) == META.crops and all(crop.frames == META.frames for crop in crops)
    with torch.inference_mode():
        for place, crop in enumerate(crops):
            given = grid_logits(teacher, items, [crop])
            null = grid_logits(teacher, items, [replace(crop, text="")])
            whole = process(null + 3.0 * (given - null), Sampling(top_k=META.top_k)).softmax(-1)
            target = targets.read([place], [0], META.frames)
            listed = torch.zeros_like(whole).scatter(-1, target.entries, target.logp.exp())
            assert (listed - whole).abs().max() < 2e-3  # stored in float16


def test_a_part_of_a_crop_is_that_part_of_the_target(targets: Targets) -> None:
    whole, part = targets.read([2], [0], META.frames), targets.read([2], [5], 4)
    assert torch.equal(part.entries, whole.entries[:, :, 5:9])
    crops, target = targets.draw(3, 4, np.random.default_rng(1))
    assert target.logp.shape == (K, 3, 4, META.top_k)
    assert all(crop.frames == 4 and crop.start + 4 <= FRAMES for crop in crops)


def test_writing_goes_on_where_it_stopped(
    teacher: LMCheckpoint, targets: Targets, tokens: Path
) -> None:
    before = targets.read([4], [0], META.frames).logp
    index = targets.folder / "crops.jsonl"
    lines = index.read_text().splitlines()
    index.write_text("\n".join(lines[:3]) + "\n")
    write_targets(teacher, TokenItems(tokens, "train"), targets.folder, META)
    assert index.read_text().splitlines() == lines
    assert torch.equal(Targets(targets.folder).read([4], [0], META.frames).logp, before)
    with pytest.raises(UserError, match="other targets"):
        other = replace(META, guidance=2.0)
        write_targets(teacher, TokenItems(tokens, "train"), targets.folder, other)
    assert json.loads((targets.folder / "meta.json").read_text()) == asdict(META)


@pytest.mark.parametrize("guidance", [None, 3.0])
def test_a_drafter_comes_closer_to_what_is_sampled(
    recipe: dict[str, Any], targets: Targets, tokens: Path, guidance: float | None
) -> None:
    learning = settings(
        recipe,
        work=recipe["work"] + "-drafter",
        export=recipe["export"] + "-drafter",
        targets=[str(targets.folder)],
        distill_weight=1.0,
        guidance=guidance,
        acceptance_from=0.7,
        steps=80,
    )
    trainer = Trainer(learning)
    items = TokenItems(tokens, "train")
    crops, target = targets.draw(6, 12, np.random.default_rng(2))
    with torch.no_grad():
        _, far, seldom = guided_losses(trainer.model, items, crops, target, guidance)
    trainer.run()
    with torch.no_grad():
        _, near, often = guided_losses(trainer.model, items, crops, target, guidance)
    assert near < 0.5 * far and often > seldom + 0.1
    logged = [json.loads(line) for line in (trainer.work / "log.jsonl").read_text().splitlines()]
    assert any("acceptance" in line for line in logged)


def test_the_chance_of_acceptance_is_what_happens() -> None:
    """Against draws: 40,000 a pair, so five standard errors are at most 0.0125."""
    generator = torch.Generator().manual_seed(1)
    p = torch.randn(5, 9, generator=generator).mul(2).softmax(-1)
    p[:, 6:] = 0
    p = p / p.sum(-1, keepdim=True)
    q = torch.randn(5, 9, generator=generator).mul(2).softmax(-1)
    noise = -torch.empty(40_000, 1, 9).exponential_(generator=generator).log()
    same = (p.log() + noise).argmax(-1) == (q.log() + noise).argmax(-1)
    chance = coupled_chance(p, q)
    assert (same.float().mean(0) - chance).abs().max() < 0.0125
    listed = coupled_chance(p[:, :6], q[:, :6])  # the rest of q need not be listed
    assert torch.allclose(listed, chance, atol=1e-6)


def test_whole_columns_stand_when_all_their_guesses_do() -> None:
    chances = torch.tensor([[[0.5, 0.8, 0.9], [0.25, 0.5, 1.0]]], dtype=torch.float64)
    delay = torch.tensor([[[0, 1, 2], [1, 2, 3]]])  # columns 1 and 2 are whole
    expected = (0.8 * 0.25 + 0.9 * 0.5) / 2
    assert column_chance(chances, delay).item() == pytest.approx(expected)
    flatten = torch.tensor([[[0, 2, 4], [1, 3, 5]]])
    assert column_chance(chances, flatten).item() == pytest.approx(chances.mean().item())
    none = chances * 0
    none.requires_grad_(True)
    column_chance(none, delay).backward()
    assert none.grad is not None and bool(none.grad.isfinite().all())


def test_no_targets_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no targets"):
        Targets(tmp_path)


def test_a_null_crop_is_its_own_guide(teacher: LMCheckpoint, tokens: Path, tmp_path: Path) -> None:
    """Without a caption guidance changes nothing, so the target is the model's own distribution."""
    from specgen.training.targets import guided

    items, crop = TokenItems(tokens, "train"), Crop(0, 0, 8, "")
    target = guided(teacher, items, crop, replace(META, top_k=CARD))
    with torch.inference_mode():
        own = grid_logits(teacher, items, [crop]).log_softmax(-1)
    assert (own.gather(-1, target.entries) - target.logp).abs().max() < 1e-5


@pytest.fixture
def verifier(recipe: dict[str, Any]) -> LMCheckpoint:
    """A delay model that has seen a little."""
    export = recipe["export"] + "-verifier"
    Trainer(settings(recipe, steps=40, work=recipe["work"] + "-verifier", export=export)).run()
    return load_lm(Path(export))


def test_kept_states_are_those_a_column_was_drawn_from(
    verifier: LMCheckpoint, tokens: Path, tmp_path: Path
) -> None:
    steps = verifier.pattern.of(FRAMES).steps
    dim = verifier.lm.config.dim
    meta = replace(META, frames=FRAMES, crops=3, columns=steps - 1, features=2 * dim)
    items = TokenItems(tokens, "train")
    write_targets(verifier, items, tmp_path / "states", meta)
    targets = Targets(tmp_path / "states")
    crops, target = targets.draw(2, FRAMES, np.random.default_rng(4))
    for crop, kept in zip(crops, target.features, strict=True):
        batch = write_batch(items, [crop], verifier.pattern, CARD)
        for half, text in zip(kept.split(dim, dim=-1), (crop.text, ""), strict=True):
            own = states(verifier, batch, [text])[0]
            assert not half[0].any() and (half[1:] - own[:-1]).abs().max() < 5e-3  # float16
    with pytest.raises(UserError, match="keeps states for crops of 24 frames, not 10"):
        targets.draw(2, 10, np.random.default_rng(4))


def test_beside_an_unread_column_stands_the_drafters_own_state() -> None:
    features, own = torch.arange(24.0).view(1, 4, 6), -torch.arange(12.0).view(1, 4, 3)
    heard = Heard(features, torch.tensor([[False, True, False, True]])).with_own(own)
    assert torch.equal(heard[0, [0, 2]], features[0, [0, 2]])
    assert heard[0, 1].tolist() == [*own[0, 0], *own[0, 0]]
    assert heard[0, 3].tolist() == [*own[0, 2], *own[0, 2]]


def test_targets_without_the_states_that_a_model_reads(
    recipe: dict[str, Any], verifier: LMCheckpoint, tokens: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "stateless"
    write_targets(verifier, TokenItems(tokens, "train"), folder, replace(META, crops=2))
    options = recipe["lm"] | {"condition_dim": 0, "feature_dim": 2 * verifier.lm.config.dim}
    changes = {"lm": options, "init": recipe["export"] + "-verifier", "steps": 3}
    with pytest.raises(UserError, match="keeps 0 numbers a column of the teacher's states"):
        Trainer(settings(recipe, targets=[str(folder)], **changes))
    with pytest.raises(UserError, match="needs targets, which keep states"):
        settings(recipe, **changes)


def test_a_drafter_learns_to_read_its_verifiers_states(
    recipe: dict[str, Any], verifier: LMCheckpoint, tokens: Path, tmp_path: Path
) -> None:
    steps, dim = verifier.pattern.of(FRAMES).steps, verifier.lm.config.dim
    meta = replace(META, frames=FRAMES, columns=steps - 1, features=2 * dim)
    items = TokenItems(tokens, "train")
    write_targets(verifier, items, tmp_path / "states", meta)
    options = recipe["lm"] | {"condition_dim": 0, "feature_dim": 2 * dim}
    learning = settings(
        recipe,
        lm=options,
        init=recipe["export"] + "-verifier",
        work=recipe["work"] + "-follower",
        export=recipe["export"] + "-follower",
        targets=[str(tmp_path / "states")],
        distill_weight=1.0,
        whole_columns=True,
        acceptance_from=0.7,
        phases=[{"until": 1.0, "batch": 2, "frames": FRAMES}],
        steps=120,
    )
    trainer = Trainer(learning)
    crops, target = Targets(tmp_path / "states").draw(6, FRAMES, np.random.default_rng(2))

    def chance(heard: Heard | None) -> float:
        with torch.no_grad():
            return float(guided_losses(trainer.model, items, crops, target, None, True, heard)[2])

    never = torch.zeros(target.features.shape[:2], dtype=torch.bool)
    every = Heard(target.features, never)
    before = chance(every)
    trainer.run()
    assert chance(every) > before + 0.1
    assert chance(every) > chance(None) + 0.02  # it does read them
    assert chance(every) > chance(Heard(target.features, ~never)) > chance(None)
    folder = Path(recipe["export"] + "-follower")
    with pytest.raises(UserError, match="only drafts, with its verifier's tables"):
        load_lm(folder)
    drafter = load_lm(folder, verifier=verifier)
    for name in ("embedding.weight", "heads.weight"):
        assert torch.equal(drafter.lm.get_parameter(name), verifier.lm.get_parameter(name))
    assert not {"lm.embedding.weight", "lm.heads.weight"} & set(
        read_tensors(folder / "model.safetensors")
    )
    other = replace(verifier, pattern=PatternSpec("flatten", K), name="another")
    with pytest.raises(UserError, match=r"reads the states of a delay model.*another .flatten"):
        load_lm(folder, verifier=other)
