"""Pieces longer than a model was made for: windows that overlap, each going on from the last.

audiocraft makes long pieces the same way (`MusicGen._generate_tokens`): a first window of the
model's full length, then windows that start `stride` frames later, whose first tokens are those the
window before has made. Positions start over in every window, so its model never sees a place it was
not trained on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Window:
    """Frames `[start, end)` of a piece are made here, seeing those from `origin` on.

    Attributes:
        section: which of the piece's prompts is followed.
    """

    origin: int
    start: int
    end: int
    section: int = 0

    @property
    def frames(self) -> int:
        return self.end - self.origin


def windows(
    total: int, window: int, stride: int, sections: Sequence[int] = (0,), given: int = 0
) -> list[Window]:
    """Windows that make `total` frames.

    Args:
        total: frames of the piece.
        window: longest that a model makes at once.
        stride: frames that a window adds to the one before; `window - stride` are seen again.
        sections: first frame of each prompt, rising, the first at 0; a section begins a window.
        given: frames that are there from the start (a continuation).

    Raises:
        ValueError: lengths that cannot be met.
    """
    if not 0 < stride <= window or not 0 <= given < total:
        raise ValueError(f"no windows of {window} frames by {stride} make {total} after {given}")
    if list(sections) != sorted(set(sections)) or sections[0] != 0 or sections[-1] >= total:
        raise ValueError(f"sections must rise from 0 to below {total}, got {list(sections)}")
    made: list[Window] = []
    at = given
    while at < total:
        section = max(i for i, first in enumerate(sections) if first <= at)
        ends = sections[section + 1] if section + 1 < len(sections) else total
        seen = at if not made and at < window else min(at, window - stride)
        end = min(at - seen + window, ends)
        made.append(Window(at - seen, at, end, section))
        at = end
    return made
