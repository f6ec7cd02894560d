"""docs/python-api.md: its example runs as it is written."""

import re
from pathlib import Path
from typing import Any

import pytest

DOCUMENT = Path(__file__).parents[2] / "docs" / "python-api.md"


def test_the_documented_example_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 4
    names: dict[str, Any] = {"__name__": "example"}
    for block in blocks:
        exec(block, names)
    said = capsys.readouterr().out
    assert "a slow air on the flute (4, 20)" in said and "% accepted" in said
    assert "2 2 job/manifest.jsonl" in said
    assert len(list(Path("clips").iterdir())) == 6 and len(list(Path("job").glob("*.wav"))) == 2
    assert names["watcher"].settled == 4
