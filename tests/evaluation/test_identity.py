"""Margins at first differences: of what is really decoded, with what it goes on from."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

import specgen
from specgen.engine import Engine
from specgen.evaluation.identity import Difference, Identity, margins, with_margins


@pytest.fixture
def song(tmp_path: Path) -> Path:
    """0.2 s: ten frames."""
    path = tmp_path / "song.wav"
    t = np.arange(3200) / 16000
    soundfile.write(path, 0.2 * np.sin(2 * np.pi * 220 * t), 16000, subtype="FLOAT")
    return path


def test_margins_are_those_of_the_decode_that_goes_on(
    tiny: str, song: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is decoded for margins is the clip itself; what it begins with was not drawn."""
    engine = specgen.load(tiny, draft=False)
    request = specgen.Request("a slow air", seed=3, duration=0.4, continue_from=song)
    made = next(iter(engine.generate([request]))).codes
    decoded = watched(monkeypatch)
    found = margins(engine, request)
    assert torch.equal(decoded[0], made)
    assert found[:, :10].isnan().all() and (found[:, 10:] >= 0).all()


def watched(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """Tokens of the decodes that `margins` makes, as they come."""
    from specgen.evaluation import identity

    real, decoded = identity.decode, []

    def decode(*arguments: object, **options: object) -> object:
        made = real(*arguments, **options)  # type: ignore[arg-type]
        decoded.extend(made.codes)
        return made

    monkeypatch.setattr(identity, "decode", decode)
    return decoded


def test_margins_follow_the_melody(tiny: str, song: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The verifier is given the tune that the request names."""
    from specgen.evaluation import identity

    engine = specgen.load(tiny, draft=False)
    given: list[object] = []
    real = identity.ConditionedModel.of

    def of(*arguments: object, tunes: object = ()) -> object:
        given.append(tunes)
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(identity.ConditionedModel, "of", of)
    monkeypatch.setattr(Engine, "melody_rate", lambda _self: 8000)
    margins(engine, specgen.Request("a jig", seed=1, duration=0.2, melody=song))
    ((tune,),) = given
    assert tune.path == song and tune.wav.shape == (1600,)


def test_pieces_made_in_windows_get_no_margins(tiny: str) -> None:
    engine = specgen.load(tiny, draft=False)
    request = specgen.Request("a jig", seed=1, duration=0.4, sections=((0.2, "a slow air"),))
    differences = [Difference(request, 15, 0, (1, 2))]
    found = Identity("a", "b", True, True, 1, 0, 80, 79, [1.0] * 4, differences)
    assert with_margins(found, engine, print) is found
