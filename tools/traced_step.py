"""What a pass of the embedded models costs call by call, and traced by TorchScript.

    python tools/traced_step.py embedded-delay

A traced pass is one call from Python; where its columns lie stays an argument. Process time of one
thread, sides alternating: the first decile and the median of 300 passes, ms, and what tracing
costs. The caches of the session are constants of the trace, as they could not be in use.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from specgen.checkpoints.base import LMCheckpoint
from specgen.engine import load
from specgen.generation import ConditionedModel
from specgen.lm.cache import Span
from specgen.lm.session import LMSession

PROMPT, FRAMES, START = "a lively jig in D major on the violin", 200, 100


@dataclass
class Place:
    """A `Span` for all rows alike, whose start may be a tensor of the trace."""

    starts: tuple[Tensor, ...]
    size: int
    mask: Tensor | None
    index: None = None

    @property
    def reach(self) -> Tensor:
        return self.starts[0] + self.size

    @property
    def positions(self) -> slice:
        return slice(self.starts[0], self.reach)


class Pass(nn.Module):
    """Columns `[N, K, n]` from a position `[]` on to the logits of the last: `[N, K, card]`."""

    def __init__(self, session: LMSession, rows: int, columns: int) -> None:
        super().__init__()
        self.model, self._session, self._rows, self._columns = session.model, session, rows, columns
        span = Span.of((START,) * rows, columns, session.device, session.model.dtype)
        self._mask = span.mask

    def forward(self, tokens: Tensor, start: Tensor) -> Tensor:
        place = Place((start,) * self._rows, self._columns, self._mask)
        hidden = self.model.finish(self._session._run(self.model.embed(tokens), place))  # type: ignore[arg-type]
        return self.model.all_heads(hidden[:, -1])


def seconds(call: Callable[[], object]) -> float:
    began = time.process_time()
    call()
    return time.process_time() - began


@torch.inference_mode()
def compare(name: str, session: LMSession, rows: int, columns: int) -> None:
    """Print what a pass of some columns costs."""
    eager = Pass(session, rows, columns)
    tokens = torch.randint(0, session.card, (rows, session.model.config.codebooks, columns))
    at = (tokens, torch.tensor(START))
    began = time.process_time()
    traced = torch.jit.trace(eager, at, check_trace=False)
    for _ in range(3):  # the first calls optimise it
        traced(*at)
    cost = time.process_time() - began
    same = torch.equal(traced(*at), eager(*at))
    times = [(seconds(lambda: eager(*at)), seconds(lambda: traced(*at))) for _ in range(300)]
    shown = [sorted(1e3 * t for t in side) for side in zip(*times, strict=True)]
    by_call, at_once = (f"{side[30]:.2f} / {side[150]:.2f}" for side in shown)
    print(
        f"{name}, {columns} columns: call by call {by_call}, traced {at_once} ms, "
        f"{'the same numbers' if same else 'OTHER NUMBERS'}, tracing {cost:.2f} s"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("preset")
    engine = load(parser.parse_args().preset, threads=1)
    warnings.simplefilter("ignore")  # of branches that the trace takes for good
    scale = engine.settings.sampling.cfg
    models: list[tuple[str, LMCheckpoint | None, float | None]] = [
        ("drafter", engine.drafter, scale if engine.settings.drafter_cfg else None),
        ("verifier", engine.verifier, scale),
    ]
    for name, model, guidance in models:
        if model is not None:
            session = ConditionedModel.of(model, [PROMPT], FRAMES, guidance).session
            for columns in (1, 2):
                compare(name, session, 2 if guidance else 1, columns)


if __name__ == "__main__":
    main()
