import base64
import io
import xml.etree.ElementTree as ET

import numpy as np
import pytest
import soundfile
from matplotlib import image

from specgen.evaluation.pictures import (
    Line,
    curves,
    difference_map,
    png,
    sound,
    spectrogram,
    ticks,
    token_map,
)
from tests.evaluation.clips import chord


def pixels(uri: str) -> np.ndarray:
    head, _, data = uri.partition(",")
    assert head == "data:image/png;base64"
    return np.round(image.imread(io.BytesIO(base64.b64decode(data))) * 255).astype(int)


@pytest.mark.parametrize("channels", [3, 4])
def test_png_is_read_back_as_it_was(channels: int) -> None:
    made = np.random.default_rng(0).integers(0, 256, (5, 7, channels)).astype(np.uint8)
    assert (pixels(png(made)) == made).all()


def test_difference_map_marks_what_differs() -> None:
    a, b = np.zeros((4, 6), int), np.zeros((4, 6), int)
    b[2, 3] = 1
    shown = pixels(difference_map(a, b))
    assert shown.shape == (4, 6, 4)
    orange = (shown[..., 0] > 200) & (shown[..., 3] == 255)
    assert orange.sum() == 1 and orange[2, 3]


def test_spectrogram_has_low_notes_at_the_bottom() -> None:
    t = np.arange(16_000) / 16_000
    shown = pixels(spectrogram(0.3 * np.sin(2 * np.pi * 300 * t), 16_000)).sum(axis=(1, 2))
    assert shown.argmax() > 0.75 * len(shown)
    assert pixels(spectrogram(np.zeros(16_000), 16_000)).size > 0


def test_token_map_is_one_pixel_a_token() -> None:
    assert pixels(token_map(np.arange(24).reshape(4, 6), 24)).shape == (4, 6, 3)


def test_sound_is_a_small_file_of_the_same_length() -> None:
    uri = sound(chord(0.5), 16_000)
    raw = base64.b64decode(uri.partition(",")[2])
    wave, rate = soundfile.read(io.BytesIO(raw))
    assert rate == 16_000 and abs(len(wave) - 64_000) < 4_000
    assert len(raw) < 64_000


def test_curves_are_well_formed_and_escape_names() -> None:
    lines = [Line("a", ((0, 1), (2, 3)), ((0.5, 1.5), (2.5, 3.5)), ("<1>", ""))]
    tree = ET.fromstring(curves(lines, "x & y", "up", y_from=0.0))
    circles = [e for e in tree if e.tag == "circle"]
    assert len(circles) == 2
    assert float(circles[0].get("cy", 0)) > float(circles[1].get("cy", 0))  # more is higher
    assert "<1>" in [e.text for e in tree]


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.97, 3.2), (-5, 120), (2, 2), (1e-4, 2e-4)])
def test_ticks_span_the_range(low: float, high: float) -> None:
    found = ticks(low, high)
    assert found[0] <= low and found[-1] >= high and 2 <= len(found) <= 9
    assert np.allclose(np.diff(found), found[1] - found[0])
