from __future__ import annotations

import pytest
import torch

from cclm.distributed.topology import Topology
from cclm.errors import ConfigError

GOOD = {
    "RANK": "3",
    "LOCAL_RANK": "1",
    "WORLD_SIZE": "4",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "node0",
    "MASTER_PORT": "29500",
}


def test_nothing_set_is_one_process() -> None:
    topology = Topology.from_environment({"PATH": "/bin", "RANK": ""}, device="cpu")
    assert (topology.rank, topology.world_size, topology.local_rank, topology.local_world_size) == (0, 1, 0, 1)
    assert topology.device == torch.device("cpu")
    assert topology.backend == "gloo"


def test_a_launchers_variables_are_read() -> None:
    topology = Topology.from_environment(GOOD, device="cpu")
    assert (topology.rank, topology.world_size, topology.local_rank, topology.local_world_size) == (3, 4, 1, 2)
    local_size = {"LOCAL_SIZE": GOOD["LOCAL_WORLD_SIZE"]}
    deepspeed = {name: value for name, value in GOOD.items() if name != "LOCAL_WORLD_SIZE"} | local_size
    assert Topology.from_environment(deepspeed, device="cpu") == topology


@pytest.mark.parametrize("missing", list(GOOD))
def test_a_partial_set_names_what_is_missing(missing: str) -> None:
    with pytest.raises(ConfigError, match=rf"missing: {missing}\).*through a launcher"):
        Topology.from_environment({name: value for name, value in GOOD.items() if name != missing})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"RANK": "4"}, "RANK=4 with WORLD_SIZE=4"),
        ({"RANK": "-1"}, "RANK=-1 with WORLD_SIZE=4"),
        ({"RANK": "two"}, "RANK='two' is not an integer"),
        ({"LOCAL_RANK": "2"}, "LOCAL_RANK=2 with LOCAL_WORLD_SIZE=2"),
        ({"RANK": "0"}, "LOCAL_RANK=1 with RANK=0"),
        ({"LOCAL_WORLD_SIZE": "8"}, "LOCAL_WORLD_SIZE=8 with WORLD_SIZE=4"),
        ({"MASTER_PORT": "70000"}, "MASTER_PORT=70000"),
        ({"WORLD_SIZE": "0", "LOCAL_RANK": "5"}, "LOCAL_RANK=5 with LOCAL_WORLD_SIZE=2"),
    ],
)
def test_contradictions_are_told(change: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Topology.from_environment(GOOD | change, device="cpu")


def test_devices() -> None:
    with pytest.raises(ConfigError, match='"auto", "cpu" or "cuda"'):
        Topology.from_environment({}, device="tpu")
    if not torch.cuda.is_available():
        assert Topology.from_environment({}).device.type == "cpu"
        with pytest.raises(ConfigError, match="a GPU with index 0"):
            Topology.from_environment({}, device="cuda")
