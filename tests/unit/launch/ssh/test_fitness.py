from __future__ import annotations

import socket
from dataclasses import replace
from pathlib import Path

import pytest

from launch.ssh import fitness
from launch.ssh.fitness import address_of, complaints, find_port, is_free, look_up
from launch.ssh.wire import Question


@pytest.fixture
def question(tmp_path: Path) -> Question:
    """One that nothing is to be said against."""
    return Question(
        folder=str(tmp_path),
        run_folder=str(tmp_path / "new" / "run"),
        interface="lo",
        master="localhost",
        port=None,
        is_alone=False,
        environment={},
    )


def test_a_host_that_fits(question: Question) -> None:
    assert list(complaints(question, "127.0.0.1")) == []


def test_everything_that_is_missing_is_said_at_once(question: Question, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        wrong = replace(
            question,
            folder=str(tmp_path / "gone"),
            run_folder=str(tmp_path / "file" / "run"),
            interface="none9",
            master="no-such-host.invalid",
            port=port,
        )
        said = list(complaints(wrong, None))
    assert said[0] == f"the working folder {tmp_path}/gone is not there: all hosts must share it"
    assert said[1].endswith(f"cannot be made or written in: {tmp_path}/file is in the way")
    assert said[2].startswith("there is no interface none9 with an IPv4 address, only lo")
    assert said[3].startswith("the name no-such-host.invalid of the first host is unknown: give --interface")
    assert said[4:] == [f"port {port} is taken: give another --port, or none"]


@pytest.mark.parametrize(("own", "leads_to"), [("127.0.1.1", "127.0.1.1"), (None, "nothing")])
def test_an_own_name_that_others_cannot_use(
    question: Question, monkeypatch: pytest.MonkeyPatch, own: str | None, leads_to: str
) -> None:
    monkeypatch.setattr(fitness, "look_up", lambda name: own if name == socket.gethostname() else "10.0.0.1")
    bare = replace(question, interface=None, master="first-of-all")
    assert list(complaints(bare, None)) == [
        f"its own name {socket.gethostname()} leads to {leads_to}: give --interface"
    ]
    assert not list(complaints(replace(bare, is_alone=True), None))
    assert not list(complaints(replace(bare, environment={"GLOO_SOCKET_IFNAME": "eth0"}), None))
    assert not list(complaints(replace(bare, interface="eth0"), "10.0.0.2"))


def test_addresses() -> None:
    assert address_of("lo") == "127.0.0.1"
    assert address_of("none9") is None
    assert look_up("10.1.2.3") == "10.1.2.3"


def test_ports() -> None:
    assert find_port(4000) == 4000
    port = find_port(None)
    assert is_free(port)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen()
        assert not is_free(port)
