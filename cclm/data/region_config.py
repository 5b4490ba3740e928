"""The settings of the region view: boxes of images with texts about them (CCLM-4M, CCLM-X2VLM)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from cclm.data.options import ImageTransformConfig, MaskingConfig, MixConfig, has_language_weights
from cclm.types import ImageSet, Language

Attributes = Literal["none", "same_language", "any_language"]


@dataclass(frozen=True, kw_only=True)
class RegionDataConfig:
    """Regions of images, grouped: each negative group takes its G texts from M images.

    The defaults are the published ones of one GPU of eight: 128 texts of 48 images, five texts an image at most.
    """

    shards: tuple[ImageSet, ...]
    """Folders of image-text shard sets whose records have `regions`; each is one source of the mixture. A record
    without a usable region counts as a bad sample."""
    weights: tuple[float, ...] | None = None
    """Proportions of the sources; None: the proportions of their sizes."""
    mix: MixConfig = field(default_factory=MixConfig)
    """How the proportions change, and how often a source is repeated."""
    batch_size: int = 128
    """Texts per step, over all ranks."""
    negative_group: int = 128
    """G: texts of a group, among which hard negatives are drawn; a rank holds whole groups."""
    images_per_group: int = 48
    """M: images from which a group takes its texts. More texts than G: G of them are drawn; fewer: some stand twice."""
    texts_per_image: int = 5
    """At most so many texts of one image."""
    matching_rows: int = 128
    """Texts per step, over all ranks, that also go through the fusion encoder (matching, masked-LM, boxes); equally
    many of each group."""
    num_lanes: int = 8
    """Lanes of the stream of images, any number, as for the other views."""
    window: int = 1024
    """Images of a lane that are shuffled together."""
    languages: tuple[Language, ...] | None = None
    """Languages of texts to use; None: all that a region has."""
    first_caption_probability: float | None = None
    """Probability of the first text of a language's list, the others sharing the rest; None: all alike."""
    with_caption: bool = True
    """Let the image's own caption be the first of its texts, with the whole crop as its region and no box as target."""
    attributes: Attributes = "same_language"
    """Whether and how a region's attribute is said before its text ("red car"): in the text's language, or in any
    (published as `code_switch`)."""
    min_overlap: float = 0.5
    """A region is used if more than this share of its box lies in the crop."""
    patch_grid: int = 7
    """Image tokens on a side of the grid: `transform.size` over the stride of the image tower."""
    max_tokens: int = 40
    """Longest text in tokens, with `<s>` and `</s>`."""
    max_words: int | None = None
    """Longest text in space-separated words; None: no limit."""
    masking: MaskingConfig = field(default_factory=lambda: MaskingConfig(max_masks=12))
    """How texts are masked."""
    transform: ImageTransformConfig = field(default_factory=ImageTransformConfig)
    """Size, filter, flip probability, RandAugment (colours only) and normalisation. The crop is not its own: it holds a
    region drawn at random."""
    reference: bool = False
    """Reproduce three defects of the published data path: only the first character of an attribute in "any_language",
    flips although a text says "left" or "right", and texts that stand twice as each other's negatives."""

    @property
    def num_groups(self) -> int:
        """Groups of a step."""
        return self.batch_size // self.negative_group

    @property
    def images_per_step(self) -> int:
        """Images of a step, over all ranks."""
        return self.num_groups * self.images_per_group


def region_complaints(view: RegionDataConfig) -> Iterator[str]:
    """What only regions can get wrong, a sentence each."""
    if view.images_per_group < 1 or view.texts_per_image < 1 or view.patch_grid < 1:
        yield "regions: images_per_group, texts_per_image and patch_grid are at least 1"
    if has_language_weights(view.mix):
        yield "regions.mix: language weights are for captions and translations; use regions.languages"
    if not 0 <= view.min_overlap < 1:
        yield f"regions.min_overlap must be a share below 1, is {view.min_overlap}"
    if view.attributes not in ("none", "same_language", "any_language"):
        yield f"regions.attributes must be none, same_language or any_language, is {view.attributes!r}"
    if view.transform.randaugment is not None and not view.transform.randaugment.colour_only:
        yield "regions.transform.randaugment: only with colour_only, or boxes would not fit their picture"
    if view.transform.size % max(1, view.patch_grid):
        yield f"regions.transform.size {view.transform.size} is no multiple of patch_grid {view.patch_grid}"
