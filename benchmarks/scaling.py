"""What the published recipes would do on 1 to 1,024 GPUs: floors, memory, communication, efficiency. Arithmetic only.

    python -m benchmarks.scaling [--recipe NAME] [--json PATH]

Parameters, FLOPs and bytes are counted from the recipes and the network's own code (no weights, no GPU, a minute of one
core); what a machine does with them is assumed, and the assumptions stand at the top of the output.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.figures import add_json_option, write_figures
from benchmarks.scaling_model import (
    ASSUMPTIONS,
    MovedCounter,
    Ranks,
    ScaledCase,
    exchange_bytes,
    read_published,
    scaled,
    sharding_of,
    step_of,
)
from cclm.costs.network import parameters_by_part
from cclm.files.shipped import CHECKOUT
from cclm.forecast.machines import GPUS, Gpu
from cclm.forecast.memory import memory_of

RECIPES = {"cclm_3m": ("bf16",), "cclm_x2vlm_base": ("fp32", "bf16"), "cclm_x2vlm_large": ("fp32", "bf16")}
"""Name → precisions: the published one, and bf16."""
SIZES = (8, 16, 32, 64, 128, 256, 512, 1024)
USUAL, SHOWN_AT = 8, 64
"""GPUs of the published runs, which efficiency is relative to; GPUs of the table of communication."""
FILES = ("zero3_bf16", "zero3_bf16_64gpus", "zero3_bf16_hpz", "zero2_bf16")
BEST = FILES[1]
"""The file that is shown at the published batch, too."""
Table = list[list[str]]


@dataclass(frozen=True, kw_only=True)
class Speed:
    """A recipe on so many GPUs."""

    gpus: int
    samples_per_s: float
    mfu: float
    efficiency: float
    """Samples a second and GPU, relative to 8 GPUs with the published batch and the same files."""
    seconds: dict[str, float]


def case_of(recipe: str, precision: str, file: str, counter: MovedCounter) -> ScaledCase:
    """Count a recipe in a precision, sharded as a DeepSpeed JSON says."""
    config = read_published(recipe, "--precision", precision)
    sharding = sharding_of(CHECKOUT / "ds_configs" / f"{file}.json", precision)
    return scaled(config, counter, sharding, recipe, file)


def speed_of(case: ScaledCase, gpu: Gpu, count: int, base: float | None = None) -> Speed:
    """Return the speed on `count` GPUs; `base`: samples a second and GPU of efficiency 1."""
    step = step_of(case, gpu, count)
    rate = case.samples / step.total
    return Speed(
        gpus=count,
        samples_per_s=rate,
        mfu=case.flops / count / gpu.peak(case.config.precision) / step.total,
        efficiency=1.0 if base is None else rate / count / base,
        seconds=asdict(step),
    )


def speeds(case: ScaledCase, gpu: Gpu, *, is_raised: bool) -> Iterator[Speed | None]:
    """Yield the speed for each of `SIZES`, at the published batch (None where a rank would have no row), or with as
    many rows a GPU as the published batch gives 8 of them."""
    first = speed_of(case, gpu, USUAL)
    for count in SIZES:
        grown = case.raised(count / USUAL) if is_raised else case
        yield speed_of(grown, gpu, count, first.samples_per_s / USUAL) if grown.fits(count) else None


def markdown(title: str, rows: Table) -> str:
    """Return a table whose first row is its head."""
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([f"{title}\n", lines[0], "|" + "---|" * len(rows[0]), *lines[1:], ""])


def assumptions() -> Table:
    """Return what is assumed."""
    rows = [["assumption", "value", "from"]]
    for gpu in GPUS:
        peaks = f"{gpu.flops['bf16'] / 1e12:g} TFLOP/s bf16, {gpu.flops['fp32'] / 1e12:g} TF32"
        peaks += f", {gpu.hbm_bytes_per_s / 1e12:g} TB/s, NVLink {gpu.nvlink_bytes_per_s / 1e9:g} GB/s"
        rows.append([gpu.name, f"{peaks}, network {gpu.nic_bytes_per_s / 1e9:g} GB/s a GPU, one way", gpu.source])
    return rows + [[name, f"{value:g}", source] for name, (value, source) in ASSUMPTIONS.items()]


def floors(cases: Sequence[ScaledCase]) -> Table:
    """Return FLOPs, bytes and the least time of a step on 8 GPUs, and what is expected of it."""
    head = ["recipe", "precision", "parameters", "PFLOP a step", "TB moved"]
    rows = [head + [f"{gpu.name}: {what}" for gpu in GPUS for what in ("floor ms", "step ms", "samples/s", "MFU")]]
    for case in cases:
        moved = case.moved_bytes
        row = [
            case.name,
            case.config.precision,
            f"{case.num_parameters:,}",
            f"{case.flops / 1e15:.3f}",
            f"{moved / 1e12:.2f}",
        ]
        for gpu in GPUS:
            floor = max(case.flops / gpu.peak(case.config.precision), moved / gpu.hbm_bytes_per_s) / USUAL
            speed = speed_of(case, gpu, USUAL)
            step = sum(speed.seconds.values())
            row += [
                f"{1e3 * floor:.0f}",
                f"{1e3 * step:.0f}",
                f"{speed.samples_per_s:,.0f}",
                f"{100 * speed.mfu:.0f} %",
            ]
        rows.append(row)
    return rows


def memory(cases: Sequence[ScaledCase]) -> Table:
    """Return bytes by part on one of 8 GPUs."""
    head = ["recipe", "precision", "process", "weights", "gradients", "moments", "activations", "blocks computed again"]
    rows = [[*head, "logits, word gradient", "all", "all, blocks computed again"]]
    for case in cases:
        found, again = memory_of(case, USUAL), memory_of(case, USUAL, checkpointing="full")
        gradients = found.gradients + found.buckets
        parts = (found.process, found.weights, gradients, found.moments, found.activations, again.activations)
        sizes = (*parts, found.logits, found.total, again.total)
        rows.append([case.name, case.config.precision, *(f"{size / 1e9:.1f}" for size in sizes)])
    return rows


def communication(cases: Sequence[ScaledCase], gpu: Gpu) -> Table:
    """Return a step's exchanges over 64 GPUs: bytes of all ranks together, and milliseconds."""
    rows = [["recipe", "ZeRO ms, not hidden", "features MB", "ms", "states of a group MB", "ranks of a group", "ms",
             "agreement ms", "data ms", "checkpoint ms", "compute ms"]]  # fmt: skip
    for case in cases:
        step = step_of(case, gpu, SHOWN_AT)
        found = [exchange_bytes(case, one, Ranks(count=SHOWN_AT)) for one in case.exchanges]
        features, states, sharing = (
            sum(one[0] for one in found),
            max(one[1] for one in found),
            max(one[2] for one in found),
        )
        times = (step.agreement, step.data, step.checkpoint, step.compute)
        rows.append([
            case.name, f"{1e3 * step.zero:.1f}", f"{features / 1e6:.1f}", f"{1e3 * step.features:.2f}",
            f"{states / 1e6:.1f}", str(sharing), f"{1e3 * step.states:.2f}", *(f"{1e3 * value:.1f}" for value in times),
        ])  # fmt: skip
    return rows


def efficiency(cases: Sequence[ScaledCase], gpu: Gpu) -> Table:
    """Return efficiency by number of GPUs, at the published batch and with it raised."""
    rows = [["recipe", "DeepSpeed JSON", "batch", *(f"{count:,}" for count in SIZES)]]
    for case in cases:
        for is_raised in (False, True) if case.file == BEST else (True,):
            cells = [
                f"{100 * speed.efficiency:.0f} %" if speed else "–" for speed in speeds(case, gpu, is_raised=is_raised)
            ]
            rows.append([case.name, f"`{case.file}`", "raised" if is_raised else "published", *cells])
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", action="append", choices=list(RECIPES))
    add_json_option(parser)
    options = parser.parse_args(arguments)
    names = options.recipe or list(RECIPES)
    counters = {name: MovedCounter(read_published(name)) for name in names}
    own = [
        case_of(name, precision, f"zero3_{precision}", counters[name]) for name in names for precision in RECIPES[name]
    ]
    half = [case for case in own if case.config.precision == "bf16"]
    sharded = [case_of(name, "bf16", file, counters[name]) for name in names for file in FILES]
    print(markdown("Assumptions", assumptions()))
    print(markdown(f"A step on {USUAL} GPUs at the published batch", floors(own)))
    print(markdown(f"GB on each of {USUAL} GPUs", memory(own)))
    for gpu in GPUS:
        print(
            markdown(
                f"What ranks exchange in a step, {SHOWN_AT} × {gpu.name}, published batch, bf16",
                communication(half, gpu),
            )
        )
        print(markdown(f"Efficiency on {gpu.name}, bf16", efficiency(sharded, gpu)))
    write_figures(options.json, figures(own, sharded))


def figures(own: Sequence[ScaledCase], sharded: Sequence[ScaledCase]) -> dict[str, Any]:
    """Return everything for programs."""
    found: dict[str, Any] = {
        "assumptions": {name: {"value": value, "from": source} for name, (value, source) in ASSUMPTIONS.items()},
        "gpus": {gpu.name: asdict(gpu) for gpu in GPUS},
        "recipes": {},
    }
    for case in own:
        found["recipes"][f"{case.name} {case.config.precision}"] = {
            "parameters": case.num_parameters,
            "parameters_by_part": parameters_by_part(case.counter.model),
            "flops": case.flops,
            "moved_bytes": case.moved_bytes,
            "calls": [asdict(call) for update in case.updates for call in update.calls],
            "memory": {count: asdict(memory_of(case, count)) for count in (1, *SIZES) if case.fits(count)},
        }
    found["scaling"] = [
        {"recipe": case.name, "gpu": gpu.name, "deepspeed": case.file,
         "batch": "raised" if raised else "published",
         "speeds": [asdict(speed) for speed in speeds(case, gpu, is_raised=raised) if speed]}
        for case in sharded for gpu in GPUS for raised in (False, True)
    ]  # fmt: skip
    return found


if __name__ == "__main__":
    main()
