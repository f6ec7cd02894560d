"""Options that change what is made, as the command line and the rows of a prompt file give them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from specgen import presets
from specgen.errors import UserError

if TYPE_CHECKING:
    from specgen.requests import Settings

CHANGES = (
    "lossy",
    "rule",
    "draft_frames",
    "draft_temperature",
    "drafter_cfg",
    "temperature",
    "top_k",
    "top_p",
    "cfg",
)


@dataclass(frozen=True)
class Recipe:
    """Which models and settings make a clip: rows of one recipe can share a batch.

    Attributes:
        preset: a name or path.
        draft: False leaves the drafter out.
        dtype: of the models; None is the preset's.
        changes: pairs of `CHANGES` and values, sorted.
        allow_biased: accept a rule that changes the distribution.
        quantize: of the models' weights, as `specgen.load` takes it.
    """

    preset: str
    draft: bool = True
    dtype: str | None = None
    changes: tuple[tuple[str, Any], ...] = ()
    allow_biased: bool = False
    quantize: str | None = None

    def varied(self, options: Mapping[str, Any]) -> Recipe:
        """This recipe with a row's options."""
        changes = {**dict(self.changes), **{k: options[k] for k in CHANGES if k in options}}
        return replace(
            self,
            preset=options.get("preset", self.preset),
            draft=options.get("draft", self.draft),
            dtype=options.get("dtype", self.dtype),
            changes=tuple(sorted(changes.items())),
        )

    def settings(self) -> Settings:
        """What the preset says, with the changes.

        Raises:
            UserError: no such preset, or a value that cannot be.
        """
        from specgen.requests import Settings

        settings = Settings.of(presets.load_preset(self.preset))
        return changed(settings, dict(self.changes), allow_biased=self.allow_biased)


def changed(settings: Settings, changes: Mapping[str, Any], *, allow_biased: bool) -> Settings:
    """Settings with what a user gave; None is not given.

    Raises:
        UserError: a value that cannot be.
    """
    given = {key: value for key, value in changes.items() if value is not None}
    sampling = {k: given[k] for k in ("temperature", "top_k", "top_p", "cfg") if k in given}
    settings = replace(
        settings, sampling=replace(settings.sampling, **sampling), allow_biased=allow_biased
    )
    if "rule" in given:
        if given["rule"] not in presets.RULES:
            known = ", ".join(presets.RULES)
            raise UserError(f"--rule {given['rule']!r} is unknown; use one of {known}")
        settings = replace(settings, rule=given["rule"])
    if "draft_frames" in given:
        frames = presets.parse_draft_frames(given["draft_frames"], "--draft-frames")
        settings = replace(settings, draft_frames=frames)
    if "draft_temperature" in given:
        settings = replace(settings, draft_temperatures=_numbers(given["draft_temperature"]))
    if "drafter_cfg" in given:
        settings = replace(settings, drafter_cfg=bool(given["drafter_cfg"]))
    if "lossy" in given:
        from specgen.requests import parse_lossy

        settings = replace(settings, lossy=parse_lossy(given["lossy"]))
    return settings


def _numbers(text: str) -> tuple[float, ...]:
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = ()
    if not values or any(not 0 < value < float("inf") for value in values):
        raise UserError(
            f"--draft-temperature needs positive numbers such as 1,0.3,0.5,0.7, got {text!r}"
        )
    return values
