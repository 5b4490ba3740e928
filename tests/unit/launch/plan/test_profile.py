from __future__ import annotations

from pathlib import Path

import pytest

from cclm.errors import ConfigError
from launch.plan.profile import PROFILES, Profile, read_profile


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
    (tmp_path / "site.yaml").write_text("partitoin: gpu\nmodules: cuda\ncontainer: docker\n")
    with pytest.raises(ConfigError) as caught:
        read_profile(str(tmp_path / "site.yaml"))
    for words in ("partitoin (did you mean partition?)", "modules must be a list", "none, pyxis, apptainer"):
        assert words in str(caught.value)


def test_broken_yaml_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("modules: [a")
    with pytest.raises(ConfigError, match=r"mine\.yaml: expected a profile, got broken YAML.*Start from"):
        read_profile(str(tmp_path / "mine.yaml"))


def test_a_profile_that_is_not_there() -> None:
    with pytest.raises(ConfigError, match="apptainer, default, modules, pyxis"):
        read_profile("nowhere")
