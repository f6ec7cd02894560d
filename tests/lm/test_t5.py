"""The T5 condition against audiocraft's own class and transformers' arithmetic."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from specgen.engine import Request, load
from specgen.errors import UserError
from specgen.lm.config import LMConfig
from specgen.lm.model import MusicLM
from specgen.lm.session import LMSession
from specgen.lm.t5 import MAX_TOKENS, T5Conditioner, TextEncoder
from tests.peers import stand_ins

transformers = pytest.importorskip("transformers")

WIDTH, DIM = 16, 12
PROMPTS = ["slow jig", "a reel on the fiddle, in D", "x"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny T5 with a tokenizer of letters and a few words, in the files of a hub repository."""
    folder = tmp_path_factory.mktemp("t5")
    words = [("▁jig", -1.0), ("▁slow", -1.5), ("▁reel", -1.2)]
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), *words]
    vocabulary += [(letter, -3.0) for letter in "abcdefghijklmnopqrstuvwxyzD,"]
    tokenizer = transformers.T5Tokenizer(vocab=vocabulary, extra_ids=0)
    tokenizer._tokenizer.save(str(folder / "tokenizer.json"))
    torch.manual_seed(0)
    config = transformers.T5Config(
        vocab_size=len(vocabulary), d_model=WIDTH, d_kv=8, d_ff=32, num_layers=2, num_heads=2
    )
    model = transformers.T5Model(config)  # as on the hub, with a decoder that nothing reads
    for tensor in model.parameters():
        tensor.data.normal_(std=0.3)
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def conditioner(folder: Path) -> T5Conditioner:
    torch.manual_seed(1)
    return T5Conditioner("tiny", DIM, torch.randn(DIM, WIDTH), torch.randn(DIM), folder=folder)


@pytest.fixture(scope="module")
def peer() -> Iterator[ModuleType]:
    """audiocraft's `modules.conditioners`."""
    with stand_ins() as module:
        yield module.load()[1]


def audiocrafts(
    peer: ModuleType, folder: Path, ours: T5Conditioner, monkeypatch: pytest.MonkeyPatch
) -> Any:
    name = str(folder)
    monkeypatch.setattr(peer.T5Conditioner, "MODELS", [name])
    monkeypatch.setattr(peer.T5Conditioner, "MODELS_DIMS", {name: WIDTH})
    theirs = peer.T5Conditioner(name, DIM, finetune=False, device="cpu", word_dropout=0.3).eval()
    assert ours.weight is not None and ours.bias is not None
    theirs.output_proj.weight.data.copy_(ours.weight)
    theirs.output_proj.bias.data.copy_(ours.bias)
    return theirs.requires_grad_(False)


def test_conditions_equal_audiocrafts(
    peer: ModuleType,
    folder: Path,
    conditioner: T5Conditioner,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    theirs = audiocrafts(peer, folder, conditioner, monkeypatch)
    vectors, mask = conditioner.encode(PROMPTS)
    expected, real = theirs(theirs.tokenize(PROMPTS))
    assert torch.equal(mask, real.bool())
    assert not mask.all()  # a batch with padding in it
    assert expected.std() > 0.1
    assert (vectors - expected).abs().max() < 1e-5
    assert bool((vectors[~mask] == 0).all())
    for row, prompt in enumerate(PROMPTS):
        alone, _ = theirs(theirs.tokenize([prompt]))
        assert (vectors[row, mask[row]] - alone[0]).abs().max() < 1e-5


def test_the_null_condition_is_audiocrafts_empty_prompt(
    peer: ModuleType,
    folder: Path,
    conditioner: T5Conditioner,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Zeros, in spite of the projection's bias: the mask comes after it."""
    theirs = audiocrafts(peer, folder, conditioner, monkeypatch)
    expected, real = theirs(theirs.tokenize([""]))
    assert not real.any()
    assert torch.equal(expected, conditioner.null())
    vectors, mask = conditioner.encode(["", "slow jig"])
    assert bool((vectors[0] == 0).all()) and mask[0].tolist() == [True, False, False]


def test_an_encoder_inside_a_checkpoint_is_the_same(
    folder: Path, conditioner: T5Conditioner
) -> None:
    config = json.loads((folder / "config.json").read_text())
    state = transformers.T5EncoderModel.from_pretrained(folder).state_dict()
    assert conditioner.weight is not None
    expected, _ = conditioner.encode(PROMPTS)
    for names in ({"shared.weight"}, {"encoder.embed_tokens.weight"}, set()):
        held = {n: v for n, v in state.items() if n not in names}
        inside = T5Conditioner.from_transformers(
            config, held, conditioner.weight, conditioner.bias, folder
        )
        assert torch.equal(inside.encode(PROMPTS)[0], expected)
    inside.encoder.free()
    assert inside.encoder.loaded  # its weights have no file of their own
    for changed in (
        {n: v for n, v in state.items() if "final" not in n},
        state | {"x": expected},
    ):
        with pytest.raises(UserError, match="do not fit"):
            T5Conditioner.from_transformers(config, changed, None, None, folder)


def test_without_a_projection_the_hidden_states_are_the_condition(folder: Path) -> None:
    plain = T5Conditioner("tiny", WIDTH, None, folder=folder)
    vectors, _ = plain.encode(["slow jig"])
    assert torch.equal(vectors[0], plain.encoder.hidden("slow jig"))


def test_a_saved_encoder_reads_back(
    folder: Path, conditioner: T5Conditioner, tmp_path: Path
) -> None:
    conditioner.encoder.save(tmp_path / "text_encoder")
    again = TextEncoder("again", tmp_path / "text_encoder")
    for prompt in PROMPTS:
        assert torch.equal(again.hidden(prompt), conditioner.encoder.hidden(prompt))


def test_a_condition_does_not_depend_on_its_neighbours(conditioner: T5Conditioner) -> None:
    together, mask = conditioner.encode(PROMPTS)
    for row, prompt in enumerate(PROMPTS):
        alone, _ = conditioner.encode([prompt])
        assert torch.equal(together[row, mask[row]], alone[0])


def test_t5_runs_once_a_prompt_for_both_models_and_can_be_freed(folder: Path) -> None:
    first = T5Conditioner("tiny", DIM, torch.randn(DIM, WIDTH), folder=folder)
    second = T5Conditioner("tiny", 5, torch.randn(5, WIDTH), folder=folder)
    assert first.encoder is second.encoder
    encoder = first.encoder
    assert not encoder.loaded
    first.tokenize("slow jig")
    assert not encoder.loaded  # a prompt is checked without the weights
    runs: list[int] = []
    first.encode(["reel"])
    model: Any = encoder._model
    model.register_forward_hook(lambda *_: runs.append(1))
    first.encode(["slow jig", "reel"])
    second.encode(["slow jig"])
    assert len(runs) == 1
    encoder.free()
    assert not encoder.loaded
    assert first.encode(["slow jig"])[0].shape == (1, 3, DIM)
    assert not encoder.loaded  # remembered
    first.encode(["jig"])
    assert encoder.loaded


def test_t5_stays_off_the_device(folder: Path) -> None:
    conditioner = T5Conditioner("tiny", DIM, torch.randn(DIM, WIDTH), folder=folder)
    vectors, mask = conditioner.to("meta", torch.float16).encode(["slow jig"])
    assert vectors.device.type == mask.device.type == "meta"
    model: Any = conditioner.encoder._model
    assert {p.device.type for p in model.parameters()} == {"cpu"}


@pytest.mark.parametrize(("free", "kept"), [(10**9, False), (10**10, True)])
def test_where_memory_is_short_t5_is_let_go_before_decoding(
    tiny: str, folder: Path, monkeypatch: pytest.MonkeyPatch, free: int, kept: bool
) -> None:
    monkeypatch.setattr("specgen.generation.free_bytes", lambda device: free)
    engine = load(tiny, draft=False)
    width = engine.verifier.lm.config.condition_dim
    text = T5Conditioner("tiny", width, torch.randn(width, WIDTH), folder=folder)
    engine.verifier.conditioner = text
    seen: list[bool] = []
    request = Request("slow jig", 1, 0.2)
    list(engine.generate([request], on_round=lambda _: seen.append(text.encoder.loaded)))
    assert seen and set(seen) == {kept}


def test_only_the_result_is_rounded(conditioner: T5Conditioner) -> None:
    exact, _ = conditioner.encode(PROMPTS)
    rounded, _ = conditioner.to("cpu", torch.bfloat16).encode(PROMPTS)
    assert rounded.dtype == torch.bfloat16 == conditioner.null().dtype
    assert torch.equal(rounded, exact.bfloat16())


def session(lm: MusicLM, condition: Tensor, mask: Tensor, null: Tensor) -> LMSession:
    return LMSession(
        lm, rows=len(condition), capacity=8, condition=condition, mask=mask, null=null, guidance=3.0
    )


def model(**options: bool) -> MusicLM:
    config = LMConfig(2, 8, 32, 2, 2, 64, condition_dim=DIM, **options)  # type: ignore[arg-type]
    torch.manual_seed(0)
    lm = MusicLM(config).eval().requires_grad_(False)
    for parameter in lm.parameters():
        parameter.normal_(std=0.3)
    return lm


@pytest.mark.parametrize("prompt", [PROMPTS[0], PROMPTS[1]], ids=["folded", "not folded"])
@pytest.mark.parametrize("biased", [False, True])
def test_the_null_branch_reads_nothing_through_cross_attention(
    conditioner: T5Conditioner, biased: bool, prompt: str
) -> None:
    """Without biases what it adds is exactly zero: that branch could leave the layer out."""
    lm = model(bias_attn=biased)
    tokens = torch.randint(8, (1, 2, 4))
    skipped = lm.hidden(tokens, None)
    through = lm.hidden(tokens, lm.transformer.memory(conditioner.null()))
    assert torch.equal(through, skipped) == (not biased)
    guided = session(lm, *conditioner.encode([prompt]), conditioner.null()).feed(tokens, [0])
    assert ((guided[1] - skipped[0]).abs().max() < 1e-5) == (not biased)
    assert (guided[0] - skipped[0]).abs().max() > 0.1


def test_one_null_vector_does_what_any_number_does(conditioner: T5Conditioner) -> None:
    """audiocraft's null condition is as long as the prompt; all its places are alike."""
    lm = model(bias_attn=True)
    condition, mask = conditioner.encode([PROMPTS[1]])
    tokens = torch.randint(8, (1, 2, 4))
    found = session(lm, condition, mask, conditioner.null()).feed(tokens, [0])[1]
    whole = lm.hidden(tokens, lm.transformer.memory(torch.zeros_like(condition)))[0]
    assert (found - whole).abs().max() < 1e-5
    with pytest.raises(ValueError, match="null condition of 5 places"):
        session(lm, condition, mask, torch.zeros(1, 5, DIM))


def test_padding_of_a_neighbour_changes_nothing(conditioner: T5Conditioner) -> None:
    """It would in audiocraft: a padded place there is a key of logit 0 that nothing masks."""
    lm = model()
    tokens = torch.randint(8, (1, 2, 4))
    condition, mask = conditioner.encode(PROMPTS[:2])
    both = session(lm, condition, mask, conditioner.null())
    alone = session(lm, *conditioner.encode(PROMPTS[:1]), conditioner.null())
    found = both.feed(tokens.expand(2, -1, -1), [0, 0])[0]
    assert (found - alone.feed(tokens, [0])[0]).abs().max() < 1e-5
    unmasked = session(lm, condition, torch.ones_like(mask), conditioner.null())
    assert (unmasked.feed(tokens.expand(2, -1, -1), [0, 0])[0] - found).abs().max() > 1e-3


def test_a_prompt_that_is_too_long_is_refused(conditioner: T5Conditioner) -> None:
    conditioner.tokenize("x" * (MAX_TOKENS - 2))
    with pytest.raises(UserError, match=r"513 tokens.*512: shorten"):
        conditioner.tokenize("x" * (MAX_TOKENS - 1))


def test_files_that_cannot_be_read_are_one_line(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight = torch.randn(DIM, WIDTH)

    def copy(name: str) -> Path:
        place = tmp_path / name
        place.mkdir()
        for file in ("config.json", "model.safetensors", "tokenizer.json"):
            (place / file).write_bytes((folder / file).read_bytes())
        return place

    def message(place: Path | None) -> str:
        with pytest.raises(UserError) as caught:
            T5Conditioner("t5-none", DIM, weight, folder=place).encode(["slow jig"])
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "has no tokenizer.json" in message(tmp_path / "nowhere")
    for file, harm, expected in (
        ("tokenizer.json", b"{}", "tokenizer.json.*corrupt"),
        ("config.json", b"[1]", "config.json.*corrupt"),
        ("model.safetensors", b"12345678901", "model.safetensors.*corrupt"),
    ):
        place = copy(file.partition(".")[0])
        (place / file).write_bytes(harm)
        assert re.search(expected, message(place))
    place = copy("narrow")
    config = json.loads((place / "config.json").read_text())
    (place / "config.json").write_text(json.dumps(config | {"d_ff": 8}))
    assert "do not fit" in message(place)
    with pytest.raises(UserError, match=r"16 numbers.*reads 9"):
        T5Conditioner("tiny", DIM, torch.randn(DIM, 9), folder=folder).encode(["jig"])


def test_a_hub_name_while_offline_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    constants = pytest.importorskip("huggingface_hub").constants
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    conditioner = T5Conditioner("specgen-tests/no-such-t5", DIM, torch.randn(DIM, WIDTH))
    with pytest.raises(UserError, match="hf download specgen-tests/no-such-t5") as caught:
        conditioner.encode(["slow jig"])
    assert "\n" not in str(caught.value)


def test_without_transformers_the_extra_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(UserError, match=r"pip install 'specgen\[musicgen\]'"):
        TextEncoder("tiny", folder).ids("slow jig")
