"""What the training engine itself computed on the probe, kept in the checkpoint: an export is measured against it.

    training engine (any stage, any number of ranks) ─ probe ─▶ step_N/witness.safetensors ─ compare ─ exported folder

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
from safetensors.torch import save_file
from torch import Tensor

from cclm.data.image import ImageTransformConfig
from cclm.data.tokens import TextTokenizer
from cclm.distributed.together import on_every_rank
from cclm.engine.protocol import Engine
from cclm.errors import CheckpointError
from cclm.hub.probe import NUM_MASKED, Probe, ProbeInputs, known_part, make_probe, probe_inputs, probe_outputs
from cclm.model.modeling_cclm import CCLMModel

FILE = "witness.safetensors"
"""Beside the engine's own files."""


@dataclass(frozen=True, kw_only=True)
class Witness:
    """What was asked, what was answered, and by whom."""

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
    """Return what `save_checkpoint` calls to put a witness into a checkpoint."""
    probe = known_part(make_probe(), tokenizer)
    knows_enough = probe.num_captions >= NUM_MASKED
    inputs = probe_inputs(probe, tokenizer, transform, max_tokens) if knows_enough else None

    def record(engine: Engine[Any], folder: Path) -> None:
        if inputs is None:  # a tokenizer that knows (nearly) no word of the captions
            return
        outputs = engine.evaluate(lambda module: probe_outputs(_model_of(module), inputs.to(engine.device)))
        witness = Witness(
            probe=probe,
            outputs=outputs,
            origin=f"training engine: {engine.description}",
            precision=engine.precision,
        )
        on_every_rank(engine, lambda: write_witness(witness, folder) if engine.rank == 0 else None, "write the witness")

    return record


def witness_of(model: CCLMModel, tokenizer: TextTokenizer, transform: ImageTransformConfig, max_tokens: int) -> Witness:
    """The same from a model in this process: for imports, and for checkpoints without a witness.

    Raises:
        CheckpointError: the tokenizer knows fewer than `NUM_MASKED` of the probe's captions.
    """
    probe = known_part(make_probe(), tokenizer)
    if probe.num_captions < NUM_MASKED:
        raise CheckpointError(
            where="tokenizer",
            expected=f"at least {NUM_MASKED} of the probe's captions to have tokens (as {make_probe().texts[0]!r})",
            got=str(probe.num_captions),
            do="Give the tokenizer an <unk> piece, or train it on texts in more scripts.",
        )
    inputs: ProbeInputs = probe_inputs(probe, tokenizer, transform, max_tokens)
    outputs = probe_outputs(model, inputs)
    return Witness(probe=probe, outputs=outputs, origin="the model in the exporting process, fp32", precision="fp32")


def read_witness(checkpoint: Path) -> Witness | None:
    """The witness of a checkpoint, or None if it was saved without one."""
    path = checkpoint / FILE
    if not path.is_file():
        return None
    with safe_open(path, "pt") as file:
        told: dict[str, Any] = {name: json.loads(text) for name, text in file.metadata().items()}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a dict
    pictures = torch.split(tensors.pop("pictures"), told["picture_bytes"])
    probe = Probe(
        pictures=tuple(bytes(picture.numpy()) for picture in pictures),
        texts=tuple(told["texts"]),
        picture_of_caption=tuple(told["picture_of_caption"]),
    )
    return Witness(probe=probe, outputs=tensors, origin=told["origin"], precision=told["precision"])


def write_witness(witness: Witness, folder: Path) -> None:
    """Put a witness beside the files of a checkpoint."""
    probe = witness.probe
    told = {
        "texts": probe.texts,
        "picture_of_caption": probe.picture_of_caption,
        "picture_bytes": [len(picture) for picture in probe.pictures],
        "origin": witness.origin,
        "precision": witness.precision,
    }
    pictures = torch.frombuffer(bytearray(b"".join(probe.pictures)), dtype=torch.uint8)
    tensors = {name: value.contiguous() for name, value in witness.outputs.items()}
    save_file(
        {**tensors, "pictures": pictures}, folder / FILE, {name: json.dumps(value) for name, value in told.items()}
    )


def _model_of(module: torch.nn.Module) -> CCLMModel:
    """The network inside a training module."""
    return cast(CCLMModel, module.model)
