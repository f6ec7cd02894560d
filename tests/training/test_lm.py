"""Language-model training on a toy data set: alignment, learning, resuming, distillation."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from specgen.checkpoints.files import from_plain
from specgen.checkpoints.native import CodecId, LMCheckpoint, load_lm
from specgen.errors import UserError
from specgen.lm.config import LMConfig
from specgen.lm.model import MusicLM
from specgen.lm.transformer import rotate, rotations
from specgen.patterns import PatternSpec
from specgen.training import acceptance, lm, models, optimise
from specgen.training.batches import Crop, CropStyle, TokenItems, draw_crops, write_batch
from specgen.training.objective import grid_logits, losses, unigram_entropy
from specgen.training.optimise import Average, rate_at

K, CARD, FRAMES = 3, 7, 24
PATTERNS = [PatternSpec(kind, K) for kind in ("parallel", "delay", "flatten", "coarse_first")]


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    """Items whose tokens count upwards, codebook k by k + 1, from a start the caption names."""
    folder = tmp_path / "tokens"
    folder.mkdir()
    rng, grids, lines = np.random.default_rng(0), [], []
    for i in range(12):
        first = int(rng.integers(CARD))
        steps = np.arange(FRAMES)[:, None] * (np.arange(K) + 1)
        grids.append((first + steps) % CARD)
        split = "valid" if i % 4 == 3 else "train"
        texts = [f"start {first}", f"a tune from {first}"]
        place = {"split": split, "offset": i * FRAMES, "length": FRAMES}
        lines.append({"id": str(i), **place, "captions": texts})
    np.save(folder / "codes.npy", np.concatenate(grids).astype(np.int16))
    (folder / "index.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    return folder


@pytest.fixture
def recipe(tokens: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setattr(models, "codec_id", lambda _: CodecId(16000, 50.0, K, CARD, "0" * 64))
    return {
        "name": "tiny",
        "lm": {
            "codebooks": K,
            "card": CARD,
            "dim": 32,
            "heads": 2,
            "layers": 1,
            "ff_dim": 32,
            "condition_dim": 8,
            "positions": "rope",
        },
        "pattern": {"kind": "delay", "codebooks": K},
        "tokens": str(tokens),
        "work": str(tmp_path / "work"),
        "export": str(tmp_path / "export"),
        "steps": 60,
        "minutes": 10,
        "phases": [
            {"until": 0.8, "batch": 4, "frames": 10},
            {"until": 1.0, "batch": 2, "frames": 20},
        ],
        "optimizer": "adamw",
        "learning_rate": 1e-2,
        "warmup": 5,
        "average": 0.8,
        "validation_crops": 3,
        "log_every": 10,
    }


def settings(values: dict[str, Any], **changes: Any) -> models.LMRecipe:
    return from_plain(models.LMRecipe, values | changes, "test")


@pytest.mark.parametrize("pattern", PATTERNS, ids=lambda p: p.kind)
@pytest.mark.parametrize("start", [0, 1, 7, FRAMES - 5])
def test_a_crop_predicts_each_coordinate_from_what_comes_before(
    tokens: Path, pattern: PatternSpec, start: int
) -> None:
    items = TokenItems(tokens, "train")
    batch = write_batch(items, [Crop(1, start, 5, "")], pattern, CARD)
    grid, built = items.grid(1), pattern.of(FRAMES)
    sequence = built.build(grid[None], CARD)[0]
    first = min(built.step_of[k][start] for k in range(K)) - 1
    for k in range(K):
        for i in range(5):
            place = int(batch.places[0, k, i])
            assert first + place + 1 == built.step_of[k][start + i]
            assert batch.targets[0, k, i] == grid[k, start + i]
            assert torch.equal(batch.inputs[0, :, place], sequence[:, first + place])
    special_column = (batch.inputs[0, :, 0] == CARD).all()
    assert bool(special_column) == (start == 0)


def test_crops_follow_the_generator_and_the_style(tokens: Path) -> None:
    items = TokenItems(tokens, "train")
    style = CropStyle(200, 10, start_share=0.5, condition_dropout=0.3, word_dropout=0.2)
    crops = draw_crops(items, style, np.random.default_rng(1))
    assert crops == draw_crops(items, style, np.random.default_rng(1))
    assert all(0 <= crop.start <= FRAMES - 10 for crop in crops)
    assert 80 <= sum(crop.start == 0 for crop in crops) <= 140
    assert 40 <= sum(crop.text == "" for crop in crops) <= 85
    with pytest.raises(UserError, match="crop_frames"):
        draw_crops(items, replace(style, frames=FRAMES + 1), np.random.default_rng(1))


def test_training_learns_and_exports(recipe: dict[str, Any]) -> None:
    lm.train_lm(recipe)
    model = load_lm(Path(recipe["export"]))
    held_out = TokenItems(Path(recipe["tokens"]), "valid")
    reached = lm.held_out_entropy(model, held_out, 3, 20)
    assert max(reached) < 0.7 * np.log(CARD)
    assert model.conditioner.tokenize("a tune from zydeco").unknown == ["zydeco"]
    assert model.training["steps"] == 60 and len(model.training["unigram_nats"]) == K
    lines = [json.loads(s) for s in (Path(recipe["work"]) / "log.jsonl").read_text().splitlines()]
    assert lines[0]["loss"] > lines[-2]["loss"] and "held_out_nats" in lines[-1]


def test_a_resumed_run_equals_an_unbroken_one(recipe: dict[str, Any], tmp_path: Path) -> None:
    whole = lm.Trainer(settings(recipe, steps=20)).run()
    half = lm.Trainer(settings(recipe, steps=20, work=str(tmp_path / "half")))
    for _ in range(9):
        half.update()
    half.save()
    resumed = lm.Trainer(settings(recipe, steps=20, work=str(tmp_path / "half")))
    assert resumed.step == 9
    after = resumed.run()
    for a, b in zip(whole.lm.parameters(), after.lm.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_run_of_another_model_is_not_resumed(recipe: dict[str, Any]) -> None:
    lm.Trainer(settings(recipe)).save()
    with pytest.raises(UserError, match="another model"):
        lm.Trainer(settings(recipe, pattern={"kind": "flatten", "codebooks": K}))


def test_flatten_starts_from_delay(recipe: dict[str, Any], tmp_path: Path) -> None:
    lm.train_lm(recipe)
    changes = {
        "pattern": {"kind": "flatten", "codebooks": K},
        "init": recipe["export"],
        "work": str(tmp_path / "flatten"),
    }
    child = lm.Trainer(settings(recipe, **changes)).model
    parent = load_lm(Path(recipe["export"]))
    assert torch.equal(child.lm.heads.weight, parent.lm.heads.weight)
    qkv = "transformer.blocks.0.attention.qkv.weight"
    assert not torch.equal(child.lm.get_parameter(qkv), parent.lm.get_parameter(qkv))
    tables = child.lm.embedding.weight.view(K, CARD + 1, -1)
    assert torch.allclose(tables[:, -1], tables[:, :-1].mean(1))
    wider = recipe["lm"] | {"ff_dim": 48}
    with pytest.raises(UserError, match="another shape"):
        lm.Trainer(settings(recipe, **changes, lm=wider))


def test_distillation_brings_a_drafter_to_its_teacher(
    recipe: dict[str, Any], tmp_path: Path
) -> None:
    lm.train_lm(recipe | {"pattern": {"kind": "flatten", "codebooks": K}})
    changes = {
        "teacher": recipe["export"],
        "distill_weight": 0.9,
        "work": str(tmp_path / "student"),
        "export": str(tmp_path / "student-export"),
    }
    trainer = lm.Trainer(settings(recipe, **changes, distill_from=0.05))
    assert "divergence" not in trainer.update()  # the teacher is not asked yet
    for _ in range(2):
        trainer.update()
    before = trainer.update()["divergence"]
    assert trainer.teacher is not None and trainer.teacher.pattern.kind == "flatten"
    trainer.run()
    assert trainer.update()["divergence"] < 0.5 * before
    assert not any(p.requires_grad for p in trainer.teacher.lm.parameters())


def test_the_model_is_its_own_perfect_teacher(recipe: dict[str, Any]) -> None:
    trainer = lm.Trainer(settings(recipe))
    model, items = trainer.model, trainer.items
    crops = [Crop(0, 3, 8, "start 1"), Crop(1, 0, 8, "")]
    entropies, divergence = losses(model, items, crops, model)
    assert abs(divergence.item()) < 1e-6
    logits = grid_logits(model, items, crops)
    targets = torch.stack([items.grid(c.row)[:, c.start : c.start + 8] for c in crops], 1)
    expected = torch.nn.functional.cross_entropy(logits.movedim(-1, 1), targets, reduction="none")
    assert torch.allclose(entropies, expected.mean((1, 2)), atol=1e-6)


def test_the_null_condition_is_trained(recipe: dict[str, Any]) -> None:
    trainer = lm.Trainer(settings(recipe, condition_dropout=0.5))
    before = trainer.model.conditioner.nothing.detach().clone()
    for _ in range(3):
        trainer.update()
    assert not torch.equal(before, trainer.model.conditioner.nothing)


def test_unigram_entropy_of_uniform_tokens(tokens: Path) -> None:
    items = TokenItems(tokens, "train")
    assert unigram_entropy(items, items, CARD) == pytest.approx([np.log(CARD)] * K, abs=0.05)


def test_the_rate_rises_and_lands_on_zero() -> None:
    assert rate_at(0.0, 0, 10) == pytest.approx(0.1)
    assert rate_at(0.5, 100, 10) == pytest.approx(0.5)
    assert rate_at(1.0, 200, 10) == pytest.approx(0.0)


def test_an_average_follows_and_swaps() -> None:
    layer = torch.nn.Linear(2, 2)
    average = Average([layer], 0.5)
    start = layer.weight.detach().clone()
    with torch.no_grad():
        layer.weight.add_(1.0)
    average.update(1000)
    average.swap()
    assert torch.allclose(layer.weight, start + 0.5)
    average.swap()
    assert torch.allclose(layer.weight, start + 1.0)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"surprise": 1}, "surprise"),
        ({"minutes": "long"}, "minutes"),
        ({"distill_weight": 0.5}, "teacher"),
        ({"phases": [{"until": 0.5, "batch": 1, "frames": 2}]}, "phases"),
        ({"phases": []}, "phases"),
        ({"pattern": {"kind": "delay", "codebooks": 2}}, "codebooks"),
        ({"tokens": "/nowhere"}, "tokens"),
        ({"init": "/nowhere"}, "nowhere"),
    ],
)
def test_a_wrong_recipe(recipe: dict[str, Any], changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        lm.train_lm(recipe | changes)


def log_softmax(rows: int, entries: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (2 * torch.randn(rows, entries, generator=generator).double()).log_softmax(-1)


def test_coupled_acceptance_is_the_double_sum() -> None:
    p, q = log_softmax(20, 6, 0), log_softmax(20, 6, 1)
    p[:, 0] = q[:, 1] = -torch.inf
    p[:, 2] = q[:, 2] = -torch.inf
    P, Q = p.softmax(-1), q.softmax(-1)
    expected = torch.zeros(20).double()
    for i in range(6):
        larger = torch.maximum(P / P[:, i : i + 1], Q / Q[:, i : i + 1]).sum(-1)
        both = (P[:, i] > 0) & (Q[:, i] > 0)
        expected += torch.where(both, 1 / larger, torch.zeros(20).double())
    assert torch.allclose(acceptance.coupled_acceptance(p, q), expected, atol=1e-12)


def test_coupled_acceptance_is_what_gumbel_draws_show() -> None:
    """200,000 draws: a false alarm needs 5 standard errors (below one in a million)."""
    p, q = log_softmax(1, 5, 2), log_softmax(1, 5, 3)
    uniform = torch.rand(200_000, 5, generator=torch.Generator().manual_seed(4)).double()
    gumbel = -(-uniform.log()).log()
    share = ((p + gumbel).argmax(-1) == (q + gumbel).argmax(-1)).double().mean().item()
    chance = acceptance.coupled_acceptance(p, q).item()
    assert abs(share - chance) < 5 * (chance * (1 - chance) / 200_000) ** 0.5


def test_acceptance_bounds() -> None:
    p, q = log_softmax(50, 8, 5), log_softmax(50, 8, 6)
    textbook, coupled = acceptance.textbook_acceptance(p, q), acceptance.coupled_acceptance(p, q)
    assert (coupled <= textbook + 1e-12).all()
    assert (coupled >= textbook / (2 - textbook) - 1e-12).all()
    assert torch.allclose(acceptance.coupled_acceptance(p, p), torch.ones(50).double())


def test_the_acceptance_command(recipe: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    lm.train_lm(recipe | {"steps": 5})
    folder, sizes = recipe["export"], ["--crops", "2", "--frames", "12", "--positions", "8"]
    command = [folder, folder, "--tokens", recipe["tokens"], "--json", *sizes]
    assert acceptance.main([*command, "--draft-temperatures", "1,1,1", "1,1,0.3"]) == 0
    same, sharp = json.loads(capsys.readouterr().out)[:2]
    assert same["coupled"] == pytest.approx([1.0] * K)
    assert sharp["coupled"][2] < 1.0 and sharp["coupled"][0] == pytest.approx(1.0)
    assert acceptance.main([folder, "/nowhere", "--tokens", recipe["tokens"]]) == 2


def test_checkpoints_know_their_pattern(recipe: dict[str, Any]) -> None:
    lm.train_lm(recipe | {"steps": 1, "pattern": {"kind": "delay", "codebooks": K}})
    model: LMCheckpoint = load_lm(Path(recipe["export"]))
    assert model.pattern == PatternSpec("delay", K) and model.codec.card == CARD


@pytest.mark.parametrize("shape", [(20, 20), (20, 50), (50, 20)])
def test_orthogonalising_flattens_the_spectrum(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    matrix = torch.randn(shape)
    turned = optimise.orthogonalise(matrix)
    values = torch.linalg.svdvals(turned)
    assert turned.shape == shape and values.max() < 1.7 and values.median() > 0.5
    U, _, V = torch.linalg.svd(matrix, full_matrices=False)
    assert torch.cosine_similarity(turned.flatten(), (U @ V).flatten(), dim=0) > 0.9


def test_muon_resumes_too(recipe: dict[str, Any]) -> None:
    trainer = lm.Trainer(settings(recipe, optimizer="muon"))
    losses_seen = [trainer.update()["loss"] for _ in range(30)]
    assert np.mean(losses_seen[-5:]) < np.mean(losses_seen[:5])
    trainer.save()
    resumed = lm.Trainer(settings(recipe, optimizer="muon"))
    assert trainer.update() == resumed.update()
    with pytest.raises(UserError, match="optimizer"):
        settings(recipe, optimizer="sgd")


def test_stretching_makes_attention_look_further_back() -> None:
    """With max_period 2^8 and 8 pairs, a factor of 2 is one pair; the slowest pair is silent."""
    config = LMConfig(
        codebooks=1, card=4, dim=32, heads=2, layers=1, ff_dim=8, positions="rope", max_period=256.0
    )
    torch.manual_seed(0)
    model = MusicLM(config).double().requires_grad_(False)
    attention = model.transformer.blocks[0].get_submodule("attention")
    weight = attention.get_parameter("qkv.weight")
    weight[:64].view(4, 8, 2, 32)[:, -1] = 0

    def score(back: int) -> torch.Tensor:
        places = torch.tensor([[0, back]])
        turn = rotations(places, 16, 256.0, 1.0)[:, :, None]
        x = torch.randn(1, 2, 32, generator=torch.Generator().manual_seed(1)).double()
        heads = rotate((x @ weight[:64].T).view(1, 2, 4, 16), turn)
        return (heads[0, 1, :2] * heads[0, 0, 2:]).sum(-1)

    before = [score(back) for back in (1, 5)]
    models.stretch(model, 2.0)
    after = [score(back) for back in (2, 10)]
    assert torch.allclose(torch.stack(before), torch.stack(after), atol=1e-5)
