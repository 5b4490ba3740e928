"""The options of the data path that views share: images, masking, sources, mixture. Nothing heavy is imported."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

from cclm.types import MOST_STEPS, Bounds, Count, Language, LocalPath, NotNegative, PathText, Positive, Share

Normalise = Literal["cclm", "none"]
Schedule = Literal["joint", "alternate"]
Triple = tuple[float, float, float]
Method = Literal["random_resized_crop", "affine", "none"]
Resample = Literal["bicubic", "bilinear", "box"]


@dataclass(frozen=True, kw_only=True)
class RandAugmentConfig:
    """How many operations, how strong and how often (defaults: the published pre-training)."""

    num_operations: Count = 2
    """Operations drawn for each image, with replacement."""
    level: Annotated[int, Bounds(least=0, most=10)] = 7
    """Strength, 0 to 10."""
    probability: Share = 0.5
    """Probability that a drawn operation is run."""
    colour_only: bool = False
    """Leave out shears, shifts and turns, which would move a region away from its box."""


@dataclass(frozen=True, kw_only=True)
class ImageTransformConfig:
    """How an image becomes the model's input."""

    size: Positive = 224
    """Height and width of the result, pixels."""
    method: Method = "random_resized_crop"
    """Training: a random crop (photographs), a small affine jitter (icons), or only the evaluation resize."""
    resample: Resample = "bicubic"
    """Filter of every resize, antialiased; `box` averages areas."""
    crop_area: tuple[float, float] = (0.2, 1.0)
    """random_resized_crop: share of the image's area."""
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """random_resized_crop: width over height."""
    flip_probability: Share = 0.5
    """Probability of a horizontal flip."""
    randaugment: RandAugmentConfig | None = None
    """random_resized_crop: RandAugment afterwards, as published; None: without."""
    scale: Annotated[float, Bounds(least=0, below=1)] = 0.125
    """affine: enlarge or shrink by at most this share."""
    rotation_rad: float = 0.25
    """affine: turn by at most this angle."""
    shift: float = 0.075
    """affine: move by at most this share of the width, each axis."""
    brightness: Share = 0.2
    """affine: multiply by 1 ± at most this."""
    contrast: Share = 0.0
    """affine: distances from the image's mean grey, times 1 ± at most this."""
    saturation: Share = 0.0
    """affine: distances from the pixel's own grey, times 1 ± at most this."""
    hue_rad: float = 0.0
    """affine: turn colours about the grey axis by at most this angle."""
    background: tuple[int, int, int] = (255, 255, 255)
    """affine: colour that shows where the image was moved away."""
    mean: Triple = (0.48145466, 0.4578275, 0.40821073)
    """Subtracted from each channel (values in 0 … 1)."""
    std: Triple = (0.26862954, 0.26130258, 0.27577711)
    """Each channel is divided by it."""
    cache_bytes: Count = 0
    """Memory for decoded images in each process; 0 for none (random_resized_crop then decodes at a reduced size
    where the crop allows it)."""

    def validation_errors(self) -> Iterator[str]:
        """Yield what contradicts itself."""
        if min(self.std) <= 0:
            yield f"std must be positive, is {self.std}"
        if not 0 < self.crop_area[0] <= self.crop_area[1] <= 1:
            yield f"crop_area must obey 0 < low ≤ high ≤ 1, is {self.crop_area}"
        if not 0 < self.crop_ratio[0] <= self.crop_ratio[1]:
            yield f"crop_ratio must obey 0 < low ≤ high, is {self.crop_ratio}"


@dataclass(frozen=True, kw_only=True)
class MaskingConfig:
    """How many tokens are hidden, and how."""

    mask_probability: Share = 0.4
    """Share of a text's tokens (with `<s>` and `</s>`) to predict; at least one token."""
    max_masks: Positive = 12
    """At most so many tokens of one text."""
    span_probability: Share = 0.2
    """Probability that a pick hides two or three neighbours instead of one token; 0 for single tokens only."""
    maskable_eos: bool = True
    """Whether `</s>` can be hidden, as in the published models. `<s>` never is."""


@dataclass(frozen=True, kw_only=True)
class TeacherConfig:
    """Stored features of another model, which a view's own are pulled to (docs/recipes.md)."""

    path: LocalPath
    """Folder with Parquet files, of `cclm embed` or your own: columns `text` and `feature`, of images `key`."""
    width: Positive
    """Numbers of a feature in them."""
    weight: NotNegative = 1.0
    """Of each side's loss in the total."""
    form: Literal["cosine", "relational"] = "cosine"
    """"cosine": one minus the cosine of the two features, through a learned linear map where their widths differ, which
    is no part of the model. "relational": the divergence (KL) of the student's similarities to the other rows of the
    batch from the teacher's, both through a softmax."""
    temperature: Annotated[float, Bounds(above=0)] = 0.05
    """relational: both models' similarities are divided by it."""


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """One shard set of a view."""

    path: PathText
    """Folder or address (http, s3, gs, hf) of the shard set."""
    weight: NotNegative | None = None
    """Its proportion in the mixture; for all sources of the view or for none. None: by size."""
    repeat: Annotated[float, Bounds(above=0)] = 1.0
    """Without weights: factor on its size; 2 shows its samples twice as often as 1 does."""
    max_epochs: Annotated[float, Bounds(above=0)] | None = None
    """How often its samples are shown at most; None: no limit. A source that is used up leaves the mixture, and the
    others share its place."""


@dataclass(frozen=True, kw_only=True)
class MixStage:
    """Other proportions from a step on."""

    start_step: Annotated[int, Bounds(least=0, most=MOST_STEPS)]
    """The first step with these proportions."""
    weights: Mapping[str, NotNegative] | None = None
    """One for every source by its name, 0 to leave it out; None: as before."""
    language_weights: Mapping[Language, NotNegative] | None = None
    """As in MixConfig; None: as before."""

    def validation_errors(self) -> Iterator[str]:
        """Yield what contradicts itself."""
        yield from _weight_errors("weights", self.weights)
        yield from _weight_errors("language_weights", self.language_weights)


@dataclass(frozen=True, kw_only=True)
class MixConfig:
    """How the sources and languages of a view are mixed, beside the sources' weights."""

    temperature: Annotated[float, Bounds(above=0)] = 1.0
    """Without weights: a source's weight is its size to the power 1/temperature. 1: by size; 3.3 lifts small sources,
    as for parallel text in many languages; very large: all alike."""
    language_weights: Mapping[Language, NotNegative] | None = None
    """Proportions of the languages of captions (of a group's translations), exact where the records have all of them;
    languages without a weight are not shown. None: all alike."""
    schedule: tuple[MixStage, ...] = ()
    """Other proportions from later steps on, in the order of their start."""

    @property
    def has_language_weights(self) -> bool:
        """Whether languages are drawn by weight at any step."""
        later = (stage.language_weights for stage in self.schedule)
        return any(weights is not None for weights in (self.language_weights, *later))

    def validation_errors(self) -> Iterator[str]:
        """Yield what contradicts itself."""
        yield from _weight_errors("language_weights", self.language_weights)
        starts = [stage.start_step for stage in self.schedule]
        if starts != sorted(set(starts)):
            yield f"schedule must be one stage after the other; starts are {starts}"


def _weight_errors(name: str, weights: Mapping[str, float] | None) -> Iterator[str]:
    if weights is not None and not any(weights.values()):
        yield f"{name} are all 0"
