"""A stand-in for NVIDIA's apex: its compiled extensions' names, its layer norm and its FusedAdam, in plain torch.

FusedAdam keeps its count of updates in the group, and nothing of it beside a tensor, as the real one does.
"""

from __future__ import annotations

from pathlib import Path

NORM = """
import torch
calls = []

def fused_layer_norm_affine(input, weight, bias, normalized_shape, eps=1e-6, memory_efficient=False):
    calls.append(tuple(input.shape))
    return torch.nn.functional.layer_norm(input, normalized_shape, weight, bias, eps)
"""
ADAM = """
import torch
calls = []

class FusedAdam(torch.optim.Optimizer):
    def __init__(self, params, lr=1e-3, bias_correction=True, betas=(0.9, 0.999), eps=1e-8, adam_w_mode=True,
                 weight_decay=0.0, amsgrad=False):
        assert adam_w_mode
        super().__init__(params, dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay))

    def step(self, closure=None):
        for group in self.param_groups:
            if len(group["params"]) == 0:
                continue
            group["step"] = group["step"] + 1 if "step" in group else 1
            calls.append(group["step"])
            for one in group["params"]:
                if one.grad is None:
                    continue
                state = self.state[one]
                if len(state) == 0:
                    state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(one), torch.zeros_like(one)
                (first, second), count = group["betas"], group["step"]
                with torch.no_grad():
                    state["exp_avg"].lerp_(one.grad, 1 - first)
                    state["exp_avg_sq"].mul_(second).addcmul_(one.grad, one.grad, value=1 - second)
                    divisor = (state["exp_avg_sq"] / (1 - second**count)).sqrt() + group["eps"]
                    change = state["exp_avg"] / (1 - first**count) / divisor + group["weight_decay"] * one
                    one.sub_(group["lr"] * change)
"""


def write_apex(folder: Path, *, has_extensions: bool = True) -> Path:
    """Write the packages; without their extensions they are another `apex`, as the registry has one."""
    for name, text in {"normalization/fused_layer_norm": NORM, "optimizers/__init__": ADAM}.items():
        path = folder / "apex" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        (path.parent / "__init__.py").touch()
    (folder / "apex" / "__init__.py").touch()
    if has_extensions:
        for name in ("amp_C", "fused_layer_norm_cuda"):
            (folder / f"{name}.py").write_text("", encoding="utf-8")
    return folder
