"""A job of a few rows."""

from pathlib import Path

import pytest

from tests.cli.jobs import PROMPTS, write


@pytest.fixture
def job(tiny: str, tmp_path: Path) -> list[str]:
    prompts = write(tmp_path / "p.jsonl", PROMPTS)
    return ["generate", "--prompts", prompts, "--preset", tiny, "--out", str(tmp_path / "out")]
