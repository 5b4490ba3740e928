from __future__ import annotations

import base64
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from cclm.data.options import ImageTransformConfig
from cclm.data.tokens import TextTokenizer
from cclm.errors import ConfigError
from cclm.evaluate.zero_shot import measure
from cclm.hub.open import OpenedModel
from cclm.model.configuration_cclm import CCLMConfig
from cclm.retrieve.measure import data_uri, deciding_groups, evaluate, gallery_of, languages_of, load_set
from cclm.run.checkpoints import CheckpointFacts
from cclm.shardfile.reader import ShardSet
from tests.unit.data.data_sets import make_tokenizer, write_images, write_pairs


class ByName:
    """Reads a text's first real token, and a picture's mean colour: knows nothing, but always answers the same."""

    def encode_images(self, images_BCHW: Any) -> Any:
        return images_BCHW.mean(dim=(2, 3))[:, None]

    def encode_texts(self, ids_BL: Any, mask_BL: Any) -> Any:
        return (ids_BL * mask_BL)[..., None].float().expand(-1, -1, 3) / 10

    def project_images(self, image_BND: Any) -> Any:
        return torch.nn.functional.normalize(image_BND[:, 0] - image_BND[:, 0].mean(1, keepdim=True) + 1e-3, dim=-1)

    def project_texts(self, text_BLD: Any, mask_BL: Any) -> Any:
        return torch.nn.functional.normalize(text_BLD[:, 1].sin() + torch.tensor([0.1, 0.2, 0.3]), dim=-1)

    def fuse(self, text_BLD: Any, mask_BL: Any, memory_BND: Any, memory_mask_BN: Any) -> Any:
        return text_BLD + memory_BND[:, :1]

    def match_logits(self, fused_BLD: Any, mask_BL: Any) -> Any:
        return fused_BLD[:, 0, :2]

    def temperature(self) -> Any:
        return torch.tensor([0.1])

    def num_parameters(self) -> int:
        return 0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sets")
    write_images(root / "images", 24, per_shard=10)
    shutil.copytree(root / "images", root / "dev")
    write_pairs(root / "pairs", 6)
    return root


@pytest.fixture
def opened() -> OpenedModel:
    torch.set_num_threads(1)
    model: Any = ByName()
    return OpenedModel(
        model=model,
        config=CCLMConfig(),
        tokenizer=TextTokenizer(make_tokenizer()),
        tokenizer_folder=Path("somewhere"),
        transform=ImageTransformConfig(size=8, method="none"),
        max_tokens=6,
        origin=Path("somewhere"),
        run_folder=None,
        checkpoint=CheckpointFacts(step=7, identity="a1"),
    )


def test_a_set_is_read_whole_in_shard_order_with_first_captions(folder: Path, opened: OpenedModel) -> None:
    loaded = load_set(folder / "images", opened, ["en", "de"])
    shards = ShardSet(folder / "images")
    assert len(loaded.records) == 24
    assert loaded.records[13] == shards.image_text(1, 3)
    queries = loaded.tensors.queries["en"]
    first = loaded.records[13].captions["en"][0]
    length = int(queries.mask_TL[13].sum())
    assert queries.ids_TL[13, :length].tolist() == opened.tokenizer.encode([first], 6)[0]
    assert (queries.ids_TL[~queries.mask_TL] == opened.tokenizer.pad_id).all()
    assert loaded.tensors.images_CCHW.shape == (24, 3, 8, 8)


def test_equal_identities_are_equal_numbers(folder: Path, opened: OpenedModel) -> None:
    loaded = load_set(folder / "images", opened, ["en"])
    for row in range(24):
        same = [loaded.records[other].identity == loaded.records[row].identity for other in range(24)]
        assert (loaded.tensors.identity_C == loaded.tensors.identity_C[row]).tolist() == same


def test_a_language_without_captions_and_a_set_of_pairs_are_refused(folder: Path, opened: OpenedModel) -> None:
    with pytest.raises(ConfigError, match="captions in 'sw', got none"):
        load_set(folder / "images", opened, ["en", "sw"])
    with pytest.raises(ConfigError, match="an image-text shard set, got text_pair"):
        load_set(folder / "pairs", opened, ["en"])


def test_languages_of_groups_come_once_in_order() -> None:
    assert languages_of({"a": ["en", "de"], "b": ["de", "fr"]}) == ["en", "de", "fr"]


def test_the_rule_comes_from_the_dev_set_and_results_say_so(folder: Path, opened: OpenedModel) -> None:
    seen: list[tuple[str, str]] = []
    results, _ = evaluate(
        opened,
        folder / "images",
        {"english": ["en"], "other": ["de"]},
        dev_shards=folder / "dev",
        top_k=4,
        on_language=lambda set_name, language: seen.append((set_name, language)),
    )
    assert seen == [(name, language) for name in ("dev", "images") for language in ("en", "de")]
    best = max(results["dev"]["tried_rules"], key=lambda tried: tried["objective"])
    assert results["reranked"]["rule"]["match_weight"] == best["match_weight"]
    assert results["members"] == {"english": ["en"], "other": ["de"]}
    assert results["model"] == {"origin": "somewhere", "num_parameters": 0, "step": 7, "checkpoint": "a1"}
    assert results["set"]["num_images"] == 24 and set(results["matching"]["languages"]) == {"en"}


def test_named_groups_decide_and_no_others(folder: Path, opened: OpenedModel) -> None:
    groups = {"english": ["en"], "other": ["de"]}
    dev = evaluate(opened, folder / "images", groups, dev_shards=folder / "dev", rerank_groups=["other"], top_k=4)[0][
        "dev"
    ]
    assert set(dev["languages"]) == {"de"} and set(dev["groups"]) == {"other"}
    with pytest.raises(ConfigError, match="some of the groups english, other, got far"):
        deciding_groups(groups, ["english", "far"])
    assert deciding_groups(groups, None) == groups


def test_choosing_on_the_test_set_is_refused(folder: Path, opened: OpenedModel) -> None:
    same = folder / "pairs" / ".." / "images"
    with pytest.raises(ConfigError, match="got the same set twice"):
        evaluate(opened, folder / "images", {"english": ["en"]}, dev_shards=same, top_k=4)


def test_without_a_dev_set_both_weights_are_one(folder: Path, opened: OpenedModel) -> None:
    groups = {"english": ["en"]}
    assert "reranked" not in evaluate(opened, folder / "images", groups)[0]
    rule = evaluate(opened, folder / "images", groups, top_k=3)[0]["reranked"]["rule"]
    assert rule == {"match_weight": 1.0, "similarity_weight": 1.0}


def test_the_gallery_shows_what_came_first_and_marks_the_right_ones(folder: Path, opened: OpenedModel) -> None:
    loaded = load_set(folder / "images", opened, ["en", "de"])
    found = measure(opened.model, loaded.tensors)
    shown = gallery_of(loaded, found)
    assert [query["language"] for query in shown] == ["en", "de"]
    assert shown == gallery_of(loaded, found), "drawn by a seed"
    by_uri = {data_uri(record): record for record in loaded.records}
    for query in shown:
        assert len(query["images"]) == 5
        about = [one for one in loaded.records if one.captions[query["language"]][0] == query["text"]]
        names = {one.identity or one.key for one in about}
        for image in query["images"]:
            record = by_uri[image["uri"]]
            if image["right"]:
                assert (record.identity or record.key) in names
        assert any(image["right"] for image in query["images"]) or query["rank"] > 1


def test_a_data_uri_holds_the_stored_bytes(folder: Path) -> None:
    record = ShardSet(folder / "images").image_text(0, 0)
    head, body = data_uri(record).split(",", 1)
    assert head == f"data:image/{record.image_format};base64" and base64.b64decode(body) == record.image
