"""The settings of the region view: boxes of images with texts about them (CCLM-4M, CCLM-X2VLM)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from cclm.model.options import ModelOptions
from cclm.types import Bounds, Count, Positive, Share
from cclm.views.image_text.options import ImageViewConfig

Attributes = Literal["none", "same_language", "any_language"]


@dataclass(frozen=True, kw_only=True)
class RegionConfig(ImageViewConfig):
    """Regions of images, grouped: each negative group takes its G texts from M images; a row is one of the texts.

    The defaults are the published ones of one GPU of eight: 128 texts of 48 images, five texts an image at most. A
    record without a usable region counts as a bad sample. Of `transform` size, filter, flip probability, RandAugment
    (colours only) and normalisation count; the crop is not its own: it holds a region drawn at random.
    """

    negative_group: Count = 128
    """G: texts of a group, among which hard negatives are drawn; 0: the batch size. Ranks that share a group all read
    its images."""
    images_per_group: Positive = 48
    """M: images from which a group takes its texts. More texts than G: G of them are drawn; fewer: some stand twice."""
    texts_per_image: Positive = 5
    """At most so many texts of one image."""
    matching_rows: Positive = 128
    """Texts per step, over all ranks, that also go through the fusion encoder (matching, masked-LM, boxes); equally
    many of each group."""
    with_caption: bool = True
    """Let the image's own caption be the first of its texts, with the whole crop as its region and no box as target."""
    attributes: Attributes = "same_language"
    """Whether and how a region's attribute is said before its text ("red car"): in the text's language, or in any
    (published as `code_switch`)."""
    min_overlap: Annotated[float, Bounds(least=0, below=1)] = 0.5
    """A region is used if more than this share of its box lies in the crop."""
    patch_grid: Positive = 7
    """Image tokens on a side of the grid: `transform.size` over the stride of the image tower."""
    step_share: Share = 0.5
    """Schedule "alternate" with image_text: the share of steps that hold regions in place of whole images."""
    reference: bool = False
    """Reproduce three defects of the published data path: only the first character of an attribute in "any_language",
    flips although a text says "left" or "right", and texts that stand twice as each other's negatives."""

    trains: ClassVar[frozenset[str]] = frozenset({"vision", "boxes"})

    @property
    def samples_per_step(self) -> int:
        """Images of a step, over all ranks."""
        return self.num_groups * self.images_per_group

    @property
    def takes_turns_with(self) -> tuple[str, float] | None:
        """Whole images, by a coin."""
        return "image_text", self.step_share

    def validation_errors(self) -> Iterator[str]:
        """Yield what contradicts itself."""
        yield from super().validation_errors()
        if self.mix.has_language_weights:
            yield "mix: language weights are for captions and translations; use languages"
        if self.transform.randaugment is not None and not self.transform.randaugment.colour_only:
            yield "transform.randaugment: only with colour_only, or boxes would not fit their image"
        if self.transform.size % self.patch_grid:
            yield f"transform.size {self.transform.size} is no multiple of patch_grid {self.patch_grid}"

    def model_errors(self, model: ModelOptions, pad_multiple: int) -> Iterator[str]:
        """Yield in what these settings and the network do not fit."""
        yield from super().model_errors(model, pad_multiple)
        vision = model.vision
        if not model.box_head:
            yield "negative_group: regions need model.box_head: true"
        if vision.source is None and vision.stride and self.patch_grid * vision.stride != vision.image_size:
            grid = vision.image_size // vision.stride
            yield f"patch_grid {self.patch_grid} is not the image tower's grid, {grid} on a side"
