"""The commands, as a stranger types them."""

from __future__ import annotations

import errno
import io
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from cclm.shardfile.manifest import Manifest
from cclm.types import View
from shards import workers
from shards.__main__ import main
from shards.stats import account
from tests.unit.shards.tiny_corpora import write_picture_folder

REPOSITORY = Path(__file__).parents[3]


def run(*arguments: object) -> tuple[int, str]:
    out = io.StringIO()
    status = main([str(argument) for argument in arguments], Console(file=out, width=200))
    return status, out.getvalue()


@pytest.fixture
def recipe(tmp_path: Path) -> Any:
    write_picture_folder(tmp_path / "pictures")
    pairs = [{"text_a": f"word {n}", "lang_a": "en", "text_b": f"Wort {n}", "lang_b": "de"} for n in range(6)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)), encoding="utf-8")
    path = tmp_path / "mine.yaml"
    path.write_text(
        f"""
        sets:
          pictures: {{view: image_text, corpus: image_folder, num_shards: 2, max_bad_fraction: 0.6,
                      options: {{folder: {tmp_path}/pictures, licence: CC0-1.0}}}}
          pairs: {{view: text_pair, corpus: pair_file, num_shards: 2, options: {{path: {tmp_path}/pairs.jsonl}}}}
        """,
        encoding="utf-8",
    )
    return path


def test_build_verify_stats_tokenizer(recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    status, text = run("build", recipe, "--out", out)
    assert status == 0
    assert "pictures: reading: 7/7 " in text and "pairs: writing: 2/2 " in text
    manifest = json.loads((out / "pairs" / "manifest.json").read_text("utf-8"))
    assert manifest["command"] == f"python -m shards build {recipe} --out {out}"
    assert f"{out}/pictures: 7 records in, 3 samples written (3 captions or pairs) to " in text and "4 refused" in text
    reasons = sorted(json.loads(line)["reason"] for line in (out / "pictures" / "quarantine.jsonl").open("rb"))
    assert reasons == ["captions_empty", "image_missing", "image_truncated", "line_broken"]

    assert run("verify", out)[0] == 0
    assert run("verify", out / "pairs")[1].endswith(f"{out}/pairs: sound\n")

    status, text = run("stats", out, "--json", tmp_path / "stats.json")
    numbers = json.loads((tmp_path / "stats.json").read_text("utf-8"))
    assert numbers["pairs"]["languages"] == {"de": 6, "en": 6}
    assert numbers["pictures"]["licences"] == {"CC0-1.0": 3}
    assert numbers["pictures"]["refused"] == dict.fromkeys(reasons, 1)
    assert all(word in text for word in ("texts by language", "samples by source", "CC0-1.0", "pictures"))

    status, text = run("tokenizer", out / "pictures", out / "pairs", "--out", tmp_path / "tok", "--vocab-size", 60)
    assert status == 0 and "training on 15 texts, each of a thing once; the sets hold 15" in text
    assert (tmp_path / "tok" / "tokenizer.json").exists()


def test_commands_that_look_take_several_sets_at_once(recipe: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        run("build", recipe, "--out", tmp_path / name)
    one, two = tmp_path / "one", tmp_path / "two"
    status, text = run("verify", one / "pairs", two, one)  # one of them is named twice
    sets = (one / "pairs", two / "pairs", two / "pictures", one / "pictures")
    sound = [line for line in text.splitlines() if line.endswith(": sound")]
    assert (status, sound) == (0, [f"{folder}: sound" for folder in sets])
    (two / "pairs" / "pairs-000000.tar").write_bytes(b"")
    assert run("verify", one, two)[0] == 1 and run("verify", two / "pictures", one)[0] == 0
    assert run("stats", one / "pairs", two / "pictures", two / "pairs", "--json", tmp_path / "s.json")[0] == 0
    # Sets of one name are told apart by their paths.
    assert json.loads((tmp_path / "s.json").read_text("utf-8")).keys() == {
        str(one / "pairs"), str(two / "pairs"), "pictures"
    }  # fmt: skip
    assert run("preview", one / "pairs", two / "pictures", "--out", tmp_path / "p.html")[0] == 0
    page = (tmp_path / "p.html").read_text("utf-8")
    assert "<h2>pairs</h2>" in page and "<h2>pictures</h2>" in page
    assert run("verify", one, tmp_path / "none")[0] == 2


def test_names_are_printed_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    name = "value[/model/2013] :smile:"
    pair = {"text_a": "a dog", "lang_a": "en", "text_b": "ein Hund", "lang_b": "de", "source": name}
    (tmp_path / "p.jsonl").write_text(json.dumps(pair), encoding="utf-8")
    options = {"path": str(tmp_path / "p.jsonl")}
    sets = {"sets": {"pairs": {"view": "text_pair", "corpus": "pair_file", "options": options}}}
    folder = tmp_path / "[bold]out"
    folder.mkdir()
    (folder / "recipe.yaml").write_text(json.dumps(sets))
    for command in (["build", folder / "recipe.yaml", "--out", folder], ["verify", folder], ["stats", folder]):
        assert main([str(word) for word in command]) == 0
    text = capsys.readouterr().out
    assert name in text and f"{folder}/pairs: sound" in text


def test_tasks_and_merge_give_what_build_gives(recipe: Path, tmp_path: Path) -> None:
    run("build", recipe, "--out", tmp_path / "one" / "out")
    out = tmp_path / "two" / "out"
    for task in ("1/2", "0/2"):
        status, text = run("build", recipe, "--out", out, "--task", task)
        assert status == 0 and f"task {task[0]} of 2 has read its share" in text
    status, text = run("merge", recipe, "--out", out, "--task", "1/2")
    assert (status, sorted(path.name for path in out.rglob("*.tar"))) == (
        0,
        ["pairs-000001.tar", "pictures-000001.tar"],
    )
    status, text = run("merge", recipe, "--out", out)
    assert status == 0 and f"{out}/pairs: 6 records in, 6 samples written" in text
    for path in sorted((tmp_path / "one").rglob("*.*")):
        if path.name != "manifest.json":  # holds the command, and so the folder
            assert path.read_bytes() == (tmp_path / "two" / path.relative_to(tmp_path / "one")).read_bytes()


def test_sentences_in_other_languages_are_counted_wherever_a_set_is_told_of(tmp_path: Path) -> None:
    sentences = ["1\teng\tA dog.", "2\tdeu\tEin Hund.", "3\tfra\tUn chien.", "4\tfra\tLe chien.", "5\tjpn\t犬"]
    (tmp_path / "sentences.csv").write_text("\n".join(sentences) + "\n", encoding="utf-8")
    (tmp_path / "links.csv").write_text("1\t2\n1\t3\n", encoding="utf-8")
    options = {name: str(tmp_path / f"{name}.csv") for name in ("sentences", "links")}
    options |= {"languages": {"eng": "en", "deu": "de"}, "anchor": "en"}
    sets = {"sets": {"pairs": {"view": "text_pair", "corpus": "tatoeba", "options": options}}}
    (tmp_path / "recipe.yaml").write_text(json.dumps(sets))
    tasks = [("--task", "1/2"), ("--task", "0/2")]
    for name, commands in (("one", [("build",)]), ("two", [*(("build", *task) for task in tasks), ("merge",)])):
        for command, *task in commands:
            status, text = run(command, tmp_path / "recipe.yaml", "--out", tmp_path / name, *task)
        assert status == 0 and "1 records in, 1 samples written" in text
        assert "0 refused, 3 rows in other languages skipped" in text
        manifest = json.loads((tmp_path / name / "pairs" / "manifest.json").read_text("utf-8"))
        assert manifest["config"]["skipped"] == {"tatoeba": {"fra": 2, "jpn": 1}}
    account = "1 records in = 1 written + 0 refused; 3 rows in other languages skipped"
    assert f"{tmp_path}/one/pairs: {account}\n{tmp_path}/one/pairs: sound" in run("verify", tmp_path / "one")[1]
    status, text = run("stats", tmp_path / "one", "--json", tmp_path / "stats.json", "--html", tmp_path / "stats.html")
    assert f"pairs: {account}\n" in text and "tatoeba fra" in text
    assert json.loads((tmp_path / "stats.json").read_text("utf-8"))["pairs"]["skipped"]["tatoeba"]["fra"] == 2
    assert "rows skipped by source and language" in (tmp_path / "stats.html").read_text("utf-8")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"records_in": 8}, "expected 8 records, got 3 written and 4 refused"),
        ({"captions_refused": {"text_short": 1}}, "expected 5 lines of what was refused, got 4"),
    ],
)
def test_counts_that_do_not_add_up_are_a_fault(recipe: Path, tmp_path: Path, change: Any, words: str) -> None:
    run("build", recipe, "--out", tmp_path / "out")
    folder = tmp_path / "out" / "pictures"
    manifest = Manifest.load(folder)
    replace(manifest, config={**manifest.config, **change}).save(folder)
    status, text = run("verify", folder)
    assert status == 1 and "counts_wrong: " in text and words in text


def test_faults_are_shown_and_change_the_exit_status(recipe: Path, tmp_path: Path) -> None:
    run("build", recipe, "--out", tmp_path / "out")
    tar = tmp_path / "out" / "pairs" / "pairs-000000.tar"
    tar.write_bytes(tar.read_bytes()[:700])
    status, text = run("verify", tmp_path / "out")
    assert status == 1
    assert f"tar_truncated: {tar}, offset 0, key pairs-000000-00000: expected" in text
    assert f"{tmp_path}/out/pairs: 1 fault\n" in text and f"{tmp_path}/out/pictures: sound" in text


def test_a_mistake_is_one_sentence_and_status_two(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("build", tmp_path / "none.yaml", "--out", tmp_path)[0] == 2
    assert "build: " in (message := capsys.readouterr().err) and "expected a recipe file" in message
    assert "Traceback" not in message
    assert run("stats", tmp_path)[0] == 2
    assert "expected a shard set, or a folder of shard sets" in capsys.readouterr().err


def test_a_folder_that_cannot_be_made(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    for name, got in (("mine.yaml", "which is a file"), ("link", f"a link to {tmp_path}/gone, where there is nothing")):
        assert run("build", recipe, "--out", tmp_path / name)[0] == 2
        assert got in capsys.readouterr().err
        assert run("tokenizer", tmp_path / "no_set", "--out", tmp_path / name)[0] == 2, "before the texts are read"
        assert got in capsys.readouterr().err
    assert not (tmp_path / "gone").exists()


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (OSError(28, "No space left on device"), 2, "No space left"),
        (KeyboardInterrupt(), 130, "the same command again"),
    ],
)
def test_a_full_disk_and_control_c_end_without_a_traceback(
    recipe: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: Any,
    status: int,
    words: str,
) -> None:
    def fail(*_arguments: Any, **_options: Any) -> None:
        raise error

    monkeypatch.setattr("shards.build.build_sets", fail)
    assert run("build", recipe, "--out", tmp_path / "out")[0] == status
    assert words.lower() in capsys.readouterr().err.lower()


@pytest.mark.parametrize(
    "arguments",
    [["build", "x", "--out", "y", "--workers", "0"], ["build", "x", "--out", "y", "--task", "2/2"], ["merge", "x"], []],
)
def test_wrong_usage(arguments: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage: python -m shards" in capsys.readouterr().err


def test_it_starts_without_torch() -> None:
    program = (
        "import sys; import shards.__main__, shards.build, shards.recipe, shards.stats, shards.corpora.packages\n"
        "import shards.tokenizer, cclm.shardfile.verify\n"
        "heavy = {'torch', 'transformers', 'deepspeed', 'resvg_py', 'tokenizers', 'sentencepiece'}\n"
        "sys.exit(sorted(heavy & set(sys.modules)) or 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, check=False, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert all(command in text for command in ("fetch-demo", "build", "merge", "verify", "stats", "tokenizer"))


@pytest.mark.slow
def test_control_c_of_a_terminal_ends_a_build_and_its_workers_with_one_line(recipe: Path, tmp_path: Path) -> None:
    pair = json.dumps({"text_a": "word", "lang_a": "en", "text_b": "Wort", "lang_b": "de"})
    for name in ("a", "b"):
        (tmp_path / f"{name}.jsonl").write_text("\n".join([pair] * 30_000), encoding="utf-8")
    sets = {"view": "text_pair", "corpus": "pair_file", "num_shards": 2, "options": {"path": f"{tmp_path}/*.jsonl"}}
    recipe.write_text(json.dumps({"sets": {"pairs": sets}}), encoding="utf-8")
    command = [sys.executable, "-m", "shards", "build", str(recipe), "--out", str(tmp_path / "out"), "--workers", "2"]
    process = subprocess.Popen(command, cwd=REPOSITORY, stderr=subprocess.PIPE, text=True, start_new_session=True)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    while len(children.read_text().split()) < 3:  # its workers begin, and what cleans up after them
        assert process.poll() is None
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)  # to all of them, as a keyboard's
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors == "build: stopped. The same command again goes on where this one was.\n"


def test_no_room_for_semaphores_is_told_as_what_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_room(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(workers, "ProcessPoolExecutor", no_room)
    with pytest.raises(OSError, match="No space left on device: '/dev/shm'"), workers.Workers(2) as pool:
        list(pool.run(abs, [1, 2]))


def test_sources_with_brackets_are_printed_as_they_are(tmp_path: Path) -> None:
    sources = ["news[red]", "value[/model/2013]", ":smile:"]
    rows = [
        {"text_a": f"{n}", "lang_a": "en", "text_b": "x", "lang_b": "de", "source": s} for n, s in enumerate(sources)
    ]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, rows)))
    options = {"path": str(tmp_path / "p.jsonl")}
    sets = {"sets": {"pairs": {"view": "text_pair", "corpus": "pair_file", "options": options, "num_shards": 1}}}
    (tmp_path / "recipe.yaml").write_text(json.dumps(sets))
    assert run("build", tmp_path / "recipe.yaml", "--out", tmp_path / "out")[0] == 0
    status, text = run("stats", tmp_path / "out")
    assert status == 0 and all(source in text for source in sources)


def test_a_set_of_before_has_its_skipped_rows_under_another_name() -> None:
    config = {"records_in": 1, "refused": {}, "passed_over": {"tatoeba": {"fra": 2}}}
    told = account(Manifest(view=View.TEXT_PAIR, shards=(), config=config))
    assert told == "1 records in = 0 written + 0 refused; 2 rows in other languages skipped"


@pytest.mark.slow
@pytest.mark.parametrize("streams", ["", "| head -n 0", ">&-"])
def test_the_streams_change_nothing(recipe: Path, tmp_path: Path, streams: str) -> None:
    assert run("build", recipe, "--out", tmp_path / "Läufe")[0] == 0
    shell = ["bash", "-c", f'set -o pipefail; "$@" {streams}', "bash", sys.executable, "-m", "shards"]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "COLUMNS": "40"}
    done = subprocess.run(
        [*shell, "stats", str(tmp_path / "Läufe")], cwd=REPOSITORY, env=environment, capture_output=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, b"")
