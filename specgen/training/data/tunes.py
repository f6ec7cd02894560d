"""Public-domain fiddle tunes as note lists: ABC text of the music21 corpus through abc2midi.

Only O'Neill's, Ryan's Mammoth and Aird's are read; the corpus's other parts are not free enough.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from specgen.errors import UserError
from specgen.training.data.midi import Note, read_notes

BOOKS = {"oneill": "oneills1850", "ryan": "ryansMammoth", "aird": "airdsAirs"}
TICKS_PER_WHOLE = 1920  # abc2midi writes 480 ticks a quarter note
BAR_VELOCITY = 105  # abc2midi's loudness of a bar's first note: it tells where the bars are

# abc2midi 4.84 dies of this tune now and then: left out, so that every build has the same tunes.
_FATAL = {"ryan-MyLoveIsInAmericaReel-1"}

_TONIC = {"C": 0, "D": 2, "E": 4, "F": 5, "G": 7, "A": 9, "B": 11}
_MODES = {"": "major", "maj": "major", "ion": "major", "m": "minor", "min": "minor", "aeo": "minor"}
_MODES |= {"dor": "dorian", "mix": "mixolydian"}
_GENRE_WORDS = (
    ("slip", "slip jig"),
    ("hop jig", "slip jig"),
    ("jig", "jig"),
    ("jigg", "jig"),
    ("gigg", "jig"),
    ("slide", "jig"),
    ("strathspey", "strathspey"),
    ("fling", "strathspey"),
    ("reel", "reel"),
    ("rant", "reel"),
    ("hornpipe", "hornpipe"),
    ("clog", "hornpipe"),
    ("march", "march"),
    ("quick step", "march"),
    ("quickstep", "march"),
    ("waltz", "waltz"),
    ("polka", "polka"),
    ("minuet", "minuet"),
    ("air", "air"),
    ("lament", "air"),
    ("song", "air"),
)


@dataclass(frozen=True)
class Score:
    """A tune as text: what the ABC header says and the cleaned music lines."""

    id: str
    title: str
    genre: str
    metre: tuple[int, int]
    tonic: int  # pitch class, C = 0
    mode: str  # major, minor, dorian, mixolydian
    abc: str  # a tune abc2midi can read, without its X: line


@dataclass(frozen=True)
class Tune:
    """A score with its melody: one voice, repeats played, beginning at a bar line.

    `notes` times are ticks (1920 a whole note) from the first bar line; `bars` whole bars long.
    """

    score: Score
    notes: tuple[Note, ...]
    bar: int  # ticks a bar
    bars: int


def corpus_folder() -> Path:
    """The ABC corpus inside the installed music21 package (found without importing it)."""
    spec = importlib.util.find_spec("music21")
    if spec is None or not spec.submodule_search_locations:
        raise UserError("music21 is not installed: its corpus holds the tunes; pip install music21")
    return Path(spec.submodule_search_locations[0]) / "corpus"


def _metre(text: str) -> tuple[int, int] | None:
    text = text.split("%")[0].strip()
    if text in ("C", "C|", ""):
        return (4, 4)
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    return (int(match[1]), int(match[2])) if match else None


def parse_key(text: str) -> tuple[int, str] | None:
    """Pitch class of the tonic and the mode, of an ABC `K:` field; None if of no mode we use."""
    match = re.match(r"\s*([A-G])([#b]?)\s*([A-Za-z]*)", text.split("%")[0])
    if match is None:
        return None
    word = match[3].lower()
    mode = _MODES.get(word if word == "m" else word[:3])
    if mode is None:
        return None
    shift = {"#": 1, "b": -1, "": 0}[match[2]]
    return (_TONIC[match[1]] + shift) % 12, mode


def genre_of(rhythm: str, title: str, metre: tuple[int, int], chapter: str) -> str:
    """The dance or form: by the R: (or G:) field, the title, the book's chapter, the metre."""
    if metre == (9, 8):
        return "slip jig"
    for text in (rhythm.lower(), title.lower()):
        for word, genre in _GENRE_WORDS:
            if re.search(rf"\b{word}", text):
                # A "Drummond's Reel" in 6/8 or a waltz in 2/4 is a name, not a rhythm.
                if genre in ("jig", "slip jig") and metre[1] != 8:
                    continue
                if genre in ("reel", "hornpipe", "polka", "strathspey") and metre[1] == 8:
                    continue
                if genre in ("waltz", "minuet") and metre not in ((3, 4), (3, 8)):
                    continue
                return genre
    if chapter:
        return chapter
    by_metre = {(6, 8): "jig", (12, 8): "jig", (3, 4): "waltz", (3, 8): "waltz", (2, 4): "polka"}
    return by_metre.get(metre, "reel")


def _clean_music(line: str) -> str:
    """A music line without what only ornaments it: graces, words, bowing, decorations."""
    line = re.sub(r'%.*|"[^"]*"|\{[^}]*\}|![^!]*!|\[[A-Za-z]:[^\]]*\]', "", line)
    return re.sub(r"[H-Yuv~.\\]", "", line).strip()


def _score(book: str, stem: str, defaults: dict[str, str], lines: list[str]) -> Score | None:
    """One tune's lines (from its X: on) to a Score; None for what is out of our scope."""
    head = dict(defaults)
    music: list[str] = []
    in_body = False
    for line in lines:
        field = re.match(r"([A-Za-z]):(.*)", line)
        if field and not re.match(r"[a-zA-Z]:\|", line):
            name, value = field[1], field[2].strip()
            if in_body and name in "MKLV":
                return None  # changes of metre, key or voice within a tune: too rare to follow
            if name != "T" or "T" not in head:  # a second T: is another name of the tune
                head[name] = value
            in_body = in_body or name == "K"
        elif in_body and not line.startswith("%"):
            if re.search(r"\[[MKLV]:", line):
                return None
            music.append(_clean_music(line))
    metre, key = _metre(head.get("M", "")), parse_key(head.get("K", ""))
    if metre is None or key is None or not any(music):
        return None
    title = head.get("T", "untitled").split("--")[0].strip()
    number = re.sub(r"\D", "", head.get("X", "")) or "0"
    rhythm = " ".join(head.get(name, "") for name in "RG")
    chapter = ""
    if book == "oneill":  # it opens with airs and O'Carolan's pieces and closes with marches
        chapter = "air" if int(number) <= 695 else "march" if int(number) > 1800 else ""
    full_title = head.get("T", "")
    unit = head.get("L", "1/8").split("%")[0].strip()
    fields = [f"T:{title}", f"M:{metre[0]}/{metre[1]}", f"L:{unit}", f"K:{head['K']}"]
    return Score(
        id=f"{book}-{stem}-{number}" if book == "ryan" else f"{book}-{number}",
        title=title,
        genre=genre_of(rhythm, full_title, metre, chapter),
        metre=metre,
        tonic=key[0],
        mode=key[1],
        abc="\n".join(fields + [line for line in music if line]) + "\n",
    )


def parse_abc(book: str, stem: str, text: str) -> Iterator[Score]:
    """All usable tunes of one ABC file's text."""
    defaults: dict[str, str] = {}
    tune: list[str] = []
    for line in [*text.splitlines(), ""]:
        line = line.strip()
        if line.startswith("X:") or not line:
            if tune and (score := _score(book, stem, defaults, tune)):
                yield score
            tune = [line] if line else []
        elif tune:
            tune.append(line)
        elif match := re.match(r"([RMLB]):(.*)", line):
            defaults[match[1]] = match[2].strip()


def read_scores(corpus: Path) -> list[Score]:
    """Every usable score of the three books, ordered by book and file, first of equal ids kept."""
    scores: dict[str, Score] = {}
    for book, folder in BOOKS.items():
        for path in sorted((corpus / folder).glob("*.abc")):
            text = path.read_bytes().decode("utf-8", errors="replace")
            for score in parse_abc(book, path.stem, text):
                if score.id not in _FATAL:
                    scores.setdefault(score.id, score)
    return list(scores.values())


def _one_voice(notes: list[Note]) -> list[Note]:
    """The melody: the highest note of each onset, ended by the next onset at the latest."""
    top: dict[int, Note] = {}
    for note in notes:
        if note.start not in top or note.pitch > top[note.start].pitch:
            top[note.start] = note
    line = [top[start] for start in sorted(top)]
    ends = [note.start for note in line[1:]] + [10**9]
    return [
        n._replace(length=min(n.length, end - n.start)) for n, end in zip(line, ends, strict=True)
    ]


def align_bars(notes: list[Note], bar: int, least: int = 8) -> tuple[list[Note], int] | None:
    """Cut a melody to its longest stretch of regular bars: notes from its first bar line, and bars.

    A bar line is where abc2midi plays louder. A bar may begin within a tied note or rest (so the
    shift of an irregular bar is not seen where no later note meets the old grid: in about three
    tunes of a hundred the last bars are askew). None when there are fewer than `least` bars.
    """
    onsets = {note.start for note in notes}
    loud = {note.start for note in notes if note.velocity >= BAR_VELOCITY}
    end = max((note.start + note.length for note in notes), default=0)
    best, start, seen = 0, 0, set[int]()
    for first in sorted(loud):
        if first in seen:
            continue
        at = first
        while at < end and (at in loud or at not in onsets):
            seen.add(at)
            at += bar
        if (at - first) // bar > best:
            best, start = (at - first) // bar, first
    if best < least:
        return None
    stop = start + best * bar
    cut = [
        n._replace(start=n.start - start, length=min(n.length, stop - n.start))
        for n in notes
        if start <= n.start < stop
    ]
    return cut, best


def play(scores: Sequence[Score], batch: int = 200) -> list[Tune]:
    """Melodies of scores by abc2midi, many a process; what it cannot read is left out."""
    if shutil.which("abc2midi") is None:
        raise UserError("abc2midi was not found: apt-get install abcmidi")
    tunes: list[Tune] = []
    for first in range(0, len(scores), batch):
        part = scores[first : first + batch]
        for score, midi in zip(part, _convert(part), strict=True):
            tune = _tune(score, midi) if midi else None
            if tune is not None:
                tunes.append(tune)
    return tunes


def _convert(scores: Sequence[Score]) -> list[bytes]:
    """MIDI files of scores; empty where abc2midi makes none.

    abc2midi 4.84 can die of one tune (a buffer overflow), and the rest of its batch with it: then
    each half is tried by itself, so that only the culprit is lost.
    """
    with tempfile.TemporaryDirectory() as folder:
        text = "\n".join(f"X:{i}\n{score.abc}" for i, score in enumerate(scores, 1))
        (Path(folder) / "t.abc").write_text(text, encoding="utf-8")
        command = ["abc2midi", "t.abc", "-silent", "-NGRA", "-NGUI", "-NFER"]
        done = subprocess.run(command, cwd=folder, capture_output=True, check=False)
        if done.returncode and len(scores) > 1:
            half = len(scores) // 2
            return _convert(scores[:half]) + _convert(scores[half:])
        paths = [Path(folder) / f"t{i}.mid" for i in range(1, len(scores) + 1)]
        return [
            path.read_bytes() if path.exists() and not done.returncode else b"" for path in paths
        ]


def _tune(score: Score, midi: bytes) -> Tune | None:
    division, notes = read_notes(midi)
    if division * 4 != TICKS_PER_WHOLE or not notes:
        return None
    bar = TICKS_PER_WHOLE * score.metre[0] // score.metre[1]
    aligned = align_bars(_one_voice(notes), bar)
    return Tune(score, tuple(aligned[0]), bar, aligned[1]) if aligned else None
