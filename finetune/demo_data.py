"""`python -m finetune.demo_data IMAGES TO`: the demonstration's two tasks, made of its emoji images and their names.

    IMAGES/image-train, image-dev, image-test     image-text shard sets, of one artist or several each
      ├─▶ TO/retrieval-test, TO/retrieval-few_shot            shard sets
      └─▶ TO/nlvr2, TO/marvl, TO/images                       statements about pairs of images, in MaRVL's layout

A statement is the name of a thing, and true if one of the two images shows it. No sentence is translated: in every
language it is what the editors of CLDR wrote. Neither images nor names alone give the answer: every pair has as many
true statements as false ones, and a name is true about as often as it is false.

Concepts are split: of those that dev and test statements are about, none occurs in training statements (though the
pre-trained model has seen them all, drawn by others). Dev and test images are by artists of their own, as they were.
"""

from __future__ import annotations

import hashlib
import random
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from cclm.files.atomic import make_folder, replace_bytes
from cclm.files.command_line import Parser, open_output, say
from cclm.run.ending import end_with
from cclm.shardfile.reader import ShardSet
from cclm.types import ImageTextRecord, Language
from finetune.stand_in import write_image_set, write_rows

ENGLISH: Final = "en"
LANGUAGES: Final = (
    *("ar", "bn", "de", "el", "es", "fi", "fr", "he", "hi", "id"),
    *("it", "ja", "ko", "pl", "ru", "sw", "th", "tr", "vi", "zh"),
)
"""In which the demonstration's model has read texts, but has seen no image."""
SPLITS: Final = {"train": 0.7, "dev": 0.8, "test": 1.0}
"""Up to which share of the concepts a split of the statements has its own."""
SHOTS: Final = 16
"""Few-shot statements, and images, of each language."""
ROWS_OF_PAIR: Final = 4
SEED: Final = 42


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """An image and what the thing on it is called."""

    record: ImageTextRecord
    names: Mapping[Language, str]

    @property
    def file(self) -> str:
        """Name of its image file."""
        return f"{self.record.key}.{self.record.image_format}"


def make(images: Path, to: Path) -> None:
    """Write both tasks (DataError, ConfigError: `images` are not the demonstration's)."""
    train, dev, test = (list(_drawings(images / f"image-{split}")) for split in SPLITS)
    named = {one.record.identity: one.names for one in dev}  # the training images themselves have English names only
    translated = [replace(one, names=named[one.record.identity]) for one in train if one.record.identity in named]
    random.Random(SEED).shuffle(translated)
    _write_retrieval(to, test, translated)
    few = [one for one in translated if split_of(one.record.identity) == "train"]
    _write_statements(to, {"train": train, "dev": dev, "test": test}, few)


def split_of(concept: str) -> str:
    """Return the split of a concept, whatever other concepts there are."""
    share = int(hashlib.sha256(concept.encode()).hexdigest()[:8], 16) / 16**8
    return next(split for split, end in SPLITS.items() if share < end)


def _drawings(folder: Path) -> Iterator[Drawing]:
    shards = ShardSet(folder)
    for shard, count in enumerate(shards.samples_per_shard):
        for sample in range(count):
            record = shards.image_text(shard, sample)
            yield Drawing(record=record, names={language: texts[0] for language, texts in record.captions.items()})
    shards.close()


def _write_retrieval(to: Path, test: Sequence[Drawing], translated: Sequence[Drawing]) -> None:
    """Write the test images with their names in the tested languages, and some training images with a foreign name."""
    tested = (ENGLISH, *LANGUAGES)
    write_image_set(to / "retrieval-test", [_named(one, tested, one.record.key) for one in test])
    few = [
        _named(one, (language,), f"{language}_{one.record.key}")
        for number, language in enumerate(LANGUAGES)
        for one in translated[number * SHOTS : (number + 1) * SHOTS]
    ]
    write_image_set(to / "retrieval-few_shot", few)


def _named(one: Drawing, languages: Sequence[Language], key: str) -> ImageTextRecord:
    return replace(one.record, key=key, captions={language: [one.names[language]] for language in languages})


def _write_statements(to: Path, drawings: Mapping[str, Sequence[Drawing]], few: Sequence[Drawing]) -> None:
    """Write annotation files as NLVR2 and MaRVL have them, and the images that they name."""
    make_folder(to / "images")
    shown = dict[str, Drawing]()
    for split, every in drawings.items():
        own = [one for one in every if split_of(one.record.identity) == split]
        random.Random(SEED).shuffle(own)
        shown |= {one.file: one for one in own}
        for language in (ENGLISH, *LANGUAGES) if split == "test" else (ENGLISH,):
            name = f"marvl/zero_shot/annotations/marvl-{language}" if split == "test" else f"nlvr2/annotations/{split}"
            rows = statements(own, language, split, half=split == "test")
            write_rows(to / f"{name}.jsonl", rows)
    number = 2 * SHOTS // ROWS_OF_PAIR
    for place, language in enumerate(LANGUAGES):
        rows = statements(few[place * number : (place + 1) * number], language, f"{language}-train")
        write_rows(to / f"marvl/few_shot/annotations/marvl-{language}_train{SHOTS}.jsonl", rows)
    for name, one in shown.items():
        replace_bytes(to / "images" / name, one.record.image)


def statements(
    drawings: Sequence[Drawing], language: Language, name: str, *, half: bool = False
) -> Iterator[dict[str, object]]:
    """Yield statements about pairs of neighbours: what each of the two is called, and what two others are called.

    `half`: one true and one false statement only, of the left image and the right one in turn.

    The others are the next pair that shares no name with this one, in whatever language: so a row is true or false in
    every language alike, and ids mean the same rows.
    """
    pairs = [drawings[first : first + 2] for first in range(0, len(drawings) - 1, 2)]
    for number, (left, right) in enumerate(pairs):
        turns = (pairs[(number + turn) % len(pairs)] for turn in range(1, len(pairs)))
        others = next((pair for pair in turns if not _share_a_name((left, right), pair)), None)
        if others is None or _share_a_name((left,), (right,)):
            continue
        for said, one in enumerate((left, right, *others)):
            if half and said % 2 != number % 2:
                continue
            yield {
                "id": f"{name}-{number}-{said}", "images": [left.file, right.file], "label": said < 2,
                "sentence": one.names[language],
            }  # fmt: skip


def _share_a_name(some: Sequence[Drawing], others: Sequence[Drawing]) -> bool:
    return any(
        one.names[language] == other.names[language] for one in some for other in others for language in one.names
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    parser = Parser(prog="python -m finetune.demo_data", description=__doc__)
    parser.add_argument("images", type=Path, help="the demonstration's shard sets, data/demo")
    parser.add_argument("to", type=Path, help="the folder to make")
    options = parser.parse(arguments)
    open_output()
    try:
        make(options.images, options.to)
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - every end has a sentence and a code
        return end_with(error)
    say(f"written: {options.to}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
