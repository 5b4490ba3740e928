"""The container recipes as text: they agree with each other, with pyproject.toml and with the profiles that name them.

No image was built with them here.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from launch.container.requirements import requirements
from launch.plan.request import read_profile
from tests.architecture.sources import ROOT

FOLDER = ROOT / "launch/container"
DOCKER, APPTAINER = FOLDER / "Dockerfile", FOLDER / "cclm.def"


def joined(path: Path) -> str:
    """Without comments, with continued lines in one."""
    lines = [line for line in path.read_text().splitlines() if not line.lstrip().startswith("#")]
    return re.sub(r"\\\n\s*", " ", "\n".join(lines))


def commands(path: Path) -> list[str]:
    """What is run, one command each, without what a recipe's own syntax adds."""
    text = joined(path).replace("${EXTRAS}", "fast remote").replace("DEBIAN_FRONTEND=noninteractive ", "")
    found = re.findall(r"(?:apt-get|rm -rf|python3|pip) [^\n]*", text)
    return [" ".join(piece.split()) for line in found for piece in line.split("&&")]


def section(name: str) -> str:
    """Of the definition."""
    return APPTAINER.read_text().partition(f"%{name}\n")[2].partition("\n%")[0]


def test_both_recipes_do_the_same() -> None:
    docker = commands(DOCKER)
    assert len(docker) == 7 and docker == [one for one in commands(APPTAINER) if "print(" not in one]
    base = re.search(r"ARG CUDA=(\S+)\nFROM (\S+)", DOCKER.read_text())
    assert base is not None
    assert f"From: {base[2].replace('${CUDA}', base[1])}\n" in APPTAINER.read_text()


def test_the_files_that_are_copied_are_there_and_no_others_are_sent() -> None:
    copied = re.findall(r"COPY (.*) /opt/recipe/", joined(DOCKER))[0].split()
    given = [line.split()[0] for line in section("files").splitlines() if line.strip()]
    sent = (FOLDER / "Dockerfile.dockerignore").read_text().splitlines()
    assert copied == given and all((ROOT / name).is_file() for name in copied)
    assert sent == ["*", *(f"!{name}" for name in copied)]


def test_the_requirements_are_the_projects_own() -> None:
    pytest.importorskip("tomllib")
    from packaging.requirements import Requirement

    names = [Requirement(line).name for line in requirements(ROOT / "pyproject.toml", ("fast", "remote"))]
    assert {"torch", "deepspeed", "transformers", "webdataset", "simplejpeg", "fsspec"} <= set(names)
    assert "apex" not in names and "pytest" not in names
    with pytest.raises(KeyError):
        list(requirements(ROOT / "pyproject.toml", ("nothing",)))


@pytest.mark.parametrize("name", ["apptainer", "pyxis"])
def test_profiles_name_the_recipe_and_its_python(name: str) -> None:
    recipe = APPTAINER if name == "apptainer" else DOCKER
    text = (ROOT / f"launch/profiles/{name}.yaml").read_text()
    assert str(recipe.relative_to(ROOT)) in text
    assert read_profile(name).container_python == "/opt/cclm/bin/python3"
    assert "python3 -m venv /opt/cclm" in recipe.read_text()


def test_hadolint_finds_nothing() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    command = [str(hadolint), "--failure-threshold", "info", str(DOCKER)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout


def test_shellcheck_finds_nothing_in_what_they_run(tmp_path: Path) -> None:
    runs = re.findall(r"^RUN (.*)", joined(DOCKER), flags=re.MULTILINE)
    scripts = {"docker": "\n".join(runs).replace("${EXTRAS}", "fast remote"), "post": section("post")}
    for name, text in scripts.items():
        path = tmp_path / f"{name}.sh"
        path.write_text(f"#!/bin/bash\n{text}\n")
        shellcheck = Path(sys.executable).with_name("shellcheck")
        done = subprocess.run([str(shellcheck), str(path)], capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stdout
