"""`cclm evaluate`, `report` and `verify-ledger`: what is known of a run; `doctor`: what would compute one here."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cclm.errors import ConfigError
from cclm.files.atomic import make_folder, replace_text
from cclm.files.command_line import Commands, add_command, not_negative, positive, say
from cclm.files.reading import read_json, read_typed
from cclm.files.text import table
from cclm.types import Language

DEFAULT_TOP_K = 8
"""Candidates that are re-ranked when a dev set for it is given: half a minute for 25 languages on two cores."""


def add_to(commands: Commands) -> None:
    """Add these commands."""
    add = add_command(commands, "evaluate", evaluate)
    add("model", type=Path, help="a run folder, a checkpoint inside one, or an exported folder")
    add("--shards", type=Path, required=True, help="image-text shard set; an image's query is its first caption")
    add("--groups", type=Path, help="YAML file, group: [languages]; without it English alone is measured")
    add(
        "--rerank-top-k",
        type=not_negative,
        help="candidates that the fusion encoder orders anew, 0 for none; "
        f"without it: {DEFAULT_TOP_K} with --choose-rerank-on, else none",
    )
    add(
        "--choose-rerank-on",
        type=Path,
        help="shard set on which the re-ranking weights are chosen, another one than --shards; "
        "without it: matching log-odds + similarity / temperature",
    )
    add(
        "--rerank-groups",
        nargs="+",
        help="with --choose-rerank-on: the groups for which the weights are chosen, each counting the same; "
        "without it: all groups of the file",
    )
    add("--out", type=Path, help="JSON file for the results; seconds of other stages in it stay")
    add("--gallery", type=Path, help="JSON file for the report's gallery; without it: gallery.json beside --out")
    add("--batch-size", type=positive, default=256, help="images, texts or pairs at a time")
    add("--threads", type=not_negative, default=0, help="threads for computing; 0: as many as torch takes")

    add = add_command(commands, "report", report)
    add("run_folder", metavar="run", type=Path, help="a run folder")
    add("--out", type=Path, help="where to write; without it: report.html in the run folder")

    add = add_command(commands, "verify-ledger", verify)
    add("run_folder", metavar="run", type=Path, help="a run folder")

    add = add_command(commands, "doctor", diagnose)
    add("--device", default="auto", help="auto (a GPU if there is one), cpu or cuda")
    add("--stage", type=int, default=3, help="ZeRO stage of the run")


def evaluate(options: argparse.Namespace) -> None:
    """Measure zero-shot retrieval on an image-text shard set, by language."""
    groups = read_groups(options.groups) if options.groups else {"english": ["en"]}
    top_k = options.rerank_top_k
    if top_k is None:
        top_k = DEFAULT_TOP_K if options.choose_rerank_on else 0
    gallery = options.gallery or (options.out.with_name("gallery.json") if options.out else None)
    import torch

    from cclm.evaluate.tables import text_table
    from cclm.hub.open import open_model
    from cclm.retrieve.measure import evaluate as measure

    for path in (options.out, gallery):  # what cannot be read or written is told before an hour of measuring
        if path:
            make_folder(path.parent)
    seconds = read_seconds(options.out) if options.out else {}
    if options.threads:
        torch.set_num_threads(options.threads)
    results, shown = measure(
        open_model(options.model),
        options.shards,
        groups,
        dev_shards=options.choose_rerank_on,
        rerank_groups=options.rerank_groups,
        top_k=top_k,
        batch_size=options.batch_size,
        on_language=show_progress,
    )
    if sys.stderr.isatty():
        sys.stderr.write("\n")
    say(text_table(results))
    if options.out:
        results["seconds"] = {**seconds, **results["seconds"]}
        replace_text(options.out, json.dumps(results, ensure_ascii=False, indent=1) + "\n")
    if gallery:
        replace_text(gallery, json.dumps(shown, ensure_ascii=False, indent=1) + "\n")


def show_progress(set_name: str, language: str) -> None:
    """Name the language that is done, on a terminal only."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[Kmeasured {set_name}: {language}")
        sys.stderr.flush()


def read_groups(path: Path) -> dict[str, list[str]]:
    """Read a file of groups; raise ConfigError if it is not a mapping of names to lists of languages."""
    expected, do = "a mapping from names of groups to lists of languages", "Start from pretrain/demo_groups.yaml."
    kind: Any = Mapping[str, tuple[Language, ...]]
    groups: Mapping[str, tuple[str, ...]] = read_typed(kind, path, expected=expected, do=do)
    empty = [name for name, members in groups.items() if not members]
    if empty or not groups:
        got = f"no language in {', '.join(empty)}" if empty else "no group"
        raise ConfigError(where=str(path), expected=expected, got=got, do=do)
    return {name: list(members) for name, members in groups.items()}


def read_seconds(out: Path) -> dict[str, float]:
    """Return the seconds of other stages that an older results file holds."""
    return dict(read_json(out, {}).get("seconds", {}))


def report(options: argparse.Namespace) -> None:
    """Write one self-contained page about a run."""
    from cclm.report.page import report_page
    from cclm.run.checkpoints import identify_newest
    from cclm.run.progress import read_progress

    folder = options.run_folder
    path = options.out or folder / "report.html"
    replace_text(path, report_page(folder, identify_newest(folder)))
    for note in read_progress(folder).notes:
        say(f"note: {note}")
    say(f"wrote {path} ({path.stat().st_size / 1e6:.1f} MB)")


def verify(options: argparse.Namespace) -> None:
    """Recompute the hash chain of a run's ledger: two runs with the same last hash saw the same samples."""
    from cclm.data.ledger import verify_ledger
    from cclm.files.lines import StepLines

    path = options.run_folder / "ledger.jsonl"
    if not path.is_file():
        raise ConfigError(
            where=str(options.run_folder),
            expected="a run folder with ledger.jsonl",
            got="none",
            do="Give the folder that `python -m pretrain` wrote.",
        )
    value, last = verify_ledger(path), StepLines(path).last()
    say(f"{path}: sound, {0 if last is None else last['step'] + 1:,} steps, last hash {value}")


def diagnose(options: argparse.Namespace) -> None:
    """Say what attention, norms, losses and updates would be computed with here, what else there is, and why not."""
    import torch

    from cclm.ops.choice import choose_model_kernels, choose_optimizer, describe
    from cclm.ops.options import KernelConfig

    is_cuda = options.device == "cuda" or (options.device == "auto" and torch.cuda.is_available())
    device = torch.device("cuda" if is_cuda else "cpu")
    choices = (
        *choose_model_kernels(KernelConfig(), device).choices,
        choose_optimizer("auto", device, stage=options.stage),
    )
    found = describe(choices, device)
    rows = []
    for one in choices:
        others = [f"{name}: {trouble or 'could run'}" for name, trouble in one.candidates.items() if name != one.chosen]
        rows.append((one.op, one.chosen, one.why, "; ".join(others)))
    say(table(("computes", "kernel", "why", "others"), rows))
    say("versions: " + ", ".join(f"{name} {version}" for name, version in found["versions"].items()))
    say("devices: " + ", ".join(found["devices"]))
