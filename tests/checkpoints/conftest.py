"""audiocraft's builders for a module's tests."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType

import pytest

from tests import peers


@pytest.fixture(scope="module")
def builders() -> Iterator[ModuleType]:
    """audiocraft's `models.builders`."""
    pytest.importorskip("transformers")
    with peers.audiocraft() as module:
        yield module
