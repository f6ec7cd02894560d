import numpy as np
import pytest

from specgen.evaluation.distances import BANDS, NAMES, spectrum_distance, statistics

RATE = 16_000


def tone(hertz: float, level: float = 0.1, seconds: float = 1.0) -> np.ndarray:
    return level * np.sin(2 * np.pi * hertz * np.arange(int(seconds * RATE)) / RATE)


def test_statistics_of_a_tone() -> None:
    """BS.1770 says -3.01 LUFS for a full-scale 997 Hz sine; 0.1 is 20 dB less."""
    found = dict(zip(NAMES, statistics(tone(997), RATE), strict=False))
    assert found["loudness_lufs"] == pytest.approx(-23.05, abs=0.2)
    assert found["peak_dbfs"] == pytest.approx(-20, abs=0.1)
    assert found["dynamics_db"] == pytest.approx(0, abs=0.1)
    assert found["silence_share"] == 0
    assert found["centroid_hz"] == pytest.approx(997, rel=0.02)


def test_louder_is_louder_and_the_spectrum_does_not_move() -> None:
    quiet, loud = (statistics(tone(440, level), RATE) for level in (0.05, 0.5))
    assert loud[0] - quiet[0] == pytest.approx(20, abs=0.01)
    assert spectrum_distance(quiet[None], loud[None]) < 0.5
    other = statistics(tone(3000), RATE)
    assert spectrum_distance(quiet[None], other[None]) > 5


@pytest.mark.parametrize("wave", [np.zeros(RATE), np.zeros(100), tone(440, seconds=0.1)])
def test_silent_and_very_short_clips_have_figures(wave: np.ndarray) -> None:
    found = statistics(wave, RATE)
    assert found.shape == (len(NAMES) + BANDS,) and np.isfinite(found).all()
