"""Does an exported folder compute what the trained model computes? A fresh process says so, or the export fails.

reference outputs (the training engine on the probe) ─┐
                                                      ├─ compare ─▶ parity.json
a fresh process with the folder alone ────────────────┘
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from cclm.errors import CheckpointError
from cclm.hub.open import Prepared
from cclm.hub.probe import NUM_MASKED, Probe
from cclm.hub.reference_outputs import ReferenceOutputs
from cclm.hub.weight_files import Dtype


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """How far two computations of one model may be apart."""

    difference: float
    """Largest |Δ|, as a share of the largest absolute value (at least 1) of the tensor."""
    cosine: float
    """How far below 1 a cosine may lie."""
    reason: str


TOLERANCE: dict[Dtype, Tolerance] = {
    "float32": Tolerance(difference=1e-4, cosine=1e-5, reason="sums in another order, in batches of other shapes"),
    "float16": Tolerance(difference=0.02, cosine=1e-3, reason="11 bits of mantissa in every weight and every state"),
    "bfloat16": Tolerance(difference=0.15, cosine=2e-2, reason="8 bits of mantissa in every weight and every state"),
}
"""By the dtype of the export; what an engine computed in bf16 or fp16 is compared as such an export."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """How far two tensors are apart."""

    max_abs: float
    min_cosine: float
    """Smallest cosine: of features and boxes between corresponding rows, of logits over all of them."""
    allowed_abs: float = 0.0
    allowed_cosine: float = -1.0

    @property
    def holds(self) -> bool:
        """Whether both are within what is allowed (a NaN never is)."""
        return self.max_abs <= self.allowed_abs and self.min_cosine >= self.allowed_cosine

    def __str__(self) -> str:
        return f"max |Δ| {self.max_abs:.1e}, cosine {self.min_cosine:.6f}"


@dataclass(frozen=True, kw_only=True)
class RecallPair:
    """Recall at 1 on the fixed set (captions → images), in percent, and what the tolerance leaves open."""

    reference: float
    export: float
    lowest: float
    """If everything that the tolerance leaves open went wrong."""
    highest: float

    @property
    def holds(self) -> bool:
        """Whether the export's value can come from the same model."""
        return self.lowest <= self.export <= self.highest

    def __str__(self) -> str:
        return f"{self.export:.1f} % (engine {self.reference:.1f} %)"


@dataclass(frozen=True, kw_only=True)
class ParityReport:
    """What `parity.json` says: a fresh process without this library, against the training engine."""

    reference: str
    """Who computed what the export is compared with."""
    parts: Mapping[str, Difference]
    """image_features, text_features, match_logits and, where the model has the heads, masked_lm_logits and boxes."""
    recall: Mapping[str, RecallPair]
    """By "features" and by "matching"; empty for models of image pairs' matching."""
    num_images: int
    num_texts: int
    dtype: str
    tolerance: float
    """Largest share of a tensor's largest value that a difference may reach."""
    reason: str = ""
    """Why it is not smaller."""
    step: int | None = None
    """Updates that the exported checkpoint has seen."""
    checkpoint: str | None = None
    """Its identity (`cclm.run.checkpoints.identify`)."""

    @property
    def max_abs(self) -> float:
        """The largest difference of all."""
        return max(part.max_abs for part in self.parts.values())

    @property
    def failures(self) -> list[str]:
        """What does not hold, in words."""
        return [
            f"{name}: max |Δ| {part.max_abs:.3g} (allowed {part.allowed_abs:.3g}), cosine {part.min_cosine:.6f} "
            f"(allowed {part.allowed_cosine:.6f})"
            for name, part in self.parts.items()
            if not part.holds
        ] + [
            f"recall@1 by {name}: {pair.export:.1f} % instead of {pair.reference:.1f} %"
            for name, pair in self.recall.items()
            if not pair.holds
        ]

    def table(self) -> str:
        """Return what was compared, a line each, for people."""
        width = max(map(len, self.parts), default=0)
        lines = [
            f"  {name.replace('_', ' '):{width}}  max |Δ| {part.max_abs:.1e} (allowed {part.allowed_abs:.1e})  "
            f"cosine {part.min_cosine:.6f}"
            for name, part in self.parts.items()
        ]
        lines += [f"  recall@1 by {name} on the drawn images: {pair}" for name, pair in self.recall.items()]
        return "\n".join(lines)

    def as_json(self) -> str:
        """Return the text of parity.json."""
        return json.dumps({**asdict(self), "max_abs": self.max_abs}, indent=1) + "\n"


def outputs_of_clean_process(
    exports: Sequence[tuple[Path, Probe]], python: Path | None = None
) -> list[dict[str, Tensor]]:
    """Compute the probes with exported folders, in a process as `run_alone` starts it."""
    with tempfile.TemporaryDirectory(prefix="cclm-parity-") as name:
        folder = Path(name)
        arguments, outs = list[Path](), []
        for number, (export, probe) in enumerate(exports):
            given, out = folder / f"probe-{number}", folder / f"out-{number}.safetensors"
            write_probe(probe, given)
            arguments += [export.resolve(), given, out]
            outs.append(out)
        if got := run_alone("clean_process.py", arguments, folder, python):
            raise CheckpointError(
                where=", ".join(str(export) for export, _ in exports),
                expected="a folder that `transformers` loads by itself",
                got=got,
                do="Nothing was exported. Correct the model code that the message names.",
            )
        return [load_file(out) for out in outs]


def write_probe(probe: Probe, folder: Path) -> None:
    """Write what the programs of `run_alone` read: probe.json and images 000.png, 001.png, …"""
    folder.mkdir()
    told = {"texts": probe.texts, "image_of_caption": probe.image_of_caption, "num_masked": NUM_MASKED}
    (folder / "probe.json").write_text(json.dumps(told), encoding="utf-8")
    for place, image in enumerate(probe.images):
        (folder / f"{place:03d}.png").write_bytes(image)


def run_alone(program: str, arguments: Sequence[str | Path], room: Path, python: Path | None) -> str:
    """Run one of this folder's programs in a fresh, isolated, offline process; return its last words if it fails.

    `room`: where it runs and has its caches. `python`: the interpreter; None: this one.
    """
    command = [python or sys.executable, "-I", Path(__file__).with_name(program).resolve(), *arguments]
    done = subprocess.run(command, cwd=room, env=clean_environment(room), capture_output=True, text=True, check=False)
    return (done.stderr.strip()[-2000:] or f"exit code {done.returncode}") if done.returncode else ""


def clean_environment(folder: Path) -> dict[str, str]:
    """Return the environment of a process that knows nothing of us and stays offline; its caches go into `folder`."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "HF_", "TRANSFORMERS_"))}
    caches = {"HF_HOME": str(folder / "home"), "HF_MODULES_CACHE": str(folder / "modules")}
    return {**kept, **caches, "HF_HUB_OFFLINE": "1"}


def check_parity(
    prepared: Prepared, export: Path, *, reference: ReferenceOutputs, dtype: Dtype, tolerance: float | None = None
) -> ParityReport:
    """Compare `export`, loaded by a fresh process, with `reference`; the arguments are those of `compare`
    (CheckpointError: token ids differ, or something lies outside the tolerance).
    """
    (found,) = outputs_of_clean_process([(export, reference.probe)])
    report = compare(reference, found, dtype=dtype, tolerance=tolerance, where=str(export), prepared=prepared)
    if report.failures:
        raise CheckpointError(
            where=str(export),
            expected=f"what the trained model computes ({report.reference}), within {report.tolerance:g} of it",
            got="; ".join(report.failures),
            do="Nothing was exported. Look at the image processor, the tokenizer and the weights in this order.",
        )
    return report


def compare(
    reference: ReferenceOutputs,
    found: Mapping[str, Tensor],
    *,
    dtype: Dtype,
    tolerance: float | None,
    where: str,
    prepared: Prepared,
) -> ParityReport:
    """Put what the training engine and the export computed side by side (CheckpointError: token ids differ).

    `dtype`: of the exported weights; `tolerance`: another `Tolerance.difference` than its; `prepared`: says which
    checkpoint it is.
    """
    expected, texts, checkpoint = reference.outputs, reference.probe.texts, prepared.checkpoint
    check_same_tokens(expected["input_ids"], found["input_ids"], texts, where)
    coarsest: Dtype = "bfloat16" if reference.precision == "bf16" else dtype
    rule = TOLERANCE["float16" if reference.precision == "fp16" and dtype == "float32" else coarsest]
    share = rule.difference if tolerance is None else tolerance
    cosine = max(rule.cosine, tolerance or 0.0)
    names = [name for name in expected if name not in ("input_ids", "temperature")]
    parts = {name: difference(expected[name], found.get(name), name, share, cosine) for name in names}
    return ParityReport(
        reference=reference.origin,
        parts=parts,
        recall=recalls(reference, found, parts),
        num_images=len(reference.probe.images),
        num_texts=len(texts),
        dtype=dtype,
        tolerance=share,
        reason=rule.reason,
        step=checkpoint.step if checkpoint else None,
        checkpoint=checkpoint.identity if checkpoint else None,
    )


def difference(expected: Tensor, found: Tensor | None, name: str, share: float, cosine: float) -> Difference:
    """Compare two tensors of rows; a missing one, another shape, or a NaN is infinitely far."""
    max_abs, min_cosine = float("inf"), -1.0
    if found is not None and expected.shape == found.shape:
        shape = (1, -1) if name.endswith("_logits") else expected.shape
        rows, others = expected.double().reshape(shape), found.double().reshape(shape)
        closeness = torch.nn.functional.cosine_similarity(rows, others, dim=-1)
        closeness[(rows == others).all(-1)] = 1.0  # also of zeros, which have no direction
        distance = (expected - found).abs().nan_to_num(nan=float("inf"))  # a NaN is larger than any tolerance
        max_abs, min_cosine = float(distance.max()), float(closeness.min())
    allowed = share * max(1.0, float(expected.abs().max()))
    return Difference(max_abs=max_abs, min_cosine=min_cosine, allowed_abs=allowed, allowed_cosine=1 - cosine)


def recalls(
    reference: ReferenceOutputs, found: Mapping[str, Tensor], parts: Mapping[str, Difference]
) -> dict[str, RecallPair]:
    """Return recall@1 from captions to images: by cosine and, where every image met every caption, by matching."""
    right_C = torch.tensor(reference.probe.image_of_caption)
    num_images, num_captions = len(reference.probe.images), len(right_C)
    comparable = all(part.max_abs < float("inf") for part in parts.values())
    if not (comparable and num_captions and "text_features" in parts):
        return {}

    def scores(outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        table = {"features": outputs["text_features"][:num_captions] @ outputs["image_features"].T}
        if len(outputs["match_logits"]) == num_images * num_captions:
            odds_P = outputs["match_logits"][:, 1] - outputs["match_logits"][:, 0]
            table["matching"] = odds_P.view(num_images, num_captions).T
        return table

    ours, theirs = scores(reference.outputs), scores(found)
    slack = {
        # a cosine moves by as much as the two unit vectors together
        "features": 2 * (parts["image_features"].allowed_abs + parts["text_features"].allowed_abs),
        "matching": 4 * parts["match_logits"].allowed_abs,
    }
    return {name: recall_pair(ours[name], theirs[name], right_C, slack[name]) for name in ours}


def recall_pair(ours_CI: Tensor, theirs_CI: Tensor, right_C: Tensor, slack: float) -> RecallPair:
    """Return recall@1 of two score tables; ties within `slack` of the first may go either way in the second."""
    row_C = torch.arange(len(right_C))
    right = ours_CI[row_C, right_C][:, None]
    others_CI = ours_CI.scatter(1, right_C[:, None], -torch.inf).max(1, keepdim=True).values

    def percent(flags: Tensor) -> float:
        return 100.0 * float(flags.float().mean())

    return RecallPair(
        reference=percent(ours_CI.argmax(1) == right_C),
        export=percent(theirs_CI.argmax(1) == right_C),
        lowest=percent(right > others_CI + slack),
        highest=percent(right >= others_CI - slack),
    )


def check_same_tokens(expected_TL: Tensor, found_TL: Tensor, texts: tuple[str, ...], where: str) -> None:
    """Raise `CheckpointError` if the exported tokenizer gives other ids than training saw."""
    if torch.equal(expected_TL, found_TL):
        return
    other = f"shape {tuple(found_TL.shape)}, not {tuple(expected_TL.shape)}"
    if expected_TL.shape == found_TL.shape:
        other = repr(texts[int((expected_TL != found_TL).any(dim=1).nonzero()[0, 0])])
    raise CheckpointError(
        where=where,
        expected="the token ids of the training tokenizer",
        got=f"others: {other}",
        do="Nothing was exported. The tokenizer's normaliser has no exact equal in tokenizer.json for this text.",
    )
