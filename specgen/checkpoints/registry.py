"""Which reader a checkpoint needs, told by what lies in its folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from specgen.checkpoints import hub
from specgen.checkpoints.base import CodecId, LMCheckpoint
from specgen.checkpoints.files import load_yaml
from specgen.errors import UserError

if TYPE_CHECKING:
    import torch

    from specgen.codec.embedded import EmbeddedCodec
    from specgen.codec.encodec import EncodecCodec

EMBEDDED = "embedded:"
NATIVE, TRANSFORMERS, AUDIOCRAFT = "native", "transformers", "audiocraft"
_MARKS = {  # a file that says which format a folder has, the safest first
    "config.yaml": NATIVE,
    "config.json": TRANSFORMERS,
    "state_dict.bin": AUDIOCRAFT,
    "compression_state_dict.bin": AUDIOCRAFT,
}


def locate(reference: str, base: Path = Path(), *, fetch: bool = False) -> Path | None:
    """The folder that a reference means.

    Args:
        reference: `embedded:NAME`, `hub:OWNER/NAME@REVISION`, or a folder.
        base: what a relative folder is relative to.
        fetch: whether a hub reference may be downloaded; if not, only the local cache is looked at,
            and None means that it is not there.

    Raises:
        UserError: no such reference, or a download that fails.
    """
    if reference.startswith(EMBEDDED):
        from specgen.checkpoints.native import embedded_folder

        return embedded_folder(reference.removeprefix(EMBEDDED))
    if reference.startswith(hub.PREFIX):
        wanted = hub.Reference.parse(reference)
        return hub.fetch(wanted) if fetch else hub.cached(wanted)
    path = Path(reference).expanduser()
    return path if path.is_absolute() else base / path


def identify(folder: Path) -> str:
    """The format of a checkpoint folder.

    A folder of transformers whose weights are pickled only is read through audiocraft's export
    where that lies in it too, as in Meta's early repositories.

    Raises:
        UserError: it is no folder, or holds no format that is read; says what it holds.
    """
    if folder.is_file():
        raise UserError(f"{folder} is a file: name the folder that holds the checkpoint")
    if not folder.is_dir():
        raise UserError(f"checkpoint {folder} does not exist: check the path")
    names = sorted(path.name for path in folder.iterdir())
    found = [kind for mark, kind in _MARKS.items() if mark in names]
    safe = any(name.endswith((".safetensors", ".safetensors.index.json")) for name in names)
    if found[:1] == [TRANSFORMERS] and AUDIOCRAFT in found and not safe:
        return AUDIOCRAFT
    if found:
        return found[0]
    trained = [name for name in names if name.endswith(".th")]
    if trained:
        from specgen.checkpoints.pickled import training_checkpoint

        raise training_checkpoint(folder / trained[0])
    held = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "") if names else "nothing"
    raise UserError(
        f"{folder} holds no checkpoint ({held}): there must be config.yaml (specgen's own), "
        "config.json (transformers) or state_dict.bin (audiocraft's export)"
    )


def load_lm(
    folder: Path,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    verifier: LMCheckpoint | None = None,
) -> LMCheckpoint:
    """The language model of a folder of any format; `dtype` None is float32. A drafter in the
    native format may have tables in common with its `verifier` (see `native.load_lm`).

    Raises:
        UserError: see the readers.
    """
    from specgen.checkpoints import audiocraft, huggingface, native

    kind = identify(folder)
    if kind == NATIVE:
        return native.load_lm(folder, device, dtype, verifier)
    readers = {
        TRANSFORMERS: huggingface.load_lm,
        AUDIOCRAFT: audiocraft.load_lm,
    }
    return readers[kind](folder, device, dtype)


def has_codec(folder: Path) -> bool:
    """Whether a checkpoint's folder holds a codec, or names the one it was trained with."""
    kind = identify(folder)
    if kind == NATIVE:
        return (folder / "codec").is_dir()
    return kind == TRANSFORMERS or (folder / "compression_state_dict.bin").is_file()


def load_codec(
    folder: Path, wanted: CodecId | None = None
) -> tuple[EmbeddedCodec | EncodecCodec, CodecId]:
    """The codec of a folder of any format, or in a checkpoint's folder, and which one it is.

    Args:
        wanted: the codec as a language model uses it: its channels and number of codebooks decide
            how a codec of MusicGen is wrapped.

    Raises:
        UserError: see the readers.
    """
    from specgen.checkpoints import audiocraft, huggingface, native
    from specgen.checkpoints.base import codebooks_fingerprint
    from specgen.codec import embedded, encodec

    kind = identify(folder)
    if kind == NATIVE:
        values = load_yaml(folder / "config.yaml")
        if "lm" in values:
            if not (folder / "codec").is_dir():
                raise UserError(
                    f"{folder} is a language model without a codec: name a codec's folder"
                )
            return load_codec(folder / "codec", wanted)
        if values.get("kind") != encodec.KIND:
            return embedded.load_codec(folder), native.codec_id(folder)
        codec = encodec.load(folder)
    elif kind == TRANSFORMERS:
        codec = huggingface.load_codec(folder, wanted)
    else:
        codec = audiocraft.load_codec(folder, wanted)
    tables = [layer.codebook.embed for layer in codec.network.quantizer.layers]
    identity = CodecId(
        codec.sample_rate,
        codec.frame_rate,
        codec.codebooks,
        codec.card,
        codebooks_fingerprint(tables),
        codec.channels,
    )
    return codec, identity
