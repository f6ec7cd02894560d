"""The hub: which files are fetched, what its refusals become, and when it is asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from specgen.checkpoints import hub, registry
from specgen.errors import UserError

pytest.importorskip("huggingface_hub")

COMMIT = "4c8334b02c6ec4e8664a91979669a501ec497792"
MUSICGEN = [
    "README.md",
    "compression_state_dict.bin",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "preprocessor_config.json",
    "pytorch_model.bin",
    "spiece.model",
    "state_dict.bin",
    "tokenizer.json",
]


def test_references() -> None:
    reference = hub.Reference.parse(f"hub:facebook/musicgen-small@{COMMIT}")
    assert reference == hub.Reference("facebook/musicgen-small", COMMIT)
    assert reference.pinned and str(reference) == f"facebook/musicgen-small@{COMMIT}"
    assert not hub.Reference.parse("hub:facebook/musicgen-small").pinned
    assert not hub.Reference.parse("hub:facebook/musicgen-small@main").pinned


def test_one_format_is_fetched_the_safest() -> None:
    wanted = hub.patterns(MUSICGEN, hub.Reference("a/b"))
    assert "model.safetensors" in wanted and "tokenizer.json" in wanted
    assert not any(name.endswith(".bin") for name in wanted)
    shards = ["config.json", "model.safetensors.index.json"]
    shards += [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    assert set(shards) <= set(hub.patterns([*shards, "x.bin"], hub.Reference("a/b")))
    pickled = [name for name in MUSICGEN if name != "model.safetensors"]
    assert hub.patterns(pickled, hub.Reference("a/b")) == [
        "state_dict.bin",
        "compression_state_dict.bin",
    ]
    with pytest.raises(UserError, match="a/b holds no MusicGen weights"):
        hub.patterns(["README.md", "pytorch_model.bin"], hub.Reference("a/b"))


def raising(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    from huggingface_hub import HfApi, constants

    def fail(*_: Any, **__: Any) -> list[str]:
        raise error

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(HfApi, "list_repo_files", fail)
    monkeypatch.setattr(hub, "cached", lambda reference: None)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("RepositoryNotFoundError", "hf auth login"),
        ("GatedRepoError", "https://huggingface.co/facebook/musicgen-small"),
        ("RevisionNotFoundError", COMMIT),
        ("HfHubHTTPError", f"hf download facebook/musicgen-small --revision {COMMIT}"),
    ],
)
def test_refusals_are_one_line_with_the_next_step(
    monkeypatch: pytest.MonkeyPatch, name: str, said: str
) -> None:
    from huggingface_hub import errors

    kind = getattr(errors, name)
    raising(monkeypatch, kind.__new__(kind))
    with pytest.raises(UserError) as caught:
        registry.locate(f"hub:facebook/musicgen-small@{COMMIT}", fetch=True)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    raising(monkeypatch, ConnectionError("Name or service not known"))
    with pytest.raises(UserError, match="check the network") as caught:
        registry.locate("hub:facebook/musicgen-small", fetch=True)
    assert "Name or service not known" in str(caught.value)


def test_what_is_cached_is_not_asked_for_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    raising(monkeypatch, AssertionError("asked"))
    monkeypatch.setattr(hub, "cached", lambda reference: tmp_path)
    assert registry.locate("hub:facebook/musicgen-small", fetch=True) == tmp_path


def test_a_half_downloaded_repository_is_not_taken_for_whole(tmp_path: Path) -> None:
    assert not hub.complete(tmp_path / "nowhere")
    (tmp_path / "config.json").write_text("{}")
    assert not hub.complete(tmp_path)
    (tmp_path / "state_dict.bin").touch()
    assert not hub.complete(tmp_path)
    (tmp_path / "compression_state_dict.bin").touch()
    assert hub.complete(tmp_path)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text('{"weight_map": {"a": "model-1.safetensors"}}')
    assert not hub.complete(tmp_path)
    (tmp_path / "model-1.safetensors").touch()
    assert hub.complete(tmp_path)


def test_an_index_that_leads_out_of_the_folder(tmp_path: Path) -> None:
    from specgen.checkpoints.huggingface import shards

    index = tmp_path / "model.safetensors.index.json"
    index.write_text('{"weight_map": {"a": "../../secret.safetensors"}}')
    with pytest.raises(UserError, match="other folders"):
        shards(tmp_path)
