"""The campaign in small, so that it goes on working; all of it: `make faults`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from cclm.data.ledger import LedgerFile
from tests.faults.__main__ import KINDS, main
from tests.faults.campaign import Campaign, Event
from tests.same_runs import different_losses, different_samples

SAMPLE = ("kill in a write", "signal", "disk full", "damaged newest", "raises", "world size", "flipped bit")


@pytest.mark.slow
def test_an_event_of_each_cheap_kind_loses_nothing(tmp_path: Path) -> None:
    campaign = Campaign(folder=tmp_path, seed=3, tell=print, steps=15)
    for kind in SAMPLE:
        KINDS[kind][0](campaign, 1 if kind != "flipped bit" else 50)
    *_, last = campaign.table()
    assert {event.kind for event in campaign.events} == set(SAMPLE)
    assert last == f"{len(campaign.events)} events, 0 lost", "\n".join(campaign.table())
    killed = [event.what for event in campaign.events if event.kind == "kill in a write"]
    assert "137" in killed[0], "nothing happened"


def test_what_is_lost_is_told_and_is_the_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def loses(campaign: Campaign, number: int) -> None:
        for event in range(number):
            campaign.add(Event(kind="kill", what=f"number {event}", lost="the ledger" * (event == 1)))

    monkeypatch.setitem(KINDS, "kill", (loses, 3))  # type: ignore[arg-type]
    given = ["--kinds", "kill", "--seed", "5", "--folder", str(tmp_path)]
    assert main(given) == 1
    said = capsys.readouterr().out.splitlines()
    assert said[0] == f"seed 5; runs in {tmp_path}"
    assert "lost: kill: number 1: the ledger" in said and said[-1] == "3 events, 1 lost"
    assert main([*given, "--quick"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "1 events, 0 lost"


def test_runs_that_differ_are_told_apart(tmp_path: Path) -> None:
    for name, loss, total in (("a", 1.0, 7), ("b", 1.0 + 1e-9, 7), ("c", 1.0, 8)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "log.jsonl").write_text(json.dumps({"step": 0, "values": {"loss": loss}}) + "\n")
        LedgerFile(tmp_path / name / "ledger.jsonl").append(0, {"image_text": total})
    a, b, c = (tmp_path / name for name in "abc")
    assert different_losses(a, a) == "" == different_losses(a, b, 1e-6)
    assert different_losses(a, b).startswith("step 0: loss 1.0, not 1.000000001")
    assert different_samples(a, b) == "" and different_samples(a, c) == "step 0: other samples"
    shutil.copy(c / "ledger.jsonl", a / "ledger.jsonl")
    (a / "log.jsonl").write_text("")
    assert "other steps" in different_losses(a, b)
