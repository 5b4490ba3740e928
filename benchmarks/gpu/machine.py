"""The machine: what is installed, and how fast its matrix units and its memory are when nothing else is asked."""

from __future__ import annotations

import importlib.metadata
import platform

import torch

from benchmarks.gpu.measure import rounded, seconds_of
from benchmarks.gpu.session import Session
from cclm.costs.step import peak_tflops

PACKAGES = (
    "torch", "triton", "deepspeed", "transformers", "tokenizers", "safetensors", "numpy", "pyarrow", "pillow",
    "PyYAML", "jaxtyping", "rich", "liger-kernel", "apex", "flash-attn", "simplejpeg",
)  # fmt: skip


def look(session: Session) -> None:
    """Write down versions and attainable rates."""
    for name in PACKAGES:
        try:
            version: str | None = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            version = None
        session.row("versions", package=name, version=version)
    device, cells = session.device, {"python": platform.python_version(), "cuda": torch.version.cuda}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        cells |= {"gpu": properties.name, "compute": f"{properties.major}.{properties.minor}"}
        cells |= {"memory_gb": rounded(properties.total_memory / 1e9), "sm_count": properties.multi_processor_count}
    session.row("machine", **cells)
    size = 64 if session.is_dry else 8192
    for precision, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        found = 2 * size**3 / seconds_of(lambda a=left, b=right: a @ b, device) / 1e12
        session.row(
            "rates", what=f"matrix product, {precision}, TFLOP/s", found=rounded(found),
            data_sheet=peak_tflops(device, precision),
        )  # fmt: skip
    source = torch.empty(1 << (10 if session.is_dry else 30), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    found = 2 * source.numel() / seconds_of(lambda: target.copy_(source), device) / 1e12
    session.row("rates", what="memory, read and written, TB/s", found=rounded(found), data_sheet=None)
