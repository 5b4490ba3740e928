"""What GPUs could do at most."""

from __future__ import annotations

import torch

PEAKS: dict[str, dict[str, float]] = {
    "A100": {"bf16": 312, "tf32": 156, "fp32": 19.5},
    "H100 PCIe": {"bf16": 756, "tf32": 378, "fp32": 51},
    "H100": {"bf16": 989, "tf32": 494, "fp32": 67},
    "H200": {"bf16": 989, "tf32": 494, "fp32": 67},
    "B200": {"bf16": 2250, "tf32": 1100, "fp32": 75},
    "L40S": {"bf16": 362, "tf32": 183, "fp32": 91.6},
}
"""Part of a GPU's name → dense TFLOP/s by type, of its vendor's data sheet. The first name that fits counts."""


def peak_tflops(device: torch.device, precision: str) -> float | None:
    """Return what the data sheet promises; None for a device that is not in the table."""
    if device.type != "cuda":
        return None
    if precision == "fp32" and torch.backends.cuda.matmul.allow_tf32:
        precision = "tf32"
    name = torch.cuda.get_device_name(device)
    return next((peaks[precision] for part, peaks in PEAKS.items() if part in name), None)
