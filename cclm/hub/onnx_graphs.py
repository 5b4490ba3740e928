"""An exported folder as graphs for an ONNX runtime: both towers, and the fusion encoder's score of a pair.

    image.onnx    pixel_values (B, 3, S, S)                                     → features (B, E), states (B, N, D)
    text.onnx     input_ids, attention_mask (B, L)                              → features (B, E), states (B, L, D)
    match.onnx    image_states (B, N, D), text_states (B, L, D), attention_mask → logits (B, 2)

They lie in FOLDER/onnx; tokenizer.json and preprocessor_config.json, which prepare their inputs, beside that folder.
With `int8`, `*_int8.onnx` have the weights of matrix products in 8 bits (onnxruntime's dynamic quantisation).
A fresh process that has neither torch nor transformers computes the probe with them (`cclm.hub.onnx_process`).
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from cclm.errors import CheckpointError, ConfigError, MissingDependencyError
from cclm.hub.parity import Difference, RecallPair, difference, recalls, run_alone, write_probe
from cclm.hub.reference_outputs import ReferenceOutputs
from cclm.model.modeling_cclm import CCLMModel

FOLDER: Final = "onnx"
Precision = Literal["fp32", "int8"]
PACKAGES: Final = ("onnx", "onnxscript", "onnxruntime")
LARGE_BYTES: Final = 1_500_000_000
"""Weights above this go into a file of their own: a graph's file may have 2 GB."""
SHARE: Final = 1e-4
COSINE: Final = 1e-5
"""How far fp32 graphs may be off, as in `cclm.hub.parity`."""


@dataclass(frozen=True, kw_only=True)
class OnnxReport:
    """What a process with onnxruntime alone computes of the probe, beside the training engine."""

    parts: Mapping[str, Difference]
    recall: Mapping[str, RecallPair]

    def table(self) -> str:
        """Return a line for each, for people."""
        lines = [f"  {name}: {part}" for name, part in self.parts.items()]
        return "\n".join(lines + [f"  recall@1 by {name}: {pair}" for name, pair in self.recall.items()])


def check_onnx(model: Any, given: str) -> None:
    """Raise unless graphs can be made: a precision that there is, packages, a model with towers and a matching head
    (ConfigError, MissingDependencyError).
    """
    if given not in ("fp32", "int8"):
        raise ConfigError(where="--onnx", expected="fp32 or int8", got=repr(given), do="Choose one of these.")
    if missing := [name for name in PACKAGES if find_spec(name) is None]:
        raise MissingDependencyError(
            where="--onnx", expected=f"{', '.join(PACKAGES)} to be installed", got=f"no {', '.join(missing)}",
            do="pip install 'cclm-pretraining[onnx]'",
        )  # fmt: skip
    options = model.options()
    if not options.pretraining_heads or options.fusion.num_memories > 1:
        raise ConfigError(
            where="--onnx", expected="a model of image-text features and matching", got="one for another task",
            do="Export it without --onnx.",
        )  # fmt: skip


def write_graphs(export: Path, precision: Precision) -> None:
    """Make `export`/onnx of a folder that `cclm.hub.export` wrote (CheckpointError: torch cannot trace the network)."""
    folder = export / FOLDER
    folder.mkdir()
    model: Any = CCLMModel.from_pretrained(export, dtype=torch.float32).eval()
    model.text_encoder.token_layout = model.fusion_encoder.token_layout = "padded"  # the others look at values
    size_bytes = sum(value.nbytes for value in model.state_dict().values())
    for name, graph in _graphs(model).items():
        try:
            program = _traced(*graph)
        except (RuntimeError, torch.onnx.OnnxExporterError) as error:
            raise CheckpointError(
                where=str(export),
                expected=f"a network that torch can turn into a graph ({name})",
                got=str(error).splitlines()[0],
                do="Nothing was exported. Export without --onnx.",
            ) from error
        program.save(folder / f"{name}.onnx", external_data=size_bytes > LARGE_BYTES)
        if precision == "int8":
            _quantise(folder / f"{name}.onnx", folder / f"{name}_int8.onnx", is_large=size_bytes > LARGE_BYTES)


def _traced(module: nn.Module, inputs: tuple[Tensor, ...], names: list[str], outputs: list[str]) -> Any:
    """Trace a module; any number of rows, and of tokens of a text."""
    free = torch.export.Dim.DYNAMIC
    shapes = tuple({0: free, 1: free} if name in TEXTS else {0: free} for name in names)
    with _quiet(), sdpa_kernel(SDPBackend.MATH):  # decomposed, the others would lie in memory in another way
        return torch.onnx.export(
            module.eval(), inputs, dynamo=True, dynamic_shapes=(shapes,), input_names=names, output_names=outputs,
            verbose=False, optimize=False,
        )  # fmt: skip


TEXTS: Final = ("input_ids", "attention_mask", "text_states")
"""Inputs whose second axis is a length."""


class _Graph(nn.Module):
    """One of the graphs as a module; positional inputs, as the exporter wants them."""

    def __init__(self, model: CCLMModel, compute: Callable[..., tuple[Tensor, ...]]) -> None:
        super().__init__()
        self.model, self.compute = model, compute

    def forward(self, *given: Tensor) -> tuple[Tensor, ...]:
        return self.compute(self.model, *given)


def _images(model: CCLMModel, pixels_BCHW: Tensor) -> tuple[Tensor, ...]:
    states = model.encode_images(pixels_BCHW)
    return model.project_images(states), states


def _texts(model: CCLMModel, ids_BL: Tensor, mask_BL: Tensor) -> tuple[Tensor, ...]:
    states = model.encode_texts(ids_BL, mask_BL.bool())
    return model.project_texts(states, mask_BL.bool()), states


def _match(model: CCLMModel, image_BND: Tensor, text_BLD: Tensor, mask_BL: Tensor) -> tuple[Tensor, ...]:
    return (model.match_logits(model.fuse(text_BLD, mask_BL.bool(), image_BND), mask_BL.bool()),)


def _graphs(model: CCLMModel) -> dict[str, tuple[nn.Module, tuple[Tensor, ...], list[str], list[str]]]:
    """Each graph: its module, inputs to trace it with, their names, and its outputs' names."""
    options = model.config.options()
    side, pad = options.vision.image_size, options.text.pad_token_id
    ids_BL = torch.full((3, 5), (pad + 1) % options.text.vocab_size)
    mask_BL = torch.ones_like(ids_BL)
    pixels_BCHW = torch.zeros(3, 3, side, side)
    with torch.no_grad():
        image_BND, text_BLD = model.encode_images(pixels_BCHW), model.encode_texts(ids_BL, mask_BL.bool())
    made = ["features", "states"]
    return {
        "image": (_Graph(model, _images), (pixels_BCHW,), ["pixel_values"], made),
        "text": (_Graph(model, _texts), (ids_BL, mask_BL), ["input_ids", "attention_mask"], made),
        "match": (
            _Graph(model, _match), (image_BND, text_BLD, mask_BL), ["image_states", "text_states", "attention_mask"],
            ["logits"],
        ),
    }  # fmt: skip


def _quantise(graph: Path, to: Path, *, is_large: bool) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with _quiet():
        quantize_dynamic(
            graph, to, op_types_to_quantize=["MatMul", "Gemm", "Gather"], weight_type=QuantType.QInt8,
            use_external_data_format=is_large,
        )  # fmt: skip


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the notes of exporters about packages that nobody needs here."""
    import logging

    logger = logging.getLogger("torch.onnx")
    before = logger.level, logging.root.level
    logger.setLevel(logging.ERROR)
    logging.root.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before[0])
        logging.root.setLevel(before[1])


def check_graphs(
    export: Path, reference: ReferenceOutputs, precision: Precision, python: Path | None = None
) -> dict[Precision, OnnxReport]:
    """Return what a fresh process computes with the graphs of each precision. `python`: its interpreter
    (CheckpointError: it fails, or fp32 graphs compute something else than the training engine).
    """
    kinds: list[Precision] = ["fp32"] if precision == "fp32" else ["fp32", "int8"]
    reports = {kind: _report(reference, _computed(export, reference, kind, python)) for kind in kinds}
    off = [name for name, part in reports["fp32"].parts.items() if not part.holds]
    if off:
        raise CheckpointError(
            where=str(export / FOLDER),
            expected=f"graphs that compute what the trained model computes ({reference.origin})",
            got=reports["fp32"].table(),
            do="Nothing was exported. Export without --onnx, and report this.",
        )
    return reports


def _report(reference: ReferenceOutputs, found: Mapping[str, Tensor]) -> OnnxReport:
    names = [name for name in reference.outputs if name in found]
    parts = {name: difference(reference.outputs[name], found[name], name, SHARE, COSINE) for name in names}
    return OnnxReport(parts=parts, recall=recalls(reference, found, parts))


def _computed(export: Path, reference: ReferenceOutputs, kind: Precision, python: Path | None) -> dict[str, Tensor]:
    with tempfile.TemporaryDirectory(prefix="cclm-onnx-") as name:
        room = Path(name)
        given, out = room / "probe", room / "out.npz"
        write_probe(reference.probe, given)
        ending = "_int8.onnx" if kind == "int8" else ".onnx"
        if got := run_alone("onnx_process.py", [export.resolve(), given, out, ending], room, python):
            raise CheckpointError(
                where=str(export / FOLDER), expected="graphs that onnxruntime runs", got=got,
                do="Nothing was exported. Export without --onnx.",
            )  # fmt: skip
        with np.load(out) as arrays:
            return {key: torch.from_numpy(arrays[key]) for key in arrays.files}
