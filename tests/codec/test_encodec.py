"""EnCodec against audiocraft's own classes and against transformers', with the same weights."""

from __future__ import annotations

import copy
import importlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from specgen.codec.base import Codec
from specgen.codec.encodec import EncodecCodec, EncodecConfig, load, read_config
from specgen.codec.encodec_config import fold_weight_norm, from_audiocraft_names
from specgen.errors import UserError
from tests import peers

transformers = pytest.importorskip("transformers")

CFG = peers.codec_cfg()
CODEBOOKS, CARD, RATIOS = CFG["rvq"]["n_q"], CFG["rvq"]["bins"], CFG["seanet"]["ratios"]
FRAME = 16


@pytest.fixture(scope="module")
def peer() -> Iterator[ModuleType]:
    """audiocraft's `models.encodec`, with its real SEANet and quantiser."""
    with peers.stand_ins():
        peers.with_real_codec()
        yield importlib.import_module("audiocraft.models.encodec")


def with_options(**changes: Any) -> dict[str, Any]:
    """The configuration with `section__option=value` changed."""
    cfg = copy.deepcopy(CFG)
    for key, value in changes.items():
        section, option = key.split("__")
        cfg[section][option] = value
    return cfg


def audiocrafts(peer: ModuleType, cfg: dict[str, Any]) -> nn.Module:
    """audiocraft's own model as its `builders` make it, every tensor drawn at random."""
    seanet = importlib.import_module("audiocraft.modules.seanet")
    quantization = importlib.import_module("audiocraft.quantization")
    options = dict(cfg["seanet"])
    encoder, decoder = options.pop("encoder"), options.pop("decoder")
    torch.manual_seed(0)
    kept = {k: v for k, v in cfg["encodec"].items() if k not in ("autoencoder", "quantizer")}
    model = peer.EncodecModel(
        seanet.SEANetEncoder(**options | encoder),
        seanet.SEANetDecoder(**options | decoder),
        quantization.ResidualVectorQuantizer(dimension=options["dimension"], **cfg["rvq"]),
        frame_rate=cfg["encodec"]["sample_rate"] // FRAME,
        **kept,
    )
    return randomised(model)


def randomised(model: nn.Module) -> nn.Module:
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if name.endswith(("weight_g", "original0")):
            tensor.data.uniform_(0.5, 1.5)
        elif name.endswith("embed"):
            tensor.data.normal_()
        elif tensor.is_floating_point() and "inited" not in name:
            tensor.data.normal_(std=0.3)
    return model.eval().requires_grad_(False)


def sound(channels: int, frames: float = 131.4, rows: int = 2) -> Tensor:
    torch.manual_seed(1)
    return torch.randn(rows, channels, int(frames * FRAME))


VARIANTS: dict[str, dict[str, Any]] = {
    "as MusicGen's": {},
    "reflect": {"seanet__pad_mode": "reflect"},
    "deeper, odd strides": {"seanet__n_residual_layers": 2, "seanet__ratios": [5, 3]},
    "convolution beside": {"seanet__true_skip": False},
    "no weight norm": {"seanet__norm": "none"},
    "causal": {"seanet__causal": True, "encodec__causal": True},
    "renormalised": {"encodec__renormalize": True},
    "a network of two channels": {"encodec__channels": 2, "seanet__channels": 2},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_codes_and_waveform_equal_audiocrafts(peer: ModuleType, variant: str) -> None:
    cfg = with_options(**VARIANTS[variant])
    theirs = audiocrafts(peer, cfg)
    ours = EncodecCodec.from_audiocraft(cfg, theirs.state_dict())
    wav = sound(ours.channels)
    codes, _ = theirs.encode(wav)
    assert torch.equal(ours.encode(wav), codes)
    assert len(codes.unique()) > CARD // 2  # not one token over and over
    expected = theirs.decode(codes)
    assert expected.std() > 0.01
    assert ours.decode(codes).shape == expected.shape
    assert (ours.decode(codes) - expected).abs().max() < 1e-4


def test_stereo_equals_audiocrafts_interleaved_streams(peer: ModuleType) -> None:
    theirs = audiocrafts(peer, CFG)
    ours = EncodecCodec.from_audiocraft(CFG, theirs.state_dict(), channels=2)
    stereo = peer.InterleaveStereoCompressionModel(theirs)
    assert (ours.channels, ours.codebooks) == (2, 8) == (stereo.channels, stereo.num_codebooks)
    wav = sound(2)
    codes, _ = stereo.encode(wav)
    assert torch.equal(ours.encode(wav), codes)
    left, _ = theirs.encode(wav[:, :1])
    assert torch.equal(ours.encode(wav)[:, ::2], left)  # L0, R0, L1, R1, ...
    expected = stereo.decode(codes)
    assert (ours.decode(codes) - expected).abs().max() < 1e-4
    assert (expected[:, 0] - expected[:, 1]).abs().max() > 0.1  # two different channels


def test_fewer_codebooks_than_the_codec_has(peer: ModuleType) -> None:
    theirs = audiocrafts(peer, CFG)
    ours = EncodecCodec.from_audiocraft(CFG, theirs.state_dict(), codebooks=2)
    theirs.set_num_codebooks(2)
    codes, _ = theirs.encode(sound(1))
    assert ours.codebooks == codes.shape[1] == 2
    assert torch.equal(ours.encode(sound(1)), codes)
    assert (ours.decode(codes) - theirs.decode(codes)).abs().max() < 1e-4


def test_both_forms_of_weight_norm_are_read(peer: ModuleType) -> None:
    """audiocraft's files hold weight_g and weight_v; a newer torch writes parametrisations."""
    old = from_audiocraft_names(audiocrafts(peer, CFG).state_dict())
    new = {}
    for name, value in old.items():
        name = name.replace("weight_g", "parametrizations.weight.original0")
        new[name.replace("weight_v", "parametrizations.weight.original1")] = value
    assert old.keys() != new.keys()
    ours, also = fold_weight_norm(old), fold_weight_norm(new)
    assert ours.keys() == also.keys()
    assert all(torch.equal(ours[name], also[name]) for name in ours)
    EncodecCodec.from_audiocraft(CFG, new)


def hugging_face(**options: Any) -> Any:
    torch.manual_seed(0)
    config = transformers.EncodecConfig(
        **{
            "sampling_rate": 320,
            "target_bandwidths": [CODEBOOKS * 20 * 6 / 1000],
            "hidden_size": 16,
            "num_filters": 4,
            "upsampling_ratios": RATIOS,
            "use_causal_conv": False,
            "codebook_size": CARD,
            "use_conv_shortcut": False,
            **options,
        }
    )
    return randomised(transformers.EncodecModel(config))


@pytest.mark.parametrize(
    "options", [{}, {"use_causal_conv": True, "use_conv_shortcut": True}, {"normalize": True}]
)
def test_codes_and_waveform_equal_transformers(options: dict[str, Any]) -> None:
    theirs = hugging_face(**options)
    ours = EncodecCodec.from_transformers(theirs.config.to_dict(), theirs.state_dict())
    wav = sound(1)
    codes = theirs.encode(wav, None, theirs.config.target_bandwidths[0])[0][0]
    assert torch.equal(ours.encode(wav), codes)
    expected = theirs.decode(codes[None], [None])[0]
    assert (ours.decode(codes) - expected).abs().max() < 1e-4


def test_transformers_stereo_is_the_same_interleaving() -> None:
    """transformers decodes every second codebook as left, the others as right."""
    theirs = hugging_face()
    config = theirs.config.to_dict()
    ours = EncodecCodec.from_transformers(config, theirs.state_dict(), channels=2)
    codes = torch.randint(CARD, (1, 2 * CODEBOOKS, 40))
    left = theirs.decode(codes[None, :, ::2], [None])[0]
    right = theirs.decode(codes[None, :, 1::2], [None])[0]
    assert (ours.decode(codes) - torch.cat([left, right], dim=1)).abs().max() < 1e-4


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("pad_mode", ["constant", "reflect"])
@pytest.mark.parametrize("piece", [1, 7, 20, 1000])
def test_pieces_have_no_seam(piece: int, pad_mode: str, causal: bool) -> None:
    theirs = hugging_face(
        pad_mode=pad_mode,
        use_causal_conv=causal,
        num_residual_layers=2,
        upsampling_ratios=[5, 2],
        sampling_rate=200,
    )
    ours = EncodecCodec.from_transformers(theirs.config.to_dict(), theirs.state_dict())
    for frames in (1, 2, 65):
        codes = torch.randint(CARD, (2, CODEBOOKS, frames))
        whole = theirs.decode(codes[None], [None])[0]
        assert (ours.decode(codes, piece) - whole).abs().max() < 1e-5


def test_a_piece_that_grows_sounds_like_the_whole() -> None:
    """Pushed in uneven parts, stereo; nothing is held back for longer than the margins."""
    theirs = hugging_face()
    ours = EncodecCodec.from_transformers(theirs.config.to_dict(), theirs.state_dict(), channels=2)
    codes = torch.randint(CARD, (1, 2 * CODEBOOKS, 60))
    stream, parts, pushed = ours.stream(), [], 0
    for part in codes.split([1, 2, 30, 7, 20], dim=-1):
        parts.append(stream.push(part))
        pushed += part.shape[-1]
        assert parts[-1].shape[:2] == (1, 2)
        given = sum(p.shape[-1] for p in parts)
        assert given == max(0, pushed - ours.margin - 6) * FRAME
    parts.append(stream.finish())
    assert (torch.cat(parts, dim=-1) - ours.decode(codes, 1000)).abs().max() < 1e-5
    assert ours.stream().finish().shape == (1, 2, 0)


def test_the_margin_is_what_the_convolutions_reach() -> None:
    """Less context than `margin` would be heard; so the pieces above are exact because of it."""
    theirs = hugging_face()
    ours = EncodecCodec.from_transformers(theirs.config.to_dict(), theirs.state_dict())
    codes = torch.randint(CARD, (1, CODEBOOKS, 40))
    whole = ours.decode(codes)
    ours.margin = 0
    assert (ours.decode(codes, 8) - whole).abs().max() > 1e-3


def test_memory_does_not_grow_with_the_clip() -> None:
    """No layer ever sees more than a piece with its margins."""
    theirs = hugging_face()
    ours = EncodecCodec.from_transformers(theirs.config.to_dict(), theirs.state_dict())
    longest = 0

    def watch(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        nonlocal longest
        longest = max(longest, inputs[0].shape[-1])

    for layer in ours.network.decoder.layers:
        layer.register_forward_pre_hook(watch)
    ours.decode(torch.randint(CARD, (1, CODEBOOKS, 400)), piece=10)
    assert longest <= (10 + 2 * ours.margin + 2 * 6) * FRAME


def test_the_native_folder_gives_the_same_codec_back(tmp_path: Path) -> None:
    theirs = hugging_face()
    config = theirs.config.to_dict()
    ours = EncodecCodec.from_transformers(config, theirs.state_dict(), channels=2)
    assert isinstance(ours, Codec)
    ours.save(tmp_path)
    again = load(tmp_path)
    assert again.config == ours.config == read_config(tmp_path)
    wav = sound(2)
    codes = ours.encode(wav)
    assert torch.equal(again.encode(wav), codes)
    assert torch.equal(again.decode(codes), ours.decode(codes))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.yaml", "model.safetensors"]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"encodec__autoencoder": "dac"}, "encodec.autoencoder"),
        ({"encodec__quantizer": "no_quant"}, "encodec.quantizer"),
        ({"seanet__norm": "time_group_norm"}, "seanet.norm"),
        ({"seanet__activation": "Snake"}, "seanet.activation"),
        ({"seanet__lstm": 0}, "lstm"),
        ({"seanet__decoder": {"final_activation": "Tanh"}}, "seanet.final_activation"),
        ({"seanet__encoder": {"n_filters": 8}}, "seanet.encoder.n_filters"),
        ({"seanet__wavelet": True}, "seanet.wavelet"),
        ({"rvq__bins": 400}, "power of two"),
        ({"rvq__n_q": 5}, "quantizer.layers.4"),
    ],
)
def test_options_that_are_not_supported_are_named(
    changes: dict[str, Any], named: str, peer: ModuleType
) -> None:
    state = audiocrafts(peer, CFG).state_dict()
    with pytest.raises(UserError, match=named) as caught:
        EncodecCodec.from_audiocraft(with_options(**changes), state)
    assert "\n" not in str(caught.value)


def test_a_codec_of_another_kind_is_named() -> None:
    with pytest.raises(UserError, match="compression_model 'dac'"):
        EncodecCodec.from_audiocraft({"compression_model": "dac"}, {})
    theirs = hugging_face()
    config = theirs.config.to_dict()
    for option in ({"chunk_length_s": 1.0}, {"norm_type": "time_group_norm"}):
        with pytest.raises(UserError, match=next(iter(option))):
            EncodecCodec.from_transformers(config | option, theirs.state_dict())


def test_weights_that_do_not_fit_are_named(tmp_path: Path) -> None:
    theirs = hugging_face()
    config, state = theirs.config.to_dict(), theirs.state_dict()
    name = "decoder.layers.0.conv.bias"
    for changed in (
        {k: v for k, v in state.items() if k != name},
        state | {name: torch.zeros(3)},
        state | {"stowaway": torch.zeros(3)},
        state | {name: torch.full_like(state[name], float("nan"))},
    ):
        with pytest.raises(UserError, match=f"{name}|stowaway"):
            EncodecCodec.from_transformers(config, changed)
    EncodecCodec.from_transformers(config, state).save(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(UserError, match="corrupt"):
        load(tmp_path)
    weights.unlink()
    with pytest.raises(UserError, match="missing"):
        load(tmp_path)


@pytest.mark.parametrize("wrong", [{"channels": 3}, {"card": 100}, {"pad_mode": "zero"}])
def test_a_configuration_that_contradicts_itself_is_refused(wrong: dict[str, Any]) -> None:
    fields: dict[str, Any] = {"sample_rate": 320, "codebooks": 4, "card": 64, "ratios": (4, 4)}
    if "channels" in wrong:
        wrong = {"network_channels": 3}
    with pytest.raises(ValueError, match=next(iter(wrong))):
        EncodecConfig(**fields | wrong)
