"""Presets: which drafter, verifier and codec work together, and how. Loads no torch.

A preset is a YAML file. The project's own lie in `presets/` and are installed with the package; a
user's path works the same. Files may come from outside, so interpolation is refused and every key
and type is checked against the schema below.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from specgen.errors import UserError

# omegaconf and yaml are imported where they are used: `specgen --help` needs neither.

SCHEMA = 1
DTYPES = ("float32", "bfloat16", "float16")
QUANTIZED = ("none", "int8", "fp8")
MISSING = "???"  # omegaconf's mark of a value that has no default
RULES = ("coupled", "mixed", "keep", "rejection")


@dataclass
class VerifierNode:
    """`checkpoint` is `embedded:NAME`, `hub:OWNER/NAME@REVISION`, or a folder, relative to the
    preset's file; `quantize` says in what its weights are kept once they are loaded."""

    checkpoint: str = MISSING
    dtype: str = "float32"
    quantize: str = "none"


@dataclass
class DrafterNode(VerifierNode):
    """`cfg: false` drafts without guidance: half the work, usually fewer accepted."""

    cfg: bool = True


@dataclass
class CodecNode:
    checkpoint: str = MISSING


@dataclass
class SamplingNode:
    """Of both models; `cfg` is the guidance coefficient (1: none)."""

    temperature: float = 1.0
    top_k: int = 250
    top_p: float = 0.0
    cfg: float = 3.0


@dataclass
class SpeculationNode:
    """`draft_frames` is a number or `auto`; `draft_temperatures` has one value a codebook."""

    rule: str = "coupled"
    draft_frames: Any = "auto"
    draft_temperatures: list[float] = field(default_factory=list)


@dataclass
class DurationNode:
    """Seconds. `max` is made at once; longer pieces are made by windows that start `stride` apart
    (left out: 0.6 of `max`)."""

    default: float = 8.0
    max: float = 12.0
    stride: float | None = None


@dataclass
class PresetNode:
    """The schema of a preset file."""

    schema: int = SCHEMA
    description: str = ""
    verifier: VerifierNode = field(default_factory=VerifierNode)
    drafter: DrafterNode | None = None
    codec: CodecNode = field(default_factory=CodecNode)
    sampling: SamplingNode = field(default_factory=SamplingNode)
    speculation: SpeculationNode = field(default_factory=SpeculationNode)
    duration: DurationNode = field(default_factory=DurationNode)


@dataclass(frozen=True)
class Preset:
    """A preset as resolved and checked.

    Attributes:
        name: as the user called it.
        path: the file.
        node: its values.
        sha256: of the resolved values, whatever the file's layout.
    """

    name: str
    path: Path
    node: PresetNode
    sha256: str

    @property
    def drafter(self) -> DrafterNode | None:
        return self.node.drafter

    @property
    def reference(self) -> str:
        """What finds the preset again from any folder: the project's name, or an absolute path."""
        own = self.path.resolve().parent == presets_folder().resolve()
        return self.path.stem if own else str(self.path.resolve())

    @property
    def references(self) -> dict[str, str]:
        """Every checkpoint it names, by its part: verifier, drafter, codec."""
        parts = {"verifier": self.node.verifier, "drafter": self.drafter, "codec": self.node.codec}
        return {role: part.checkpoint for role, part in parts.items() if part is not None}

    def locate(self, reference: str) -> Path | None:
        """The folder a checkpoint reference means; None for one of the hub that is not in the
        local cache. Asks no network."""
        from specgen.checkpoints.registry import locate

        return locate(reference, self.path.parent)

    def folder(self, reference: str) -> Path:
        """The folder a checkpoint reference means. Asks no network.

        Raises:
            UserError: one of the hub that is not in the local cache.
        """
        found = self.locate(reference)
        if found is None:
            name, _, revision = reference.removeprefix("hub:").partition("@")
            pinned = f" --revision {revision}" if revision else ""
            raise UserError(f"{reference} is not here yet: run 'hf download {name}{pinned}'")
        return found

    def fetch(self, reference: str) -> Path:
        """The folder a checkpoint reference means, downloaded if need be.

        Raises:
            UserError: it cannot be had.
        """
        from specgen.checkpoints.registry import locate

        found = locate(reference, self.path.parent, fetch=True)
        assert found is not None
        return found

    def yaml(self) -> str:
        """The resolved preset as YAML."""
        from omegaconf import OmegaConf

        return OmegaConf.to_yaml(OmegaConf.structured(self.node))


def presets_folder() -> Path:
    """Where the project's presets lie: in the wheel, or beside the package in a checkout."""
    package = Path(__file__).parent
    installed = package / "_presets"
    return installed if installed.is_dir() else package.parent / "presets"


def preset_names() -> list[str]:
    """Names of the project's presets."""
    return sorted(path.stem for path in presets_folder().glob("*.yaml"))


def find_preset(name: str) -> Path:
    """The file of a preset given by name or path.

    Raises:
        UserError: there is none; says what there is.
    """
    path = Path(name).expanduser()
    looks_like_path = path.suffix in (".yaml", ".yml") or len(path.parts) > 1
    if looks_like_path:
        if path.is_dir():
            raise UserError(f"preset {name} is a folder; give the YAML file in it")
        if not path.is_file():
            raise UserError(f"preset file {name} does not exist; check the path")
        return path
    known = preset_names()
    if name not in known:
        close = difflib.get_close_matches(name, known, 1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise UserError(
            f"preset {name!r} is unknown; {hint}there are: {', '.join(known)}; "
            "or give the path of a YAML file"
        )
    return presets_folder() / f"{name}.yaml"


def load_preset(name: str) -> Preset:
    """Read and check a preset given by name or path.

    Raises:
        UserError: no such preset, unreadable YAML, unknown keys, wrong types, values out of range.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    from specgen.checkpoints.files import load_yaml

    path = find_preset(name)
    values = load_yaml(path)
    _refuse_interpolation(values, path)
    try:
        merged = OmegaConf.merge(OmegaConf.structured(PresetNode), OmegaConf.create(values))
        node = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        reason = str(error).splitlines()[0].rstrip(".")
        key = getattr(error, "full_key", None)
        at = f" at {key!r}" if key else ""
        raise UserError(f"preset {path}{at}: {reason}; see docs/presets.md for the keys") from None
    assert isinstance(node, PresetNode)
    _check(node, path)
    return Preset(name, path, node, fingerprint(node))


def fingerprint(node: PresetNode) -> str:
    """sha256 of the resolved values that can change the result (the description cannot)."""
    from omegaconf import OmegaConf

    values = OmegaConf.to_container(OmegaConf.structured(node))
    assert isinstance(values, dict)
    values.pop("description", None)
    for role in ("verifier", "drafter"):
        part = values[role]
        if part is not None and part["quantize"] == "none":
            del part["quantize"]  # the hash of a preset from before there was the key
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _refuse_interpolation(value: Any, path: Path) -> None:
    if isinstance(value, dict):
        for key, inner in value.items():
            _refuse_interpolation(key, path)
            _refuse_interpolation(inner, path)
    elif isinstance(value, list):
        for inner in value:
            _refuse_interpolation(inner, path)
    elif isinstance(value, str) and "${" in value:
        raise UserError(f"preset {path}: {value!r} is an interpolation; write the value itself")


def _check(node: PresetNode, path: Path) -> None:
    def bad(what: str) -> UserError:
        return UserError(f"preset {path}: {what}")

    if node.schema != SCHEMA:
        raise bad(f"schema {node.schema} is not {SCHEMA}, the one this version reads")
    for role in ("verifier", "drafter"):
        part = getattr(node, role)
        if part is not None and part.dtype not in DTYPES:
            raise bad(f"{role}.dtype {part.dtype!r} is unknown; known: {', '.join(DTYPES)}")
        if part is not None and part.quantize not in QUANTIZED:
            known = ", ".join(QUANTIZED)
            raise bad(f"{role}.quantize {part.quantize!r} is unknown; known: {known}")
    if node.speculation.rule not in RULES:
        raise bad(
            f"speculation.rule {node.speculation.rule!r} is unknown; known: {', '.join(RULES)}"
        )
    parse_draft_frames(node.speculation.draft_frames, f"preset {path}: speculation.draft_frames")
    if any(not 0 < t < math.inf for t in node.speculation.draft_temperatures):
        raise bad("speculation.draft_temperatures must be positive numbers")
    check_sampling(node.sampling, f"preset {path}: sampling")
    if not 0 < node.duration.default <= node.duration.max < math.inf:
        raise bad("duration needs 0 < default <= max, in seconds")
    if node.duration.stride is not None and not 0 < node.duration.stride <= node.duration.max:
        raise bad("duration.stride must lie above 0 and up to duration.max")


def parse_draft_frames(value: object, where: str) -> float | None:
    """A draft length in frames, or a part of one; None for `auto`.

    Raises:
        UserError: neither `auto`, nor a whole number from 1 to 12, nor less than 1.
    """
    if value == "auto":
        return None
    try:
        frames = float(str(value))
    except ValueError:
        frames = 0.0
    if not (0 < frames < 1 or frames in range(1, 13)):
        raise UserError(
            f"{where} must be auto, a whole number from 1 to 12 or a part of a frame such as 0.5, "
            f"got {value!r}"
        )
    return frames if frames < 1 else int(frames)


def parse_quantize(text: str | None) -> dict[str, str]:
    """How the weights of roles are to be quantised: `drafter=int8`, or both roles by comma.

    Raises:
        UserError: another role or kind, or a role twice.
    """
    found: dict[str, str] = {}
    for part in text.split(",") if text is not None else ():
        role, _, kind = part.strip().partition("=")
        if role not in ("verifier", "drafter") or kind not in QUANTIZED or role in found:
            raise UserError(
                f"--quantize {text!r} is not understood; write drafter=int8, verifier=int8 or "
                f"both with a comma (kinds: {', '.join(QUANTIZED)})"
            )
        found[role] = kind
    return found


def check_sampling(sampling: SamplingNode, where: str) -> None:
    """Refuse sampling values that are out of range.

    Raises:
        UserError: names the value.
    """
    limits = {
        "temperature": (0.0, 100.0),
        "top_k": (0, 1_000_000),
        "top_p": (0.0, 1.0),
        "cfg": (0.0, 100.0),
    }
    for name, (low, high) in limits.items():
        value = getattr(sampling, name)
        if not low <= value <= high:  # false for NaN too
            raise UserError(f"{where}.{name} must lie between {low} and {high}, got {value}")
