"""Models that audiocraft's own builder made, exported as it exports them, read by us."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from specgen.checkpoints import registry
from specgen.checkpoints.base import LMCheckpoint
from specgen.decoding.lane import Role
from specgen.decoding.loop import capacity, decode
from specgen.decoding.noise import Purpose, gumbels
from specgen.decoding.sampling import Sampling, perturbed_argmax, process
from tests import peers

STEPS, FRAMES = 60, 50
PLAIN = {"transformer_lm.memory_efficient": False, "transformer_lm.custom": True}
STEREO = {
    "interleave_stereo_codebooks.use": True,
    "codebooks_pattern.delay.delays": [0, 0, 1, 1, 2, 2, 3, 3],
    "transformer_lm.n_q": 8,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "delay": {},
    "delay without text": peers.NO_TEXT,
    "unroll": {"codebooks_pattern.modeling": "unroll"},
    "unroll without text": {"codebooks_pattern.modeling": "unroll", **peers.NO_TEXT},
    "partial unroll with delays": {
        "codebooks_pattern.modeling": "unroll",
        "codebooks_pattern.unroll": {"flattening": [0, 1, 1, 1], "delays": [0, 2, 2, 2]},
    },
    "parallel": {"codebooks_pattern.modeling": "parallel"},
    "coarse first": {"codebooks_pattern.modeling": "coarse_first"},
    "flattened start": {
        "codebooks_pattern.delay": {"delays": [0, 1, 2, 3], "flatten_first": 2, "empty_initial": 1}
    },
    "stereo": STEREO,
    "rope": {"transformer_lm.positional_embedding": "rope", **PLAIN},
    "both positions": {
        "transformer_lm.positional_embedding": "sin_rope",
        "transformer_lm.positional_scale": 0.5,
        **PLAIN,
    },
    "norms of queries and keys": {
        "transformer_lm.qk_layer_norm": True,
        "transformer_lm.qk_layer_norm_cross": True,
        "transformer_lm.layer_scale": 1e-4,
    },
    "shared keys": {"transformer_lm.kv_repeat": 2, **peers.NO_TEXT},
    "short memory": {"transformer_lm.past_context": 9, **PLAIN},
    "biases, post-norm, relu": {
        "transformer_lm.norm_first": False,
        "transformer_lm.bias_ff": True,
        "transformer_lm.bias_attn": True,
        "transformer_lm.bias_proj": True,
        "transformer_lm.activation": "relu",
        **PLAIN,
    },
    "torch's own attention": {"transformer_lm.memory_efficient": False},
}


@pytest.fixture(scope="module")
def exports(
    builders: ModuleType, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[Path, Any]]:
    """Every variant: its export, and audiocraft's own model."""
    made = {}
    root = tmp_path_factory.mktemp("exports")
    peers.write_t5(root / "t5")
    for i, (name, changes) in enumerate(VARIANTS.items()):
        folder = root / f"{i}"
        folder.mkdir()
        (folder / "text_encoder").symlink_to(root / "t5")
        if not i:
            peers.write_codec(builders, folder)
        else:
            (folder / "compression_state_dict.bin").symlink_to(
                root / "0/compression_state_dict.bin"
            )
        made[name] = folder, peers.write_lm(builders, folder, changes, seed=i)
    return made


def attributes(*prompts: str) -> list[Any]:
    conditioners = importlib.import_module("audiocraft.modules.conditioners")
    return [conditioners.ConditioningAttributes(text={"description": p}) for p in prompts]


def our_logits(model: LMCheckpoint, sequence: Tensor, block: int) -> Tensor:
    """Logits `[S, K, card]` of a sequence `[1, K, S]` fed `block` steps at a time."""
    ours, K = peers.session(model, sequence.shape[-1], None), sequence.shape[1]
    out = []
    for start in range(0, sequence.shape[-1], block):
        part = sequence[:, :, start : start + block]
        hidden, n = ours.feed(part, [start]), part.shape[-1]
        places = [place for place in range(n) for _ in range(K)]
        logits = ours.logits(hidden, [0] * len(places), places, list(range(K)) * n)
        out.append(logits.view(n, K, -1))
    return torch.cat(out)


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_logits_equal_audiocrafts(exports: dict[str, tuple[Path, Any]], variant: str) -> None:
    folder, theirs = exports[variant]
    model = registry.load_lm(folder)
    torch.manual_seed(1)
    codes = torch.randint(theirs.card, (1, theirs.n_q, STEPS))
    layout = theirs.pattern_provider.get_pattern(STEPS)
    sequence = layout.build_pattern_sequence(codes, theirs.card)[0][..., :STEPS]
    ours = model.pattern.of(STEPS).build(codes, theirs.card)[..., :STEPS]
    assert torch.equal(ours, sequence)  # the file's pattern is the trainer's

    tensors = {}
    if model.lm.config.condition_dim:
        tensors = theirs.condition_provider(
            theirs.condition_provider.tokenize(attributes(peers.PROMPT))
        )
    expected = theirs(sequence, [], tensors)[0].transpose(0, 1)  # [S, K, card]
    assert expected.std() > 0.3
    for block in (1, 7, STEPS):
        found = our_logits(model, sequence, block)
        assert (found - expected).abs().max() < 1e-4, block


@torch.no_grad()
def test_a_short_memory_is_the_same_over_whole_sequences(
    exports: dict[str, tuple[Path, Any]],
) -> None:
    """Training's path and decoding's hide the same steps, and they do hide some."""
    model = registry.load_lm(exports["short memory"][0])
    torch.manual_seed(1)
    sequence = torch.randint(64, (1, 4, STEPS))
    condition, mask = model.conditioner.encode([peers.PROMPT])
    memory = model.lm.transformer.memory(condition, mask)
    whole = model.lm.all_heads(model.lm.hidden(sequence, memory))[0]
    assert (whole - our_logits(model, sequence, 7)).abs().max() < 1e-4
    other = sequence.clone()
    other[..., 0] = (other[..., 0] + 1) % 64
    moved = (our_logits(model, other, STEPS) - whole).abs().amax(dim=(1, 2))
    reach = 9 * model.lm.config.layers  # past_context, layer upon layer
    assert moved[: reach - 2].min() > 1e-4 and moved[reach + 1 :].max() < 1e-5


GENERATED = [
    "delay",
    "unroll",
    "partial unroll with delays",
    "stereo",
    "rope",
    "short memory",
    "torch's own attention",
    "delay without text",
]


@pytest.mark.parametrize("variant", GENERATED)
def test_greedy_tokens_equal_audiocrafts(
    exports: dict[str, tuple[Path, Any]], variant: str
) -> None:
    """200 tokens or more, guided, from caches on both sides."""
    folder, theirs = exports[variant]
    model = registry.load_lm(folder)
    text = bool(model.lm.config.condition_dim)
    expected = theirs.generate(
        conditions=attributes(peers.PROMPT) if text else [],
        num_samples=1,
        max_gen_len=FRAMES,
        use_sampling=False,
        cfg_coef=model.guidance,
    )
    found = decode(
        Role(
            peers.session(model, capacity(model.pattern, FRAMES), model.guidance),
            model.pattern,
        ),
        frames=[FRAMES],
        seeds=[0],
        sampling=Sampling(temperature=0.0),
    )
    assert expected.numel() >= 200
    assert torch.equal(found.codes[0], expected[0])
    assert len(expected.unique()) > 3  # not one token over and over


@pytest.mark.parametrize("variant", ["delay", "unroll", "stereo"])
def test_sampled_tokens_equal_audiocrafts_with_the_same_noise(
    exports: dict[str, tuple[Path, Any]], variant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its sampler draws for places that hold no token, too, so its own random stream cannot be
    followed: each place is given the noise of its coordinate instead."""
    folder, theirs = exports[variant]
    model, sampling = registry.load_lm(folder), Sampling(top_k=20)
    seed, layout = 7, model.pattern.of(FRAMES).layout
    noise = [gumbels(seed, Purpose.TOKEN, k, 0, FRAMES, theirs.card) for k in range(theirs.n_q)]
    steps = iter(layout[1:])

    def draw(probabilities: Tensor, k: int) -> Tensor:
        gumbel = torch.zeros_like(probabilities[0])
        for t, book in next(steps):
            gumbel[book] = torch.from_numpy(noise[book][t])
        chosen = process(probabilities.log(), Sampling(top_k=k))
        return perturbed_argmax(chosen, gumbel)[..., None]

    lm = importlib.import_module("audiocraft.models.lm")
    monkeypatch.setattr(lm.utils, "sample_top_k", draw)
    expected = theirs.generate(
        conditions=attributes(peers.PROMPT), max_gen_len=FRAMES, top_k=20, cfg_coef=3.0
    )
    found = decode(
        Role(peers.session(model, capacity(model.pattern, FRAMES), 3.0), model.pattern),
        frames=[FRAMES],
        seeds=[seed],
        sampling=sampling,
    )
    assert torch.equal(found.codes[0], expected[0])
    assert len(expected.unique()) > 15


def test_two_step_guidance_ignores_the_coefficient_there(
    exports: dict[str, tuple[Path, Any]],
) -> None:
    """audiocraft's `two_step_cfg` uses the configuration's coefficient whatever it is called with;
    ours has one way, whose coefficient is the caller's."""
    folder, theirs = exports["delay"]
    options = {"max_gen_len": 12, "use_sampling": False, "two_step_cfg": True}
    conditions = attributes(peers.PROMPT)
    asked = theirs.generate(conditions=conditions, cfg_coef=1.0, **options)
    assert torch.equal(asked, theirs.generate(conditions=conditions, cfg_coef=3.0, **options))
    model = registry.load_lm(folder)
    assert model.guidance == 3.0
    found = [
        decode(
            Role(peers.session(model, capacity(model.pattern, 12), guidance), model.pattern),
            frames=[12],
            seeds=[0],
            sampling=Sampling(temperature=0.0),
        ).codes[0]
        for guidance in (3.0, 1.0)
    ]
    assert torch.equal(found[0], asked[0])
    assert not torch.equal(found[1], asked[0])


def test_sinusoids_are_made_in_float32(exports: dict[str, tuple[Path, Any]]) -> None:
    """There in the model's dtype, which in bfloat16 is far off past position 256."""
    model = registry.load_lm(exports["delay"][0], dtype=torch.bfloat16)
    transformer = importlib.import_module("audiocraft.modules.transformer")
    positions = torch.arange(256, 1500)
    dim = model.lm.config.dim
    exact = transformer.create_sin_embedding(positions.view(1, -1, 1), dim)[0]
    theirs = transformer.create_sin_embedding(positions.view(1, -1, 1), dim, dtype=torch.bfloat16)
    tables = model.lm.transformer.position_tables(1500)
    ours, _ = tables.at(positions[None], torch.bfloat16)
    assert ours is not None and ours.dtype == torch.bfloat16
    assert (ours[0].float() - exact).abs().max() < 0.005  # what rounding to 8 bits costs
    assert (theirs[0].float() - exact).abs().max() > 1.0


@torch.no_grad()
def test_a_position_is_the_step_not_the_frame(exports: dict[str, tuple[Path, Any]]) -> None:
    """The same column one step on is read differently, though four flatten steps are one frame."""
    model = registry.load_lm(exports["unroll"][0])
    sequence = torch.full((1, 4, 8), 64)
    logits = our_logits(model, sequence, 8)
    assert (logits[1:] - logits[:-1]).abs().amax(dim=(1, 2)).min() > 1e-3


def test_stereo_is_left_right_left_right(exports: dict[str, tuple[Path, Any]]) -> None:
    model = registry.load_lm(exports["stereo"][0])
    assert model.pattern.delays == (0, 0, 1, 1, 2, 2, 3, 3)
    assert (model.codec.channels, model.codec.codebooks) == (2, 8)
    codec, identity = registry.load_codec(exports["stereo"][0], model.codec)
    assert codec.channels == 2 and identity == model.codec


def test_after_a_delay_ties_are_ordered_by_frame_then_codebook(
    exports: dict[str, tuple[Path, Any]],
) -> None:
    """Partial flattening with delays puts two groups on one virtual frame."""
    folder, theirs = exports["partial unroll with delays"]
    layout = registry.load_lm(folder).pattern.of(9).layout
    expected = theirs.pattern_provider.get_pattern(9).layout
    ours = [[tuple(c) for c in step] for step in layout]
    assert ours == [[tuple(c) for c in step if c.t < 9] for step in expected]
    assert sum(len(step) for step in ours) == 36
