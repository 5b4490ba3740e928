"""What `mteb` needs to measure a trained model on its multilingual image-text tasks, with its loaders and its metrics.

    mteb.evaluate(MtebEncoder("path/to/export"), mteb.get_tasks(tasks=["XM3600T2IRetrieval"], languages=["deu", "jpn"]))

mteb (2.x) is asked for by whoever uses it, never by this module: an encoder is what has these methods.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cclm.hub.open import open_model, place
from cclm.retrieve.embed import Embedder
from cclm.rows.guard import optional_library


class MtebEncoder:
    """The dual encoder of an export, a run or a checkpoint as mteb's `EncoderProtocol`.

    Args:
        folder: as for `open_model`.
        revision: nothing; mteb passes one.
        device: auto, cpu, cuda, …
        dtype: fp32, bf16 or fp16.

    Raises:
        CheckpointError: there is no model.
    """

    def __init__(
        self, folder: str | Path, revision: str | None = None, device: str | None = None, dtype: str = "fp32", **_: Any
    ) -> None:
        self.folder = Path(folder)
        self.embedder = Embedder(opened=place(open_model(self.folder), device or "auto", dtype))

    def encode(self, inputs: Iterable[Mapping[str, Sequence[Any]]], **_: Any) -> Tensor:
        """Return unit vectors (N, E) in fp32 of batches of `text`, of `image` (Pillow's), or of both: then their mean.

        What has no feature (an empty text) is zero, and so equally far from everything.
        """
        found = [self._features(batch) for batch in inputs]
        return torch.cat(found) if found else torch.zeros(0, self.embedder.opened.config.projection_width)

    def _features(self, batch: Mapping[str, Sequence[Any]]) -> Tensor:
        features = []
        if "image" in batch:
            features.append(self.embedder.images([partial(lambda image: image, image) for image in batch["image"]])[0])
        if "text" in batch:
            features.append(self.embedder.texts(batch["text"])[0])
        return torch.nn.functional.normalize(torch.stack(features).mean(0), dim=-1)

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Tensor:
        """Return cosines of all pairs, (N, M)."""
        return torch.as_tensor(embeddings1) @ torch.as_tensor(embeddings2).T

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Tensor:
        """Return cosines of row with row, (N,)."""
        return (torch.as_tensor(embeddings1) * torch.as_tensor(embeddings2)).sum(-1)

    @property
    def mteb_model_meta(self) -> Any:
        """What mteb writes beside its results (MissingDependencyError: it is not installed)."""
        opened = self.embedder.opened
        meta = optional_library("mteb.models.model_meta", "it measures embedding models", "mteb")
        return meta.ModelMeta.create_empty(
            {
                "name": f"cclm/{self.folder.resolve().name}",
                "revision": opened.fingerprint[:16],
                "modalities": ["image", "text"],
                "n_parameters": sum(value.numel() for value in opened.model.parameters()),
                "max_tokens": opened.max_tokens,
                "embed_dim": opened.config.projection_width,
                "similarity_fn_name": meta.ScoringFunction.COSINE,
                "framework": ["PyTorch"],
            }
        )
