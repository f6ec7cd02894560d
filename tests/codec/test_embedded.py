from pathlib import Path

import pytest
import torch

from specgen.codec import Codec, CodecConfig, EmbeddedCodec, load_codec, save_codec
from specgen.codec.spectral import Transform
from specgen.errors import UserError

TINY = CodecConfig(
    card=16,
    dim=8,
    encoder_width=16,
    encoder_blocks=1,
    decoder_width=16,
    decoder_blocks=2,
    decoder_kernel=3,
    base=2,
)


def tiny(kind: str = "spectral") -> EmbeddedCodec:
    torch.manual_seed(0)
    codec = EmbeddedCodec(CodecConfig(**{**vars(TINY), "kind": kind}))
    codec.quantizer.entries.normal_()
    return codec.eval()


def noise(batch: int, samples: int) -> torch.Tensor:
    return 0.1 * torch.randn(batch, 1, samples, generator=torch.Generator().manual_seed(1))


def test_the_inverse_transform_undoes_the_transform() -> None:
    for size, hop in ((640, 160), (960, 160), (60, 20)):
        transform = Transform(size, hop)
        wav = noise(2, 20 * hop)[:, 0]
        again = transform.inverse(transform(wav))
        inner = slice(size, -size)
        assert again.shape == wav.shape
        assert torch.allclose(again[:, inner], wav[:, inner], atol=1e-6)


@pytest.mark.parametrize(("size", "hop"), [(640, 300), (320, 160), (800, 160 * 2)])
def test_windows_that_cannot_be_undone_are_refused(size: int, hop: int) -> None:
    with pytest.raises(ValueError, match="whole number"):
        Transform(size, hop)


@pytest.mark.parametrize("kind", ["spectral", "seanet"])
def test_shapes_and_ranges(kind: str) -> None:
    codec = tiny(kind)
    assert isinstance(codec, Codec)
    assert (codec.sample_rate, codec.frame_rate, codec.channels) == (16000, 50.0, 1)
    for samples, frames in ((3200, 10), (3201, 11), (1, 1)):
        codes = codec.encode(noise(2, samples))
        assert codes.shape == (2, 4, frames) and codes.dtype == torch.int64
        assert int(codes.min()) >= 0 and int(codes.max()) < codec.card
        wav = codec.decode(codes)
        assert wav.shape == (2, 1, 320 * frames) and wav.dtype == torch.float32
        assert torch.isfinite(wav).all()


@pytest.mark.parametrize("kind", ["spectral", "seanet"])
def test_same_input_same_output(kind: str) -> None:
    codec, wav = tiny(kind), noise(1, 6400)
    codes = codec.encode(wav)
    assert torch.equal(codes, codec.encode(wav))
    assert torch.equal(codec.decode(codes), codec.decode(codes))


@pytest.mark.parametrize("kind", ["spectral", "seanet"])
def test_rows_of_a_batch_do_not_see_each_other(kind: str) -> None:
    codec, wav = tiny(kind), noise(3, 6400)
    codes = codec.encode(wav)
    decoded = codec.decode(codes)
    for row in range(3):
        assert torch.equal(codes[row], codec.encode(wav[row : row + 1])[0])
        alone = codec.decode(codes[row : row + 1])[0]
        assert torch.allclose(decoded[row], alone, atol=1e-5)


@pytest.mark.parametrize("kind", ["spectral", "seanet"])
def test_a_part_decodes_as_within_the_whole(kind: str) -> None:
    codec = tiny(kind)
    codes = codec.encode(noise(1, 320 * 60))
    whole = codec.decode(codes)
    part = codec.decode(codes[..., 10:50])
    # Ten frames cover what the networks see to either side.
    inner = slice(10 * 320, 30 * 320)
    assert torch.allclose(part[..., inner], whole[..., 20 * 320 : 40 * 320], atol=1e-5)


def test_wrong_shapes_are_refused() -> None:
    codec = tiny()
    with pytest.raises(ValueError, match="mono"):
        codec.encode(torch.zeros(1, 2, 640))
    with pytest.raises(ValueError, match="codes"):
        codec.decode(torch.zeros(1, 3, 5, dtype=torch.int64))


@pytest.mark.parametrize("kind", ["spectral", "seanet"])
def test_a_saved_codec_loads_the_same(kind: str, tmp_path: Path) -> None:
    codec = tiny(kind)
    save_codec(codec, tmp_path)
    first, second = load_codec(tmp_path), load_codec(tmp_path)
    codes = torch.randint(16, (1, 4, 20), generator=torch.Generator().manual_seed(2))
    assert first.config == codec.config
    assert torch.equal(first.decode(codes), second.decode(codes))
    assert torch.allclose(first.decode(codes), codec.decode(codes), atol=2e-2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.yaml", "model.safetensors"]


def test_bad_checkpoints_are_told_in_one_line(tmp_path: Path) -> None:
    def message() -> str:
        with pytest.raises(UserError) as caught:
            load_codec(tmp_path)
        text = str(caught.value)
        assert "\n" not in text
        return text

    assert "config.yaml is missing" in message()
    save_codec(tiny(), tmp_path)
    weights, config = tmp_path / "model.safetensors", tmp_path / "config.yaml"
    good_weights, good_config = weights.read_bytes(), config.read_text()
    weights.write_bytes(good_weights[: len(good_weights) // 2])
    assert "corrupt" in message()
    weights.write_bytes(b"not a tensor file")
    assert "corrupt" in message()
    weights.unlink()
    assert "missing" in message()
    weights.write_bytes(good_weights)
    config.write_text(good_config.replace("card: 16", "card: 32"))
    assert "do not fit" in message()
    config.write_text(good_config.replace("kind: spectral", "kind: seanet"))
    assert "do not fit" in message()
    config.write_text(good_config.replace("kind: spectral", "kind: flute"))
    assert "unknown" in message()
    config.write_text(good_config + "colour: red\n")
    assert "colour" in message()
    config.write_text(good_config.replace("card: 16", "card: many"))
    assert "many" in message()
    config.write_text("card: [1,\n")
    assert "invalid" in message()
