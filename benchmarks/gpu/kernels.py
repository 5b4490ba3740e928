"""Kernels against references in float64, and their time and memory against others that do the same."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.gpu.measure import peak_mb, rounded, seconds_of
from benchmarks.gpu.session import Session
from cclm.model.layers import merge_heads, split_heads
from cclm.model.packing import packed_layout
from cclm.ops import contrastive_operator
from cclm.ops.choice import Network, varlen_attention, why_not_varlen
from cclm.ops.contrastive import contrastive_loss, contrastive_reference
from cclm.ops.linear_cross_entropy import linear_cross_entropy, linear_cross_entropy_reference
from tests.stand_in_varlen import varlen_reference

Shape = tuple[int, int, int, int]
CONTRASTIVE_SHAPES: tuple[Shape, ...] = (
    # rows, columns, width, identities: one row; odd ones; one identity; widest; too wide for the kernels
    (1, 1, 1, 1), (61, 131, 17, 5), (129, 64, 64, 1), (1000, 300, 256, 300), (50, 70, 300, 9),
)  # fmt: skip
CONTRASTIVE_FORMS: tuple[dict[str, float], ...] = ({}, {"hardness": 0.5}, {"bias": -10.0})
TEMPERATURES = (0.5, 0.02, 0.001)
CONTRASTIVE_TOLERANCE = {0.5: 2e-5, 0.02: 1e-4, 0.001: 2e-3}
"""By temperature, which similarities and their errors are divided by (float32 on a CPU: a tenth of it). One pass of
tf32 instead of three would be off by a hundred times as much."""
HEAD_SHAPES = ((1, 8, 31), (100, 64, 5003), (77, 128, 1001))
"""Rows, width, classes."""
HEAD_TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
"""bf16 keeps 8 bits: 4e-3 at each rounding."""
VARLEN_SHAPES = (((1,), 1, 8), ((5, 1, 40, 17, 40), 12, 64), ((3, 130, 64), 4, 256))
"""Lengths of the sequences, heads, width of a head."""
VARLEN_TOLERANCE = 2e-2


def check(session: Session) -> None:
    """Compare every kernel with its reference in float64, for features in float32 and rounded to bfloat16."""
    torch.backends.cuda.matmul.allow_tf32 = False
    small = CONTRASTIVE_SHAPES[:3]
    for shape in small if session.is_dry else CONTRASTIVE_SHAPES:
        for dtype in (torch.float32, torch.bfloat16):
            for temperature in TEMPERATURES:
                for form in CONTRASTIVE_FORMS:
                    said = "".join(f", {key} {value}" for key, value in form.items())
                    name = f"contrastive {shape}, {_short(dtype)}, temperature {temperature}{said}"
                    error = contrastive_error(shape, dtype, temperature, session.device, **form)
                    session.check(name, error, contrastive_tolerance(temperature, **form))
    for shape in HEAD_SHAPES:
        for dtype, tolerance in HEAD_TOLERANCE.items():
            session.check(f"masked-LM {shape}, {_short(dtype)}", head_error(shape, dtype, session.device), tolerance)
    if session.device.type == "cuda":
        if trouble := why_not_varlen(session.device, Network()):
            session.note(f"attention of sequences of any length: {trouble}")
        for lengths, *sizes in () if trouble else VARLEN_SHAPES:
            error = varlen_error(lengths, *sizes, session.device)
            session.check(f"varlen attention {lengths}, {sizes}, bf16", error, VARLEN_TOLERANCE)
        features = torch.ones(2, 256, device=session.device)
        is_missing = contrastive_operator.kernels_for(features) is None
        session.check("the Triton kernels of the contrastive loss are used", float(is_missing), 0.0)


def contrastive_inputs(shape: Shape, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
    """Return unit vectors of two sides, rounded to a type, as float32; and what each row shows."""
    rows, columns, width, identities = shape
    generator = torch.Generator().manual_seed(rows)
    sides = [functional.normalize(torch.randn(size, width, generator=generator), dim=1) for size in (rows, columns)]
    shown = [torch.arange(size) % min(rows, columns, identities) * 7 - 3 for size in (rows, columns)]
    order = [torch.randperm(size, generator=generator) for size in (rows, columns)]
    features = [side.to(dtype).float().to(device) for side in sides]
    return (*features, *(one[own].to(device) for one, own in zip(shown, order, strict=True)))


def contrastive_tolerance(temperature: float, **form: float) -> float:
    """Return how far off a form may be: one with options more, as on a CPU (`tests/parity/test_contrastive.py`)."""
    return CONTRASTIVE_TOLERANCE[temperature] * (16 if form else 1)


def contrastive_error(
    shape: Shape, dtype: torch.dtype, temperature: float, device: torch.device, **form: float
) -> float:
    """Return the largest error of loss and gradients, each relative to its largest entry (or to one)."""
    first, second, *shown = contrastive_inputs(shape, dtype, device)

    def run(loss: Callable[..., Tensor], wide: torch.dtype) -> list[Tensor]:
        sides = [side.detach().clone().to(wide).requires_grad_() for side in (first, second)]
        divisor = torch.tensor([temperature], dtype=wide, device=device, requires_grad=True)
        options: dict[str, Any] = dict(form)
        if "bias" in form:
            options["bias"] = torch.tensor([form["bias"]], dtype=wide, device=device)
        value = loss(*sides, *shown, divisor, **options)
        (-2.5 * value).backward()  # type: ignore[no-untyped-call]
        return [value.detach(), *(leaf.grad for leaf in (*sides, divisor) if leaf.grad is not None)]

    exact = run(contrastive_reference, torch.float64)
    return relative_error(run(contrastive_loss, torch.float32), exact, smallest=1.0)


def head_error(shape: tuple[int, int, int], dtype: torch.dtype, device: torch.device) -> float:
    """Return the largest error of the masked-LM loss and its gradients, in blocks of a few rows."""
    rows, width, classes = shape
    generator = torch.Generator().manual_seed(rows)
    sizes = ((rows, width), (classes, width), (classes,))
    draw = [(torch.randn(*size, generator=generator) / width**0.5).to(dtype).to(device) for size in sizes]
    label = torch.randint(0, classes, (rows,), generator=generator).to(device)

    def run(loss: Callable[..., Any], wide: torch.dtype, **options: int) -> list[Tensor]:
        given = [value.detach().clone().to(wide).requires_grad_() for value in draw]
        factor = torch.full((rows,), 1.0 / rows, device=device)
        found = loss(*given, label, factor, **options)
        found.total.backward()
        return [found.total.detach(), found.loss_T, *(value.grad for value in given)]

    exact = run(linear_cross_entropy_reference, torch.float64)
    return relative_error(run(linear_cross_entropy, dtype, max_logits=37 * classes), exact)


def varlen_error(lengths: tuple[int, ...], heads: int, width: int, device: torch.device) -> float:
    """Return the largest error of attention inside of sequences that lie one after the other, of all their queries and
    of the first of each but the first sequence, and of its gradients."""
    generator = torch.Generator().manual_seed(width)
    draw = torch.randn(3, sum(lengths), heads, width, generator=generator).bfloat16().to(device)
    starts = functional.pad(torch.tensor(lengths).cumsum(0), (1, 0)).int().to(device)
    some = (torch.arange(len(starts), dtype=torch.int32, device=device) - 1).clamp_min(0)

    def run(attention: Callable[..., Tensor], wide: torch.dtype) -> list[Tensor]:
        rows = draw.clone().to(wide).requires_grad_()
        query, key, value = rows.unbind(0)
        found = attention(query, key, value, starts, starts, max(lengths) + 2)
        if len(lengths) > 1:
            first = attention(query[starts[1:-1]], key, value, some, starts, max(lengths) + 2)
            found = torch.cat([found, first])
        (found * torch.linspace(-1, 1, width, device=device).to(wide)).sum().backward()
        assert rows.grad is not None
        return [found.detach(), rows.grad]

    exact = run(lambda *given: varlen_reference(*given, given[5]), torch.float64)
    return relative_error(run(varlen_attention(), torch.bfloat16), exact)


def relative_error(found: list[Tensor], expected: list[Tensor], smallest: float = 1e-30) -> float:
    """Return the largest difference of all tensors, each relative to its largest expected entry (or to `smallest`)."""
    worst = 0.0
    for got, want in zip(found, expected, strict=True):
        if not bool(got.isfinite().all()):
            return float("nan")
        difference = float((got.double() - want.double()).abs().max())
        worst = max(worst, difference / max(smallest, float(want.abs().max())))
    return worst


def _short(dtype: torch.dtype) -> str:
    return {torch.float32: "fp32", torch.bfloat16: "bf16"}[dtype]


def measure(session: Session) -> None:
    """Time forward and backward of each form of each kernel that is here."""
    is_dry = session.is_dry
    for rows in (64,) if is_dry else (4096, 16_384, 32_768):
        for name, loss in contrastive_forms(rows).items():
            _measure(session, f"contrastive, {rows:,} × {rows:,}, width 256", name, partial(_contrast, rows, loss))
    sizes = ((16, 8, 101),) if is_dry else ((1024, 768, 250_002), (4096, 1024, 250_002))
    for rows, width, classes in sizes:
        case = f"masked-LM, {rows:,} slots, {classes:,} classes, width {width}, bf16"
        for name, loss in head_forms().items():
            _measure(session, case, name, partial(_predict, rows, width, classes, loss))
    for name, attention in attention_forms(session.device).items():
        texts, longest, heads = (4, 8, 2) if is_dry else (512, 40, 12)
        case = f"self-attention of {texts} texts of up to {longest} tokens, {heads} heads of 64, bf16"
        _measure(session, case, name, partial(_attend, texts, longest, heads, attention))
    rows, width = (8, 16) if is_dry else (25_216, 1024)
    for name, norm in norm_forms().items():
        _measure(session, f"layer norm, {rows:,} × {width}, bf16", name, partial(_normalise, rows, width, norm))
    values = 1000 if is_dry else 300_000_000
    for name, make in optimizer_forms().items():
        _measure(session, f"AdamW, {values:,} values, fp32", name, partial(_optimise, values, make))


Prepared = tuple[Callable[[], object], list[Tensor]]
"""A piece of work, and the leaves whose gradients it adds to."""


def _measure(session: Session, case: str, form: str, prepare: Callable[[torch.device], Prepared]) -> None:
    if session.left_s < 3.0:
        session.note(f"{case}, {form}: no time left")
        return
    with session.variant(f"{case}, {form}"):
        work, leaves = prepare(session.device)

        def fresh() -> None:
            for leaf in leaves:
                leaf.grad = None
            work()

        memory, seconds = peak_mb(fresh, session.device), seconds_of(fresh, session.device)
        session.row("kernels", case=case, form=form, ms=rounded(1e3 * seconds), extra_mb=rounded(memory))
    if session.device.type == "cuda":
        torch.cuda.empty_cache()


def contrastive_forms(rows: int) -> dict[str, Callable[..., Tensor]]:
    """Return ours by Triton, ours in plain torch, and whole matrices, where they fit."""
    forms: dict[str, Callable[..., Tensor]] = {"here": contrastive_loss, "here, plain torch": _without_kernels}
    return forms if rows > 16_384 else forms | {"plain torch": contrastive_reference}


def _without_kernels(*given: Tensor) -> Tensor:
    find, contrastive_operator.kernels_for = contrastive_operator.kernels_for, lambda features: None
    try:
        return contrastive_loss(*given)
    finally:
        contrastive_operator.kernels_for = find


def _contrast(rows: int, loss: Callable[..., Tensor], device: torch.device) -> Prepared:
    first, second, *shown = contrastive_inputs((rows, rows, 256, 3 * rows // 4), torch.float32, device)
    leaves = [side.requires_grad_() for side in (first, second)]
    temperature = torch.tensor([0.05], device=device)
    return lambda: loss(*leaves, *shown, temperature).backward(), leaves  # type: ignore[no-untyped-call]


def head_forms() -> dict[str, Callable[..., Tensor]]:
    """Return ours, plain torch, torch's own fused form and Liger's, as far as they are here."""
    forms: dict[str, Callable[..., Tensor]] = {
        "here": lambda hidden, weight, bias, label: linear_cross_entropy(hidden, weight, bias, label).total,
        "plain torch": lambda hidden, weight, bias, label: functional.cross_entropy(
            functional.linear(hidden, weight, bias).float(), label, reduction="sum"
        ),
    }
    if hasattr(functional, "linear_cross_entropy"):
        fused: Any = functional.linear_cross_entropy
        forms["torch's linear_cross_entropy"] = lambda hidden, weight, bias, label: fused(
            hidden, weight, label, linear_bias=bias, reduction="sum"
        )
    liger = _optional("liger_kernel.transformers")
    if liger is not None:
        own = liger.LigerFusedLinearCrossEntropyLoss(reduction="sum")
        forms["Liger"] = lambda hidden, weight, bias, label: own(weight, hidden, label, bias)
    return forms


def _predict(rows: int, width: int, classes: int, loss: Callable[..., Tensor], device: torch.device) -> Prepared:
    sizes = ((rows, width), (classes, width), (classes,))
    hidden, weight, bias = (
        (torch.randn(size, device=device) / width**0.5).bfloat16().requires_grad_() for size in sizes
    )
    label = torch.randint(0, classes, (rows,), device=device)
    return lambda: loss(hidden, weight, bias, label).backward(), [hidden, weight, bias]  # type: ignore[no-untyped-call]


def attention_forms(device: torch.device) -> dict[str, Callable[..., Tensor]]:
    """Return SDPA on the padded rectangle, and attention of sequences of any length where it is here."""

    def padded(rows_TD: Tensor, layout: Any, heads: int) -> Tensor:
        query, key, value = (split_heads(part, heads) for part in layout.to_blocks(rows_TD)[0].chunk(3, -1))
        found = functional.scaled_dot_product_attention(query, key, value, layout.block_masks()[0])
        return cast(Tensor, layout.from_blocks([merge_heads(found)]))

    if why_not_varlen(device, Network()):
        return {"padded": padded}
    kernel = varlen_attention()

    def packed(rows_TD: Tensor, layout: Any, heads: int) -> Tensor:
        parts = rows_TD.view(len(rows_TD), 3, heads, -1).unbind(1)
        return kernel(*parts, layout.starts, layout.starts, layout.length).flatten(1)

    return {"padded": padded, "varlen": packed}


def _attend(texts: int, longest: int, heads: int, attention: Callable[..., Tensor], device: torch.device) -> Prepared:
    lengths = torch.randint(4, longest + 1, (texts,), generator=torch.Generator().manual_seed(0))
    layout = packed_layout((torch.arange(longest) < lengths[:, None]).to(device), int(lengths.sum()))
    rows = torch.randn(int(lengths.sum()), 3 * heads * 64, device=device).bfloat16().requires_grad_()
    gradient = torch.randn(int(lengths.sum()), heads * 64, device=device).bfloat16()
    return lambda: attention(rows, layout, heads).backward(gradient), [rows]  # type: ignore[no-untyped-call]


def norm_forms() -> dict[str, Callable[..., Tensor]]:
    """Return torch's layer norm, apex's and Liger's."""
    forms: dict[str, Callable[..., Tensor]] = {
        "torch": lambda rows, weight, bias: functional.layer_norm(rows, weight.shape, weight, bias, 1e-5)
    }
    if _optional("fused_layer_norm_cuda") is not None:  # apex without its extension imports, and fails later
        apex: Any = importlib.import_module("apex.normalization.fused_layer_norm")
        forms["apex"] = lambda rows, weight, bias: apex.fused_layer_norm_affine(rows, weight, bias, weight.shape, 1e-5)
    liger = _optional("liger_kernel.ops.layer_norm")
    if liger is not None:
        forms["Liger"] = lambda rows, weight, bias: liger.LigerLayerNormFunction.apply(rows, weight, bias, 1e-5)
    return forms


def _normalise(rows: int, width: int, norm: Callable[..., Tensor], device: torch.device) -> Prepared:
    sizes = ((rows, width), (width,), (width,))
    leaves = [torch.randn(size, device=device).bfloat16().requires_grad_() for size in sizes]
    gradient = torch.randn(rows, width, device=device).bfloat16()
    return lambda: norm(*leaves).backward(gradient), leaves  # type: ignore[no-untyped-call]


def optimizer_forms() -> dict[str, Callable[[list[Tensor]], Any]]:
    """Return torch's fused AdamW, its loop over groups of tensors, the published rule, and apex's."""
    from cclm.engine.adamw import PublishedAdamW

    published = partial(PublishedAdamW, lr=1e-4, betas=(0.9, 0.98), eps=1e-8)
    forms: dict[str, Callable[[list[Tensor]], Any]] = {
        "torch, fused": lambda parameters: torch.optim.AdamW(parameters, fused=True),
        "torch, foreach": lambda parameters: torch.optim.AdamW(parameters, foreach=True),
        "here, published rule": lambda parameters: published([{"params": parameters}]),
    }
    if _optional("amp_C") is not None:
        apex: Any = importlib.import_module("apex.optimizers")
        forms["apex"] = lambda parameters: apex.FusedAdam(parameters)
    return forms


def _optimise(values: int, make: Callable[[list[Tensor]], Any], device: torch.device) -> Prepared:
    parameters: list[Tensor] = [torch.nn.Parameter(torch.zeros(values // 10, device=device)) for _ in range(10)]
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    optimizer = make(parameters)
    return optimizer.step, []


def _optional(module: str) -> Any:
    """Return a module; None where it is missing or does not fit what is here."""
    try:
        return importlib.import_module(module)
    except Exception:  # noqa: BLE001 - a broken build raises what it likes
        return None
