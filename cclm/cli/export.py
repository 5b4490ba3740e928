"""`cclm export`: a Hugging Face folder that works alone, as a fresh process checks."""

from __future__ import annotations

import argparse
from pathlib import Path

from cclm.cli.say import add_command, say
from cclm.errors import ConfigError
from cclm.files.command_line import Commands


def add_to(commands: Commands) -> None:
    """Add `export`."""
    add = add_command(
        commands,
        "export",
        run,
        "write a Hugging Face folder with its own code, and check in a fresh process that it works alone",
    )
    add(
        "run_folder",
        metavar="run",
        type=Path,
        help="a run folder, or one checkpoint inside it",
    )
    add("--to", type=Path, required=True, help="the folder to make; replaces an older export only")
    add("--dtype", default="fp32", help="fp32, bf16 or fp16")
    add("--weights", default="last", help="last, or ema: their moving average, if the run kept one")
    add("--shard-size", default="5GB", help="largest size of a file of weights, such as 500MB")
    add(
        "--tolerance",
        type=float,
        help="largest difference, as a share of the largest value; without it: by dtype",
    )


def run(options: argparse.Namespace) -> None:
    """Export, print the parity report."""
    from cclm.files.atomic import replace_text
    from cclm.hub.export import Weights, check_target, checkpoint_source, export
    from cclm.hub.model_card import model_card
    from cclm.hub.open import is_export, prepare_run
    from cclm.hub.weight_files import DTYPES, parse_size
    from cclm.pretrained.import_cclm import meta_model
    from cclm.report.facts import PARITY_NAME, read_facts

    dtype, to = options.dtype, options.to
    if dtype not in DTYPES:
        raise ConfigError(where="--dtype", expected="fp32, bf16 or fp16", got=repr(dtype), do="Choose one of these.")
    weights: Weights = options.weights
    if weights not in ("last", "ema"):
        raise ConfigError(where="--weights", expected="last or ema", got=repr(weights), do="Choose one of these.")
    shard_bytes = parse_size(options.shard_size)
    if is_export(options.run_folder):
        where = str(options.run_folder)
        raise ConfigError(where=where, expected="a run or a checkpoint", got="an export", do="Copy the folder.")
    check_target(to)  # before anything long
    prepared = prepare_run(options.run_folder)
    assert prepared.run_folder is not None, "prepare_run finds runs only"
    facts = read_facts(prepared.run_folder, prepared.checkpoint)
    num_parameters = int(meta_model(prepared.config.options()).num_parameters())
    source = checkpoint_source(prepared.origin, weights)
    report = export(
        prepared,
        to,
        source=source,
        papers=lambda parity: {"README.md": model_card(facts, parity, num_parameters)},
        weights=weights,
        dtype=DTYPES[dtype],
        shard_bytes=shard_bytes,
        tolerance=options.tolerance,
    )
    say(f"exported {prepared.origin} to {to}")
    try:
        replace_text(prepared.run_folder / PARITY_NAME, report.as_json())
    except OSError as error:  # a run that may only be read: `cclm report` will not know of this export
        say(f"{prepared.run_folder} cannot be written ({error.strerror}): the report is in {to / PARITY_NAME} only")
    say(f"a fresh process with transformers alone computes the same ({report.reference}):")
    say(report.table())
