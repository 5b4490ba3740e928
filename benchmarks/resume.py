"""Open a manifest of 100 million samples and find the samples of a late step; run by `benchmarks.shards`.

    python -m benchmarks.resume FOLDER [--json PATH]

Prints {"resume_s", "resume_cpu_s", "resume_peak_mb", "library_mb"} as JSON.

The seconds do not hold the import of Python and torch, the peak memory does.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from benchmarks.figures import add_json_option, write_figures
from benchmarks.samples import character_tokenizer
from cclm.data.config import DataConfig
from cclm.data.options import SourceConfig
from cclm.run.machine import process_memory_bytes
from cclm.shardfile.manifest import Manifest, ShardInfo
from cclm.types import View
from cclm.views.image_text.options import ImageTextConfig
from cclm.views.table import make_views
from cclm.views.view import open_dataset

SAMPLES = 100_000_000
LANGUAGES = ("ar", "de", "en", "es", "fr", "id", "ja", "ru", "tr", "zh")


def write_manifest(folder: Path, samples_per_shard: int) -> None:
    """A manifest like that of a real set, without its shards."""
    folder.mkdir()
    shards = [
        ShardInfo(
            name=f"images-{number:06d}.tar",
            samples=samples_per_shard,
            rows=samples_per_shard * 6,
            size_bytes=samples_per_shard * 70_000,
            sha256=f"{number:064x}",
            index_sha256=f"{number + 1:064x}",
            languages=dict.fromkeys(LANGUAGES, samples_per_shard * 6 // 10),
            sources={"cc12m": samples_per_shard},
            licences={"unknown": samples_per_shard},
        )
        for number in range(SAMPLES // samples_per_shard)
    ]
    Manifest(view=View.IMAGE_TEXT, shards=shards).save(folder)


def main() -> None:
    """Measure this process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    add_json_option(parser)
    arguments = parser.parse_args()
    folder: Path = arguments.folder
    source = SourceConfig(path=str(folder))
    images = ImageTextConfig(sources={"images": source}, batch_size=1024, negative_group=128, num_lanes=64)
    before = process_memory_bytes()[1]
    began, cpu = time.perf_counter(), time.process_time()
    views = make_views({"image_text": images})
    dataset = open_dataset(views, DataConfig(tokenizer=""), character_tokenizer(), 0, 3, 8)
    opened = dataset.sources["image_text"]
    addresses = [opened.stream.address(250_000, index) for index in dataset.rows("image_text")]
    assert addresses[0].epoch == 2
    found = {"resume_s": time.perf_counter() - began, "resume_cpu_s": time.process_time() - cpu}
    figures = {**found, "resume_peak_mb": process_memory_bytes()[1] / 2**20, "library_mb": before / 2**20}
    print(json.dumps(figures))
    write_figures(arguments.json, figures)


if __name__ == "__main__":
    main()
