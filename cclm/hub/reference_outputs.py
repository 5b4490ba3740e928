"""What the training engine itself computed on the probe, kept in the checkpoint: an export is measured against it.

    training engine (any stage, any ranks) ─ probe ─▶ step_N/reference_outputs.safetensors ─ compare ─ exported folder

The outputs come from the live engine, through its own forward, before the weights ever were in a file; so a mistake in
reading the ranks' shares shows, and an export needs neither that many ranks nor the optimizer's memory.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from cclm.data.options import ImageTransformConfig
from cclm.data.tokens import TextTokenizer
from cclm.distributed.agreement import on_every_rank
from cclm.engine.protocol import Engine
from cclm.errors import CheckpointError
from cclm.hub.open import OpenedModel
from cclm.hub.probe import NUM_MASKED, Probe, known_part, make_probe, probe_inputs, probe_outputs
from cclm.model.modeling_cclm import CCLMModel
from cclm.ops.choice import exact_products

FILE = "reference_outputs.safetensors"
"""Beside the engine's own files."""
OLD_FILE = "witness.safetensors"
"""Its name in checkpoints of version 0.1."""


@dataclass(frozen=True, kw_only=True)
class ReferenceOutputs:
    """A probe, what was computed from it, and by whom."""

    probe: Probe
    outputs: dict[str, Tensor]
    """See `probe_outputs`."""
    origin: str
    """Who computed, in words: "training engine: DeepSpeed ZeRO stage 3, 2 ranks, fp32"."""
    precision: str
    """"fp32" or "bf16": what the forward pass ran in."""


def make_recorder(
    tokenizer: TextTokenizer, transform: ImageTransformConfig, max_tokens: int
) -> Callable[[Engine[Any], Path], None]:
    """Return what `save_checkpoint` calls to put reference outputs into a checkpoint."""
    probe = known_part(make_probe(), tokenizer)
    if probe.num_captions < NUM_MASKED:  # a tokenizer that knows (nearly) no word of the captions
        return lambda engine, folder: None
    inputs = probe_inputs(probe, tokenizer, transform, max_tokens)

    def record(engine: Engine[Any], folder: Path) -> None:
        with exact_products():  # TF32 is off by more than an export may be
            outputs = engine.evaluate(
                lambda module: probe_outputs(cast(CCLMModel, module.model), inputs.to(engine.device))
            )
        origin = f"training engine: {engine.description}"
        found = ReferenceOutputs(probe=probe, outputs=outputs, origin=origin, precision=engine.precision)
        on_every_rank(
            engine.collectives, lambda: write_reference(found, folder) if engine.rank == 0 else None, f"write {FILE}"
        )

    return record


def reference_of(opened: OpenedModel) -> ReferenceOutputs:
    """Compute the same with a model in this process: for imports, and for checkpoints that hold none (CheckpointError:
    the tokenizer knows fewer than `NUM_MASKED` of the probe's captions).
    """
    probe = known_part(make_probe(), opened.tokenizer)
    if probe.num_captions < NUM_MASKED:
        raise CheckpointError(
            where="tokenizer",
            expected=f"at least {NUM_MASKED} of the probe's captions to have tokens (as {make_probe().texts[0]!r})",
            got=str(probe.num_captions),
            do="Give the tokenizer an <unk> piece, or train it on texts in more scripts.",
        )
    inputs = probe_inputs(probe, opened.tokenizer, opened.transform, opened.max_tokens)
    outputs, origin = probe_outputs(opened.model, inputs), "the model in the exporting process, fp32"
    return ReferenceOutputs(probe=probe, outputs=outputs, origin=origin, precision="fp32")


def read_reference(checkpoint: Path) -> ReferenceOutputs | None:
    """Return the reference outputs of a checkpoint, or None if it was saved without."""
    path = next((path for name in (FILE, OLD_FILE) if (path := checkpoint / name).is_file()), None)
    if path is None:
        return None
    with safe_open(path, "pt") as file:  # the old file says "picture" where this one says "image"
        told = {name.replace("picture", "image"): json.loads(text) for name, text in file.metadata().items()}
        tensors = {name.replace("pictures", "images"): file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    images = torch.split(tensors.pop("images"), told["image_bytes"])
    probe = Probe(
        images=tuple(bytes(image.numpy()) for image in images),
        texts=tuple(told["texts"]),
        image_of_caption=tuple(told["image_of_caption"]),
    )
    return ReferenceOutputs(probe=probe, outputs=tensors, origin=told["origin"], precision=told["precision"])


def write_reference(reference: ReferenceOutputs, folder: Path) -> None:
    """Write reference outputs beside the files of a checkpoint."""
    probe = reference.probe
    told = {
        "texts": probe.texts,
        "image_of_caption": probe.image_of_caption,
        "image_bytes": list(map(len, probe.images)),
        "origin": reference.origin,
        "precision": reference.precision,
    }
    tensors = {name: value.contiguous() for name, value in reference.outputs.items()}
    tensors["images"] = torch.frombuffer(bytearray(b"".join(probe.images)), dtype=torch.uint8)
    # Not save_file, whose file its owner alone may read, whatever the umask says.
    (folder / FILE).write_bytes(save(tensors, {name: json.dumps(value) for name, value in told.items()}))
