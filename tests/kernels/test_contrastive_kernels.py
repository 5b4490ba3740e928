"""The Triton kernels without a GPU: their meaning in Triton's interpreter, and what the compiler makes of them.

Triton comes with torch's CUDA builds; on other machines `make test-kernels` installs the pinned one.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs triton: make test-kernels"),
]
SHARED_BYTES = {80: 166_912, 90: 232_448}
"""What a block of a compute capability may hold (CUDA programming guide, technical specifications)."""


def test_the_interpreter_agrees_with_plain_torch() -> None:
    command = [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", "tests/kernels/interpreted.py"]
    found = subprocess.run(command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout + found.stderr


def compiled(name: str, capability: int) -> Any:
    """A kernel in its widest form, for an architecture that need not be here."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from cclm.ops import contrastive_kernels as kernels

    kernel = getattr(kernels, f"{name}_kernel")
    tile = {"log_sum": kernels.LOG_SUM_TILE, "gradient": kernels.GRADIENT_TILE}[name]
    width = kernels.LARGEST_WIDTH
    constants = {"D": width, "WIDTH": width, "BM": tile.rows, "BN": tile.columns, "BK": tile.features}
    types = {"num_rows": "i32", "num_columns": "i32", "row_weight": "fp32", "column_weight": "fp32"}
    names = kernel.arg_names
    pointers = [each for each in names if each.endswith("_ptr")]
    source = ASTSource(
        fn=kernel,
        signature={each: "constexpr" if each in constants else types.get(each, "*fp32") for each in names},
        constexprs={(names.index(each),): value for each, value in constants.items() if each in names},
        attrs={(names.index(each),): [["tt.divisibility", 16]] for each in pointers},
    )
    options = {"num_warps": tile.num_warps, "num_stages": tile.num_stages}
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def spilled_bytes(ptx: str, capability: int) -> int:
    """What Triton's own assembler keeps in memory for want of registers."""
    import triton

    assembler = Path(triton.__file__).parent / "backends/nvidia/bin/ptxas"
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(ptx)
        file.flush()
        architecture = {80: "sm_80", 90: "sm_90a"}[capability]
        command = [str(assembler), "-v", "--gpu-name", architecture, file.name, "-o", os.devnull]
        report = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    return sum(int(found) for found in re.findall(r"(\d+) bytes spill", report))


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("name", ["log_sum", "gradient"])
def test_kernels_compile_without_spills_and_can_be_launched(name: str, capability: int) -> None:
    kernel = compiled(name, capability)
    ptx = kernel.asm["ptx"]
    assert kernel.metadata.shared <= SHARED_BYTES[capability], "compiles, but cannot be launched"
    assert re.search(r"mma\.sync|wgmma\.mma_async", ptx), "products without tensor cores"
    assert "tf32" in ptx
    assert spilled_bytes(ptx, capability) == 0
