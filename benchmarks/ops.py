"""What the fused losses save against plain torch: CPU seconds and peak memory of one forward and backward pass.

    python -m benchmarks.ops [--repeats 3] [--threads 1] [--only NAME] [--json PATH]

Each side runs in a process of its own, one after the other in one run, on the same random numbers. Time is the best of
the repeats, in CPU seconds of the process; memory is the peak above what inputs and weights take. Of the masked-LM loss
the weight's gradient, which every form has to make, is left out of the memory.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.figures import add_json_option, write_figures
from cclm.ops.contrastive import contrastive_loss, contrastive_reference
from cclm.ops.linear_cross_entropy import linear_cross_entropy, linear_cross_entropy_reference

WIDTH, CLASSES, SLOTS, ROWS, TEMPERATURE = 256, 250_002, 1024, 4096, 0.05


def masked_lm(is_fused: bool) -> tuple[Callable[[], Tensor], int]:
    """Return the masked-LM loss of 1,024 slots over XLM-R's vocabulary, and the bytes of the weight's gradient."""
    hidden, weight = (torch.randn(size, WIDTH, requires_grad=True) for size in (SLOTS, CLASSES))
    bias, label = torch.zeros(CLASSES, requires_grad=True), torch.randint(0, CLASSES, (SLOTS,))
    loss = linear_cross_entropy if is_fused else linear_cross_entropy_reference
    return lambda: loss(hidden, weight, bias, label, torch.full((SLOTS,), 1 / SLOTS)).total, 4 * CLASSES * WIDTH


def contrastive(is_fused: bool, rows: int | None = None, **form: float) -> tuple[Callable[[], Tensor], int]:
    """Return the contrastive loss of two sets of unit vectors; every fourth shows what another shows."""
    rows = rows or ROWS
    first, second = (functional.normalize(torch.randn(rows, WIDTH)).requires_grad_() for _ in range(2))
    identity, temperature = torch.arange(rows) % (3 * rows // 4), torch.tensor([TEMPERATURE], requires_grad=True)
    loss = contrastive_loss if is_fused else contrastive_reference
    options: dict[str, Any] = {**form, "bias": torch.tensor([form["bias"]])} if "bias" in form else form
    return lambda: loss(first, second, identity, identity, temperature, **options), 0


CASES = {
    "masked_lm": masked_lm,
    "contrastive": contrastive,
    "contrastive_hard": partial(contrastive, hardness=0.25),
    "contrastive_sigmoid": partial(contrastive, bias=-10.0),
    "contrastive_32768": partial(contrastive, rows=32_768),
}
"""Name → maker of a loss, fused or not. What is longer than 16,384 rows has no plain side: it takes 20 GB."""
ONLY_FUSED = {"contrastive_32768"}


def peak_bytes() -> int:
    """Return the most memory that this process has had."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def measure(name: str, is_fused: bool, repeats: int, threads: int) -> tuple[float, float]:
    """Return CPU seconds and MB."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    loss, unavoidable = CASES[name](is_fused)
    small, _ = contrastive(is_fused, 64)
    small().backward()  # type: ignore[no-untyped-call]  # what a first product and a first backward pass take once
    before, best, peak = peak_bytes(), float("inf"), 0
    for _ in range(repeats):
        start = time.process_time()
        loss().backward()  # type: ignore[no-untyped-call]
        best = min(best, time.process_time() - start)
        peak = peak or peak_bytes()  # a second pass adds to gradients that are there
    return best, (peak - before - unavoidable) / 1e6


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", action="append", choices=list(CASES))
    add_json_option(parser)
    arguments = parser.parse_args()
    write_figures(arguments.json, run(arguments.only or CASES, arguments.repeats, arguments.threads))


def run(names: Iterable[str], repeats: int, threads: int) -> dict[str, float]:
    """Measure some cases; print the table and return its figures."""
    print(f"{'loss':20} {'side':8} {'CPU s':>8} {'peak MB':>9}")
    figures: dict[str, float] = {}
    for name in names:
        found = {}
        for side in ("plain", "fused"):
            if side == "plain" and name in ONLY_FUSED:
                continue
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                found[side] = pool.apply(measure, (name, side == "fused", repeats, threads))
            print(f"{name:20} {side:8} {found[side][0]:8.2f} {found[side][1]:9.1f}", flush=True)
            figures |= {f"{name}_{side}_cpu_s": found[side][0], f"{name}_{side}_mb": found[side][1]}
        if len(found) == 2:
            speedup, memory = found["plain"][0] / found["fused"][0], found["fused"][1] / found["plain"][1]
            print(f"{name:20} {'ratio':8} {speedup:7.2f}x {memory:8.3f}x", flush=True)
            figures |= {f"{name}_speedup": speedup, f"{name}_memory_ratio": memory}
    return figures


if __name__ == "__main__":
    main()
