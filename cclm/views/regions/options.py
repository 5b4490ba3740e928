"""The settings of the region view: boxes of images with texts about them (CCLM-4M, CCLM-X2VLM)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

from cclm.model.configuration_cclm import ModelOptions
from cclm.views.image_options import ImageViewConfig

Attributes = Literal["none", "same_language", "any_language"]


@dataclass(frozen=True, kw_only=True)
class RegionConfig(ImageViewConfig):
    """Regions of images, grouped: each negative group takes its G texts from M images; a row is one of the texts.

    The defaults are the published ones of one GPU of eight: 128 texts of 48 images, five texts an image at most. A
    record without a usable region counts as a bad sample. Of `transform` size, filter, flip probability, RandAugment
    (colours only) and normalisation count; the crop is not its own: it holds a region drawn at random.
    """

    negative_group: int = 128
    """G: texts of a group, among which hard negatives are drawn; a rank holds whole groups."""
    images_per_group: int = 48
    """M: images from which a group takes its texts. More texts than G: G of them are drawn; fewer: some stand twice."""
    texts_per_image: int = 5
    """At most so many texts of one image."""
    matching_rows: int = 128
    """Texts per step, over all ranks, that also go through the fusion encoder (matching, masked-LM, boxes); equally
    many of each group."""
    with_caption: bool = True
    """Let the image's own caption be the first of its texts, with the whole crop as its region and no box as target."""
    attributes: Attributes = "same_language"
    """Whether and how a region's attribute is said before its text ("red car"): in the text's language, or in any
    (published as `code_switch`)."""
    min_overlap: float = 0.5
    """A region is used if more than this share of its box lies in the crop."""
    patch_grid: int = 7
    """Image tokens on a side of the grid: `transform.size` over the stride of the image tower."""
    step_share: float = 0.5
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

    def find_problems(self, world_size: int, micro_batches: int) -> Iterator[str]:
        """Yield everything that is wrong with these settings, a sentence each."""
        yield from super().find_problems(world_size, micro_batches)
        if self.images_per_group < 1 or self.texts_per_image < 1 or self.patch_grid < 1:
            yield "images_per_group, texts_per_image and patch_grid are at least 1"
        if self.mix.has_language_weights:
            yield "mix: language weights are for captions and translations; use languages"
        if not 0 <= self.min_overlap < 1:
            yield f"min_overlap must be a share below 1, is {self.min_overlap}"
        if not 0 <= self.step_share <= 1:
            yield f"step_share must be between 0 and 1, is {self.step_share}"
        if self.transform.randaugment is not None and not self.transform.randaugment.colour_only:
            yield "transform.randaugment: only with colour_only, or boxes would not fit their image"
        if self.transform.size % max(1, self.patch_grid):
            yield f"transform.size {self.transform.size} is no multiple of patch_grid {self.patch_grid}"

    def find_model_problems(self, model: ModelOptions, pad_multiple: int) -> Iterator[str]:
        """Yield everything in which these settings and the network do not fit, a sentence each."""
        yield from super().find_model_problems(model, pad_multiple)
        stride = model.vision.stride
        if not model.box_head:
            yield "needs model.box_head: true"
        if stride and self.patch_grid * stride != model.vision.image_size:
            grid = model.vision.image_size // stride
            yield f"patch_grid {self.patch_grid} is not the image tower's grid, {grid} on a side"
