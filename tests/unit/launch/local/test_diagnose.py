from __future__ import annotations

from pathlib import Path

import pytest

from launch.local import diagnose as doctor
from launch.local.diagnose import installed_version, judge_apex, report
from launch.plan.profile import Profile


def test_the_wrong_apex_is_recognised() -> None:
    wrong = judge_apex("0.9.10", ["apex/__init__.py", "apex/models.py"])
    assert wrong.level == "warn"
    assert "pip uninstall apex" in wrong.text


def test_nvidias_apex_is_fine() -> None:
    assert judge_apex("0.1", ["apex/__init__.py", "apex/optimizers/fused_adam.py"]).level == "ok"


def test_versions_come_from_metadata() -> None:
    assert installed_version("pytest") == pytest.__version__
    assert installed_version("no-such-distribution") is None


def test_a_missing_package_fails_with_the_command_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "NEEDED", ("no-such-distribution",))
    text, healthy = report(tmp_path, Profile(), 300)
    assert not healthy
    assert "not installed; install it: python -m pip install no-such-distribution" in text


def test_a_missing_optional_package_is_only_a_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "NEEDED", ())
    monkeypatch.setattr(doctor, "OPTIONAL", ("no-such-distribution",))
    text, healthy = report(tmp_path, Profile(), 300)
    assert healthy
    assert any(line.startswith("note  no-such-distribution") for line in text.splitlines())


def test_gpus_are_listed_by_nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'Large GPU, 81559 MiB, 570.1'\necho 'Large GPU, 81559 MiB, 570.1'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert "GPU 1                  Large GPU, 81559 MiB, 570.1" in report(tmp_path, Profile(), 300)[0]


def test_a_broken_nvidia_smi_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\nexit 9\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert "warn  GPUs" in report(tmp_path, Profile(), 300)[0]


def test_little_disk_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "FEW_BYTES", 2**80)
    assert any(line.startswith("warn  folder") for line in report(tmp_path, Profile(), 300)[0].splitlines())
