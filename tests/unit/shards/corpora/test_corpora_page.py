"""Every recipe in docs/corpora.md is one that the build accepts, and a few of the corpora go all the way to a set."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from cclm.errors import ConfigError
from shards.__main__ import main
from shards.corpora.table import CORPORA, corpus_of
from shards.recipe import load_recipe
from tests.architecture.sources import ROOT
from tests.unit.shards.corpora.test_image_annotations import COCO, published
from tests.unit.shards.corpora.test_parallel_text import TMX, WIKI
from tests.unit.shards.corpora.tiny_files import write_pictures

PAGE = (ROOT / "docs" / "corpora.md").read_text(encoding="utf-8")
RECIPES = re.findall(r"^```yaml\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("number", range(len(RECIPES)))
def test_a_recipe_of_the_page_has_no_mistake(number: Any, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPES[number], encoding="utf-8")
    assert load_recipe(tmp_path / "recipe.yaml").sets


def test_every_corpus_has_an_example() -> None:
    shown = set(re.findall(r"corpus: (\w+)", PAGE))
    assert shown | {"emoji_images", "emoji_names"} == set(CORPORA)
    assert all(f"`{name}`" in PAGE for name in ("emoji_images", "emoji_names"))


def test_a_recipe_is_not_changed_by_the_check_of_its_types() -> None:
    options = {"captions": {"en": "a.json"}, "images": ["b"], "translations": [{"path": "c.tsv"}]}
    before = json.dumps(options)
    corpus_of("coco", options)
    assert json.dumps(options) == before
    with pytest.raises(ConfigError, match=r"coco: expected options of Coco .*, got .*captions"):
        corpus_of("coco", options | {"captions": ["a.json"]})


def test_corpora_go_all_the_way_and_every_entry_is_accounted_for(tmp_path: Path) -> None:
    write_pictures(tmp_path / "pictures", ["COCO_val2014_000000391895.jpg"])
    (tmp_path / "captions.json").write_text(json.dumps(COCO))
    (tmp_path / "lines").write_text(json.dumps(published(caption={"en": "a dog"})) + "\n{\n")
    (tmp_path / "WikiMatrix.de-en.tsv").write_text(WIKI)
    (tmp_path / "memory.tmx").write_text(TMX)
    options = {
        "coco": {"captions": {"en": "captions.json"}, "images": "pictures"},
        "published_images": {"path": "lines", "source": "lines"},
        "margin_file": {"path": "WikiMatrix.de-en.tsv", "anchor": "en"},
        "tmx": {"path": "memory.tmx", "lang_a": "en", "lang_b": ["de", "fr"]},
    }
    text = json.dumps(
        {
            "sets": {
                corpus: {"view": CORPORA[corpus][0].value, "corpus": corpus, "options": of, "max_bad_fraction": 0.9}
                for corpus, of in options.items()
            }
        }
    )
    for name in ("captions.json", "pictures", "lines", "WikiMatrix.de-en.tsv", "memory.tmx"):
        text = text.replace(f'"{name}"', json.dumps(str(tmp_path / name)))
    (tmp_path / "recipe.yaml").write_text(text)
    assert (
        main(["build", str(tmp_path / "recipe.yaml"), "--out", str(tmp_path / "out")], Console(file=io.StringIO())) == 0
    )
    entries = {"coco": 5, "published_images": 2, "margin_file": 7, "tmx": 5}
    for corpus, count in entries.items():
        manifest = json.loads((tmp_path / "out" / corpus / "manifest.json").read_bytes())
        quarantine = (tmp_path / "out" / corpus / "quarantine.jsonl").read_bytes().splitlines()
        config = manifest["config"]
        assert len(quarantine) == sum(config["refused"].values())
        assert config["records_in"] == count, corpus
