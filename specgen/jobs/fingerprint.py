"""The fingerprint of a row: a hash of everything that decides what is made (docs/formats.md)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from specgen.checkpoints.native import file_sha256
from specgen.errors import UserError

if TYPE_CHECKING:
    from specgen.engine import Engine, Request

SCHEMA = 1  # rises when a new version makes other clips from the same values


def fingerprint(engine: Engine, request: Request, heard: Mapping[str, str]) -> str:
    """Hash of what decides a clip.

    Args:
        engine: its preset, checkpoints, settings, dtypes and quantisation count, its device does
            not.
        request: checked; its prompts, seed and length in frames count, its id does not.
        heard: sha256 of the audio files that it begins with or follows; their paths do not count.
    """
    drafter = engine.drafter
    kinds = [model.quantize for model in (engine.verifier, drafter) if model]
    values: dict[str, object] = {
        "schema": SCHEMA,
        "prompt": request.prompt,
        "seed": request.seed,
        "frames": engine.frames(request.duration or 0.0),
        "sections": [[at, prompt] for at, prompt in request.sections],
        "heard": dict(heard),
        "preset": engine.preset.sha256,
        "verifier": engine.verifier.sha256,
        "drafter": None if drafter is None else drafter.sha256,
        "codec": engine.codec_sha256,
        "dtypes": [str(model.lm.dtype) for model in (engine.verifier, drafter) if model],
        "sampling": engine.settings.as_dict(),
    }
    if set(kinds) != {"none"}:
        values["quantize"] = kinds  # left out where it says nothing, as before there was the key
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def audio_sha256(path: Path) -> str:
    """sha256 of an audio file that a row names.

    Raises:
        UserError: it is no regular file, or cannot be read.
    """
    try:
        if path.exists() and not path.is_file():
            raise UserError(f"{path} is not a regular file; give an audio file")
        return file_sha256(path)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot read {path}: {reason}; check the path") from None
