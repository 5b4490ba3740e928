from __future__ import annotations

from pathlib import Path

import pytest

from cclm.errors import ConfigError
from launch.plan.request import PROFILES, Profile, read_profile


@pytest.mark.parametrize("path", sorted(PROFILES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_profile_is_read(path: Path) -> None:
    assert isinstance(read_profile(path.stem), Profile)


def test_own_profile_by_path_or_variable(tmp_path: Path) -> None:
    (tmp_path / "site.yaml").write_text("partition: gpu\nmodules: [cuda]\nsbatch: {exclusive: , mem: 0}\n")
    profile = read_profile(str(tmp_path / "site.yaml"))
    assert (profile.partition, profile.modules, profile.sbatch) == ("gpu", ("cuda",), {"exclusive": "", "mem": "0"})
    assert read_profile(None, {"CCLM_PROFILE": str(tmp_path / "site.yaml")}) == profile
    assert read_profile(None, {}) == read_profile("default")


def test_unknown_keys_are_named_with_the_nearest_right_one(tmp_path: Path) -> None:
    (tmp_path / "site.yaml").write_text("partitoin: gpu\nmodules: cuda\ncontainer: docker\nenvironment: {A: yes}\n")
    with pytest.raises(ConfigError) as caught:
        read_profile(str(tmp_path / "site.yaml"))
    assert caught.value.problems == (
        "line 1: partitoin: unknown key; did you mean partition?",
        "line 2: modules: expected a list, each a text, got cuda",
        "line 3: container: expected one of none, pyxis, apptainer, got docker",
        'line 4: environment.A: expected a text, got true: write "yes"',
    )


def test_what_yaml_would_make_of_times_numbers_and_keys_that_stand_twice(tmp_path: Path) -> None:
    path = tmp_path / "site.yaml"
    path.write_text("sbatch: {time: 12:30:00, mem-per-gpu: 010}\nenvironment: {OMP_NUM_THREADS: 8}\n")
    profile = read_profile(str(path))
    assert profile.sbatch == {"time": "12:30:00", "mem-per-gpu": "010"}
    assert profile.environment == {"OMP_NUM_THREADS": "8"}
    path.write_text("sbatch: {mem: 1}\npartition: a\nsbatch: {mem: 2}\n")
    with pytest.raises(ConfigError, match="line 3: sbatch: this key stands twice"):
        read_profile(str(path))


def test_a_shipped_profile_is_found_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert read_profile("launch/profiles/pyxis.yaml") == read_profile("pyxis")


def test_broken_yaml_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("modules: [a")
    with pytest.raises(ConfigError, match=r"mine\.yaml: expected a profile, got line 2: broken YAML.*See launch"):
        read_profile(str(tmp_path / "mine.yaml"))


def test_a_profile_that_is_not_there() -> None:
    with pytest.raises(ConfigError, match="apptainer, default, modules, pyxis"):
        read_profile("nowhere")
