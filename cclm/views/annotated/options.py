"""The settings of views whose rows stand in annotation files: what fine-tuning learns from. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final, Literal

from cclm.data.options import MaskingConfig
from cclm.languages import language_tag
from cclm.model.options import ModelOptions
from cclm.types import Bounds, Count, LocalPath, PathText, Positive
from cclm.views.image_text.options import ImageViewConfig

Format = Literal["rows", "xvnli", "statements", "gqa", "vqa", "cvqa", "cvqa_english", "refcoco", "captions"]
"""What an annotation file may be: our own JSON lines, or as published."""
CHOICES: Final = frozenset[Format | None]({"cvqa", "cvqa_english"})
"""Formats of multiple choice."""


def language_of(name: str) -> str:
    """Return the language of an annotation file by its name in the settings: LANGUAGE, or LANGUAGE/SPLIT."""
    return name.partition("/")[0]


@dataclass(frozen=True, kw_only=True)
class AnnotatedConfig(ImageViewConfig):
    """What every such view is told. An epoch shows every row of all `sources` once, but for a last incomplete batch."""

    # No pairs are contrasted and no text is masked: what the base says about these is no option here.
    mix: ClassVar[Any] = None  # type: ignore[misc]
    negative_group: ClassVar[int] = 1  # type: ignore[misc]
    matching_rows: ClassVar[int] = 0  # type: ignore[misc]
    num_lanes: ClassVar[int] = 1  # type: ignore[misc]
    window: ClassVar[int] = 1  # type: ignore[misc]
    masking: ClassVar[Any] = None  # type: ignore[misc]
    languages: ClassVar[Any] = None  # type: ignore[misc]
    first_caption_probability: ClassVar[Any] = None  # type: ignore[misc]
    record_view: ClassVar[Any] = None

    folder: LocalPath = "."
    """Where annotation files and images lie: other paths of this view are relative to it."""
    format: Format = "rows"
    """What the annotation files are. "rows": JSON lines of our own (docs/finetuning.md); as published: "xvnli",
    "statements" (NLVR2, MaRVL), "gqa" (xGQA, too), "vqa", "refcoco", "cvqa" (its questions and choices in their own
    language, "cvqa_english": as translated)."""
    test_format: Format | None = None
    """What the files of `test` are, where they are others than those of `sources` and `dev`; null: the same."""
    images: PathText | tuple[PathText, ...] = "images"
    """Folder, or folders, of the images that rows name, or an image-text shard set, whose keys they name."""
    images_per_row: Positive = 1
    """Images that each row is about: 2 for NLVR2 and MaRVL."""
    dev: Mapping[str, PathText] = field(default_factory=dict)
    """Annotation files by language, on which the best epoch is chosen; so are those of `sources`. Of several in one
    language: LANGUAGE/NAME."""
    test: Mapping[str, PathText] = field(default_factory=dict)
    """Annotation files by language, which are read once, when the run is done; of several in one language:
    LANGUAGE/SPLIT, as results call the split."""
    test_max_tokens: Positive | None = None
    """As `max_tokens`, for dev and test; null: the same."""
    test_max_words: Positive | None = None
    """As `max_words`, for dev and test; null: no limit."""

    def path(self, named: str) -> Path:
        """Return where a file or folder lies that these settings name."""
        return Path(self.folder) / named

    @property
    def image_folders(self) -> list[Path]:
        """Where the images are looked for, in this order."""
        return [self.path(name) for name in ((self.images,) if isinstance(self.images, str) else self.images)]

    def format_of(self, named: str) -> Format:
        """Return what an annotation file is that these settings name."""
        return self.test_format or self.format if named in self.test.values() else self.format

    def named_files(self) -> Iterator[tuple[str, str]]:
        """Yield the key and the path of every annotation file."""
        for name, source in self.ordered_sources.items():
            yield f"sources.{name}.path", str(self.path(source.path))
        for key, files in (("dev", self.dev), ("test", self.test)):
            for name, file in files.items():
                yield f"{key}.{name}", str(self.path(file))

    @property
    def longest_text(self) -> int:
        """Positions that the text encoder needs."""
        return max(self.max_tokens, self.test_max_tokens or 0)

    def validation_errors(self) -> Iterator[str]:
        """Yield what contradicts itself."""
        if not self.sources:
            yield "sources must name at least one annotation file"
        for key, named in (("sources", self.sources), ("dev", self.dev), ("test", self.test)):
            for name in named:
                if language_tag(language_of(name)) is None:
                    yield f"{key}.{name}: its name must begin with a language, such as en, pt-BR or zh-Hant"
        for name, source in self.sources.items():
            if source.weight is not None or source.repeat != 1 or source.max_epochs is not None:
                yield f"sources.{name}: annotation files have no weight, repeat or max_epochs: all rows are shown alike"

    def model_errors(self, model: ModelOptions, pad_multiple: int) -> Iterator[str]:
        """Yield in what these settings and the network do not fit."""
        yield from super().model_errors(model, pad_multiple)
        if self.images_per_row > 1 and model.vision.keep_patches < 1:
            yield f"images_per_row {self.images_per_row} needs model.vision.keep_patches 1"


@dataclass(frozen=True, kw_only=True)
class ClassifyConfig(AnnotatedConfig):
    """Images and a text that belong to one of several classes (`model.num_classes`): XVNLI, NLVR2, MaRVL."""

    def model_errors(self, model: ModelOptions, pad_multiple: int) -> Iterator[str]:
        """Yield in what these settings and the network do not fit."""
        yield from super().model_errors(model, pad_multiple)
        if model.num_classes < 2:
            yield f"classes: model.num_classes is {model.num_classes}, which must be at least 2"
        reads = max(model.fusion.num_memories, model.class_images)
        if reads != self.images_per_row or min(model.fusion.num_memories, model.class_images) > 1:
            yield (
                f"images_per_row {self.images_per_row}: the classifier reads {reads} (model.fusion.num_memories, "
                "in one pass; or model.class_images, each in its own)"
            )


@dataclass(frozen=True, kw_only=True)
class AnswerConfig(AnnotatedConfig):
    """Questions about an image, and their answers: xGQA, VQA."""

    answers: PathText
    """JSON file of all known answers: {answer: number} or a list. The best of them is the prediction."""
    head: Literal["decoder", "classes"] = "decoder"
    """What answers: a decoder that writes (as published), or a class for each known answer (`model.num_classes`)."""
    answer_weights: Literal["equal", "scores"] = "equal"
    """decoder: how several right answers to a question share its loss: all alike (as published), or by their scores."""
    max_answer_tokens: Annotated[int, Bounds(least=3)] = 16
    """Longest answer in tokens, with `<s>` and `</s>`."""
    top_k: Positive = 128
    """decoder: how many answers are read whole; those whose first token is likeliest."""

    def named_files(self) -> Iterator[tuple[str, str]]:
        """Yield the key and the path of every annotation file."""
        yield from super().named_files()
        yield "answers", str(self.path(self.answers))

    @property
    def longest_text(self) -> int:
        """Positions that the text encoder needs."""
        return max(super().longest_text, self.max_answer_tokens)

    def model_errors(self, model: ModelOptions, pad_multiple: int) -> Iterator[str]:
        """Yield in what these settings and the network do not fit."""
        yield from super().model_errors(model, pad_multiple)
        if self.images_per_row != 1 or model.fusion.num_memories != 1:
            yield "images_per_row: questions are about one image (model.fusion.num_memories: 1)"
        if self.head == "decoder" and not model.answer_decoder:
            yield "head: decoder needs model.answer_decoder: true"
        if self.head == "classes" and model.num_classes < 2:
            yield "head: classes needs model.num_classes, the number of known answers"
        if self.head == "classes" and CHOICES & {self.format, self.test_format}:
            yield "head: classes cannot choose among answers of a question's own; decoder can"


@dataclass(frozen=True, kw_only=True)
class LocateConfig(AnnotatedConfig):
    """Phrases, and the box in an image that each means (RefCOCO).

    Of `transform` count size, filter, flip probability, RandAugment (colours only) and normalisation; with
    `random_resized_crop` the crop is a random one that holds the box, with `none` the whole image.
    """

    trains: ClassVar[frozenset[str]] = frozenset({"vision", "boxes"})

    def validation_errors(self) -> Iterator[str]:
        """Yield what contradicts itself."""
        yield from super().validation_errors()
        if self.transform.method == "affine":
            yield "transform.method: random_resized_crop or none, or boxes would not fit their image"
        if self.transform.randaugment is not None and not self.transform.randaugment.colour_only:
            yield "transform.randaugment: only with colour_only, or boxes would not fit their image"

    def model_errors(self, model: ModelOptions, pad_multiple: int) -> Iterator[str]:
        """Yield in what these settings and the network do not fit."""
        yield from super().model_errors(model, pad_multiple)
        if self.images_per_row != 1 or model.fusion.num_memories != 1:
            yield "images_per_row: a box lies in one image (model.fusion.num_memories: 1)"
        if not model.box_head:
            yield "transform: boxes need model.box_head: true"


@dataclass(frozen=True, kw_only=True)
class RetrieveConfig(AnnotatedConfig):
    """Images with captions, contrasted and matched: retrieval, trained on published annotation files.

    A row is an image with one of its captions, so an epoch shows each caption once, as published. `sources` names files
    by language, in any form that a benchmark of retrieval is published in (docs/benchmarks.md); of several in one
    language LANGUAGE/NAME. What is measured is named in finetune.dev_sets and test_sets.
    """

    # Pairs are contrasted and matched as in the image-text view, so what the base takes away is given back; what it
    # adds for rows with right answers is no option here.
    negative_group: Count = 128  # type: ignore[misc]
    """G: hard negatives are drawn inside blocks of G consecutive rows, whatever the ranks. 0: G is the batch size."""
    matching_rows: Positive = 128  # type: ignore[misc]
    """Rows per step, over all ranks, that also go through the fusion encoder as positives; of each negative group
    equally many."""
    images: PathText | tuple[PathText, ...] = ("images", "flickr30k-images")
    """Folder, or folders, of the images that files name, or an image-text shard set, whose keys they name."""
    masking: ClassVar[Any] = MaskingConfig()  # type: ignore[misc]
    format: ClassVar[Format] = "captions"  # type: ignore[misc]
    test_format: ClassVar[Any] = None  # type: ignore[misc]
    images_per_row: ClassVar[int] = 1  # type: ignore[misc]
    dev: ClassVar[Any] = {}  # type: ignore[misc]
    test: ClassVar[Any] = {}  # type: ignore[misc]
    test_max_tokens: ClassVar[Any] = None  # type: ignore[misc]
    test_max_words: ClassVar[Any] = None  # type: ignore[misc]

    def validation_errors(self) -> Iterator[str]:
        """Yield what contradicts itself."""
        yield from super().validation_errors()
        yield from self.group_errors()

    def model_errors(self, model: ModelOptions, pad_multiple: int) -> Iterator[str]:
        """Yield in what these settings and the network do not fit."""
        yield from super().model_errors(model, pad_multiple)
        if not model.pretraining_heads:
            yield "negative_group: pairs are contrasted and matched by model.pretraining_heads: true"
