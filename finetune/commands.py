"""`python -m finetune table …`, `forgetting …`, `gallery …`, `data check …`, `assign …`: what needs no model.

python -m finetune table runs/xvnli-*  --baseline mine-small --format latex --to table.tex
python -m finetune forgetting runs/before runs/retrieval-*
python -m finetune gallery runs/xvnli --to gallery.html
python -m finetune data check xvnli data/ --images data/flickr30k-images
python -m finetune assign data/cc3m --features data/cc3m-embedded --to data/assignments.jsonl
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from cclm.annotations.check import check_folder, report_text
from cclm.annotations.layouts import find_files
from cclm.annotations.questions import read_cvqa, unpack_images
from cclm.annotations.tasks import TASKS
from cclm.errors import ConfigError
from cclm.evaluate.benchmark_table import BenchmarkTable, Choice, Found, build_table, tables_in
from cclm.evaluate.forgetting import changes, render_changes
from cclm.evaluate.results import derive, results_in
from cclm.evaluate.table_text import KINDS, below, render, to_json
from cclm.files.atomic import replace_text
from cclm.files.command_line import Parser, add_command, positive, say
from cclm.files.reading import read_json
from cclm.files.text import html_page
from cclm.shardfile.schema import MANIFEST_NAME

COMMANDS: Final = ("table", "forgetting", "gallery", "data", "assign")
"""First words that are commands, and no tasks."""
_IMAGES: Final = ("images", "flickr30k-images")
"""What the recipes call the folder of images, in the data folder; here also in a data set's own."""
_TOLERANCE: Final = 1e-9
"""Points; a mean of the same scores in the same order differs by nothing, a file written elsewhere by rounding."""


def run_command(words: Sequence[str]) -> None:
    """Run one of `COMMANDS`.

    Raises:
        ConfigError: also of a data folder in which something is missing or broken, after the report.
    """
    parser = Parser(prog="python -m finetune", description="Tables of results, and checks of data folders.")
    commands = parser.add_subparsers(dest="command", required=True)
    add = add_command(commands, "table", _print_tables)
    add("results", type=Path, nargs="+", help="run folders (every results.jsonl below them), or such files")
    add("--task", default="", help="only this task")
    add("--metric", nargs="+", default=(), help="only these metrics")
    add("--split", default="", help="only splits whose names begin so")
    add("--baseline", default="", help="MODEL, under the same protocol, or MODEL:PROTOCOL: what others are compared to")
    add("--format", nargs="+", default=["terminal"], choices=KINDS, help="what to write; of several each has its --to")
    add("--to", type=Path, nargs="+", default=(), help="files to write, in place of the terminal")
    add("--no-published", action="store_true", help="leave the published rows out")
    add("--include-unverified", action="store_true", help="also published rows that were not checked at their source")
    add("--leakage", type=Path, nargs="+", default=(), help="files of `python -m shards leakage … --json`, said below")
    add("--verify", action="store_true", help="first derive every number again from its kept predictions")
    add = add_command(commands, "forgetting", _print_changes)
    add(
        "before",
        type=Path,
        help="a run folder: what was measured before fine-tuning (finetune.epochs 0), or before more",
    )
    add("after", type=Path, nargs="+", help="run folders: what was measured after it, on the same test sets")
    add("--metric", default="", help="such as t2i_r10; without it: the first one of single rows of each task")
    add("--format", default="terminal", choices=KINDS, help="what to write")
    add("--to", type=Path, help="a file to write, in place of the terminal")
    add = add_command(commands, "gallery", _write_gallery)
    add("run_folder", metavar="run", type=Path, help="the folder of a run that has evaluated")
    add("--to", type=Path, help="the page to write; without it: gallery.html in the run folder")
    add("--number", type=positive, default=4, help="answers of each kind and language")
    add = add_command(commands, "data", _data)
    add("action", choices=["check", "unpack"], help="check: what is there, what is missing; unpack: the images of CVQA")
    add("task", choices=list(TASKS), help="whose data it is")
    add("folder", type=Path, help="the data folder")
    known = " or ".join(_IMAGES)
    add("--images", type=Path, nargs="+", help=f"folders of image files, or (unpack) for them; else: {known} in FOLDER")
    add = add_command(commands, "assign", _assign)
    add("shards", type=Path, help="an image-text shard set, for MaRVL's domain pre-training (recipe marvl_domain)")
    add("--to", type=Path, required=True, help="the file of rows to write")
    add("--features", type=Path, help="what `cclm embed` wrote of it: similar images are drawn; without: any")
    add("--languages", nargs="+", default=(), help="of captions; without: each image's are alike")
    add("--seed", type=int, default=42, help="of all draws")
    options = parser.parse(words)
    options.run(options)


def _print_tables(options: argparse.Namespace) -> None:
    """Print tables of stored results, per language and on average, published rows beside."""
    targets = options.to or [None]
    if len(options.format) != len(targets):
        got, do = f"{len(options.format)} formats, {len(options.to)} files", "Name a file for each."
        raise ConfigError(where="--to", expected="as many files as formats", got=got, do=do)
    found = results_in(options.results)
    chosen = [one for one in tables_in(found) if _is_wanted(one, options)]
    if not chosen:
        got = ", ".join(f"{one.task} {one.metric} {one.split}" for one in tables_in(found))
        raise ConfigError(expected="results of this task, metric and split", got=got, do="Name one of those.")
    if options.verify:
        say(f"{_verified(found)} numbers derived again from their predictions, all the same")
    models = (options.baseline, options.baseline.rpartition(":")[0])
    with_baseline = {choice for one in found if one[1].model in models for choice in tables_in([one])}
    tables = [
        build_table(
            found,
            choice,
            baseline=options.baseline if choice in with_baseline or not with_baseline else "",
            with_published=not options.no_published,
            include_unverified=options.include_unverified,
        )
        for choice in chosen
    ]
    lines = list(_leaks([one for one in found if tables_in([one])[0] in chosen], options.leakage))
    for kind, path in zip(options.format, targets, strict=True):
        _give(_text(tables, kind, lines if options.leakage else ()), path)


def _leaks(found: Sequence[Found], paths: Sequence[Path]) -> Iterator[str]:
    """Yield what was counted of the measured files, known by their hashes, in the data that were trained on.

    Of several files those in the language count (STAIR's descriptions, not Karpathy's list of the same images); they
    hold different sentences about the same images.

    Raises:
        ConfigError: there is no such file of counts.
    """
    if missing := [str(path) for path in paths if not path.is_file()]:
        do = "Correct the path; `python -m shards leakage … --json FILE` writes it."
        raise ConfigError(where="--leakage", expected="a file of counts", got="none at " + ", ".join(missing), do=do)
    counted = {one["sha256"]: one for path in paths for one in read_json(path, {}).get("files", ())}
    named = {(one.task, one.split, one.language, one.data_hashes or (one.data_sha256,)) for _, one in found}
    for task, split, language, hashes in sorted(named):
        name, files = f"{task} {split} in {language}", [counted[one] for one in hashes if one in counted]
        if len(hashes) > 1:
            files = [one for one in files if one["language"] == language]
        if not files:
            yield f"{name}: not looked for in the training data"
            continue
        found_texts, texts = (sum(one[key] for one in files) for key in ("found_texts", "texts"))
        found_images, images = (max(one[key] for one in files) for key in ("found_images", "images"))
        of_images = f"{found_images:,} of {images:,} images" if images else "images not compared"
        yield f"{name}: {found_texts:,} of {texts:,} sentences, {of_images} in the training data"


def _print_changes(options: argparse.Namespace) -> None:
    """Print what fine-tuning changed in each language: before, after, and whether it is more than luck."""
    found = changes(results_in([options.before]), results_in(options.after), options.metric)
    text = render_changes(found, options.format)
    _give(html_page(text, "Before and after fine-tuning") if options.format == "html" else text, options.to)


def _write_gallery(options: argparse.Namespace) -> None:
    """Write a page: each language's best, worst and most surprising answers with images; what is taken for what."""
    from finetune.gallery import answers_of, gallery_page

    path = options.to or options.run_folder / "gallery.html"
    replace_text(path, gallery_page(answers_of(options.run_folder), options.number))
    say(f"written: {path} ({path.stat().st_size / 1e6:.1f} MB)")


def _give(text: str, path: Path | None) -> None:
    if path is None:
        return say(text)
    replace_text(path, text + "\n")
    return say(f"written: {path}")


def _is_wanted(choice: Choice, options: argparse.Namespace) -> bool:
    is_named = options.task in ("", choice.task) and (not options.metric or choice.metric in options.metric)
    return is_named and choice.split.startswith(options.split)


def _text(tables: Sequence[BenchmarkTable], kind: str, leaks: Sequence[str]) -> str:
    """Return the tables, and below them what was found of the test files in the training data."""
    if leaks and kind in ("json", "csv"):
        do = "Leave --leakage out, or choose another --format."
        raise ConfigError(where="--leakage", expected="a format with notes below the tables", got=kind, do=do)
    if kind == "json":
        return json.dumps([to_json(table) for table in tables], ensure_ascii=False, indent=1)
    if kind == "csv" and len(tables) > 1:
        got = ", ".join(table.title for table in tables)
        raise ConfigError(expected="one table in a CSV file", got=got, do="Choose one with --task, --metric, --split.")
    text = "\n\n".join(render(table, kind) for table in tables) + below(leaks, kind)
    return html_page(text, "Results") if kind == "html" else text


def _verified(found: Sequence[Found]) -> int:
    """Return how many results were derived again (ConfigError: one gives another number, or has no predictions)."""
    for folder, result in found:
        value = derive(result, folder)
        if abs(value - result.value) > _TOLERANCE:
            where = f"{result.model}, {result.task} {result.metric} in {result.language}, seed {result.seed}"
            got, do = f"{value:.4f} from its predictions", "Evaluate again."
            raise ConfigError(where=where, expected=f"{result.value:.4f}", got=got, do=do)
    return len(found)


def _data(options: argparse.Namespace) -> None:
    (_check_data if options.action == "check" else _unpack)(options)


def _unpack(options: argparse.Namespace) -> None:
    """Write the images that stand in annotation files themselves into a folder, where rows look for them."""
    files = {file.path: None for file in find_files(TASKS[options.task], options.folder) if file.kind.read is read_cvqa}
    if not files:
        do = "Fetch CVQA; other sets' images are files."
        raise ConfigError(where=str(options.folder), expected="a file with images in it", got="none", do=do)
    folder = options.images[0] if options.images else options.folder / _IMAGES[0]
    say(f"{sum(unpack_images(path, folder) for path in files)} images written to {folder}")


def _assign(options: argparse.Namespace) -> None:
    """Write for each image a row that asks which of two images its caption belongs to."""
    from finetune.assignments import write_assignments

    count = write_assignments(
        options.shards, options.features, options.to, languages=options.languages, seed=options.seed
    )
    say(f"written: {options.to} ({count:,} captions)")


def _check_data(options: argparse.Namespace) -> None:
    """Say which files of a task a folder has, what is missing, where it is published, and what is broken."""
    images = options.images or _known_images(options.task, options.folder)
    for folder in images:
        if not _holds_files(folder):
            got, do = "a shard set" if folder.is_dir() else "no such folder", "Correct the path, or leave --images out."
            raise ConfigError(where=str(folder), expected="a folder of image files", got=got, do=do)
    report = check_folder(options.task, options.folder, images)
    say(report_text(report))
    if not report.is_complete:
        expected, do = f"all that zero-shot {options.task} needs, whole and sound", "Fetch what is listed above."
        raise ConfigError(where=str(options.folder), expected=expected, got="a folder that is not complete", do=do)


def _known_images(task: str, folder: Path) -> list[Path]:
    own = (folder / name for data_set in TASKS[task] for name in data_set.folders)
    return [found for base in (folder, *own) for name in _IMAGES if _holds_files(found := base / name)]


def _holds_files(images: Path) -> bool:
    return images.is_dir() and not (images / MANIFEST_NAME).is_file()
