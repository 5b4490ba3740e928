from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from cclm.cli.__main__ import main, make_parser
from cclm.cli.runs import DEFAULT_TOP_K, read_groups, read_seconds
from cclm.data.ledger import LedgerFile
from cclm.errors import ConfigError


def test_help_names_the_commands_and_imports_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from cclm.cli.__main__ import make_parser\n"
        "print(make_parser().format_help())\n"
        "assert not {'torch', 'transformers', 'cclm.model'} & set(sys.modules), 'heavy'"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in ("evaluate", "export", "report", "verify-ledger", "doctor"))


@pytest.mark.parametrize("command", ["embed", "evaluate", "export", "import", "prune-vocabulary", "report", "search"])
def test_every_command_explains_its_options(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    assert caught.value.code == 0 and f"cclm {command}" in capsys.readouterr().out


@pytest.mark.parametrize(("device", "missing"), [("cpu", "needs a GPU"), ("cuda", "amp_C cannot be imported")])
def test_doctor_says_which_kernels_would_run(device: str, missing: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--device", device]) == 0
    text = capsys.readouterr().out
    rows = {line.split()[0]: line for line in text.splitlines() if line}
    assert {"attention", "layer_norm", "optimizer", "cross_entropy", "contrastive", "float32_products"} < rows.keys()
    assert rows["optimizer"].split()[1] == "torch" and missing in rows["optimizer"]
    assert "versions: torch" in text


def test_options_are_spelled_with_hyphens() -> None:
    arguments = ["evaluate", "runs/x", "--shards", "s", "--rerank-top-k", "4", "--choose-rerank-on", "d"]
    chosen = make_parser().parse_args(arguments)
    assert chosen.rerank_top_k == 4 and chosen.choose_rerank_on == Path("d")
    assert DEFAULT_TOP_K > 1


@pytest.mark.parametrize(
    ("command", "option", "number", "least"),
    [
        ("evaluate x --shards s", "--batch-size", 0, 1),
        ("evaluate x --shards s", "--threads", -1, 0),
        ("evaluate x --shards s", "--rerank-top-k", -1, 0),
        ("embed x s --to d", "--batch-size", -3, 1),
        ("embed x s --to d", "--units-per-file", 0, 1),
        ("embed x s --to d", "--width", -1, 0),
        ("score s --model x --to d", "--batch-size", 0, 1),
        ("search e q --model x", "--top-k", 0, 1),
        ("search e q --model x", "--rerank", -2, 0),
        ("grow-vocabulary x --texts t --to d", "--pieces", 0, 1),
    ],
)
def test_numbers_that_mean_nothing_are_refused_at_once(
    command: str, option: str, number: int, least: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*command.split(), option, str(number)])
    assert ended.value.code == 2
    assert f"argument {option}: invalid number of at least {least} value: '{number}'" in capsys.readouterr().err


def test_a_users_mistake_is_one_sentence_and_code_two(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and "expected a run folder" in error and error.count("\n") == 1
    with pytest.raises(SystemExit, match="2"):
        main(["export", str(tmp_path), "--to", str(tmp_path / "out"), "--dtype", "int8"])
    assert "--dtype: invalid choice: 'int8' (choose from" in capsys.readouterr().err


def test_files_that_cannot_be_written_are_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "file").write_text("")
    assert main(["embed", str(tmp_path / "model"), str(tmp_path / "file"), "--to", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    with pytest.raises(SystemExit) as left:
        main(["embed", "model"])
    assert left.value.code == 2


def test_results_that_cannot_be_written_are_told_before_anything_is_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert main(["evaluate", "no model", "--shards", "no set", "--out", str(tmp_path / "file" / "out.json")]) == 2
    assert "a folder that can be made and written in" in capsys.readouterr().err


def test_the_shipped_groups_file_is_the_demonstrations() -> None:
    groups = read_groups(Path("pretrain/demo_groups.yaml"))
    assert {name: len(members) for name, members in groups.items()} == {
        "english": 1,
        "parallel_non_latin": 10,
        "parallel_latin": 10,
        "control": 4,
    }
    every = [language for members in groups.values() for language in members]
    assert len(set(every)) == 25


@pytest.mark.parametrize("text", ["", "[en, de]", "english: en", "english: []", "nordic: [no, sv]", "a: [1]"])
def test_a_groups_file_of_another_shape_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "groups.yaml").write_text(text)
    with pytest.raises(ConfigError, match="a mapping from names of groups"):
        read_groups(tmp_path / "groups.yaml")


def test_a_missing_groups_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        read_groups(tmp_path / "groups.yaml")


def test_seconds_of_other_stages_stay(tmp_path: Path) -> None:
    out = tmp_path / "results.json"
    assert read_seconds(out) == {}
    out.write_text(json.dumps({"seconds": {"fetch": 1.0, "train": 2.0}}))
    assert read_seconds(out) == {"fetch": 1.0, "train": 2.0}


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"a: [", "got line 2: broken YAML"), (b"a: [\xff]", "not UTF-8 \\(at byte 4\\)"), (None, "got a folder")],
)
def test_a_groups_file_that_cannot_be_read_is_refused(tmp_path: Path, content: bytes | None, words: str) -> None:
    path = tmp_path / "groups.yaml"
    path.mkdir() if content is None else path.write_bytes(content)
    with pytest.raises(ConfigError, match=words):
        read_groups(path)


def test_rerank_groups_are_a_list_or_all() -> None:
    arguments = ["evaluate", "runs/x", "--shards", "s", "--rerank-groups", "english", "far", "--out", "o"]
    assert make_parser().parse_args(arguments).rerank_groups == ["english", "far"]
    assert make_parser().parse_args(["evaluate", "runs/x", "--shards", "s"]).rerank_groups is None


def test_verify_ledger_prints_steps_and_the_last_hash(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ledger = LedgerFile(tmp_path / "ledger.jsonl")
    for step in range(3):
        last = ledger.append(step, {"image_text": 7 * step})
    assert main(["verify-ledger", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"{tmp_path}/ledger.jsonl: sound, 3 steps, last hash {last}\n"


def test_verify_ledger_finds_a_changed_step_and_a_missing_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify-ledger", str(tmp_path)]) == 2
    assert "expected a run folder with ledger.jsonl" in capsys.readouterr().err
    ledger = LedgerFile(tmp_path / "ledger.jsonl")
    for step in range(3):
        ledger.append(step, {"image_text": 7 * step})
    path = tmp_path / "ledger.jsonl"
    path.write_text(path.read_text().replace(":7}", ":8}"))
    assert main(["verify-ledger", str(tmp_path)]) == 2
    assert "ledger.jsonl:2: expected step 1" in capsys.readouterr().err
