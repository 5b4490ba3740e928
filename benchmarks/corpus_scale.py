"""A corpus of many records through build, verify, stats and training, with time and peak memory of each.

    python -m benchmarks.corpus_scale --records 200000 [--json PATH] [--workers 2] [--keep DIR]

The corpus is made up: nine tenths are sentence pairs in four languages (some come twice, some nearly so, some are too
short or in the wrong language), one tenth pictures of 64 pixels with captions (some come twice). The recipe uses the
filters, near-duplicate removal and sampling. Peak memory is the largest resident set of any process of a stage.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import yaml
from PIL import Image
from rich.console import Console
from rich.table import Table

from benchmarks.figures import add_json_option, write_figures

WORDS = {
    "en": "the a man woman dog house tree runs sees old small red blue with on under river city street child book",
    "de": "der die ein Mann Frau Hund Haus Baum läuft sieht alt klein rot blau mit auf unter Fluss Stadt Kind Buch",
    "fr": "le la un homme femme chien maison arbre court voit vieux petit rouge bleu avec sur sous fleuve ville livre",
    "sw": "mtu mwanamke mbwa nyumba mti anakimbia anaona mzee mdogo nyekundu bluu juu chini mto mji mtoto kitabu",
}
SHARE = {"de": 0.7, "fr": 0.25, "sw": 0.05}


@dataclass(frozen=True)
class Stage:
    """What one command took."""

    name: str
    seconds: float
    cpu_seconds: float
    peak_mb: float


def write_pairs(path: Path, records: int, draw: random.Random) -> None:
    """Write `records` pairs as lines of JSON; about a hundredth of them comes again, or nearly."""
    languages, shares = list(SHARE), list(SHARE.values())
    line, row = "", {"text_a": "", "text_b": ""}
    with path.open("w", encoding="utf-8") as file:
        for number in range(records):
            kind = draw.random()
            if kind < 0.99 or not line:
                (language,) = draw.choices(languages, shares)
                length = 1 if kind < 0.01 else draw.randint(6, 14)
                text_a, text_b = sentence("en", length, number, draw), sentence(language, length, number, draw)
                if kind > 0.98:
                    text_b = text_a  # not translated
                row = {"text_a": text_a, "lang_a": "en", "text_b": text_b, "lang_b": language}
                line = json.dumps({**row, "score": round(draw.uniform(1.0, 1.3), 3)}, ensure_ascii=False)
            elif kind > 0.995:
                line = json.dumps({**row, "text_a": f"{row['text_a']}!"}, ensure_ascii=False)
            file.write(line + "\n")


def sentence(language: str, length: int, number: int, draw: random.Random) -> str:
    """Return words of a language, with a number word that makes it unlike the others."""
    words = [draw.choice(WORDS[language].split()) for _ in range(length)]
    return " ".join([*words, f"{number * 7919 % 999983}"])


def write_images(folder: Path, records: int) -> None:
    """Write `records` pictures with captions in two languages, every fiftieth a copy of the one before."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    with (folder / "captions.jsonl").open("w", encoding="utf-8") as file:
        for number in range(records):
            name = f"{number:07d}.jpg"
            if number % 50 == 49:
                (folder / name).write_bytes((folder / f"{number - 1:07d}.jpg").read_bytes())
            else:
                coarse = generator.integers(0, 256, (6, 6, 3), dtype=np.uint8)
                Image.fromarray(coarse).resize((64, 64), Image.Resampling.BICUBIC).save(folder / name, quality=85)
            captions = {"en": [f"picture number {number}"], "de": [f"Bild Nummer {number}"]}
            file.write(json.dumps({"image": name, "captions": captions, "licence": "CC0-1.0"}) + "\n")


def write_recipe(folder: Path) -> Path:
    """Write the recipe of both sets."""
    text = {
        "view": "text_pair",
        "corpus": "pair_file",
        "num_shards": 16,
        "options": {"path": str(folder / "pairs.jsonl")},
        "filters": {"min_characters": 8, "min_score": 1.02, "min_language_probability": 0.01},
        "duplicates": {"exact": True, "near": True},
        "sampling": {"temperature": 1.2},
    }
    images = {
        "view": "image_text",
        "corpus": "image_folder",
        "num_shards": 16,
        "options": {"folder": str(folder / "images")},
        "images": {"short_side": 48},
        "filters": {"min_side": 32, "max_aspect": 3.0},
        "duplicates": {"exact": True, "near": True, "distance": 0},
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump({"sets": {"images": images, "text": text}}), encoding="utf-8")
    return path


def write_training(folder: Path, steps: int) -> Path:
    """Write the recipe of a small joint run over what was built."""
    view = {"batch_size": 64, "negative_group": 32, "matching_rows": 16, "num_lanes": 16, "window": 256}
    layers = {"num_layers": 1, "num_heads": 2, "feedforward_width": 64}
    shards = folder / "shards"
    settings = {
        "run_folder": str(folder / "run"),
        "device": "cpu",
        "data": {
            "tokenizer": str(folder / "tokenizer"),
            "image_text": {
                **view,
                "shards": [str(shards / "images")],
                "max_tokens": 16,
                "transform": {"method": "affine", "size": 32},
            },
            "text_pair": {
                **view,
                "shards": [str(shards / "text")],
                "max_tokens": 24,
                "pairs_per_sample": 1,
            },
        },
        "model": {
            "width": 32,
            "projection_width": 32,
            "matching_width": 64,
            "vision": {**layers, "image_size": 32},
            "text": {**layers, "max_positions": 24},
            "fusion": layers,
        },
        "optimizer": {"total_steps": steps, "learning_rate": 0.001, "warmup_steps": 2},
        "checkpoint": {"every_steps": steps},
        "track": {"every_steps": max(1, steps // 4), "tensorboard": False},
    }
    path = folder / "train.yaml"
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return path


def run_stage(name: str, command: list[str]) -> Stage:
    """Run a command to its end; its children count."""
    began = time.monotonic()
    process = subprocess.Popen([sys.executable, "-m", *command])
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{name} ended with status {process.returncode}")
    peak_mb = usage.ru_maxrss / (1024 if sys.platform == "linux" else 1024**2)
    return Stage(name, time.monotonic() - began, usage.ru_utime + usage.ru_stime, peak_mb)


def stages_of(folder: Path, workers: int, steps: int) -> list[Stage]:
    """Run every stage in `folder`."""
    recipe, out = write_recipe(folder), folder / "shards"
    tokenizer = ["--out", str(folder / "tokenizer"), "--vocab-size", "2000"]
    build = ["shards", "build", str(recipe), "--out", str(out), "--workers", str(workers)]
    return [
        run_stage("build", build),
        run_stage("verify", ["shards", "verify", str(out)]),
        run_stage("stats", ["shards", "stats", str(out)]),
        run_stage("tokenizer", ["shards", "tokenizer", str(out / "images"), str(out / "text"), *tokenizer]),
        run_stage("train", ["pretrain", "--recipe", str(write_training(folder, steps))]),
    ]


def show(stages: list[Stage], counts: dict[str, dict[str, int]], records: int) -> None:
    """Print the tables."""
    console = Console()
    table = Table(title=f"{records:,} records")
    for column in ("stage", "seconds", "CPU seconds", "records per CPU second", "peak MB"):
        table.add_column(column, justify="left" if column == "stage" else "right")
    for stage in stages:
        rate = "" if stage.name == "train" else f"{records / stage.cpu_seconds:,.0f}"
        table.add_row(stage.name, f"{stage.seconds:.1f}", f"{stage.cpu_seconds:.1f}", rate, f"{stage.peak_mb:,.0f}")
    console.print(table)
    table = Table(title="where the records went")
    for column in ("records", *counts):
        table.add_column(column, justify="left" if column == "records" else "right")
    for reason in dict.fromkeys(reason for count in counts.values() for reason in count):
        table.add_row(reason, *(f"{count.get(reason, 0):,}" for count in counts.values()))
    console.print(table)


def counts_of(out: Path) -> dict[str, dict[str, int]]:
    """Return what became of every set's records."""
    counts = {}
    for path in sorted(out.glob("*/manifest.json")):
        document = json.loads(path.read_text(encoding="utf-8"))
        config, totals = document["config"], document["totals"]
        written = totals["rows" if document["view"] == "text_pair" else "samples"]
        counts[path.parent.name] = {"in": config["records_in"], "written": written, **config["refused"]}
    return counts


def main() -> None:
    """Make the corpus, run the stages, print and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=200_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--steps", type=int, default=20, help="of the training (default: 20)")
    add_json_option(parser)
    parser.add_argument("--keep", type=Path, metavar="DIR", help="work there and leave everything")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.keep or Path(temporary)
        images = arguments.records // 10
        folder.mkdir(parents=True, exist_ok=True)
        write_pairs(folder / "pairs.jsonl", arguments.records - images, random.Random(0))
        write_images(folder / "images", images)
        stages = stages_of(folder, arguments.workers, arguments.steps)
        counts = counts_of(folder / "shards")
    records = sum(count["in"] for count in counts.values())
    show(stages, counts, records)
    stages_told = [asdict(stage) for stage in stages]
    write_figures(arguments.json, {"records": records, "stages": stages_told, "counts": counts})


if __name__ == "__main__":
    main()
