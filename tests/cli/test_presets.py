"""`specgen presets`: the list, the resolved YAML, and the check of a pair."""

from __future__ import annotations

import json
import re
import socket
from pathlib import Path

import pytest
import yaml

from specgen import presets
from specgen.checkpoints import hub
from specgen.cli.app import run
from tests.conftest import make_codec, make_lm

MUSICGEN = (
    "musicgen-small",
    "musicgen-medium",
    "musicgen-large",
    "small-large",
    "small-medium",
    "dual-large",
    "small-dual-large",
    "stereo-small-large",
    "melody",
    "audiogen-medium",
)


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub import constants

    def refuse(*_: object) -> None:
        raise AssertionError("a network was asked for")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))


def test_the_list_names_every_preset_and_asks_no_network(
    no_network: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert run(["presets"]) == 0
    out = capsys.readouterr().out
    rows = {line.split()[0]: line for line in out.splitlines()[1:]}
    assert set(MUSICGEN) <= set(rows)
    assert "present" in rows["embedded"] and "missing" in rows["small-large"]


def test_the_list_as_json(no_network: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["presets", "--json"]) == 0
    rows = {row["preset"]: row for row in json.loads(capsys.readouterr().out)["presets"]}
    assert rows["embedded"]["drafter"] == "small-delay (delay)"
    assert rows["embedded"]["rule"] == "coupled" and rows["embedded"]["models"] == "present"
    assert rows["musicgen-large"]["drafter"] is None and rows["musicgen-large"]["rule"] is None


@pytest.mark.parametrize("columns", ["60", "80", "200"])
def test_names_are_whole_in_any_terminal(
    columns: str,
    no_network: None,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    assert run(["presets"]) == 0
    lines = re.sub(r"\x1b\[\d+m", "", capsys.readouterr().out).splitlines()
    assert max(map(len, lines)) <= int(columns)
    assert {*MUSICGEN, "stereo-small-large"} <= {line.split(" ")[0] for line in lines}
    assert ("coupled" in "".join(lines)) == (columns == "200")


@pytest.mark.parametrize("name", MUSICGEN)
def test_presets_of_public_models(name: str) -> None:
    """The reference's sampling, and every hub reference pinned to a commit."""
    preset = presets.load_preset(name)
    sampling = preset.node.sampling
    assert (sampling.top_k, sampling.temperature, sampling.cfg) == (250, 1.0, 3.0)
    on_hub = [r for r in preset.references.values() if r.startswith("hub:")]
    assert on_hub and all(hub.Reference.parse(r).pinned for r in on_hub)


def test_show_prints_what_loads_again(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert run(["presets", "show", "small-large"]) == 0
    out = capsys.readouterr().out
    copy = tmp_path / "copy.yaml"
    copy.write_text(out)
    assert presets.load_preset(str(copy)).sha256 == presets.load_preset("small-large").sha256
    assert yaml.safe_load(out)["sampling"]["top_k"] == 250


def test_check_of_a_pair_that_fits(tiny: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["presets", "check", tiny]) == 0
    out = capsys.readouterr().out
    assert "can work together" in out and "fits into 8 GB" in out
    assert "asks for guidance 3, the preset has 2" in out
    assert run(["presets", "check", tiny, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["together"] and set(said["parts"]) == {"verifier", "drafter", "codec"}
    assert said["parts"]["verifier"]["pattern"] == "flatten"
    assert said["parts"]["verifier"]["codec_sha256"] == said["parts"]["codec"]["codec_sha256"]


def test_check_of_models_of_different_codecs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_codec(tmp_path / "codec")
    make_codec(tmp_path / "other", seed=1)
    make_lm(tmp_path / "verifier", "flatten", 1, tmp_path / "codec")
    make_lm(tmp_path / "drafter", "delay", 2, tmp_path / "other")
    preset = tmp_path / "p.yaml"
    preset.write_text(
        "verifier: {checkpoint: verifier}\ndrafter: {checkpoint: drafter}\n"
        "codec: {checkpoint: codec}\n"
    )
    for command in (["presets", "check"], ["generate", "a jig", "--preset"]):
        assert run([*command, str(preset)]) == 2
        err = capsys.readouterr().err
        assert "drafter" in err and "another codec" in err
        assert len(err.strip().splitlines()) == 1


def test_a_hub_preset_while_offline(
    no_network: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert run(["presets", "check", "small-large"]) == 2
    err = capsys.readouterr().err
    assert "facebook/musicgen-large" in err and "hf download" in err
    assert len(err.strip().splitlines()) == 1


def test_check_of_a_drafter_that_reads_its_verifier(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert run(["presets", "check", "embedded-delay"]) == 0
    said = capsys.readouterr()
    assert "they can work together" in said.out and "different encoders" not in said.out
    path = tmp_path / "alone.yaml"
    text = "schema: 1\nverifier: {checkpoint: 'embedded:feature-delay'}\n"
    path.write_text(text + "codec: {checkpoint: 'embedded:codec'}\n")
    assert run(["presets", "check", str(path)]) == 2
    assert "only drafts, with its verifier's tables" in capsys.readouterr().err
