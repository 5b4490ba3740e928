from __future__ import annotations

from pathlib import Path

import pytest

from launch.plan.snapshot import code_hash, take_snapshot


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    for name, text in {"cclm/types.py": "A = 1\n", "pretrain/__pycache__/x.pyc": "", "pyproject.toml": ""}.items():
        (tmp_path / "checkout" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "checkout" / name).write_text(text)
    for name in ("data", "tests", ".git"):
        (tmp_path / "checkout" / name).mkdir()
    return tmp_path / "checkout"


def test_a_snapshot_holds_the_code_and_links_to_the_data(checkout: Path, tmp_path: Path) -> None:
    take_snapshot(checkout, tmp_path / "run")
    code = tmp_path / "run/code"
    assert {path.name for path in code.iterdir()} == {"cclm", "pretrain", "pyproject.toml", "data"}
    assert (code / "data").resolve() == checkout / "data"
    assert not list(code.rglob("*.pyc"))


def test_later_edits_do_not_reach_it_unless_asked_for(checkout: Path, tmp_path: Path) -> None:
    before = take_snapshot(checkout, tmp_path / "run")
    (checkout / "cclm/types.py").write_text("A = 2\n")
    assert take_snapshot(checkout, tmp_path / "run") == before
    assert (tmp_path / "run/code/cclm/types.py").read_text() == "A = 1\n"
    assert take_snapshot(checkout, tmp_path / "run", anew=True) != before
    assert (tmp_path / "run/code/cclm/types.py").read_text() == "A = 2\n"


def test_the_nodes_compute_the_same_hash(checkout: Path, tmp_path: Path) -> None:
    found = take_snapshot(checkout, tmp_path / "run")
    assert found == code_hash(tmp_path / "run/code")
    (tmp_path / "run/code/cclm/types.py").write_text("A = 3\n")
    assert code_hash(tmp_path / "run/code") != found
