"""`cclm export`: a Hugging Face folder that works alone, and the proof of it."""

from __future__ import annotations

import argparse
from pathlib import Path

from cclm.cli.say import say
from cclm.errors import ConfigError

DESCRIPTION = "Write a Hugging Face folder, and prove in a fresh process that it works alone."


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `cclm export`."""
    add = parser.add_argument
    add("run", help="a run folder, or one checkpoint inside it; any ZeRO stage, any number of ranks")
    add("--to", required=True, help="the folder to make; replaces an older export only")
    add("--dtype", default="fp32", help="fp32, bf16 or fp16")
    add("--weights", default="last", help="last, or ema: their moving average, if the run kept one")
    add("--shard-size", default="5GB", help="largest size of a file of weights, such as 500MB")
    add(
        "--tolerance",
        type=float,
        help="largest difference allowed, as a share of the largest value; without it: by dtype",
    )


def run(
    run: str,
    to: str,
    dtype: str = "fp32",
    weights: str = "last",
    shard_size: str = "5GB",
    tolerance: float | None = None,
) -> None:
    """Export, print the proof."""
    from cclm.files.atomic import replace_text
    from cclm.hub.export import (
        ExportOptions,
        Weights,
        checkpoint_source,
        export,
        refuse_to_overwrite,
        witness_for,
    )
    from cclm.hub.hub_folder import count_parameters
    from cclm.hub.model_card import model_card
    from cclm.hub.open import is_export, prepare_run
    from cclm.hub.weight_files import DTYPES, parse_size
    from cclm.report.facts import PARITY_NAME, read_facts

    if dtype not in DTYPES:
        raise ConfigError(where="--dtype", expected="fp32, bf16 or fp16", got=repr(dtype), do="Choose one of these.")
    chosen: Weights = "ema" if weights == "ema" else "last"
    if chosen != weights:
        raise ConfigError(where="--weights", expected="last or ema", got=repr(weights), do="Choose one of these.")
    options = ExportOptions(dtype=DTYPES[dtype], shard_bytes=parse_size(shard_size), tolerance=tolerance)
    if is_export(Path(run)):
        raise ConfigError(where=run, expected="a run or a checkpoint", got="an export", do="Copy the folder.")
    refuse_to_overwrite(Path(to))  # before anything long
    prepared = prepare_run(Path(run))
    assert prepared.run_folder is not None, "prepare_run finds runs only"
    facts = read_facts(prepared.run_folder, prepared.checkpoint)
    source = checkpoint_source(prepared.origin, chosen)
    report = export(
        prepared,
        Path(to),
        source=source,
        witness=lambda scratch: witness_for(prepared, source, scratch, chosen),
        card=lambda parity: model_card(facts, parity, count_parameters(prepared.config)),
        options=options,
    )
    replace_text(prepared.run_folder / PARITY_NAME, report.as_json())
    say(f"exported {prepared.origin} to {to}")
    say(f"a fresh process with transformers alone computes the same ({report.reference}):")
    say(report.table())
