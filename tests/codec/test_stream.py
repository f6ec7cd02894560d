"""Streamed audio is the audio of the whole."""

import pytest
import torch

from specgen.checkpoints.native import embedded_folder
from specgen.codec.embedded import load_codec


@pytest.mark.parametrize("sizes", [(1,) * 60, (40, 3, 17), (60,), (5, 50, 5)])
def test_pushed_bit_by_bit_it_is_one_decode(sizes: tuple[int, ...]) -> None:
    codec = load_codec(embedded_folder("codec"))
    codes = torch.randint(codec.card, (1, codec.codebooks, sum(sizes)))
    whole = codec.decode(codes)
    stream, at, parts = codec.stream(), 0, []
    for size in sizes:
        parts.append(stream.push(codes[..., at : at + size]))
        at += size
        heard = sum(part.shape[-1] for part in parts) // codec.frame_size
        assert heard == max(0, at - stream.margin)
    parts.append(stream.finish())
    joined = torch.cat(parts, dim=-1)
    assert joined.shape == whole.shape
    assert (joined - whole).abs().max() < 1e-5


def test_the_margin_is_no_wider_than_it_must_be() -> None:
    """What lies one frame beyond the margin changes nothing, what lies within it does."""
    codec = load_codec(embedded_folder("codec"))
    codes = torch.randint(codec.card, (1, codec.codebooks, 60))
    middle = slice(30 * codec.frame_size, 31 * codec.frame_size)
    before = codec.decode(codes)[..., middle]

    def changed(frame: int) -> float:
        other = codes.clone()
        other[..., frame] = (other[..., frame] + 1) % codec.card
        return float((codec.decode(other)[..., middle] - before).abs().max())

    assert changed(30 + codec.margin + 1) < 1e-7 and changed(30 - codec.margin - 1) < 1e-7
    assert changed(30 + codec.margin - 3) > 1e-7 or changed(30 - codec.margin + 3) > 1e-7
