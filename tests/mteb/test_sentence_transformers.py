"""An exported folder in sentence-transformers, which mteb brings (`make test-mteb`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from cclm.hub.open import OpenedModel
from cclm.retrieve.embed import Embedder
from tests.unit.hub.small_model import opened, tokenizer_folder
from tests.unit.hub.test_hub_folder import write

library = pytest.importorskip("sentence_transformers", reason="make test-mteb installs it", exc_type=ImportError)

__all__ = ["opened", "tokenizer_folder"]
TEXTS = ["red circle", "blauer Kasten", "", "grün " * 40]


@pytest.fixture
def pictures(tmp_path: Path) -> list[Image.Image]:
    found = [Image.effect_mandelbrot((20 + n, 30), (-2 + n / 9, -1.5, 1, 1.5), 5 + n).convert("RGB") for n in range(3)]
    for number, picture in enumerate(found):
        picture.save(tmp_path / f"{number}.png")
    return found


def test_texts_and_images_are_what_the_model_gives(
    opened: OpenedModel, tmp_path: Path, pictures: list[Image.Image]
) -> None:
    write(opened, folder := tmp_path / "folder")
    model: Any = library.SentenceTransformer(str(folder), trust_remote_code=True, device="cpu")
    embedder = Embedder(opened=opened)
    found = model.encode(TEXTS, batch_size=2, convert_to_tensor=True)
    told = [number for number, text in enumerate(TEXTS) if text]  # an empty one has no feature in ours
    assert (found[told] - embedder.texts([TEXTS[number] for number in told])[0]).abs().max() <= 1e-5
    assert found.norm(dim=1).sub(1).abs().max() < 1e-5
    expected = embedder.images([lambda picture=picture: picture for picture in pictures])[0]
    assert (model.encode(pictures, convert_to_tensor=True) - expected).abs().max() <= 1e-5
    paths = [str(tmp_path / f"{number}.png") for number in range(3)]
    assert (model.encode(paths, convert_to_tensor=True) - expected).abs().max() <= 1e-5
    assert model.get_embedding_dimension() == expected.shape[1]
    assert model.similarity(found, expected).shape == (4, 3)
    assert model.encode("red circle", truncate_dim=4).shape == (4,)


def test_what_it_saves_loads_again_and_what_it_cannot_take_is_refused(
    opened: OpenedModel, tmp_path: Path, pictures: list[Image.Image]
) -> None:
    write(opened, folder := tmp_path / "folder")
    with pytest.raises(ValueError, match="trust_remote_code"):
        library.SentenceTransformer(str(folder), device="cpu")
    model: Any = library.SentenceTransformer(str(folder), trust_remote_code=True, device="cpu")
    with pytest.raises(ValueError):
        model.encode(["red circle", pictures[0]], batch_size=2)
    model.save_pretrained(str(tmp_path / "again"))
    again: Any = library.SentenceTransformer(str(tmp_path / "again"), trust_remote_code=True, device="cpu")
    assert (again.encode(TEXTS) == model.encode(TEXTS)).all()
