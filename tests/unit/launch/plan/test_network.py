from __future__ import annotations

import socket
from pathlib import Path

import pytest

from launch.plan.network import (  # fmt: skip
    AUTO,
    NONE,
    PROFILES,
    Fabric,
    default_interface,
    interface_towards,
    look,
    network_lines,
    settings_of,
)

ROUTE = "Iface\tDestination\tGateway\nib0\t0000010A\t00000000\n{}\t00000000\t0100000A\n"


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """A machine whose default route leaves by eth0, at 100 Gb/s."""
    write(tmp_path / "proc/net/route", ROUTE.format("eth0"))
    write(tmp_path / "sys/class/net/eth0/speed", "100000\n")
    return tmp_path


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def add_device(
    machine: Path, name: str, layer: str, *, state: str = "4: ACTIVE", driver: str = "mlx5_core", gid: int | None = None
) -> None:
    device = machine / "sys/class/infiniband" / name
    port = device / "ports/1"
    for file, text in (("link_layer", layer), ("state", state), ("rate", "200 Gb/sec (4X HDR)")):
        write(port / file, f"{text}\n")
    for index in range(0 if gid is None else gid + 1):
        is_last = index == gid
        write(port / f"gid_attrs/types/{index}", "RoCE v2\n" if is_last or index == 0 else "IB/RoCE v1\n")
        address = "0000:0000:0000:0000:0000:ffff:0a00:0001" if is_last else "fe80:0000:0000:0000:0000:0000:0000:0001"
        write(port / f"gids/{index}", f"{address}\n")
    drivers = machine / "sys/bus/drivers" / driver
    drivers.mkdir(parents=True, exist_ok=True)
    (device / "device").mkdir()
    (device / "device/driver").symlink_to(drivers)


def values(fabric: Fabric, asked: str = AUTO, **inherited: str) -> dict[str, str]:
    return {name: value for name, (value, _) in settings_of(fabric, asked, inherited).items()}


def test_infiniband_takes_its_own_cards_with_a_link(machine: Path) -> None:
    add_device(machine, "mlx5_0", "InfiniBand")
    add_device(machine, "mlx5_1", "InfiniBand")
    add_device(machine, "mlx5_2", "InfiniBand", state="1: DOWN")
    add_device(machine, "mlx5_3", "Ethernet", gid=3)
    fabric = look(machine)
    assert str(fabric) == "infiniband (mlx5_0, mlx5_1, 200 Gb/s)"
    assert values(fabric) == {
        "GLOO_SOCKET_IFNAME": "eth0",
        "NCCL_SOCKET_IFNAME": "=eth0",
        "NCCL_IB_HCA": "=mlx5_0,mlx5_1",
    }


def test_roce_names_the_address_that_all_cards_have(machine: Path) -> None:
    add_device(machine, "mlx5_0", "Ethernet", gid=3)
    assert values(look(machine))["NCCL_IB_GID_INDEX"] == "3"
    add_device(machine, "mlx5_1", "Ethernet", gid=5)
    assert look(machine).devices == ("mlx5_0", "mlx5_1")
    assert "NCCL_IB_GID_INDEX" not in values(look(machine))


def test_efa_is_known_by_its_driver(machine: Path) -> None:
    add_device(machine, "rdmap0s6", "Unspecified", driver="efa")
    found = values(look(machine))
    assert look(machine).kind == "efa"
    assert (found["FI_PROVIDER"], found["FI_EFA_USE_DEVICE_RDMA"]) == ("efa", "1")
    assert not any(name.startswith("NCCL_IB") for name in found)


def test_without_such_a_card_it_is_ethernet(machine: Path) -> None:
    assert values(look(machine)) == {
        "GLOO_SOCKET_IFNAME": "eth0",
        "NCCL_IB_DISABLE": "1",
        "NCCL_SOCKET_NTHREADS": "4",
        "NCCL_NSOCKS_PERTHREAD": "4",
    }
    write(machine / "sys/class/net/eth0/speed", "10000\n")
    assert "NCCL_SOCKET_NTHREADS" not in values(look(machine))
    write(machine / "sys/class/net/eth0/speed", "-1\n")
    assert look(machine).gbits is None


def test_a_profile_that_is_asked_for_by_name_allows_no_way_out(machine: Path) -> None:
    add_device(machine, "mlx5_0", "InfiniBand")
    assert values(look(machine, kind="infiniband"), "infiniband")["NCCL_NET"] == "IB"
    found = values(look(machine, kind="ethernet"), "ethernet")
    assert (found["NCCL_IB_DISABLE"], found["NCCL_SOCKET_IFNAME"]) == ("1", "=eth0")
    assert values(look(machine, kind="efa"), "efa")["NCCL_NET"] == "AWS Libfabric"


def test_what_is_set_stays(machine: Path) -> None:
    found = values(look(machine), AUTO, GLOO_SOCKET_IFNAME="bond0", NCCL_IB_DISABLE="0")
    assert set(found) == {"NCCL_SOCKET_NTHREADS", "NCCL_NSOCKS_PERTHREAD"}
    write(machine / "etc/nccl.conf", "# site\nNCCL_SOCKET_NTHREADS=2\n")
    assert set(values(look(machine))) == {"GLOO_SOCKET_IFNAME", "NCCL_IB_DISABLE", "NCCL_NSOCKS_PERTHREAD"}, "by a file"
    assert settings_of(look(machine), NONE, {}) == {}


def test_without_a_default_route_no_interface_is_guessed(tmp_path: Path) -> None:
    assert default_interface(tmp_path) is None
    assert values(look(tmp_path)) == {"NCCL_IB_DISABLE": "1"}


def test_the_interface_towards_rank_0_is_not_loopback() -> None:
    assert interface_towards("127.0.0.1") is None
    assert interface_towards("no such host.invalid") is None
    names = [name for _, name in socket.if_nameindex()]
    real = default_interface()
    assert real is None or real in names


@pytest.mark.parametrize("kind", PROFILES)
def test_each_variable_has_a_reason_and_is_shown(kind: str) -> None:
    text = "\n".join(network_lines(kind))
    assert all(one.why and f"{one.name}={one.value}  ({one.why})" in text for one in PROFILES[kind])
    assert len({one.name for one in PROFILES[kind]}) == len(PROFILES[kind])


def test_what_auto_and_none_do_is_said() -> None:
    assert all(kind in next(network_lines(AUTO)) for kind in PROFILES)
    assert next(network_lines(NONE)) == "none: nothing is set"
