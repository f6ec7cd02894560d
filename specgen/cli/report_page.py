"""`specgen report`: a page with players and pictures of clips that lie on disk."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from specgen.errors import UserError

if TYPE_CHECKING:
    from specgen.evaluation.runs import Made

SUFFIXES = (".wav", ".flac", ".ogg")


def report(
    sidecars: Annotated[
        list[Path], typer.Argument(help="Sidecars (.json), beside their audio and tokens.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The page.")] = Path("report.html"),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the page.")] = False,
) -> None:
    """Write one HTML page with players, spectrograms and token maps of clips.

    Clips of one prompt and seed stand side by side, with what differs marked. Prints the path.
    """
    if out.exists() and not overwrite:
        raise UserError(f"{out} exists; add --overwrite to replace it, or choose another --out")
    if not out.parent.is_dir():
        raise UserError(f"cannot write {out}: {out.parent} is no folder; choose another --out")

    from specgen import audio
    from specgen.evaluation.page import clips_page

    clips = [(path.stem, read_clip(path)) for path in sidecars]
    page = clips_page(clips, "specgen clips" if len(clips) > 1 else clips[0][1].request.prompt)
    with audio.atomic(out) as file:
        file.write(page.encode())
    print(out)


def read_clip(path: Path) -> "Made":
    """A clip from its sidecar and what lies beside it.

    Raises:
        UserError: no sidecar, or its audio or tokens are missing, damaged or another clip's.
    """
    import numpy as np
    import soundfile

    from specgen import audio
    from specgen.engine import Request
    from specgen.evaluation.runs import Made

    try:
        sidecar = json.loads(path.read_text(encoding="utf-8"))
        codes = np.load(path.parent / Path(sidecar["tokens"]).name, allow_pickle=False)
        request = Request(sidecar["prompt"], int(sidecar["seed"]), id=path.stem)
        stats, timings = sidecar["stats"], sidecar["timings"]
        _ = stats["acceptance"], stats["acceptance_per_codebook"], stats["tokens_per_pass"]
        _ = timings["audio_seconds_per_second"], sidecar["lossless"]
        wanted = sidecar["tokens_sha256"]
    except OSError as error:
        raise UserError(f"cannot read {error.filename or path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is not a specgen sidecar ({error!r}); give the .json of a clip"
        ) from None
    if codes.ndim != 2 or audio.tokens_sha256(codes) != wanted:
        raise UserError(f"{path}: the tokens beside it are not this clip's; make the clip again")
    sound = next((p for s in SUFFIXES if (p := path.with_suffix(s)).is_file()), None)
    if sound is None:
        raise UserError(f"{path}: there is no audio beside it ({', '.join(SUFFIXES)})")
    try:
        wave, rate = soundfile.read(sound, dtype="float32", always_2d=True)
    except (OSError, soundfile.SoundFileError) as error:
        raise UserError(f"cannot read {sound}: {error}") from None
    return Made(request, codes.astype(np.int64), wave.mean(axis=1), rate, sidecar)
