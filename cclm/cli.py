"""The console script `cclm`: measure, export, import, report, check. A command imports what is heavy when it runs."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cclm.errors import CclmError, ConfigError

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

DEFAULT_TOP_K = 8
"""Candidates that are re-ranked when a dev set for it is given: half a minute for 25 languages on two cores."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; a user's mistake ends with one sentence and exit code 2."""
    parser = make_parser()
    chosen = parser.parse_args(None if arguments is None else list(arguments))
    values = dict(vars(chosen[chosen.command]))
    try:
        if chosen.command == "evaluate":
            run_evaluate(**values)
        elif chosen.command == "export":
            run_export(**values)
        elif chosen.command == "import":
            run_import(**values)
        elif chosen.command == "report":
            run_report(**values)
        else:
            run_verify_ledger(**values)
    except CclmError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0


def make_parser() -> ArgumentParser:
    """Build the command line."""
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(prog="cclm", description="Measure, export and report pre-trained cross-view models.")
    commands = parser.add_subcommands(dest="command")
    commands.add_subcommand("evaluate", evaluate_parser(), help="measure zero-shot retrieval in many languages")
    commands.add_subcommand("export", export_parser(), help="write a Hugging Face folder with its own code")
    commands.add_subcommand("import", import_parser(), help="convert a published file to a Hugging Face folder")
    commands.add_subcommand("report", report_parser(), help="write one self-contained report.html")
    commands.add_subcommand("verify-ledger", ledger_parser(), help="recompute the hash chain of what was trained on")
    return parser


def evaluate_parser() -> ArgumentParser:
    """Options of `cclm evaluate`."""
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(
        description="Zero-shot image-text retrieval on a shard set, in every language of the groups."
    )
    add = parser.add_argument
    add("model", type=str, help="a run folder, a checkpoint inside one, or an exported folder")
    add("--shards", type=str, required=True, help="image-text shard set; a picture's query is its first caption")
    add("--groups", type=str | None, help="YAML file, group: [languages]; without it English alone is measured")
    add(
        "--rerank-top-k",
        type=int | None,
        help="candidates that the fusion encoder orders anew, 0 for none; "
        f"without it: {DEFAULT_TOP_K} with --choose-rerank-on, else none",
    )
    add(
        "--choose-rerank-on",
        type=str | None,
        help="shard set on which the re-ranking weights are chosen, another one than --shards; "
        "without it: matching log-odds + similarity / temperature, as published",
    )
    add(
        "--rerank-groups",
        type=str,
        nargs="+",
        help="with --choose-rerank-on: the groups for which the weights are chosen, each counting the same; "
        "without it: all groups of the file",
    )
    add("--out", type=str | None, help="JSON file for the results; seconds of other stages in it stay")
    add("--gallery", type=str | None, help="JSON file for the report's gallery; without it: gallery.json beside --out")
    add("--batch-size", type=int, default=256, help="pictures, texts or pairs at a time")
    add("--threads", type=int, default=0, help="threads for computing; 0: as many as torch takes")
    return parser


def export_parser() -> ArgumentParser:
    """Options of `cclm export`."""
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(
        description="Write a Hugging Face folder, and prove in a fresh process that it works alone."
    )
    parser.add_argument("run", type=str, help="a run folder, or one checkpoint inside it")
    parser.add_argument("--to", type=str, required=True, help="the folder to make; replaces an older export only")
    parser.add_argument("--dtype", type=str, default="float32", help="float32, bfloat16 or float16")
    parser.add_argument("--tolerance", type=float | None, help="largest difference allowed; without it: by dtype")
    return parser


def import_parser() -> ArgumentParser:
    """Options of `cclm import`."""
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(
        description="Convert a published CCLM file (.th, .pth) to a Hugging Face folder; every key is accounted for."
    )
    add = parser.add_argument
    add("path", type=str | None, nargs="?", help="the file")
    add("--to", type=str | None, help="the folder to make; replaces an older export or import only")
    add("--tokenizer", type=str | None, help="folder with tokenizer.json; with it the folder is complete and is proven")
    add("--image-size", type=int | None, help="pixels; other than the file's: position tables are interpolated")
    add("--text-heads", type=int | None, help="attention heads of the text encoder; without it: of width 64")
    add("--describe", type=str | None, help="only list the keys of a published family, without any file")
    return parser


def report_parser() -> ArgumentParser:
    """Options of `cclm report`."""
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(description="Write one self-contained page about a run: curves, recall, gallery, data.")
    parser.add_argument("run", type=str, help="a run folder")
    parser.add_argument("--out", type=str | None, help="where to write; without it: report.html in the run folder")
    return parser


def ledger_parser() -> ArgumentParser:
    """Options of `cclm verify-ledger`."""
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(
        description="Recompute the hash chain of a run's ledger. Two runs with the same last hash saw the same samples."
    )
    parser.add_argument("run", type=str, help="a run folder")
    return parser


def say(line: str) -> None:
    """Write a line for the user."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def run_evaluate(
    model: str,
    shards: str,
    groups: str | None = None,
    rerank_top_k: int | None = None,
    choose_rerank_on: str | None = None,
    rerank_groups: Sequence[str] | None = None,
    out: str | None = None,
    gallery: str | None = None,
    batch_size: int = 256,
    threads: int = 0,
) -> None:
    """Measure, print the table, write the results."""
    languages = read_groups(Path(groups)) if groups else {"english": ["en"]}
    if rerank_top_k is None:
        rerank_top_k = DEFAULT_TOP_K if choose_rerank_on else 0
    if gallery is None and out is not None:
        gallery = str(Path(out).with_name("gallery.json"))
    import torch

    from cclm.atomic import replace_text
    from cclm.checkpoint.measure import evaluate
    from cclm.checkpoint.open import open_model
    from cclm.evaluate.tables import text_table

    if threads:
        torch.set_num_threads(threads)
    outcome = evaluate(
        open_model(Path(model)),
        Path(shards),
        languages,
        dev_shards=Path(choose_rerank_on) if choose_rerank_on else None,
        rerank_groups=rerank_groups,
        top_k=rerank_top_k,
        batch_size=batch_size,
        on_language=show_progress,
    )
    if sys.stderr.isatty():
        sys.stderr.write("\n")
    say(text_table(outcome.results))
    if out:
        merged = merge_results(outcome.results, read_seconds(Path(out)))
        replace_text(Path(out), json.dumps(merged, ensure_ascii=False, indent=1) + "\n")
    if gallery:
        replace_text(Path(gallery), json.dumps(outcome.gallery, ensure_ascii=False, indent=1) + "\n")


def show_progress(set_name: str, language: str) -> None:
    """Name the language that is done, on a terminal only."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[Kmeasured {set_name}: {language}")
        sys.stderr.flush()


def read_groups(path: Path) -> dict[str, list[str]]:
    """Read a groups file.

    Raises:
        ConfigError: it cannot be read, or is not a mapping of names to lists of languages.
    """
    from cclm.track.reading import read_yaml

    expected = "a YAML mapping from group names to lists of languages (write no and on in quotes)"
    do = "Start from pretrain/demo_groups.yaml."
    content = read_yaml(path, expected=expected, do=do)
    is_groups = isinstance(content, dict) and all(
        isinstance(members, list) and members and all(isinstance(member, str) for member in members)
        for members in content.values()
    )
    if not content or not is_groups:
        raise ConfigError(where=str(path), expected=expected, got="something else", do=do)
    return {str(name): list(members) for name, members in content.items()}


def read_seconds(out: Path) -> dict[str, float]:
    """Return the seconds of other stages that an older results file holds."""
    from cclm.track.reading import read_json

    return dict(read_json(out, {}).get("seconds", {}))


def merge_results(results: dict[str, Any], seconds: dict[str, float]) -> dict[str, Any]:
    """Return `results`, with the seconds of the other stages added."""
    return {**results, "seconds": {**seconds, **results["seconds"]}}


def run_export(run: str, to: str, dtype: str = "float32", tolerance: float | None = None) -> None:
    """Export, print the proof."""
    from cclm.atomic import replace_text
    from cclm.checkpoint.export import TOLERANCE, export
    from cclm.checkpoint.model_card import model_card
    from cclm.checkpoint.open import open_model
    from cclm.track.facts import PARITY_NAME, read_facts

    chosen = next((name for name in TOLERANCE if name == dtype), None)
    if chosen is None:
        raise ConfigError(where="--dtype", expected=" or ".join(TOLERANCE), got=repr(dtype), do="Choose one of these.")
    opened = open_model(Path(run))
    if opened.run_folder is None:
        raise ConfigError(where=run, expected="a run or a checkpoint", got="an export", do="Copy the folder.")
    facts = read_facts(opened.run_folder, opened.checkpoint)
    num_parameters = opened.model.num_parameters()
    report = export(
        opened,
        Path(to),
        card=lambda parity: model_card(facts, parity, num_parameters),
        dtype=chosen,
        tolerance=tolerance,
    )
    replace_text(opened.run_folder / PARITY_NAME, report.as_json())
    say(f"exported {opened.origin} to {to}")
    say(
        f"a fresh process with transformers alone computes the same: max |Δ| {report.max_abs:.1e} "
        f"(images {report.image_features.max_abs:.1e}, texts {report.text_features.max_abs:.1e}, "
        f"matching logits {report.match_logits.max_abs:.1e}; allowed {report.tolerance:g})"
    )


def run_import(
    path: str | None = None,
    to: str | None = None,
    tokenizer: str | None = None,
    image_size: int | None = None,
    text_heads: int | None = None,
    describe: str | None = None,
) -> None:
    """Import and say what became of every key, or describe a family."""
    if describe is not None:
        return say_keys(describe)
    if path is None or to is None:
        raise ConfigError(
            where="cclm import",
            expected="PATH --to DIR, or --describe FAMILY",
            got="neither",
            do="Name the published file and the folder to make.",
        )
    from cclm.checkpoint.import_folder import REPORT_NAME, import_file

    imported = import_file(
        Path(path),
        Path(to),
        tokenizer=Path(tokenizer) if tokenizer else None,
        image_size=image_size,
        text_heads=text_heads,
    )
    say(f"{path}: {imported.title}")
    say(f"{imported.report.summary()}; one by one in {to}/{REPORT_NAME}")
    if imported.parity is None:
        say(f"wrote {to} without tokenizer; give --tokenizer for a complete folder and a proof that it works alone")
    else:
        say(f"wrote {to}; a fresh process computes the same: max |Δ| {imported.parity.max_abs:.1e}")
    return None


def say_keys(family: str) -> None:
    """List every key of a published family: name, shape, dtype, kind."""
    from math import prod

    from cclm.checkpoint.families import FAMILIES
    from cclm.checkpoint.import_cclm import describe

    if family not in FAMILIES:
        raise ConfigError(where="--describe", expected=" or ".join(FAMILIES), got=repr(family), do="Choose one.")
    rows = describe(FAMILIES[family])
    for name, shape, dtype, kind in rows:
        say(f"{name}\t{list(shape)}\t{dtype}\t{kind}")
    num_parameters = sum(prod(shape) for _, shape, _, kind in rows if kind == "param")
    say(f"# {family}: {len(rows)} keys, {num_parameters} parameters (tied counted once)")


def run_report(run: str, out: str | None = None) -> None:
    """Write the page about the newest checkpoint."""
    from cclm.atomic import replace_text
    from cclm.checkpoint.identity import identify_newest
    from cclm.track.report import render
    from cclm.track.report_data import report_data

    path = Path(out) if out else Path(run) / "report.html"
    replace_text(path, render(report_data(Path(run), identify_newest(Path(run)))))
    say(f"wrote {path} ({path.stat().st_size / 1e6:.1f} MB)")


def run_verify_ledger(run: str) -> None:
    """Check the chain, print its end."""
    from cclm.data.ledger import verify_ledger
    from cclm.track.step_lines import StepLines

    path = Path(run) / "ledger.jsonl"
    if not path.is_file():
        raise ConfigError(
            where=run,
            expected="a run folder with ledger.jsonl",
            got="none",
            do="Give the folder that `python -m pretrain` wrote.",
        )
    value, last = verify_ledger(path), StepLines(path).last()
    say(f"{path}: sound, {0 if last is None else last['step'] + 1:,} steps, last hash {value}")


if __name__ == "__main__":
    sys.exit(main())
