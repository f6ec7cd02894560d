"""Embedders of other packages, which stand-ins with the same signatures take the place of here.

Written after laion-clap 1.1.7, frechet-audio-distance 0.3.4 and hear21passt 0.0.26.
"""

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from specgen.cli.app import run
from specgen.errors import UserError
from specgen.evaluation.embedders import PACKAGES, PANN_FILE, PASST_FILE, VGGISH_FILE, load_embedder


class Clap:
    """`laion_clap.CLAP_Module`."""

    def __init__(
        self,
        enable_fusion: bool = False,
        device: Any = None,
        amodel: str = "HTSAT-tiny",
        tmodel: str = "roberta",
    ) -> None:
        assert not enable_fusion and device == "cpu"

    def load_ckpt(self, ckpt: Any = None, model_id: int = -1, verbose: bool = True) -> None:
        print(f"Load the specified checkpoint {ckpt} from users.")
        if "head" not in torch.load(ckpt, weights_only=False):
            raise RuntimeError("Error(s) in loading state_dict\n\tMissing key(s): head")

    def get_audio_embedding_from_data(self, x: Any, use_tensor: bool = False) -> Any:
        assert x.ndim == 2 and x.shape[1] <= 480_000 and not use_tensor
        return np.stack([np.full(512, row.mean(), np.float32) for row in x])


class Frechet:
    """`frechet_audio_distance.FrechetAudioDistance`: one row a patch, or none and a message."""

    def __init__(
        self,
        ckpt_dir: Any = None,
        model_name: str = "vggish",
        submodel_name: str = "630k-audioset",
        sample_rate: int = 16000,
        **_: Any,
    ) -> None:
        assert sample_rate == {"vggish": 16000, "pann": 32000}[model_name]
        assert isinstance(ckpt_dir, str)
        self.model_name = model_name

    def get_embeddings(self, x: Any, sr: int) -> Any:
        found = []
        try:
            for audio in x:
                if len(audio) < 0.96 * sr:
                    raise RuntimeError("too short")
                one = np.full(2048, audio.mean()) if self.model_name == "pann" else None
                patches = np.array_split(audio, 2)
                found.append(
                    np.stack([np.full(128, p.mean()) for p in patches]) if one is None else one
                )
        except Exception as error:
            print(f"[Frechet Audio Distance] get_embeddings throw an exception: {error}")
        return np.concatenate(found, axis=0)


def passt() -> ModuleType:
    """`hear21passt.base`."""
    module = ModuleType("hear21passt.base")

    class Model(torch.nn.Module):
        def get_scene_embeddings(self, audio: torch.Tensor) -> torch.Tensor:
            print("\n\n Loading PaSST \n\n")
            return audio.mean(dim=1, keepdim=True).repeat(1, 768)

    def load_model(model_path: str = "", mode: str = "all") -> torch.nn.Module:
        assert mode == "embed_only"
        assert (Path(torch.hub.get_dir()) / PASST_FILE).is_file()
        return Model()

    module.load_model = load_model  # type: ignore[attr-defined]
    module.get_scene_embeddings = lambda audio, model: model.get_scene_embeddings(audio)  # type: ignore[attr-defined]
    return module


@pytest.fixture
def packages(monkeypatch: pytest.MonkeyPatch) -> None:
    clap, frechet = ModuleType("laion_clap"), ModuleType("frechet_audio_distance")
    clap.CLAP_Module = Clap  # type: ignore[attr-defined]
    frechet.FrechetAudioDistance = Frechet  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "laion_clap", clap)
    monkeypatch.setitem(sys.modules, "frechet_audio_distance", frechet)
    monkeypatch.setitem(sys.modules, "hear21passt", ModuleType("hear21passt"))
    monkeypatch.setitem(sys.modules, "hear21passt.base", passt())


@pytest.fixture
def weights(tmp_path: Path) -> dict[str, str]:
    """What is to follow each name's colon."""
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "harritaylor_torchvggish_master").mkdir()
    # A loss kept as a numpy number is what LAION's checkpoints hold beside tensors.
    held = {"head": torch.zeros(3), "loss": np.float64(0.5), "epoch": 15}
    for name in ("clap.pt", PANN_FILE, PASST_FILE, VGGISH_FILE):
        torch.save(held, tmp_path / name)
    folder = str(tmp_path)
    return {"clap": f"{folder}/clap.pt", "pann": folder, "passt": folder, "vggish": folder}


@pytest.mark.parametrize(
    ("name", "units"), [("clap", 512), ("pann", 2048), ("passt", 768), ("vggish", 128)]
)
def test_a_clip_becomes_one_vector(
    packages: None,
    weights: dict[str, str],
    name: str,
    units: int,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """And what the package prints does not get into what the program prints."""
    hub = torch.hub.get_dir()
    embedder = load_embedder(f"{name}:{weights[name]}")
    wave = np.full(4 * embedder.sample_rate, 0.25, np.float32)
    assert embedder.name == name and np.allclose(embedder.embed(wave), np.full(units, 0.25))
    assert capsys.readouterr().out == "" and torch.hub.get_dir() == hub


def test_clap_hears_all_of_a_long_clip(packages: None, weights: dict[str, str]) -> None:
    """24 s: two whole windows, and a rest of less than half of one is left out."""
    embedder = load_embedder(f"clap:{weights['clap']}")
    wave = np.repeat(np.array([1, 2, 9], np.float32), 480_000)[: 24 * 48_000]
    assert np.allclose(embedder.embed(wave), 1.5)


def test_too_short_a_clip_is_one_line(packages: None, weights: dict[str, str]) -> None:
    embedder = load_embedder(f"vggish:{weights['vggish']}")
    with pytest.raises(UserError, match=r"0\.50 s"):
        embedder.embed(np.zeros(8000, np.float32))


@pytest.mark.parametrize("name", sorted(PACKAGES))
def test_what_is_missing_is_one_line(
    weights: dict[str, str], name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for module in ("laion_clap", "frechet_audio_distance", "hear21passt"):
        monkeypatch.setitem(sys.modules, module, None)  # as if not installed
    with pytest.raises(UserError, match="pip install"):
        load_embedder(f"{name}:{weights[name]}")
    with pytest.raises(UserError, match="needs its weights"):
        load_embedder(name)
    with pytest.raises(UserError, match="does not exist"):
        load_embedder(f"{name}:{tmp_path / 'nowhere'}")
    if name != "clap":
        empty = tmp_path / "empty"
        empty.mkdir()
        with pytest.raises(UserError, match=r"has no .*(fetch|unpack)"):
            load_embedder(f"{name}:{empty}")


class Evil:
    def __reduce__(self) -> Any:
        return print, ("run",)


@pytest.mark.parametrize("content", ["code", "text", "empty"])
def test_weights_that_hold_code_are_not_given_to_the_package(
    packages: None, weights: dict[str, str], content: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = Path(weights["clap"])
    if content == "code":
        torch.save({"head": Evil()}, path)
    else:
        path.write_bytes(b"" if content == "empty" else b"no weights")
    with pytest.raises(UserError, match="cannot be read as weights"):
        load_embedder(f"clap:{path}")
    assert "run" not in capsys.readouterr().out


def test_weights_of_another_model_are_one_line(
    packages: None, weights: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"other": torch.zeros(1)}, weights["clap"])
    arguments = ["compare", "embedded", "embedded-flatten", "--embedder", f"clap:{weights['clap']}"]
    assert run(arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and "cannot load" in err.splitlines()[-1]
