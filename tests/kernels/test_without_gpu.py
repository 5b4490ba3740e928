"""The Triton kernels without a GPU: their meaning in Triton's interpreter, and what the compiler makes of them.

Triton comes with torch's CUDA builds; on other machines `make test-kernels` installs the pinned one.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from functools import cache

import pytest

from tests.kernels import compiling
from tests.kernels.compiling import ARCHITECTURES, BLOCK_SHARED_BYTES, KERNELS, Compiled

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs triton: make test-kernels"),
]
each_kernel = pytest.mark.parametrize("name", KERNELS)
each_architecture = pytest.mark.parametrize("capability", ARCHITECTURES)
compiled = cache(compiling.compiled)


def test_the_interpreter_agrees_with_plain_torch() -> None:
    command = [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", "tests/kernels/interpreted.py"]
    found = subprocess.run(command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout + found.stderr


@each_architecture
@each_kernel
def test_kernels_compile_without_spills_and_can_be_launched(name: str, capability: int) -> None:
    kernel = compiled(name, capability)
    assert kernel.shared_bytes <= BLOCK_SHARED_BYTES[capability], "compiles, but cannot be launched"
    assert kernel.blocks_per_sm(capability) >= 1
    assert kernel.num_matrix_instructions > 0 and kernel.is_tf32, "products without tensor cores"
    assert kernel.spilled_bytes == 0


@each_architecture
@each_kernel
def test_registers_are_as_many_as_they_were(name: str, capability: int) -> None:
    import triton

    known = compiling.golden()
    if triton.__version__ != known["triton"]:
        pytest.skip(f"registers are known for triton {known['triton']}, not {triton.__version__}")
    before = known["registers"][name][ARCHITECTURES[capability]]
    found = compiled(name, capability).registers
    assert abs(found - before) <= 0.1 * before, "meant: python -m tests.kernels.compiling --write"


def test_how_many_blocks_fit_is_counted_by_what_is_scarcest() -> None:
    def kernel(registers: int, shared_bytes: int, num_warps: int) -> Compiled:
        return Compiled(
            registers=registers, shared_bytes=shared_bytes, num_warps=num_warps,
            spilled_bytes=0, num_matrix_instructions=1, is_tf32=True,
        )  # fmt: skip

    assert kernel(255, 0, 8).blocks_per_sm(80) == 1
    assert kernel(128, 0, 4).blocks_per_sm(80) == 4
    assert kernel(32, 100_000, 4).blocks_per_sm(80) == 1 and kernel(32, 100_000, 4).blocks_per_sm(90) == 2
    assert kernel(32, 0, 32).blocks_per_sm(90) == 2
