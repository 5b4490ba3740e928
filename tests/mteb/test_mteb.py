"""mteb's own evaluation of a small exported model, by its loaders and metrics, against ours (`make test-mteb`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from cclm.evaluate.retrieval import ranks, recall
from cclm.hub.open import OpenedModel
from cclm.retrieve.embed import Embedder
from cclm.retrieve.mteb_encoder import MtebEncoder
from tests.unit.hub.small_model import opened, tokenizer_folder
from tests.unit.hub.test_hub_folder import write

mteb = pytest.importorskip("mteb", reason="mteb is not installed: make test-mteb installs it", exc_type=ImportError)

__all__ = ["opened", "tokenizer_folder"]
LANGUAGES = {"de": "deu-Latn", "en": "eng-Latn"}
WORDS = {
    "de": ["rot", "grün", "blau", "Kreis", "Kasten", "alt"],
    "en": ["red", "green", "blue", "circle", "box", "old"],
}
NUM_IMAGES = 14


def images() -> list[Image.Image]:
    return [
        Image.effect_mandelbrot((20 + n, 30), (-2 + n / 9, -1.5, 1, 1.5), 5 + n).convert("RGB")
        for n in range(NUM_IMAGES)
    ]


def captions(language: str) -> list[str]:
    words = WORDS[language]
    return [f"{words[n % 6]} {words[n // 6]} {words[(n * n) % 5]}" for n in range(NUM_IMAGES)]


def make_task(kind: str) -> Any:
    """A retrieval task in two languages, in memory: one image for each text ("t2i"), or one text for each image."""
    from datasets import Dataset
    from mteb.abstasks.retrieval import AbsTaskRetrieval
    from mteb.abstasks.retrieval_dataset_loaders import RetrievalSplitData

    numbers = range(NUM_IMAGES)
    pictures = Dataset.from_dict({"id": [f"i{n}" for n in numbers], "image": images()})

    class Task(AbsTaskRetrieval):
        metadata = mteb.TaskMetadata(
            name=f"Tiny{kind.upper()}", description="tiny", dataset={"path": "none", "revision": "1"}, category=kind,
            type="Any2AnyMultilingualRetrieval", eval_splits=["test"], main_score="ndcg_at_10",
            eval_langs={one: [tag] for one, tag in LANGUAGES.items()}, modalities=["image", "text"],
        )  # fmt: skip

        def load_data(self, *_: Any, **__: Any) -> None:
            self.dataset = {}
            for language in WORDS:
                texts = Dataset.from_dict({"id": [f"t{n}" for n in numbers], "text": captions(language)})
                queries, corpus = (texts, pictures) if kind == "t2i" else (pictures, texts)
                right = {queries[n]["id"]: {corpus[n]["id"]: 1} for n in numbers}
                data = RetrievalSplitData(queries=queries, corpus=corpus, relevant_docs=right, top_ranked=None)
                self.dataset[language] = {"test": data}
            self.data_loaded = True

    return Task()


@pytest.fixture
def export(opened: OpenedModel, tmp_path: Path) -> Path:
    write(opened, tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("kind", ["t2i", "i2t"])
def test_recall_is_ours(export: Path, opened: OpenedModel, kind: str) -> None:
    found = mteb.evaluate(MtebEncoder(export), make_task(kind), cache=None, co2_tracker=False)
    scores = {line["hf_subset"]: line for line in found.task_results[0].scores["test"]}
    assert set(scores) == set(WORDS)
    embedder = Embedder(opened=opened)
    image_features = torch.stack([opened.pixels(image) for image in images()])
    image_features = opened.model.get_image_features(image_features).detach()
    for language, line in scores.items():
        text_features, _ = embedder.texts(captions(language))
        similarity = text_features @ image_features.T
        ours = recall(ranks(similarity if kind == "t2i" else similarity.T, torch.eye(NUM_IMAGES, dtype=torch.bool)))
        assert 0 < ours["r10"] < 100, "a case that tells something"
        for k in (1, 5, 10):
            assert 100 * line[f"recall_at_{k}"] == pytest.approx(ours[f"r{k}"], abs=1e-3), (language, k)


def test_mteb_knows_what_it_has_measured(export: Path, opened: OpenedModel) -> None:
    encoder = MtebEncoder(export)
    assert isinstance(encoder, mteb.EncoderProtocol)
    meta = encoder.mteb_model_meta
    assert (meta.name, meta.embed_dim, meta.max_tokens) == ("cclm/model", 8, opened.max_tokens)
    assert set(meta.modalities) == {"image", "text"}
