"""How much processor time one rank's batch takes to build, on a corpus made up to look like the demonstration's.

    python -m benchmarks.data_loader [--size 32] [--seconds 6] [--json PATH]

Prints one table: milliseconds of processor time for a rank's share of a step (64 pictures with captions; 32 sentences
with 6 translations each), for the first epoch (nothing in memory yet) and after it.
"""

from __future__ import annotations

import argparse
import io
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.figures import add_json_option, write_figures
from benchmarks.samples import character_tokenizer
from cclm.data.config import DataConfig, Views
from cclm.data.loader import StepDataset
from cclm.data.options import ImageTransformConfig, SourceConfig
from cclm.shardfile.manifest import Manifest
from cclm.types import ImageTextRecord, TextPair, View
from cclm.views.image_text.options import ImageTextConfig
from cclm.views.table import make_views
from cclm.views.text_pair.options import TextPairConfig
from cclm.views.view import open_dataset
from tests.shard_writers import ImageShards, write_groups

NUM_IMAGES, NUM_GROUPS, NUM_LANGUAGES = 6000, 1800, 20


def icon(number: int) -> bytes:
    """A smooth 64 × 64 picture with transparency, about as large as a rendered icon."""
    generator = np.random.default_rng(number)
    small = Image.fromarray(generator.integers(0, 256, (6, 6, 4), dtype=np.uint8))
    stream = io.BytesIO()
    small.resize((64, 64), Image.Resampling.BICUBIC).save(stream, "PNG")
    return stream.getvalue()


def phrase(generator: np.random.Generator, words: int) -> str:
    """Some letters in groups."""
    return " ".join("".join(chr(97 + letter) for letter in generator.integers(0, 26, 5)) for _ in range(words))


def write_sets(folder: Path) -> tuple[Path, Path]:
    """Write an image set and a text set."""
    generator = np.random.default_rng(0)
    with ImageShards(folder / "images", "images", max_samples=1000) as images:
        for number in range(NUM_IMAGES):
            names = [phrase(generator, 2) for _ in range(4)]
            images.add(
                ImageTextRecord(
                    key=f"k{number}",
                    image=icon(number),
                    image_format="png",
                    captions={"en": names},
                    source="artist",
                    licence="MIT",
                )
            )
        Manifest(view=View.IMAGE_TEXT, shards=images.close()).save(folder / "images")
    groups = []
    for number in range(NUM_GROUPS):
        name = phrase(generator, 2)
        groups.append(
            [
                TextPair(
                    text_a=name,
                    lang_a="en",
                    text_b=phrase(generator, 2),
                    lang_b=f"l{language}",
                    source="names",
                    group=f"g{number}",
                )
                for language in range(NUM_LANGUAGES)
            ]
        )
    shards = write_groups(folder / "pairs", "pairs", groups)
    Manifest(view=View.TEXT_PAIR, shards=shards).save(folder / "pairs")
    return folder / "images", folder / "pairs"


def demo_like(images: Path, pairs: Path, size: int) -> Views:
    """The demonstration's amounts."""
    transform = ImageTransformConfig(
        size=size, method="affine", resample="box", flip_probability=0.2, cache_bytes=1 << 28
    )
    return {
        "image_text": ImageTextConfig(
            sources={"images": SourceConfig(path=str(images))},
            first_caption_probability=0.6,
            max_tokens=14,
            transform=transform,
            window=4096,
        ),
        "text_pair": TextPairConfig(
            sources={"pairs": SourceConfig(path=str(pairs))},
            batch_size=64,
            pairs_per_sample=6,
            negative_group=32,
            max_tokens=14,
            cache_groups=1 << 14,
        ),
    }


def milliseconds(dataset: StepDataset, start: int, seconds: float) -> tuple[float, int]:
    """Mean time of a step from `start` on, and the next step."""
    step, begin = start, time.process_time()
    while time.process_time() - begin < seconds:
        dataset[step]
        step += 1
    return 1000 * (time.process_time() - begin) / (step - start), step


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=32, help="pixels")
    parser.add_argument("--seconds", type=float, default=6.0, help="per row")
    add_json_option(parser)
    arguments = parser.parse_args()
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        views = demo_like(*write_sets(Path(folder)), arguments.size)
        print(f"{'rank 0 of 2':24}{'first pass, ms':>16}{'in memory, ms':>16}")
        for name, chosen in (("images", ("image_text",)), ("sentences", ("text_pair",)), ("both", tuple(views))):
            made = make_views({view: views[view] for view in chosen})
            dataset = open_dataset(made, DataConfig(tokenizer=""), character_tokenizer(), 0, 0, 2)
            cold, _ = milliseconds(dataset, 0, 1.0)
            milliseconds(dataset, 0, arguments.seconds)
            warm, _ = milliseconds(dataset, 1000, arguments.seconds)
            print(f"{name:24}{cold:16.1f}{warm:16.1f}")
            figures |= {f"{name}_first_pass_ms": cold, f"{name}_in_memory_ms": warm}
    write_figures(arguments.json, figures)


if __name__ == "__main__":
    main()
