"""Windows of long pieces: every frame is made once, in order, and none sees more than it may."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from specgen.generation import Window, windows


@given(
    st.integers(1, 400),
    st.integers(1, 60),
    st.data(),
)
def test_every_frame_is_made_once(total: int, window: int, data: st.DataObject) -> None:
    stride = data.draw(st.integers(1, window))
    start = data.draw(st.integers(0, total - 1))
    more = data.draw(st.lists(st.integers(1, max(1, total - 1)), max_size=4))
    sections = sorted({0, *(m for m in more if m < total)})
    made = windows(total, window, stride, sections, start)
    assert made[0].start == start and made[-1].end == total
    assert all(a.end == b.start for a, b in itertools.pairwise(made))
    for one in made:
        assert 0 <= one.origin <= one.start < one.end
        assert one.frames <= window
        assert sections[one.section] <= one.start
        following = sections[one.section + 1 :]
        assert not following or one.end <= following[0]
    for one in made[1:]:
        assert one.start - one.origin == min(one.start, window - stride)


def test_as_audiocraft_extends() -> None:
    """30 s windows by 18 s: the second sees the last 12 s of the first."""
    assert windows(70, 30, 18) == [
        Window(0, 0, 30),
        Window(18, 30, 48),
        Window(36, 48, 66),
        Window(54, 66, 70),
    ]


def test_a_short_piece_is_one_window() -> None:
    assert windows(20, 30, 18) == [Window(0, 0, 20)]
    assert windows(30, 30, 18, given=25) == [Window(0, 25, 30)]


def test_a_section_begins_a_window() -> None:
    made = windows(50, 30, 20, sections=(0, 12, 40))
    assert [(one.start, one.end, one.section) for one in made] == [
        (0, 12, 0),
        (12, 32, 1),
        (32, 40, 1),
        (40, 50, 2),
    ]


@pytest.mark.parametrize(
    ("total", "window", "stride", "sections", "start"),
    [
        (10, 5, 0, (0,), 0),
        (10, 5, 6, (0,), 0),
        (10, 5, 3, (1,), 0),
        (10, 5, 3, (0, 10), 0),
        (10, 5, 3, (0, 4, 2), 0),
        (10, 5, 3, (0,), 10),
    ],
)
def test_what_cannot_be_met_is_refused(
    total: int, window: int, stride: int, sections: tuple[int, ...], start: int
) -> None:
    with pytest.raises(ValueError):
        windows(total, window, stride, sections, start)
