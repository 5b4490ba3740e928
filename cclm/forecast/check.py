"""`python -m pretrain check RECIPE --world N`: everything that a run would find wrong, and what it will need.

    recipe, overrides ── check_recipe ──► all mistakes at once, or a configuration ── forecast ──► what is printed

On a login node or a laptop: no GPU, no ranks, nothing of the run is written. Mistakes are told before torch is loaded.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from cclm.config import RunConfig
from cclm.errors import ConfigError
from cclm.files.atomic import replace_text
from cclm.files.command_line import Parser, say
from cclm.files.text import duration, table
from cclm.forecast.machines import CPU, GPUS, Gpu
from cclm.recipe.check import check_recipe

if TYPE_CHECKING:
    from cclm.forecast.data import SourceForecast
    from cclm.forecast.needs import Forecast

SHOWN_LANGUAGES = 12


def main(arguments: Sequence[str], command: str, recipes: Path) -> None:
    """Read the command line, and print the forecast. Raise ConfigError with everything that is wrong."""
    parser = Parser(prog=command, description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("recipe", help="a recipe by its name or path; --KEY VALUE behind it as for the run itself")
    parser.add_argument("--world", type=int, default=1, metavar="N", help="ranks, one for each GPU")
    names = [*(gpu.name for gpu in GPUS), CPU]
    parser.add_argument("--gpu", choices=names, help="what the ranks compute on (default: cpu where none is here)")
    parser.add_argument("--mfu", type=float, default=0.35, help="share of the GPUs' peak that a run reaches")
    parser.add_argument("--hash", action="store_true", help="also read every local shard, and compare its SHA-256")
    parser.add_argument(
        "--without-data", action="store_true", help="shard sets and tokenizer are not here: assume them"
    )
    parser.add_argument("--json", type=Path, metavar="PATH", help="also write the figures here")
    options, words = parser.parse_known_args(arguments)
    if options.world < 1 or not 0 < options.mfu <= 1:
        parser.error("--world is at least 1, --mfu a share of 1")
    checked = check_recipe(
        ["--recipe", options.recipe, *words], world_size=options.world, recipes=recipes,
        shards="hashed" if options.hash else "present", files_exist=not options.without_data,
    )  # fmt: skip
    if checked.config.finetune is not None:
        expected, got = "a recipe of pre-training", "one that fine-tunes"
        raise ConfigError(
            where=options.recipe, expected=expected, got=got, do="Start it: `python -m finetune` checks it."
        )
    from cclm.forecast.needs import forecast  # torch

    gpu, has_data = _gpu(options, checked.config), not options.without_data
    notes = list(checked.notes)
    if options.gpu is None and gpu is not None:
        notes.append(f"--gpu is not given: {gpu.name} is assumed")
    found = forecast(checked.config, options.world, gpu, options.mfu, notes, has_data=has_data)
    for line in told(found):
        say(line)
    if options.json is not None:
        replace_text(options.json, json.dumps(asdict(found), indent=1, ensure_ascii=False) + "\n")


def _gpu(options: argparse.Namespace, config: RunConfig) -> Gpu | None:
    """The GPU that is asked for, or one if there is one here; None: a CPU."""
    import torch

    if options.gpu == CPU or (options.gpu is None and (config.device == CPU or not torch.cuda.is_available())):
        return None
    return next((gpu for gpu in GPUS if gpu.name == options.gpu), GPUS[0])


def _gb(size: float) -> str:
    return f"{size / 1e9:,.2f} GB"


def told(found: Forecast) -> Iterator[str]:
    """Yield the forecast in lines for people."""
    engine = "plain engine" if found.stage is None else f"ZeRO stage {found.stage}"
    yield f"run         {found.steps:,} steps on {found.ranks:,} ranks ({found.device}), {engine}, {found.precision}"
    parts = ", ".join(f"{part} {count:,}" for part, count in found.parameters.items())
    yield f"network     {sum(found.parameters.values()):,} parameters, {found.trained:,} trained ({parts})"
    memory = asdict(found.memory)
    yield f"memory      {_gb(found.memory_bytes)} a rank at its peak, about: " + ", ".join(
        f"{part} {size / 1e9:.2f}" for part, size in memory.items() if not isinstance(size, bool)
    )
    disk = found.checkpoints_kept * found.checkpoint_bytes
    yield (
        f"disk        {_gb(found.checkpoint_bytes)} a checkpoint, {found.checkpoints_kept} at most at once: "
        f"{_gb(disk)} ({_gb(found.free_bytes)} are free)"
    )
    time = "not known on a CPU" if found.hours is None else f"{duration(3600 * found.hours)} at MFU {found.mfu:g}"
    yield f"time        {found.flops / 1e12:,.2f} TFLOP a step; {time}"
    rows = [
        (one.view, one.source, f"{one.size:,}", f"{one.drawn:,}", f"{one.epochs:,.2f}", _languages(one))
        for one in found.sources
    ]
    head = ("view", "source", "samples", "read", "epochs", "languages")
    if rows:
        yield table(head, rows, right=head[2:5])
    if found.deepspeed is not None:
        yield f"deepspeed   {json.dumps(found.deepspeed, sort_keys=True)}"
    for note in found.notes:
        yield f"note: {note}"


def _languages(source: SourceForecast) -> str:
    shown = [f"{name} {count:,.0f}" for name, count in list(source.languages.items())[:SHOWN_LANGUAGES]]
    more = len(source.languages) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")
