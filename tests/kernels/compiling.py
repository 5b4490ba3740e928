"""What Triton's compiler makes of the kernels, for GPUs that need not be here.

    python -m tests.kernels.compiling --write     writes `registers.json` anew, with this Triton

A kernel is compiled in its widest form with the tile that it is launched with, once for each architecture.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

KERNELS = {
    "log_sum": ("log_sum", None),
    "hard_sum": ("hard_sum", None),
    "sigmoid_sum": ("sigmoid_sum", None),
    "gradient": ("gradient", "SOFTMAX"),
    "hard_gradient": ("gradient", "HARD"),
    "sigmoid_gradient": ("gradient", "SIGMOID"),
}
"""Name here → the kernel, and which form of it."""
GOLDEN = Path(__file__).with_name("registers.json")
SM_SHARED_BYTES = {80: 164 * 1024, 90: 228 * 1024, 100: 228 * 1024}
"""Shared memory of a multiprocessor by compute capability (CUDA programming guide, technical specifications)."""
BLOCK_SHARED_BYTES = {80: 166_912, 90: 232_448, 100: 232_448}
"""What one block may have of it."""
SM_REGISTERS, SM_WARPS, RESERVED_BYTES = 65_536, 64, 1024
"""Of a multiprocessor; what the system takes of shared memory for each block."""
ARCHITECTURES = {80: "sm_80", 90: "sm_90a", 100: "sm_100a"}
MATRIX_INSTRUCTIONS = r"mma\.sync|wgmma\.mma_async|tcgen05\.mma"


@dataclass(frozen=True, kw_only=True)
class Compiled:
    """One kernel for one architecture."""

    registers: int
    spilled_bytes: int
    """Stored and loaded again for want of registers."""
    shared_bytes: int
    num_warps: int
    num_matrix_instructions: int
    is_tf32: bool

    def blocks_per_sm(self, capability: int) -> int:
        """How many blocks fit on a multiprocessor at once."""
        per_warp = -(-self.registers * 32 // 256) * 256  # given out in pieces of 256
        by_shared = SM_SHARED_BYTES[capability] // (self.shared_bytes + RESERVED_BYTES)
        return min(SM_REGISTERS // (per_warp * self.num_warps), by_shared, SM_WARPS // self.num_warps)


def compiled(name: str, capability: int) -> Compiled:
    """Compile a kernel."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from cclm.ops import contrastive_kernels as kernels

    stem, form = KERNELS[name]
    kernel = getattr(kernels, f"{stem}_kernel")
    tile = kernels.GRADIENT_TILE if form else kernels.HARD_SUM_TILE if stem == "hard_sum" else kernels.LOG_SUM_TILE
    width = kernels.LARGEST_WIDTH
    constants = {"D": width, "WIDTH": width, "BM": tile.rows, "BN": tile.columns, "BK": tile.features}
    if form:
        constants["FORM"] = getattr(kernels, form).value
    types = {each: "i32" for each in ("num_rows", "num_columns")}
    types |= {each: "fp32" for each in ("row_weight", "column_weight", "hardness")}
    types |= {f"{side}_identity_ptr": "*i64" for side in ("row", "column")}
    names = kernel.arg_names
    pointers = [each for each in names if each.endswith("_ptr")]
    source = ASTSource(
        fn=kernel,
        signature={each: "constexpr" if each in constants else types.get(each, "*fp32") for each in names},
        constexprs={(names.index(each),): value for each, value in constants.items() if each in names},
        attrs={(names.index(each),): [["tt.divisibility", 16]] for each in pointers},
    )
    options = {"num_warps": tile.num_warps, "num_stages": tile.num_stages}
    found = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    ptx = found.asm["ptx"]
    said = assembled(ptx, capability)
    return Compiled(
        registers=int(re.findall(r"Used (\d+) registers", said)[0]),
        spilled_bytes=sum(int(number) for number in re.findall(r"(\d+) bytes spill", said)),
        shared_bytes=found.metadata.shared,
        num_warps=tile.num_warps,
        num_matrix_instructions=len(re.findall(MATRIX_INSTRUCTIONS, ptx)),
        is_tf32="tf32" in ptx,
    )


def assembled(ptx: str, capability: int) -> str:
    """What the assembler that Triton brings along says of a kernel."""
    import triton

    name = "ptxas-blackwell" if capability >= 100 else "ptxas"
    assembler = Path(triton.__file__).parent / "backends/nvidia/bin" / name
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(ptx)
        file.flush()
        command = [str(assembler), "-v", "--gpu-name", ARCHITECTURES[capability], file.name, "-o", os.devnull]
        return subprocess.run(command, capture_output=True, text=True, check=True).stderr


def golden() -> dict[str, Any]:
    """Registers by kernel and architecture, and the Triton that gave them."""
    content: dict[str, Any] = json.loads(GOLDEN.read_text(encoding="utf-8"))
    return content


def main() -> None:
    """Show what the compiler makes of every kernel; with --write, keep the registers."""
    import triton

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    registers: dict[str, dict[str, int]] = {}
    for name in KERNELS:
        for capability, architecture in ARCHITECTURES.items():
            found = compiled(name, capability)
            print(name, architecture, found, f"{found.blocks_per_sm(capability)} blocks per SM")
            registers.setdefault(name, {})[architecture] = found.registers
    if arguments.write:
        text = json.dumps({"triton": triton.__version__, "registers": registers}, indent=1)
        GOLDEN.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
