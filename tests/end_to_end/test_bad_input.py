"""What a user can get wrong: each mistake ends with its own clear sentence, and nothing is half-done."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pretrain.__main__ import main
from tests.tiny_run import recipe, write_corpus, write_recipe

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    (tmp_path / "corpus").mkdir()
    return write_corpus(tmp_path / "corpus")


def run(tmp_path: Path, settings: dict[str, Any], *arguments: str) -> int:
    path = write_recipe(tmp_path / "recipe.yaml", settings)
    return main(["--recipe", str(path), "--engine", "plain", *arguments])


def short(corpus: Path, tmp_path: Path, **changes: Any) -> dict[str, Any]:
    optimizer = {"total_steps": 4, "learning_rate": 0.002}
    return recipe(
        corpus, tmp_path / "run", optimizer=optimizer, track={"every_steps": 2, "tensorboard": False}, **changes
    )


def quarantined(tmp_path: Path) -> list[dict[str, Any]]:
    path = tmp_path / "run" / "quarantine" / "rank_0.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def test_good_input_runs_to_its_done_marker_and_a_second_call_changes_nothing(corpus: Path, tmp_path: Path) -> None:
    settings = short(corpus, tmp_path)
    assert run(tmp_path, settings) == 0
    done = tmp_path / "run" / "done.json"
    assert json.loads(done.read_text())["step"] == 4
    assert len((tmp_path / "run" / "ledger.jsonl").read_text().splitlines()) == 4
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    assert run(tmp_path, settings) == 0
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")} == before


def test_truncated_and_broken_pictures_are_replaced_counted_and_kept(tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    corpus = write_corpus(tmp_path / "corpus", broken={3}, truncated={50})
    settings = short(corpus, tmp_path)
    settings["data"]["bad_sample_limit"] = 0.5
    assert run(tmp_path, settings, "--optimizer.total_steps", "8") == 0
    rows = quarantined(tmp_path)
    assert {(row["key"], row["reason"]) for row in rows} == {("k3", "image_broken"), ("k50", "image_truncated")}
    shards = {row["key"]: row["shard"] for row in rows}
    assert shards == {"k3": "images-000000.tar", "k50": "images-000002.tar"}, "twenty pictures a shard"


def test_too_many_broken_pictures_fail_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "corpus").mkdir()
    corpus = write_corpus(tmp_path / "corpus", broken=set(range(0, 96, 3)))
    assert run(tmp_path, short(corpus, tmp_path)) == 2
    text = capsys.readouterr().err
    assert "expected at most 0.10% bad samples" in text
    assert "quarantine" in text
    assert not (tmp_path / "run" / "done.json").exists()
    assert quarantined(tmp_path)


def test_half_a_tar(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tar = sorted((corpus / "images").glob("*.tar"))[1]
    tar.write_bytes(tar.read_bytes()[: tar.stat().st_size // 2])
    assert run(tmp_path, short(corpus, tmp_path)) == 2
    text = capsys.readouterr().err
    assert "× tar_truncated in" in text and "quarantine" in text
    rows = quarantined(tmp_path)
    assert {(row["shard"], row["reason"]) for row in rows} == {(tar.name, "tar_truncated")}
    size = tar.stat().st_size
    assert all(row["offset"] > size - 4096 for row in rows), (
        "the first half is still good, the offsets lie in the second"
    )
    assert all(f"offset {row['offset']}, key {row['key']}" in row["message"] for row in rows)


def test_broken_json(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for tar in (corpus / "images").glob("*.tar"):
        tar.write_bytes(tar.read_bytes().replace(b'"captions":{', b'"captions";{'))
    assert run(tmp_path, short(corpus, tmp_path)) == 2
    text = capsys.readouterr().err
    assert "JSON" in text, text
    assert ".tar" in text


def test_missing_shards(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = short(corpus, tmp_path)
    settings["views"]["image_text"]["sources"]["images"]["path"] = str(tmp_path / "nowhere")
    assert run(tmp_path, settings) == 2
    assert "nowhere" in capsys.readouterr().err


def test_recipe_that_contradicts_its_deepspeed_json(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "ds.json"
    path.write_text(json.dumps({"gradient_clipping": 0.25, "zero_optimisation": {"stage": 3}}), encoding="utf-8")
    recipe_path = write_recipe(tmp_path / "recipe.yaml", short(corpus, tmp_path, deepspeed=str(path)))
    assert main(["--recipe", str(recipe_path)]) == 2
    text = capsys.readouterr().err
    assert "gradient_clipping: expected 1.0" in text
    assert "zero_optimization" in text


def test_unknown_key(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, {**short(corpus, tmp_path), "sead": 3}) == 2
    assert "did you mean seed?" in capsys.readouterr().err


def test_another_run_in_the_folder_is_refused(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, short(corpus, tmp_path)) == 0
    assert run(tmp_path, short(corpus, tmp_path), "--seed", "8", "--objectives.mlm_weight", "0.5") == 2
    text = capsys.readouterr().err
    assert "objectives.mlm_weight: 1.0 → 0.5" in text and "seed: 7 → 8" in text
    assert "another run_folder" in text and "Going on with other settings" in text


def test_changed_inputs_are_noticed(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, short(corpus, tmp_path)) == 0
    tokenizer = corpus / "tokenizer" / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text(encoding="utf-8") + " ", encoding="utf-8")
    assert run(tmp_path, short(corpus, tmp_path)) == 2
    assert "data.tokenizer: other content than at the start" in capsys.readouterr().err


def test_a_batch_of_no_whole_negative_groups(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = short(corpus, tmp_path)
    settings["views"]["image_text"]["negative_group"] = 7
    assert run(tmp_path, settings) == 2
    assert "views.image_text.batch_size: 16 is no multiple of negative_group 7" in capsys.readouterr().err


def test_too_many_ranks_for_the_rows(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Told before the ranks look for each other: the others are not there."""
    ranks = {"RANK": 2, "LOCAL_RANK": 2, "WORLD_SIZE": 17, "LOCAL_WORLD_SIZE": 17, "MASTER_PORT": 29500}
    for name, value in {**ranks, "MASTER_ADDR": "127.0.0.1"}.items():
        monkeypatch.setenv(name, str(value))
    path = write_recipe(tmp_path / "recipe.yaml", short(corpus, tmp_path))
    assert main(["--recipe", str(path)]) == 2
    text = capsys.readouterr().err
    for view in ("image_text", "text_pair"):
        assert f"views.{view}.batch_size: each of 17 ranks needs a row" in text
    assert not (tmp_path / "run").exists()


def test_the_advice_after_a_loss_that_is_not_finite_works(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Lower the learning rate on the same folder, as the message says: the run goes on from its last checkpoint."""
    settings = short(corpus, tmp_path, checkpoint={"every_steps": 2, "keep": 2})
    settings["optimizer"]["weight_decay"] = 0.0  # with it, such a rate is refused at once
    (tmp_path / "run").mkdir()
    assert run(tmp_path, settings, "--optimizer.total_steps", "2") == 0
    wild = ("--optimizer.learning_rate", "1e30", "--optimizer.max_grad_norm", "0", "--track.every_steps", "1")
    assert run(tmp_path, settings, "--optimizer.total_steps", "8", *wild) != 0
    assert "none in the last 5 updates, all skipped" in (text := capsys.readouterr().err)
    assert "--optimizer.learning_rate" in text
    assert run(tmp_path, settings, "--optimizer.total_steps", "8", "--optimizer.learning_rate", "1e-4") == 0
    assert json.loads((tmp_path / "run" / "done.json").read_text())["step"] == 8
    notes = [json.loads(line) for line in (tmp_path / "run" / "changes.jsonl").read_text().splitlines()]
    assert [note["step"] for note in notes] == [2, 2]
    assert notes[-1]["changed"]["optimizer.learning_rate"] == [1e30, 1e-4]


def test_a_run_that_is_done_can_be_made_longer_and_its_files_may_move(corpus: Path, tmp_path: Path) -> None:
    settings = short(corpus, tmp_path)
    assert run(tmp_path, settings) == 0
    corpus.rename(tmp_path / "moved")
    moved = short(tmp_path / "moved", tmp_path)
    assert run(tmp_path, moved) == 0
    assert not (tmp_path / "run" / "changes.jsonl").exists(), "it is done: nothing is started"
    assert run(tmp_path, moved, "--optimizer.total_steps", "6") == 0
    assert json.loads((tmp_path / "run" / "done.json").read_text())["step"] == 6
    assert len((tmp_path / "run" / "ledger.jsonl").read_text().splitlines()) == 6
    assert run(tmp_path, moved, "--optimizer.total_steps", "5") == 2


def test_a_batch_above_the_sets_size_is_said(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = short(corpus, tmp_path)
    settings["views"]["text_pair"] |= {"batch_size": 64, "matching_rows": 32}
    assert run(tmp_path, settings, "--optimizer.total_steps", "1") == 0
    assert "note: views.text_pair: a step takes 64 samples, but its sets hold only 60" in capsys.readouterr().err
