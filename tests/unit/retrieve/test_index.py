"""The approximate index beside an embedded set: what it finds, when it is built, which one is refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.search_index import measure
from cclm.cli.__main__ import main
from cclm.errors import ConfigError, MissingDependencyError
from cclm.hub.open import OpenedModel
from cclm.retrieve.embed import Embedder, embed
from cclm.retrieve.embed_source import Shards
from cclm.retrieve.index import FACTS, ROWS, approximate, exact, index_folder
from tests.unit.data.data_sets import write_images
from tests.unit.hub.test_hub_folder import write
from tests.unit.retrieve.test_embed import facts_of


def rows(number: int, seed: int = 0) -> Tensor:
    return functional.normalize(torch.randn(number, 8, generator=torch.Generator().manual_seed(seed)), dim=1)


@pytest.fixture
def library() -> None:
    pytest.importorskip("usearch.index")


def test_the_exact_search_looks_at_every_row() -> None:
    row_NW, query_QW = rows(50), rows(3, 1)
    cosine_QK, row_QK = exact(row_NW)(query_QW, 4)
    for query_W, cosine_K, row_K in zip(query_QW, cosine_QK, row_QK, strict=True):
        best = sorted(((float(row_W @ query_W), number) for number, row_W in enumerate(row_NW)), reverse=True)[:4]
        assert row_K.tolist() == [number for _, number in best]
        assert cosine_K.tolist() == pytest.approx([cosine for cosine, _ in best], abs=1e-6)


@pytest.mark.usefixtures("library")
def test_the_index_finds_nearly_the_same_and_is_built_once(tmp_path: Path) -> None:
    row_NW, query_QW = rows(300), rows(20, 1)
    folder, built = index_folder(tmp_path, "image"), list[Path]()
    first = approximate(folder, row_NW, on_build=built.append)(query_QW, 10)
    again = approximate(folder, row_NW, on_build=built.append)(query_QW, 10)
    assert built == [folder] and sorted(path.name for path in folder.iterdir()) == [FACTS, ROWS]
    _, best_QK = exact(row_NW)(query_QW, 10)
    found = [len(set(row_K.tolist()) & set(best_K.tolist())) for row_K, best_K in zip(first[1], best_QK, strict=True)]
    assert sum(found) >= 0.95 * best_QK.numel(), "its threads build another graph each time"
    for query_W, cosine_K, row_K in zip(query_QW, *first, strict=True):
        torch.testing.assert_close(cosine_K, row_NW[row_K] @ query_W)
    assert torch.equal(first[1], again[1])
    assert [path.name for path in tmp_path.iterdir()] == [folder.name], "nothing half is left"


@pytest.mark.usefixtures("library")
def test_among_equal_rows_none_is_missing(tmp_path: Path) -> None:
    row_NW = rows(3).repeat(500, 1)
    cosine_QK, row_QK = approximate(index_folder(tmp_path, "image"), row_NW)(rows(2, 1), 1500)
    assert row_QK.shape == (2, 1500) and all(len(set(row_K.tolist())) == 1500 for row_K in row_QK)
    torch.testing.assert_close(cosine_QK, exact(row_NW)(rows(2, 1), 1500)[0])


@pytest.mark.usefixtures("library")
def test_an_index_of_other_rows_or_a_damaged_one_is_refused(tmp_path: Path) -> None:
    folder = index_folder(tmp_path, "image")
    approximate(folder, rows(30))
    for other in (rows(30, 1), rows(29)):
        with pytest.raises(ConfigError, match=r"expected an index of the rows of this embedded set, got one of other"):
            approximate(folder, other)
    whole = (folder / ROWS).read_bytes()
    for content in (whole[: len(whole) // 2], b"no index", b""):
        (folder / ROWS).write_bytes(content)
        with pytest.raises(ConfigError, match="Remove this folder; the next search builds it anew") as caught:
            approximate(folder, rows(30))
        assert caught.value.where == str(folder)


@pytest.mark.usefixtures("library")
def test_an_interrupted_build_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("cclm.retrieve.index.atomic.publish", stop)
    with pytest.raises(KeyboardInterrupt):
        approximate(index_folder(tmp_path, "image"), rows(30))
    assert list(tmp_path.iterdir()) == []


def test_a_missing_package_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "usearch.index", None)
    with pytest.raises(MissingDependencyError, match=r'pip install "cclm-pretraining\[index\]"'):
        approximate(index_folder(tmp_path, "image"), rows(3))


@pytest.mark.usefixtures("library")
def test_the_command_builds_it_beside_the_set_and_says_so(
    opened: OpenedModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(opened, tmp_path / "model")
    write_images(tmp_path / "images", 9)
    source, out = Shards(tmp_path / "images"), tmp_path / "embedded"
    embed(Embedder(opened=opened), source, out, facts_of(opened, source))
    command = ["search", str(out), "a red car", "--model", str(tmp_path / "model"), "--top-k", "3"]
    assert main(command) == 0
    expected = capsys.readouterr().out
    for is_first in (True, False):
        assert main([*command, "--index", "usearch"]) == 0
        told = capsys.readouterr().out
        assert told.startswith(f"building an index of 9 rows, once: {index_folder(out, 'image')}") == is_first
        assert told.endswith(expected)
    (index_folder(out, "image") / FACTS).write_text(json.dumps({"num_rows": 8}))
    assert main([*command, "--index", "usearch"]) == 2
    assert "one of other rows" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main([*command, "--index", "faiss"])
    assert "--index: invalid choice: 'faiss' (choose from" in capsys.readouterr().err


@pytest.mark.usefixtures("library")
def test_the_benchmark_compares_with_the_exact_search() -> None:
    figures = measure("clustered", 500, 8, 20)
    assert 0.9 <= figures["recall_at_10"] <= 1 and figures["search"] > 0 and figures["build"] > 0
