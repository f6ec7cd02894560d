"""Other packages beside ours, on the same weights."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from specgen.benchmarking import transformers_peer
from specgen.benchmarking.synthetic import dense_state
from specgen.lm.config import LMConfig
from specgen.lm.model import MusicLM
from specgen.patterns import PatternSpec
from tests.benchmarking.conftest import Bench

QUICK = ("-d", "0.2", "-r", "1", "--warmup", "0", "--output", "json", "--device", "cpu")


@pytest.fixture(autouse=True)
def _stand_ins_do_not_stay() -> Iterator[None]:
    from specgen.benchmarking.audiocraft_peer import ABSENT

    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.split(".")[0] in {"audiocraft", "xformers", *ABSENT} - {"transformers"}:
            del sys.modules[name]


def model(**options: object) -> MusicLM:
    torch.manual_seed(0)
    shape = {"condition_dim": 96, "positions": "sin", **options}
    lm = MusicLM(LMConfig(4, 256, 256, 4, 1, 512, **shape)).eval()  # type: ignore[arg-type]
    with torch.no_grad():
        for value in lm.parameters():
            value.copy_(value.half())
    return lm.requires_grad_(False)


def test_packed_weights_are_had_back() -> None:
    lm = model()
    before = {name: value.clone() for name, value in lm.state_dict().items()}
    after = dense_state(lm.pack())
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], value) for name, value in before.items())


@pytest.mark.skipif(not transformers_peer.installed(), reason="transformers is not installed")
def test_peers_decode_the_same_greedy_piece(run_bench: Bench, tmp_path: Path) -> None:
    """A preset of a sinusoidal delay model, so that both peers can hold it."""
    from specgen.checkpoints.base import LMCheckpoint
    from specgen.checkpoints.native import codec_id, save_lm
    from specgen.lm.conditioning import WordEncoder, WordEncoderConfig
    from tests.conftest import WORDS, make_codec

    if importlib.util.find_spec("audiocraft") is None:
        pytest.skip("audiocraft is not installed")
    make_codec(tmp_path / "codec")
    identity = codec_id(tmp_path / "codec")
    torch.manual_seed(3)
    lm = MusicLM(LMConfig(identity.codebooks, identity.card, 32, 2, 2, 64, condition_dim=16))
    words = WordEncoder(WordEncoderConfig(WORDS, {}, dim=16))
    pattern = PatternSpec("delay", identity.codebooks)
    save_lm(LMCheckpoint("sines", lm, words, pattern, identity, 100), tmp_path / "sines")
    preset = tmp_path / "sines.yaml"
    preset.write_text(
        "schema: 1\nverifier: {checkpoint: sines}\ncodec: {checkpoint: codec}\n"
        "sampling: {temperature: 1.0, top_k: 20, cfg: 2.0}\nduration: {default: 0.4, max: 2.0}\n"
    )
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a jig on the violin\n")
    document = json.loads(
        run_bench(
            str(preset), "--prompts", str(prompts), *QUICK, "--peer", "audiocraft,transformers"
        )
    )
    ours, *theirs = document["rows"]
    assert ours["package"] == "specgen" and ours["peer_agreement"] is None
    assert [row["package"].split()[0] for row in theirs] == ["audiocraft", "transformers"]
    for row in theirs:
        assert row["peer_agreement"] == 1.0
        assert row["speedup_reference"] == ours["label"] and row["speedup"] > 0
        assert row["tokens_per_pass"] is None and row["bandwidth_fraction"] is None
        assert row["peak_memory_bytes"] is None
    assert {"audiocraft", "transformers"} <= set(document["versions"])


def test_what_transformers_cannot_hold_is_said() -> None:
    delay = PatternSpec("delay", 4)
    config = model().config
    assert transformers_peer.refusal(config, delay) is None
    assert "flatten" in str(transformers_peer.refusal(config, PatternSpec("flatten", 4)))
    assert "rope" in str(transformers_peer.refusal(model(positions="rope").config, delay))
    assert "option" in str(transformers_peer.refusal(model(bias_ff=True).config, delay))


def test_a_peer_that_is_missing_is_one_line(
    run_bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    from specgen.benchmarking import audiocraft_peer
    from specgen.errors import UserError

    monkeypatch.setattr(audiocraft_peer, "installed", lambda: False)
    with pytest.raises(UserError, match="audiocraft is not installed; pip install"):
        run_bench("--synthetic", "tiny", *QUICK, "--peer", "audiocraft")
