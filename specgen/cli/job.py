"""What a `generate` command asks for, from its options or from a sidecar."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from specgen import presets
from specgen.errors import UserError
from specgen.jobs.options import changed

if TYPE_CHECKING:
    from specgen.engine import Engine
    from specgen.requests import Settings


@dataclass
class Job:
    """What to make, as far as it is known before a model is loaded.

    Attributes:
        preset: which models.
        prompts: each is made `count` times.
        seed: of the first clip.
        duration: seconds; None is the preset's default.
        draft: False leaves the drafter out.
        dtype: of both models; None is the preset's.
        quantize: of the models' weights; None is the preset's.
        continue_from: an audio file that every clip begins with.
        melody: an audio file whose melody every clip follows.
        sections: (seconds, prompt) pairs: what every clip plays from there on.
        sidecar: what to make again.
        force: make it again with another preset or other models, too.
    """

    preset: presets.Preset
    prompts: list[str]
    seed: int
    count: int = 1
    duration: float | None = None
    draft: bool = True
    dtype: str | None = None
    quantize: str | None = None
    continue_from: Path | None = None
    melody: Path | None = None
    sections: tuple[tuple[float, str], ...] = ()
    sidecar: dict[str, Any] | None = None
    force: bool = False


def settings_of(job: Job, changes: dict[str, Any], *, allow_biased: bool) -> Settings:
    """The preset's settings (or the sidecar's) with what the command line changes."""
    from specgen.requests import Settings

    if job.sidecar is not None:
        settings = Settings.from_dict(job.sidecar["sampling"])
        return replace(settings, allow_biased=allow_biased or not job.sidecar["lossless"])
    return changed(Settings.of(job.preset), changes, allow_biased=allow_biased)


def read_sidecar(path: Path, preset: str | None = None, *, force: bool = False) -> Job:
    """The job that a sidecar records.

    Args:
        path: the sidecar.
        preset: where its preset is now, if it has moved.
        force: take a preset that has changed.

    Raises:
        UserError: no sidecar, one that does not say enough, or a preset that has changed.
    """
    try:
        sidecar = json.loads(path.read_text(encoding="utf-8"))
        job = Job(
            presets.load_preset(preset or sidecar["preset"]),
            [sidecar["prompt"]],
            int(sidecar["seed"]),
            duration=float(sidecar["duration_seconds"]),
            draft=sidecar["checkpoints"]["drafter"] is not None,
            dtype=sidecar["dtype"]["verifier"],
            quantize=_quantized(sidecar),
            continue_from=_recorded_audio(sidecar, "continue_from", path),
            melody=_recorded_audio(sidecar, "melody", path),
            sections=tuple((float(at), str(text)) for at, text in sidecar.get("sections", [])),
            sidecar=sidecar,
            force=force,
        )
        for name in ("tokens_sha256", "sampling", "lossless", "preset_sha256"):
            sidecar[name]
    except OSError as error:
        raise UserError(f"cannot read sidecar {path}: {error.strerror}; check the path") from None
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise UserError(
            f"{path} is not a specgen sidecar ({error!r}); give the .json of a clip"
        ) from None
    if job.preset.sha256 != sidecar["preset_sha256"]:
        _changed(job, f"preset {job.preset.name}", "bring back the old preset")
    return job


def _quantized(sidecar: dict[str, Any]) -> str | None:
    """How the models of a clip were quantised; sidecars from before that say nothing."""
    kinds = dict(sidecar.get("quantize") or {})
    text = ",".join(f"{role}={kind}" for role, kind in kinds.items() if kind is not None)
    presets.parse_quantize(text or None)
    return text or None


def _recorded_audio(sidecar: dict[str, Any], name: str, path: Path) -> Path | None:
    """An audio file that the clip was made from: where it was, or beside the sidecar."""
    record = sidecar.get(name)
    if record is None:
        return None
    recorded, beside = Path(record["path"]), path.parent / Path(record["path"]).name
    return beside if beside.is_file() and not recorded.is_file() else recorded


def check_sidecar(job: Job, engine: Engine) -> None:
    """Refuse to make a clip again with other models or another beginning, unless forced.

    Raises:
        UserError: names what changed.
    """
    if job.sidecar is None:
        return
    _check_recorded_audio(job, "continue_from", job.continue_from)
    _check_recorded_audio(job, "melody", job.melody)
    here = {
        "verifier": engine.verifier.sha256,
        "drafter": engine.drafter.sha256 if engine.drafter else None,
        "codec": engine.codec_sha256,
    }
    for role in ("verifier", "codec", "drafter"):
        if here[role] is not None and here[role] != job.sidecar["checkpoints"].get(role):
            _changed(job, f"the {role}", "bring back the old checkpoint")


def _check_recorded_audio(job: Job, name: str, audio: Path | None) -> None:
    assert job.sidecar is not None
    record, option = job.sidecar.get(name), "--" + name.replace("_", "-")
    if record is None and audio is not None:
        raise UserError(f"the sidecar's clip was made without {option}; leave it out")
    if record is not None and audio is not None and audio.is_file():
        from specgen.checkpoints.native import file_sha256

        if file_sha256(audio) != record["sha256"]:
            _changed(job, f"the audio file {audio}", f"give the old one with {option}")


def _changed(job: Job, what: str, remedy: str) -> None:
    text = f"{what} is not the one that made this clip (sha256 differs)"
    if not job.force:
        raise UserError(f"{text}; {remedy}, or add --force to see what comes out")
    print(f"specgen: warning: {text}", file=sys.stderr)
