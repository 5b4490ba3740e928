"""The retrieve view: images with captions of annotation files, contrasted and matched as in the image-text view.

| first side, the memory | second side, the query | head |
|---|---|---|
| image | caption | projections, matching |

A row is an image with *one* caption: published fine-tuning shows each caption once an epoch. Captions of one image (or
equal ones of COCO in several files) are positives of each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from cclm.data.batch import BadSample
from cclm.data.collate import fusion_draws, int64, row_tensors
from cclm.data.ledger import identity_hash, sample_hash
from cclm.data.stream import Address
from cclm.views.annotated.options import RetrieveConfig
from cclm.views.annotated.rows import text_of
from cclm.views.annotated.source import AnnotatedSource, RowSample
from cclm.views.image_text.view import ImageTextView
from cclm.views.images import ImageBatch


class RetrieveSource(AnnotatedSource[RetrieveConfig, ImageBatch]):
    """Pairs of an image and a caption."""

    stream_bits = 1 << 57
    sample_purpose = 20

    def batch(self, step: int, rows: range, bad: list[BadSample]) -> ImageBatch:
        """Build the batch of some rows of a step; broken ones are replaced and added to `bad`."""
        matching, _ = self.matching_rows(rows)
        return self.collate(list(self.samples(step, rows, bad, matching=matching)), rows)

    def make(self, address: Address, fusion: bool = False) -> RowSample:
        """Make a sample of a row; one that goes through the fusion encoder with its draws of negatives."""
        generator = self.generator(address)
        sample = self.trained(self._rows[address.source][address.sample], generator)
        if not fusion:
            return sample
        draws = fusion_draws(sample.ids, self.config.masking, self.config.negative_group, self.tokenizer, generator)
        return replace(sample, fusion=draws)

    def collate(self, samples: Sequence[RowSample], rows: range) -> ImageBatch:
        """Make a batch of samples."""
        fields = self.shared_fields(samples, rows)
        draws, (_, is_counted) = [sample.fusion for sample in samples], self.matching_rows(rows)
        fields |= row_tensors(rows, draws, is_counted, self.tokenizer.pad_id, self.pad_multiple)
        fields |= {"identity_R": int64([identity_hash(sample.row.id) for sample in samples])}
        return ImageBatch(**fields)

    def sample_of(self, row: Any, pixels: Sequence[Any], *, is_test: bool = False) -> RowSample:
        """Make a sample of a row and its image; captions of one image are told apart in the ledger."""
        sample = super().sample_of(row, pixels, is_test=is_test)
        return replace(sample, ledger=sample_hash(self.name, row.id, f"{row.language}:{text_of(row)}"))


class RetrieveView(ImageTextView):
    """Images with captions of annotation files."""

    source = RetrieveSource
