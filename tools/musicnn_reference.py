"""What the musicnn package itself says about two made-up clips: tests/evaluation/data/musicnn.json.

    python -m venv other && other/bin/pip install tensorflow-cpu==2.15.1 librosa
    other/bin/pip install --no-deps musicnn==0.1.0
    PYTHONPATH=. other/bin/python tools/musicnn_reference.py > musicnn.json

Needs TensorFlow, so it is run by hand. The clips are `tests.evaluation.clips.chord`.
"""

import contextlib
import json
import sys
import tempfile
from pathlib import Path

import soundfile
from musicnn.extractor import extractor

from tests.evaluation.clips import chord

out = {}
for gain in ("0.05", "0.9"):
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        path = Path(folder) / "clip.wav"
        soundfile.write(path, chord(float(gain)), 16_000, subtype="PCM_16")
        tags, _, layers = extractor(str(path), model="MTT_musicnn", input_length=3)
    out[gain] = {
        "taggram": [round(float(x), 6) for x in tags[0]],
        "penultimate": [round(float(x), 6) for x in layers["penultimate"][0]],
    }
print(json.dumps(out))
