from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cclm.errors import ConfigError
from launch.ssh.hostfile import HostSlots, parse_hostfile, parse_hosts, read_hostfile

NAMES = st.lists(st.from_regex(r"[a-z0-9][a-z0-9.-]{0,20}", fullmatch=True), min_size=1, max_size=8, unique=True)


def test_comments_and_blank_lines() -> None:
    text = "# the rack\n\ngpu1 slots=8\n  me@10.0.0.2 slots=4  # half of it\ngpu-3.cluster\n"
    hosts = parse_hostfile(text, "hosts.txt")
    assert [(host.host, host.name, host.slots) for host in hosts] == [
        ("gpu1", "gpu1", 8),
        ("me@10.0.0.2", "10.0.0.2", 4),
        ("gpu-3.cluster", "gpu-3.cluster", None),
    ]


def test_a_list_on_the_command_line() -> None:
    assert parse_hosts("a, me@b:4") == (HostSlots(host="a"), HostSlots(host="me@b", slots=4))


def test_all_complaints_come_at_once() -> None:
    text = "a slots=0\nb slot=2\n-oProxyCommand=x\nc slots=2 max_slots=4\nd\nme@D slots=1\ne slots=many\n"
    with pytest.raises(ConfigError) as caught:
        parse_hostfile(text, "hosts.txt")
    assert str(caught.value) == (
        "hosts.txt: expected different hosts with their slots, got line 1: slots=0 is no number of at least 1; "
        "line 2: 'slot=2' is not understood; line 3: '-oProxyCommand=x' is no name of a host; "
        "line 4: 'max_slots=4' is not understood; "
        "line 6: d is on line 5 already (give it more slots there); "
        'line 7: slots=many is no number of at least 1. Write "name slots=8", a line a host.'
    )


@pytest.mark.parametrize("text", ["", "a,,b", "a:", "a:0", "a,a", "a b", "a;true", "--help"])
def test_lists_that_are_wrong(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^--hosts: expected different hosts"):
        parse_hosts(text)


def test_a_file_without_hosts_or_no_file(tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("# nobody\n")
    with pytest.raises(ConfigError, match=r"got no host\."):
        read_hostfile(tmp_path / "empty")
    with pytest.raises(ConfigError, match=r"missing: expected a hostfile, got .*No such file"):
        read_hostfile(tmp_path / "missing")


@given(names=NAMES, slots=st.integers(1, 64))
def test_both_forms_mean_the_same(names: list[str], slots: int) -> None:
    text = "\n".join(f"{name} slots={slots}" for name in names)
    assert parse_hostfile(text, "file") == parse_hosts(",".join(f"{name}:{slots}" for name in names))
