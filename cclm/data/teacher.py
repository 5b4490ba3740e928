"""A view's teacher: what its stored features say about the rows of a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from cclm.data.batch import Taught
from cclm.data.ledger import image_hash
from cclm.data.options import TeacherConfig
from cclm.shardfile.manifest import Manifest
from cclm.shardfile.options import CacheConfig

Keys = Mapping[str, Sequence[int]]
"""Of a sample, by side: what the features of its rows are found by."""


class Teacher:
    """The features of a teacher, and which of a view's sets its images are from.

    `manifests`: of the view's sets, in their order. Raises ConfigError: see `open_index`.
    """

    def __init__(self, config: TeacherConfig, cache: CacheConfig, manifests: Sequence[Manifest]) -> None:
        from cclm.data.teacher_index import open_index

        self._index = open_index(config, cache)
        self.has_images = self._index.facts.num_images > 0
        """Whether it knows images at all."""
        sets = self._index.facts.images
        self._fingerprints = [next((one.fingerprint for one in sets if one.is_of(set_)), "") for set_ in manifests]

    def image_hash(self, source: int, key: str) -> int:
        """Return what an image of a source is found by."""
        return image_hash(self._fingerprints[source], key)

    def rows(self, samples: Sequence[Keys], numbers: range) -> dict[str, Taught]:
        """Return what is known of each side of some samples, which have these numbers in the global batch."""
        found = {}
        for side in samples[0]:
            key_SK = np.array([sample[side] for sample in samples], dtype=np.int64)
            row_N = np.arange(numbers.start * key_SK.shape[1], numbers.stop * key_SK.shape[1])
            feature_NT, is_known_N = self._index.look_up(key_SK.reshape(-1))
            row_N[~is_known_N] = -1
            found[side] = Taught(feature_NT=torch.from_numpy(feature_NT), row_N=torch.from_numpy(row_N))
        return found
