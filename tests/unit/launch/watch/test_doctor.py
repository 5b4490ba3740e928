from __future__ import annotations

from pathlib import Path

import pytest

from launch.watch import doctor
from launch.watch.doctor import Diagnostic, diagnose_machine


def level_of(folder: Path, subject: str) -> str:
    return next(item.level for item in diagnose_machine(folder) if item.subject == subject)


def test_versions_come_from_metadata(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "NEEDED", ("pytest",))
    assert Diagnostic(level="ok", subject="pytest", text=pytest.__version__) in list(diagnose_machine(tmp_path))


def test_a_missing_package_fails_with_the_command_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "NEEDED", ("no-such-distribution",))
    (found,) = (item for item in diagnose_machine(tmp_path) if item.level == "fail")
    assert found.text == "not installed; install it: python -m pip install no-such-distribution"


def test_a_missing_optional_package_is_only_a_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "NEEDED", ())
    monkeypatch.setattr(doctor, "OPTIONAL", ("no-such-distribution",))
    assert level_of(tmp_path, "no-such-distribution") == "note"


def test_gpus_are_listed_by_nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'Large GPU, 81559 MiB, 570.1'\necho 'Large GPU, 81559 MiB, 570.1'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    gpu = Diagnostic(level="ok", subject="GPU 1", text="Large GPU, 81559 MiB, 570.1")
    assert gpu in list(diagnose_machine(tmp_path))


def test_a_broken_nvidia_smi_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\nexit 9\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert level_of(tmp_path, "GPUs") == "warn"


def test_little_disk_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "FEW_BYTES", 2**80)
    assert level_of(tmp_path, "folder") == "warn"
