"""Plain decoding at MusicGen small's shape, ms a step far into a piece, beside two other packages.

    PYTHONPATH=. OMP_NUM_THREADS=1 THP_MEM_ALLOC_ENABLE=1 python tools/peers_at_length.py \
        --output docs/benchmarks/peers-at-length.json

SYNTHETIC: random weights of 24 layers, 1024 wide, 20 condition tokens, guidance 3, float32. Each
package decodes with its own `generate`, and what is timed is the way from one one-column pass to
the next, so all that a step needs is in it. A prompt of the wanted length comes first; its one long
pass is not what is measured, so keys and values of random numbers stand in for it, in all of them.
Sides take turns. The floor is the products of a step's weights with two columns and nothing else;
with keys and values: also the products of one column a head with a cache of that length.
Ours is there twice: with weights that are float16 numbers, as checkpoints hold them (packed, see
`specgen.lm.packed`), and with weights that are not.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import os
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from specgen.benchmarking import audiocraft_peer, transformers_peer
from specgen.benchmarking.results import commit, machine_card, versions
from specgen.benchmarking.shapes import WORDS, Shape
from specgen.benchmarking.synthetic import random_model
from specgen.decoding.lane import Role
from specgen.decoding.loop import Piece, capacity, decode_pieces, steps_per_frame
from specgen.decoding.sampling import Sampling
from specgen.lm.model import MusicLM
from specgen.lm.session import LMSession
from specgen.lm.step import product
from specgen.lm.transformer import Block
from specgen.lm.turned import cache_for
from specgen.patterns import PatternSpec

CFG, TOP_K = 3.0, 250
SKIPPED = 5  # first steps of a run, which still warm up
Marks = list[tuple[float, float]]


def mark(marks: Marks) -> None:
    marks.append((time.perf_counter(), time.process_time()))


class Timed:
    """A decoding session that notes when its one-column passes begin and computes no longer ones.

    Args:
        session: with an empty cache, which is filled with random keys and values.
        marks: where the times go.
    """

    def __init__(self, session: LMSession, marks: Marks) -> None:
        self._session, self._marks = session, marks
        with torch.inference_mode():
            for held in itertools.chain.from_iterable(session.cache.layers):
                held.copy_(torch.randn(held.shape[-2:]))  # of every row and head

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def feed(self, tokens: Tensor, starts: Sequence[int]) -> Tensor:
        if tokens.shape[-1] > 1:
            model = self._session.model
            halves = 1 if self._session.guidance is None else 2
            return torch.zeros(halves * len(tokens), tokens.shape[-1], model.config.dim)
        mark(self._marks)
        return self._session.feed(tokens, starts)

    def reread(self, row: int, columns: Tensor, codebook: int) -> Tensor:
        """A close call (one draw in thousands) would read the made-up prompt, in float64."""
        return torch.zeros(self._session.model.config.card, dtype=torch.float64)


def ours(
    model: MusicLM,
    both: Tensor,
    kind: Literal["delay", "flatten"] = "delay",
    guidance: float | None = CFG,
) -> Callable[[int, int], Marks]:
    """specgen's decode loop; what comes back takes the length before and the steps to make."""
    spec = PatternSpec(kind, model.config.codebooks)

    def run(length: int, steps: int) -> Marks:
        marks: Marks = []
        per_frame = steps_per_frame(spec)
        given, frames = length // per_frame, -(-(length + steps) // per_frame)
        with torch.inference_mode():
            session = LMSession(
                model,
                rows=1,
                capacity=capacity(spec, frames),
                condition=both[:1],
                null=both[1:, :1],
                guidance=guidance,
            )
            prompt = torch.randint(model.config.card, (model.config.codebooks, given))
            role = Role(Timed(session, marks), spec)
            list(
                decode_pieces(
                    role, None, [Piece(frames, 1, prompt)], rows=1, sampling=Sampling(1.0, TOP_K)
                )
            )
        return marks

    return run


def audiocraft(model: MusicLM, both: Tensor) -> Callable[[int, int], Marks]:
    """audiocraft's `LMModel.generate` with fused attention, as MusicGen is configured."""
    spec = PatternSpec("delay", model.config.codebooks)
    theirs = audiocraft_peer.build(model, spec, both)
    forward, marks = theirs.forward, []

    def fill(module: nn.Module, length: int) -> None:
        state = module._streaming_state
        for name in ("past_keys", "past_values"):
            if name in state:  # [N, heads, 1, head_dim]
                old = state[name]
                state[name] = torch.randn(*old.shape[:2], length, old.shape[3])
        if "offsets" in state:
            state["offsets"] = torch.full_like(state["offsets"], length)

    def timed(sequence: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if sequence.shape[-1] == 1:
            mark(marks)
            return forward(sequence, *args, **kwargs)
        out = forward(sequence[..., -1:], *args, **kwargs)
        for module in theirs.modules():
            if getattr(module, "_streaming_state", None):
                fill(module, sequence.shape[-1])
        return out

    theirs.forward = timed

    def run(length: int, steps: int) -> Marks:
        marks.clear()
        theirs.generate(
            prompt=torch.randint(model.config.card, (1, model.config.codebooks, length)),
            conditions=audiocraft_peer.described(1),
            max_gen_len=length + steps,
            top_k=min(TOP_K, model.config.card),
            cfg_coef=CFG,
        )
        return list(marks)

    return run


def transformers(model: MusicLM, both: Tensor) -> Callable[[int, int], Marks]:
    """transformers' `MusicgenForCausalLM.generate`."""
    theirs = transformers_peer.build(model)
    forward, marks, K = theirs.forward, [], model.config.codebooks

    @functools.wraps(forward)
    def timed(*args: Any, **kwargs: Any) -> Any:
        mark(marks)
        return forward(*args, **kwargs)

    theirs.forward = timed

    def run(length: int, steps: int) -> Marks:
        from transformers import DynamicCache, EncoderDecoderCache

        marks.clear()
        before = DynamicCache(config=theirs.config)
        for layer in range(model.config.layers):
            shape = 2, model.config.heads, length, model.config.head_dim
            before.update(torch.randn(shape), torch.randn(shape), layer)
        special = model.config.card
        prompt = torch.randint(model.config.card, (K, length))
        theirs.generate(
            torch.cat([torch.full((K, 1), special), prompt], dim=1),
            past_key_values=EncoderDecoderCache(before, DynamicCache(config=theirs.config)),
            encoder_hidden_states=both,
            attention_mask=torch.ones(1, length + 1, dtype=torch.long),
            guidance_scale=CFG,
            max_length=length + steps + 1,
            do_sample=True,
            top_k=min(TOP_K, model.config.card),
            num_return_sequences=1,
            decoder_start_token_id=special,
            pad_token_id=special,
        )
        return list(marks)

    return run


def floor(model: MusicLM, *, cache: bool) -> Callable[[int, int], Marks]:
    """The products of a step's weights, laid out as ours, with two columns; nothing else.

    Args:
        model: packed.
        cache: also read keys and values of the length, by two batched products a layer.
    """
    config = model.config
    blocks = [block for block in model.transformer.blocks if isinstance(block, Block)]
    layers = [
        layer
        for block in blocks
        for layer in (
            block.attention.qkv,
            block.attention.out,
            *((block.cross.q, block.cross.out) if block.cross is not None else ()),
            block.up,
            block.down,
        )
    ]
    heads = [model.heads] if isinstance(model.heads, nn.Linear) else list(model.heads.each)
    products = [product(layer) for layer in [*layers, *heads]]
    narrow, wide = torch.randn(2, config.dim), torch.randn(2, config.ff_dim)
    inputs = [wide if layer in {b.down for b in blocks} else narrow for layer in [*layers, *heads]]
    asked = torch.randn(2 * config.heads, 1, config.head_dim)

    def run(length: int, steps: int) -> Marks:
        marks: Marks = []
        held = []
        if cache:
            kept = cache_for(config, 2, length, model.device, model.dtype)  # laid out as ours
            held = [[half.normal_().flatten(0, 1) for half in layer] for layer in kept.layers]
        with torch.inference_mode():
            for _ in range(steps):
                mark(marks)
                for function, x in zip(products, inputs, strict=True):
                    function(x)
                for keys, values in held:
                    torch.bmm(torch.bmm(asked, keys.transpose(1, 2)), values)
        return marks

    return run


def conditions(dim: int) -> Tensor:
    """A prompt's condition and the null one, `[2, L, dim]`."""
    both = torch.zeros(2, WORDS, dim)
    both[0] = torch.randn(WORDS, dim, generator=torch.Generator().manual_seed(0))
    return both


def weights(shape: str, *, exact: bool) -> MusicLM:
    """Random weights of a delay model; `exact`: float16 numbers, as in checkpoints."""
    model = random_model(Shape.parse(shape), torch.device("cpu"), torch.float32, 0)
    if not exact:
        for value in model.parameters():
            value.mul_(1 + 1e-5)
    return model


def sides(shape: str, both: Tensor) -> dict[str, Callable[[int, int], Marks]]:
    """What takes turns."""
    exact, plain = weights(shape, exact=True), weights(shape, exact=False).pack()
    theirs = {
        "audiocraft": audiocraft(exact, both),
        "transformers": transformers(exact, both),
    }
    packed = exact.pack()  # last: they were given copies
    return {
        **theirs,
        "specgen": ours(packed, both),
        "specgen, weights that are no float16 numbers": ours(plain, both),
        "floor: packed products": floor(packed, cache=False),
        "floor: packed products, keys and values": floor(packed, cache=True),
        "floor: float32 products": floor(plain, cache=False),
        "floor: float32 products, keys and values": floor(plain, cache=True),
    }


def gaps(marks: Marks) -> list[tuple[float, float]]:
    """Seconds from each pass to the next, by the clock and of the process."""
    kept = marks[SKIPPED:]
    return [(b[0] - a[0], b[1] - a[1]) for a, b in itertools.pairwise(kept)]


def measure(shape: str, lengths: Sequence[int], steps: int, rounds: int) -> list[dict[str, Any]]:
    """Rows, one a side and length."""
    running, rows = sides(shape, conditions(Shape.parse(shape).config.dim)), []
    for length in lengths:
        taken: dict[str, list[tuple[float, float]]] = {name: [] for name in running}
        for turn in range(rounds):
            for name in list(running)[:: 1 if turn % 2 == 0 else -1]:
                taken[name] += gaps(running[name](length, steps))
                print(f"{length}: {name}: {1000 * taken[name][-1][1]:.1f} ms", flush=True)
        for name, pairs in taken.items():
            wall, cpu = (list(values) for values in zip(*pairs, strict=True))
            rows.append(
                {
                    "side": name,
                    "length": length,
                    "step_ms": 1000 * statistics.median(wall),
                    "step_cpu_ms": 1000 * statistics.median(cpu),
                    "step_ms_samples": [round(1000 * s, 2) for s in wall],
                    "step_cpu_ms_samples": [round(1000 * s, 2) for s in cpu],
                }
            )
    return rows


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown: each side's step, and ours over it."""
    lines = ["| length | side | ms a step | process ms | times ours |", "|---" * 5 + "|"]
    for row in rows:
        mine = next(r for r in rows if r["side"] == "specgen" and r["length"] == row["length"])
        times = row["step_cpu_ms"] / mine["step_cpu_ms"]
        lines.append(
            f"| {row['length']} | {row['side']} | {row['step_ms']:.1f} | "
            f"{row['step_cpu_ms']:.1f} | {times:.2f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shape", default="small")
    parser.add_argument("--lengths", default="60,1400")
    parser.add_argument("--steps", type=int, default=14, help="of a run")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    before = machine_card(torch.get_num_threads())
    lengths = [int(n) for n in args.lengths.split(",")]
    rows = measure(args.shape, lengths, args.steps, args.rounds)
    found = {
        "schema": 1,
        "synthetic": True,
        "shape": args.shape,
        "guidance": CFG,
        "condition_tokens": WORDS,
        "machine": before,
        "versions": versions(),
        "peers": {"audiocraft": _version("audiocraft"), "transformers": _version("transformers")},
        "commit": commit(),
        "rows": rows,
    }
    print(table(rows))
    if args.output is not None:
        partial = args.output.with_name(args.output.name + ".tmp")
        partial.write_text(json.dumps(found, indent=1) + "\n")
        os.replace(partial, args.output)


def _version(package: str) -> str:
    from importlib.metadata import version

    return version(package)


if __name__ == "__main__":
    main()
