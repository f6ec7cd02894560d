"""Distances against closed forms, and against kadtk (Chung et al. 2025) on the same embeddings.

kadtk pins old versions of numpy and torch and imports many models, so its two files of arithmetic
are loaded by themselves where it is installed (`pip install --no-deps kadtk`); the figures that its
version 1.1.0 gave, in float64, are here too.
"""

import importlib.util
import sys
import types
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from specgen.evaluation.distances import (
    frechet_distance,
    frechet_infinity,
    kernel_distance,
    median_distance,
)

SHAPES = [(300, 200, 20), (60, 50, 200)]
KADTK = {
    (300, 200, 20): (4.2501843213, 3.5216040701),
    (60, 50, 200): (315.6131587980, 3.0538684183),
}


def sets(n: int, m: int, width: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    rng = np.random.default_rng(0)
    for shape in SHAPES:  # the published figures were made from one stream
        a = rng.normal(size=(shape[0], shape[2]))
        b = rng.normal(size=(shape[1], shape[2])) * 1.2 + 0.3
        if shape == (n, m, width):
            return a, b
    raise AssertionError


@pytest.mark.parametrize("shape", SHAPES)
def test_agrees_with_the_figures_of_kadtk(shape: tuple[int, int, int]) -> None:
    a, b = sets(*shape)
    frechet, kernel = KADTK[shape]
    assert frechet_distance(a, b) == pytest.approx(frechet, rel=1e-6)
    assert kernel_distance(a, b) == pytest.approx(kernel, rel=1e-6)


@pytest.mark.skipif(importlib.util.find_spec("kadtk") is None, reason="kadtk is not installed")
@pytest.mark.parametrize("shape", SHAPES)
def test_agrees_with_kadtk(shape: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    spec = importlib.util.find_spec("kadtk")
    assert spec is not None and spec.submodule_search_locations
    folder = spec.submodule_search_locations[0]
    names = ("emb_loader", "model_loader")
    stubs = [*(f"kadtk.{n}" for n in names), "hypy_utils", "hypy_utils.tqdm_utils", "kadtk"]
    for name in stubs:
        stub: Any = types.ModuleType(name)
        stub.EmbeddingLoader = stub.ModelLoader = stub.write = stub.tmap = stub.tq = None
        monkeypatch.setitem(sys.modules, name, stub)

    def load(name: str) -> Any:
        place = importlib.util.spec_from_file_location(f"kadtk_{name}", f"{folder}/{name}.py")
        assert place is not None and place.loader is not None
        module = importlib.util.module_from_spec(place)
        place.loader.exec_module(module)
        return module

    a, b = sets(*shape)
    x, y = torch.from_numpy(a), torch.from_numpy(b)
    none = (None, None)
    theirs = load("fad").calc_frechet_distance(x, y, none, "cpu", torch.float64)
    assert frechet_distance(a, b) == pytest.approx(float(theirs), abs=1e-4)
    theirs = load("kad").calc_kernel_audio_distance(y, x, none, "cpu", precision=torch.float64)
    assert kernel_distance(a, b) == pytest.approx(float(theirs), abs=1e-4)


def test_frechet_of_known_gaussians() -> None:
    """Independent coordinates: |m|^2 plus the squared differences of the standard deviations."""
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(200_000, 2)), rng.normal(size=(200_000, 2))
    b = b * [3.0, 0.5] + [1.0, -2.0]
    assert frechet_distance(a, b) == pytest.approx(1 + 4 + 4 + 0.25, rel=0.01)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-8)


def test_extrapolation_takes_the_sample_bias_away() -> None:
    rng = np.random.default_rng(2)
    reference = rng.normal(size=(4000, 20))
    plain, infinite = [], []
    for i in range(10):
        part = rng.normal(size=(100, 20))
        plain.append(frechet_distance(reference, part))
        infinite.append(frechet_infinity(reference, part, seed=i))
    assert np.mean(plain) > 0.5
    assert abs(np.mean(infinite)) < 0.2 * np.mean(plain)


def test_kernel_distance_is_unbiased_and_grows() -> None:
    rng = np.random.default_rng(3)
    same = [
        kernel_distance(rng.normal(size=(40, 10)), rng.normal(size=(40, 10))) for _ in range(60)
    ]
    assert abs(np.mean(same)) < 3 * np.std(same) / np.sqrt(60)
    near, far = (
        kernel_distance(rng.normal(size=(40, 10)), rng.normal(size=(40, 10)) + by)
        for by in (0.5, 2.0)
    )
    assert far > near > 5 * np.std(same)


def test_kernel_distance_of_equal_pairs_is_zero() -> None:
    """Without `paired` a clip's distance of 0 to itself would count."""
    a = np.random.default_rng(4).normal(size=(30, 10))
    assert kernel_distance(a, a, paired=True) == pytest.approx(0, abs=1e-9)
    assert kernel_distance(a, a) < -0.5


def test_median_is_that_of_distinct_pairs() -> None:
    assert median_distance(np.array([[0.0], [1.0], [4.0]])) == 3.0


@pytest.mark.parametrize("shapes", [((1, 3), (5, 3)), ((4, 3), (5, 2)), ((4,), (5,))])
def test_refuses_what_has_no_distance(shapes: tuple[tuple[int, ...], ...]) -> None:
    a, b = (np.zeros(shape) for shape in shapes)
    with pytest.raises(ValueError):
        frechet_distance(a, b)
    with pytest.raises(ValueError):
        kernel_distance(a, b)


def test_extrapolation_needs_clips() -> None:
    with pytest.raises(ValueError, match="8 clips"):
        frechet_infinity(np.zeros((9, 2)), np.zeros((7, 2)))
