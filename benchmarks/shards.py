"""Shards against plain WebDataset and against the decode limit, in one run on the same files.

    python -m benchmarks.shards [--json PATH] [--images 128] [--rounds 12]

Everything is processor time of one thread (`time.process_time`), so a busy machine changes the figures little; of some
rounds, in which the sides take turns, the best time of each piece counts. The pictures are noise with a photograph's
spectrum (1/f) and some rectangles, 500 × 375, about 70 kB a file. The plain side is what a torchvision user writes, in
PIL and torch: open, convert, RandomResizedCrop(224, bicubic), flip, ToTensor, Normalize, stack. Our side does more
(reads by index, checks the CRC, tokenises, masks, draws noise) and leaves the normalising to the device.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import webdataset
from PIL import Image

from benchmarks.figures import add_json_option, write_figures
from benchmarks.samples import character_tokenizer, photograph, sentence_pairs
from cclm.data.config import DataConfig
from cclm.data.decoding import decode_scaled
from cclm.data.image import crop_box, photo_size, resize_box, scale_for, scaled_box
from cclm.data.loader import StepDataset
from cclm.data.options import ImageTransformConfig, SourceConfig
from cclm.data.seeding import keyed_generator
from cclm.shardfile.manifest import Manifest
from cclm.shardfile.reader import ShardSet
from cclm.types import ImageTextRecord, View
from cclm.views.image_text.options import ImageTextConfig
from cclm.views.image_text.view import ImageTextSource
from cclm.views.table import make_views
from cclm.views.view import open_dataset
from shards.build import build_sets, plan_set
from shards.corpora.pair_file import PairFile
from shards.recipe import SetRecipe
from tests.shard_writers import ImageShards, write_groups

SIZE, BATCH = 224, 64
TRANSFORM = ImageTransformConfig(size=SIZE)
MEAN, STD = torch.tensor(TRANSFORM.mean)[:, None, None], torch.tensor(TRANSFORM.std)[:, None, None]


@dataclass(frozen=True)
class Line:
    """One line of the printed table."""

    what: str
    ours: str
    theirs: str
    ratio: str
    wanted: str


def best_of(rounds: int, *works: Callable[[], Iterable[object]]) -> list[float]:
    """Processor time of each work, whose pieces are timed one by one: the sum of their fastest rounds.

    Works take turns, and pieces are short, so that a neighbour disturbs all alike and no piece every time. Nothing is
    kept: in a training a batch's memory is used again, and a new page of memory costs as much as a resize.
    """
    best: list[list[float]] = [[] for _ in works]
    for number in range(rounds + 1):
        for work, own in zip(works, best, strict=True):
            for piece, seconds in enumerate(_piece_times(work)):
                if number == 0:  # warms up
                    own.append(math.inf)
                else:
                    own[piece] = min(own[piece], seconds)
    return [math.fsum(own) for own in best]


def _piece_times(work: Callable[[], Iterable[object]]) -> Iterator[float]:
    began = time.process_time()
    for _ in work():
        yield time.process_time() - began
        began = time.process_time()


def records(jpegs: Sequence[bytes]) -> list[ImageTextRecord]:
    """Each picture with two captions."""
    captions = {"en": ["a picture of some noise and rectangles"], "de": ["ein bild von rauschen und rechtecken"]}
    return [
        ImageTextRecord(
            key=f"k{number:06d}", image=jpeg, image_format="jpg", captions=captions, source="noise", licence="CC0-1.0"
        )
        for number, jpeg in enumerate(jpegs)
    ]


def write_ours(folder: Path, samples: Sequence[ImageTextRecord]) -> None:
    """Hash, index, sync, manifest: everything that a build does."""
    with ImageShards(folder, "images", max_samples=1024) as writer:
        for sample in samples:
            writer.add(sample)
        Manifest(view=View.IMAGE_TEXT, shards=writer.close()).save(folder)


def write_theirs(folder: Path, samples: Sequence[ImageTextRecord]) -> None:
    """The same members with the package's writer."""
    folder.mkdir(exist_ok=True)
    for shard, start in enumerate(range(0, len(samples), 1024)):
        with webdataset.TarWriter(str(folder / f"plain-{shard:06d}.tar")) as writer:
            for sample in samples[start : start + 1024]:
                captions = json.dumps({"captions": sample.captions, "source": sample.source}).encode()
                writer.write({"__key__": sample.key, "jpg": sample.image, "json": captions})


def plain_transform(generator: np.random.Generator) -> Callable[[bytes], torch.Tensor]:
    """What torchvision's classic transforms do, step by step."""

    def transform(data: bytes) -> torch.Tensor:
        image = Image.open(io.BytesIO(data)).convert("RGB")
        box = crop_box(image.width, image.height, TRANSFORM, generator.random(24).tolist())
        image = image.crop(box).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
        if generator.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        pixels_HWC = torch.from_numpy(np.array(image, copy=True))
        return pixels_HWC.permute(2, 0, 1).contiguous().to(torch.float32).div(255).sub_(MEAN).div_(STD)

    return transform


def plain_batches(folder: Path) -> Iterator[torch.Tensor]:
    """A plain `webdataset` pipeline."""
    urls = [str(path) for path in sorted(folder.glob("*.tar"))]
    pipeline = webdataset.DataPipeline(
        webdataset.SimpleShardList(urls),
        webdataset.tarfile_to_samples(),
        webdataset.to_tuple("jpg", "json"),
        webdataset.map_tuple(plain_transform(np.random.default_rng(0)), json.loads),
    )
    pictures = (sample[0] for sample in pipeline)
    while batch := list(islice(pictures, BATCH)):
        yield torch.stack(batch)


def open_images(folder: Path) -> StepDataset:
    """Open pictures only, for one rank."""
    images = ImageTextConfig(
        sources={"images": SourceConfig(path=str(folder))},
        batch_size=BATCH,
        negative_group=BATCH,
        window=256,
        transform=TRANSFORM,
    )
    return open_dataset(make_views({"image_text": images}), DataConfig(tokenizer=""), character_tokenizer(), 0)


def limit_work(jpegs: Sequence[bytes]) -> Callable[[], Iterator[int]]:
    """Reduced decoding and resizing alone, with the crops of our own stream's generators."""
    boxes = []
    for number, jpeg in enumerate(jpegs):
        width, height = photo_size(jpeg)
        draws = keyed_generator(0, ImageTextSource.sample_purpose, 0, (0, 0, number)).random(26).tolist()
        boxes.append(crop_box(width, height, TRANSFORM, draws[2:]))

    def work() -> Iterator[int]:
        for number, (jpeg, box) in enumerate(zip(jpegs, boxes, strict=True), start=1):
            scale = scale_for(box, SIZE)
            pixels = decode_scaled(jpeg, scale)
            size = photo_size(jpeg) if scale > 1 else (pixels.shape[1], pixels.shape[0])
            resize_box(pixels, scaled_box(box, size, (pixels.shape[1], pixels.shape[0])), TRANSFORM)
            if number % BATCH == 0:
                yield number

    return work


def images(folder: Path, jpegs: Sequence[bytes], rounds: int) -> tuple[list[Line], dict[str, float]]:
    """Writing and reading pictures."""
    samples, megabytes = records(jpegs), sum(map(len, jpegs)) / 1e6
    ours_write, theirs_write = best_of(
        rounds,
        lambda: [write_ours(folder / "ours", samples)],
        lambda: [write_theirs(folder / "theirs", samples)],
    )
    dataset = open_images(folder / "ours")
    steps, count = len(jpegs) // BATCH, len(jpegs) // BATCH * BATCH
    ours, normalised, theirs, limit = best_of(
        rounds,
        lambda: (dataset[step] for step in range(steps)),
        lambda: (dataset[step].normalised() for step in range(steps)),
        lambda: plain_batches(folder / "theirs"),
        limit_work(jpegs),
    )
    ours, normalised, theirs, limit = (seconds / count for seconds in (ours, normalised, theirs, limit))
    figures = {
        "ratio_vs_webdataset": theirs / ours,
        "ratio_with_normalising_on_the_cpu": theirs / normalised,
        "share_of_decode_limit": limit / ours,
        "images_per_cpu_s": 1 / ours,
        "webdataset_images_per_cpu_s": 1 / theirs,
        "limit_images_per_cpu_s": 1 / limit,
        "write_ratio_vs_tarwriter": theirs_write / ours_write,
        "write_mb_per_cpu_s": megabytes / ours_write,
    }

    def line(what: str, first: float, second: float, wanted: str) -> Line:
        return Line(what, f"{1 / first:,.0f}", f"{1 / second:,.0f}", f"{second / first:.2f}", wanted)

    return [
        line("images/s: plain webdataset", ours, theirs, "≥ 2.5"),
        line("  with normalising on the CPU", normalised, theirs, ""),
        line("images/s: decode and resize alone", ours, limit, "≥ 0.70"),
        Line(
            "writing, MB/s: TarWriter",
            f"{megabytes / ours_write:,.0f}",
            f"{megabytes / theirs_write:,.0f}",
            f"{theirs_write / ours_write:.2f}",
            "≥ 1",
        ),
    ], figures


def text_pairs(folder: Path, count: int, rounds: int) -> tuple[list[Line], dict[str, float]]:
    """Pairs in blocks against one tar member per pair."""
    pairs = sentence_pairs(count)
    shards = write_groups(folder / "pairs", "pairs", [[pair] for pair in pairs])
    Manifest(view=View.TEXT_PAIR, shards=shards).save(folder / "pairs")
    plain = folder / "pairs.tar"
    with webdataset.TarWriter(str(plain)) as tar:
        for number, pair in enumerate(pairs):
            content = {"text_a": pair.text_a, "lang_a": pair.lang_a, "text_b": pair.text_b, "lang_b": pair.lang_b}
            tar.write({"__key__": f"p{number:08d}", "json": json.dumps(content, ensure_ascii=False).encode()})
    shards = ShardSet(folder / "pairs")
    groups = shards.samples_per_shard[0]

    def read_ours() -> list[int]:
        shards.close()
        return [sum(map(len, shards.read_groups(0)))]

    def read_by_index() -> list[int]:
        shards.close()
        return [sum(len(shards.text_group(0, sample)) for sample in range(groups))]

    def read_theirs() -> list[int]:
        pipeline = webdataset.DataPipeline(
            webdataset.SimpleShardList([str(plain)]), webdataset.tarfile_to_samples(), webdataset.to_tuple("json")
        )
        return [sum(len(json.loads(sample[0])) > 0 for sample in pipeline)]

    assert read_ours() == read_by_index() == read_theirs() == [count]

    ours, by_index, theirs = best_of(rounds, read_ours, read_by_index, read_theirs)
    size = sum(path.stat().st_size for path in (folder / "pairs").iterdir())
    figures = {
        "text_read_ratio": theirs / ours,
        "text_size_ratio": size / plain.stat().st_size,
        "pairs_per_cpu_s": count / ours,
        "text_read_ratio_by_index": theirs / by_index,
    }
    return [
        Line(
            "pairs/s: a member each", f"{count / ours:,.0f}", f"{count / theirs:,.0f}", f"{theirs / ours:.1f}", "≥ 20"
        ),
        Line(
            "bytes a pair: a member each",
            f"{size / count:.0f}",
            f"{plain.stat().st_size / count:.0f}",
            f"{size / plain.stat().st_size:.3f}",
            "≤ 0.20",
        ),
    ], figures


def text_build(folder: Path, count: int, rounds: int) -> tuple[list[Line], dict[str, float]]:
    """A whole build of pairs (read, check, sort, pack, hash, sync) against packing the same lines with TarWriter."""
    lines = folder / "pairs.jsonl"
    with lines.open("w", encoding="utf-8") as file:
        for pair in sentence_pairs(count):
            content = {"text_a": pair.text_a, "lang_a": pair.lang_a, "text_b": pair.text_b, "lang_b": pair.lang_b}
            file.write(json.dumps(content, ensure_ascii=False) + "\n")
    recipe = SetRecipe(view=View.TEXT_PAIR, corpus="pair_file", options={}, num_shards=4)
    plan = plan_set("built", recipe, PairFile(path=lines).parts())

    def build() -> list[int]:
        shutil.rmtree(folder / "built", ignore_errors=True)
        return [build_sets([plan], folder)["built"].totals.rows]

    def pack() -> list[int]:
        with lines.open("rb") as file, webdataset.TarWriter(str(folder / "packed.tar")) as tar:
            for number, line in enumerate(file):
                tar.write({"__key__": f"p{number:08d}", "json": json.dumps(json.loads(line)).encode()})
        return [count]

    assert build() == pack() == [count]
    ours, theirs = best_of(rounds, build, pack)
    wanted = Line(
        "pairs/s built: TarWriter", f"{count / ours:,.0f}", f"{count / theirs:,.0f}", f"{theirs / ours:.2f}", "≥ 2"
    )
    return [wanted], {"text_build_pairs_per_cpu_s": count / ours, "text_build_ratio_vs_tarwriter": theirs / ours}


def resume(folder: Path, samples_per_shard: int) -> tuple[list[Line], dict[str, float]]:
    """Open a manifest of 100 million samples in a fresh process and find the samples of a late step."""
    from benchmarks.resume import write_manifest

    write_manifest(folder / "large", samples_per_shard)
    output = subprocess.run(
        [sys.executable, "-m", "benchmarks.resume", str(folder / "large")], check=True, capture_output=True, text=True
    )
    found: dict[str, float] = json.loads(output.stdout)
    return [
        Line("resume of 100 M samples, s", f"{found['resume_s']:.2f}", "", "", "≤ 2"),
        Line("  peak memory, MB", f"{found['resume_peak_mb']:.0f}", "", "", "≤ 500"),
    ], found


def show(lines: Sequence[Line]) -> None:
    """Print the table."""
    print(f"{'per CPU second (one thread), against':36}{'ours':>12}{'theirs':>12}{'ratio':>8}  wanted")
    for line in lines:
        print(f"{line.what:36}{line.ours:>12}{line.theirs:>12}{line.ratio:>8}  {line.wanted}")


def main() -> None:
    """Measure, print, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_json_option(parser)
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--pairs", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=12)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    jpegs = [photograph(number) for number in range(math.ceil(arguments.images / BATCH) * BATCH)]
    figures: dict[str, Any] = {"mean_jpeg_bytes": sum(map(len, jpegs)) / len(jpegs)}
    lines: list[Line] = []
    with tempfile.TemporaryDirectory() as name:
        for part in (
            lambda: images(Path(name), jpegs, arguments.rounds),
            lambda: text_pairs(Path(name), arguments.pairs, arguments.rounds),
            lambda: text_build(Path(name), arguments.pairs, min(arguments.rounds, 4)),
            lambda: resume(Path(name), 10_000),
        ):
            more, found = part()
            lines += more
            figures |= found
    show(lines)
    write_figures(arguments.json, figures)


if __name__ == "__main__":
    main()
