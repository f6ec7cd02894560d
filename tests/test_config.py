"""Presets: resolution, checks, fingerprints."""

from pathlib import Path

import pytest

from specgen import presets
from specgen.decoding.loop import draft_steps
from specgen.errors import UserError
from specgen.patterns import PatternSpec

MINIMAL = """\
verifier: {checkpoint: a}
codec: {checkpoint: /abs/c}
"""


def preset(tmp_path: Path, text: str) -> presets.Preset:
    path = tmp_path / "p.yaml"
    path.write_text(text)
    return presets.load_preset(str(path))


def test_every_preset_of_the_project_loads() -> None:
    names = presets.preset_names()
    assert {"embedded", "embedded-dual", "embedded-delay"} <= set(names)
    assert {"embedded-flatten", "embedded-base-delay"} <= set(names)
    for name in names:
        loaded = presets.load_preset(name)
        assert loaded.node.description and len(loaded.sha256) == 64


def test_a_draft_is_some_frames_or_a_part_of_one() -> None:
    read = [presets.parse_draft_frames(v, "here") for v in ("auto", "3", 12, "0.5", 0.25)]
    assert read == [None, 3, 12, 0.5, 0.25] and type(read[1]) is int  # as it stands in a sidecar
    flatten, delay = PatternSpec("flatten", 4), PatternSpec("delay", 4)
    assert [draft_steps(frames, flatten) for frames in read] == [None, 12, 48, 2, 1]
    assert [draft_steps(frames, delay) for frames in read] == [None, 3, 12, 1, 1]
    for wrong in ("1.5", "0", "-1", "13", "nan", "inf", "soon"):
        with pytest.raises(UserError, match="here must be auto, a whole number from 1 to 12 or a"):
            presets.parse_draft_frames(wrong, "here")


def test_defaults_and_paths(tmp_path: Path) -> None:
    loaded = preset(tmp_path, MINIMAL)
    assert loaded.drafter is None
    assert loaded.node.sampling == presets.SamplingNode(1.0, 250, 0.0, 3.0)
    assert loaded.folder("a") == tmp_path / "a"
    assert loaded.folder("/abs/c") == Path("/abs/c")
    assert loaded.folder("embedded:x").name == "x"


def test_a_reference_finds_the_preset_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert presets.load_preset("embedded").reference == "embedded"
    (tmp_path / "p.yaml").write_text(MINIMAL)
    monkeypatch.chdir(tmp_path)
    reference = presets.load_preset("./p.yaml").reference
    monkeypatch.chdir("/")
    assert presets.load_preset(reference).folder("a") == tmp_path.resolve() / "a"


def test_the_fingerprint_is_of_the_values(tmp_path: Path) -> None:
    plain = preset(tmp_path, MINIMAL).sha256
    assert preset(tmp_path, "# words\ndescription: other\n" + MINIMAL).sha256 == plain
    assert preset(tmp_path, MINIMAL + "sampling: {top_k: 250}\n").sha256 == plain
    assert preset(tmp_path, MINIMAL + "sampling: {top_k: 249}\n").sha256 != plain


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("codec: {checkpoint: c}\n", "verifier"),
        (MINIMAL + "extra: 1\n", "extra"),
        (MINIMAL + "drafter: {checkpoint: d, cfg: perhaps}\n", "cfg"),
        (MINIMAL + "drafter: {checkpoint: d, dtype: int4}\n", "int4"),
        (MINIMAL + "speculation: {draft_temperatures: [1, 0]}\n", "positive"),
        (MINIMAL + "duration: {default: 0}\n", "duration"),
        ("- a\n", "mapping"),
        ("verifier: {checkpoint: '${x}'}\n", "interpolation"),
    ],
)
def test_what_is_refused(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        preset(tmp_path, text)
    assert "\n" not in str(caught.value) and "p.yaml" in str(caught.value)
