"""The options of the data path that all views share: pictures, masking, mixture. Nothing is imported to read them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from cclm.types import Language

Normalise = Literal["cclm", "none"]
Schedule = Literal["joint", "alternate"]
Triple = tuple[float, float, float]
Method = Literal["random_resized_crop", "affine", "none"]
Resample = Literal["bicubic", "bilinear", "box"]


@dataclass(frozen=True, kw_only=True)
class RandAugmentConfig:
    """How many operations, how strong and how often (defaults: the published pre-training)."""

    num_operations: int = 2
    """Operations drawn for each picture, with replacement."""
    level: int = 7
    """Strength, 0 to 10."""
    probability: float = 0.5
    """Probability that a drawn operation is carried out."""
    colour_only: bool = False
    """Leave out shears, shifts and turns, which would move a region away from its box."""


@dataclass(frozen=True, kw_only=True)
class ImageTransformConfig:
    """How a picture becomes the model's input."""

    size: int = 224
    """Height and width of the result, pixels."""
    method: Method = "random_resized_crop"
    """Training: a random crop (photographs), a small affine jitter (icons), or only the evaluation resize."""
    resample: Resample = "bicubic"
    """Filter of every resize, antialiased; `box` averages areas."""
    crop_area: tuple[float, float] = (0.2, 1.0)
    """random_resized_crop: share of the picture's area."""
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """random_resized_crop: width over height."""
    flip_probability: float = 0.5
    """Probability of a horizontal flip."""
    randaugment: RandAugmentConfig | None = None
    """random_resized_crop: RandAugment afterwards, as published; None: without."""
    scale: float = 0.125
    """affine: enlarge or shrink by at most this share."""
    rotation_rad: float = 0.25
    """affine: turn by at most this angle."""
    shift: float = 0.075
    """affine: move by at most this share of the width, each axis."""
    brightness: float = 0.2
    """affine: multiply by 1 ± at most this."""
    contrast: float = 0.0
    """affine: distances from the picture's mean grey, times 1 ± at most this."""
    saturation: float = 0.0
    """affine: distances from the pixel's own grey, times 1 ± at most this."""
    hue_rad: float = 0.0
    """affine: turn colours about the grey axis by at most this angle."""
    background: tuple[int, int, int] = (255, 255, 255)
    """affine: colour that shows where the picture was moved away."""
    mean: Triple = (0.48145466, 0.4578275, 0.40821073)
    """Subtracted from each channel (values in 0 … 1)."""
    std: Triple = (0.26862954, 0.26130258, 0.27577711)
    """Each channel is divided by it."""
    cache_bytes: int = 0
    """Memory for decoded pictures in each process; 0 for none (random_resized_crop then decodes at a reduced size
    where the crop allows it)."""


@dataclass(frozen=True, kw_only=True)
class MaskingConfig:
    """How many tokens are hidden, and how."""

    mask_probability: float = 0.4
    """Share of a text's tokens (with `<s>` and `</s>`) to predict; at least one token."""
    max_masks: int = 12
    """At most so many tokens of one text."""
    span_probability: float = 0.2
    """Probability that a pick hides two or three neighbours instead of one token; 0 for single tokens only."""
    maskable_eos: bool = True
    """Whether `</s>` can be hidden, as in the published models. `<s>` never is."""


@dataclass(frozen=True, kw_only=True)
class MixStage:
    """Other proportions from a step on."""

    start_step: int
    """The first step with these proportions."""
    weights: tuple[float, ...] | None = None
    """One for each source, 0 to leave it out; None: as before."""
    language_weights: Mapping[Language, float] | None = None
    """As in MixConfig; None: as before."""


@dataclass(frozen=True, kw_only=True)
class MixConfig:
    """How the sources and languages of a view are mixed, beside the view's `weights`."""

    temperature: float = 1.0
    """Without `weights`: a source's weight is its size to the power 1/temperature. 1: by size; 3.3 lifts small sources,
    as for parallel text in many languages; very large: all alike."""
    repeats: tuple[float, ...] | None = None
    """Without `weights`: factor on each source's size: 2 shows its samples twice as often as 1 does."""
    max_epochs: tuple[float | None, ...] | None = None
    """How often each source's samples are shown at most, null for no limit. A source that is used up leaves the
    mixture, and the others share its place."""
    language_weights: Mapping[Language, float] | None = None
    """Proportions of the languages of captions (of a group's translations), dealt exactly where the records have all
    of them; languages without a weight are not shown. None: all alike."""
    schedule: tuple[MixStage, ...] = field(default=())
    """Other proportions from later steps on, in the order of their start."""


def has_language_weights(mix: MixConfig) -> bool:
    """Whether languages are dealt at all."""
    return mix.language_weights is not None or any(stage.language_weights is not None for stage in mix.schedule)


def mix_complaints(name: str, mix: MixConfig, num_sources: int) -> list[str]:
    """Everything wrong with a view's mix, a sentence each."""
    found = []
    if mix.temperature <= 0:
        found.append(f"{name}.mix.temperature must be positive, is {mix.temperature}")
    given = {"repeats": mix.repeats, "max_epochs": mix.max_epochs}
    given |= {f"schedule[{index}].weights": stage.weights for index, stage in enumerate(mix.schedule)}
    for option, values in given.items():
        if values is not None and len(values) != num_sources:
            found.append(f"{name}.mix.{option} must be one for each of the {num_sources} shards, are {len(values)}")
    if any(value is not None and value <= 0 for value in (*(mix.repeats or ()), *(mix.max_epochs or ()))):
        found.append(f"{name}.mix: repeats and max_epochs are positive")
    for stage in mix.schedule:
        if stage.weights is not None and (min(stage.weights, default=1.0) < 0 or not any(stage.weights)):
            found.append(f"{name}.mix.schedule: weights must be 0 or more, not all 0, are {stage.weights}")
    for table in (mix.language_weights, *(stage.language_weights for stage in mix.schedule)):
        if table is not None and (min(table.values(), default=0.0) < 0 or not any(table.values())):
            found.append(f"{name}.mix.language_weights must be 0 or more, not all 0, are {dict(table)}")
    starts = [stage.start_step for stage in mix.schedule]
    if starts != sorted(set(starts)) or min(starts, default=0) < 0:
        found.append(f"{name}.mix.schedule must be one stage after the other, from step 0 on; starts are {starts}")
    return found
