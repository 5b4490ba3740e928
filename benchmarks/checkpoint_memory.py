"""Peak memory of `cclm export` and `cclm import` on a model of published size, as a multiple of its weights.

    python -m benchmarks.checkpoint_memory [--what export import] [--json PATH]

Makes a checkpoint as two ZeRO-3 ranks write it (and a published file), with random weights of the sizes of CCLM-3M,
runs the command as a user does, and looks at it and all its children every few milliseconds. "resident" is what the
kernel counts (with pages of mapped files, which it may drop at any time), "held" what cannot be dropped. Both are
sums over the processes that live at the same time, the interpreters and libraries included. The checkpoint holds
reference outputs, as every checkpoint of a run does; `--without-reference` measures the older kind, for which the
export computes them itself.
"""

from __future__ import annotations

import argparse
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from benchmarks.figures import add_json_option, write_figures
from cclm.config import RunConfig
from cclm.data.config import DataConfig
from cclm.data.options import ImageTransformConfig, SourceConfig
from cclm.data.tokens import load_tokenizer
from cclm.engine.fragments import WEIGHTS, Fragment, ShareFacts, share_file, share_path
from cclm.engine.options import OptimizerConfig
from cclm.files.reading import to_yaml
from cclm.hub.open import Prepared, with_weights
from cclm.hub.probe import make_probe
from cclm.hub.reference_outputs import reference_of, write_reference
from cclm.model.configuration_cclm import CCLMConfig
from cclm.model.modeling_cclm import CCLMModel
from cclm.model.options import ModelOptions
from cclm.pretrained.families import FAMILIES
from cclm.pretrained.import_cclm import describe
from cclm.recipe.read import CONFIG_FILE
from cclm.run.checkpoints import Marker, list_files, record_file, step_folder, write_marker
from cclm.views.image_text.options import ImageTextConfig

FAMILY = "cclm-3m"
INTERVAL_S = 0.005
RANKS = 2
ALLOWED = 1.3


@dataclass(frozen=True)
class Peak:
    """What was seen."""

    command: str
    weights_bytes: int
    held_bytes: int
    resident_bytes: int
    seconds: float

    @property
    def ratio(self) -> float:
        """Held memory over weights."""
        return self.held_bytes / self.weights_bytes

    @property
    def resident_ratio(self) -> float:
        """Resident memory over weights."""
        return self.resident_bytes / self.weights_bytes


def large_tokenizer(folder: Path, size: int) -> None:
    """A tokenizer of so many ids, one token a letter of the probe; the rest are names that no text has."""
    letters = sorted({letter for text in make_probe().texts for letter in text.lower() if letter != " "} | {"▁"})
    tokens = ["<s>", "<pad>", "</s>", "<unk>", *letters]
    tokens += [f"⟨{number}⟩" for number in range(size - 1 - len(tokens))] + ["<mask>"]
    tokenizer = Tokenizer(models.BPE({token: number for number, token in enumerate(tokens)}, [], unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    tokenizer.add_special_tokens(["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))


def random_weights(shape: tuple[int, ...], name: str) -> torch.Tensor:
    """Values under which the network stays calm: gains 1, biases 0, small weights."""
    if len(shape) == 1 and name.endswith(".weight"):
        return torch.ones(shape)
    if name in ("temp", "temperature.value"):
        return torch.full(shape, 0.07)
    return torch.randn(shape) * 0.02 if len(shape) > 1 else torch.zeros(shape)


def piece_of(name: str, value: torch.Tensor, rank: int) -> Fragment:
    """What a rank of ZeRO-3 holds of a parameter."""
    size = math.ceil(value.numel() / RANKS)
    values = value.flatten()[rank * size : (rank + 1) * size]
    return Fragment(name=name, shape=tuple(value.shape), start=rank * size, values=values)


def write_run(folder: Path, options: ModelOptions, *, with_reference: bool) -> int:
    """A run folder with a checkpoint of two ZeRO-3 ranks; returns the bytes of the weights in fp32."""
    large_tokenizer(folder / "tokenizer", options.text.vocab_size)
    transform = ImageTransformConfig(size=options.vision.image_size)
    view = ImageTextConfig(sources={"none": SourceConfig(path="none")}, max_tokens=40, transform=transform)
    config = RunConfig(
        run_folder=str(folder),
        views={"image_text": view},
        data=DataConfig(tokenizer=str(folder / "tokenizer")),
        optimizer=OptimizerConfig(total_steps=1),
        model=options,
    )
    (folder / CONFIG_FILE).write_text(to_yaml(config))
    with torch.device("meta"):
        parameters = CCLMModel(CCLMConfig(**asdict(options))).named_parameters()
    shapes = {f"model.{name}": value.shape for name, value in parameters}
    checkpoint = step_folder(folder, 1)
    torch.manual_seed(0)
    state = {name: random_weights(tuple(shape), name.removeprefix("model.")) for name, shape in shapes.items()}
    for rank in range(RANKS):
        share = {WEIGHTS: [piece_of(name, value, rank) for name, value in state.items()]}
        share_file(ShareFacts(world_size=RANKS), share, {}).write(share_path(checkpoint, rank))
    if with_reference:
        prepared = Prepared(
            config=CCLMConfig.from_options(options),
            tokenizer=load_tokenizer(folder / "tokenizer"),
            tokenizer_folder=folder / "tokenizer",
            transform=transform,
            max_tokens=40,
            origin=checkpoint,
            run_folder=folder,
        )
        write_reference(reference_of(with_weights(prepared, state)), checkpoint)
    files = {name: record_file(checkpoint / name) for name in list_files(checkpoint)}
    write_marker(checkpoint, Marker(step=1, world_size=RANKS, files=files))
    return 4 * sum(shape.numel() for shape in shapes.values())


def write_published(path: Path, options: ModelOptions) -> int:
    """A published file of these sizes; returns the bytes of the weights."""
    torch.manual_seed(0)
    state: dict[str, torch.Tensor] = {}
    size = 0
    for name, shape, dtype, kind in describe(options):
        if kind.startswith("tied:"):
            state[name] = state[kind.removeprefix("tied:")]
        elif kind == "param":
            state[name] = random_weights(shape, name)
            size += 4 * math.prod(shape)
        else:
            state[name] = torch.zeros(shape, dtype=getattr(torch, dtype))
    torch.save({"model": state}, path)
    return size


def watch(command: list[str]) -> tuple[int, int, float]:
    """Run a command; the peaks of what it and its children hold, and of what is resident, in bytes; and seconds."""
    began = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    held = resident = 0
    while process.poll() is None:
        counted = [memory_of(pid) for pid in family_of(process.pid)]
        held = max(held, sum(one[0] for one in counted))
        resident = max(resident, sum(one[1] for one in counted))
        time.sleep(INTERVAL_S)
    said = process.communicate()[0]
    if process.returncode != 0:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}:\n{said[-3000:]}")
    return held, resident, time.monotonic() - began


def family_of(pid: int) -> Iterator[int]:
    """A process and all its children."""
    yield pid
    try:
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                yield from family_of(int(child))
    except OSError:  # it has ended meanwhile
        return


def memory_of(pid: int) -> tuple[int, int]:
    """Bytes that cannot be dropped (anonymous and shared memory), and bytes that are resident."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0, 0
    sizes = {line.split(":")[0]: 1024 * int(line.split()[1]) for line in lines if line.endswith(" kB")}
    return sizes.get("RssAnon", 0) + sizes.get("RssShmem", 0), sizes.get("VmRSS", 0)


def measure(what: str, folder: Path, options: ModelOptions, *, with_reference: bool) -> Peak:
    """Make the input, run the command."""
    cclm = [sys.executable, "-m", "cclm.cli"]
    if what == "export":
        weights = write_run(folder / "run", options, with_reference=with_reference)
        command = [*cclm, "export", str(folder / "run"), "--to", str(folder / "out"), "--shard-size", "500MB"]
    else:
        large_tokenizer(folder / "tokenizer", options.text.vocab_size)
        weights = write_published(folder / "published.th", options)
        command = [*cclm, "import", str(folder / "published.th"), "--to", str(folder / "out")]
        command += ["--tokenizer", str(folder / "tokenizer")]
    held, resident, seconds = watch(command)
    return Peak(command=what, weights_bytes=weights, held_bytes=held, resident_bytes=resident, seconds=seconds)


def main() -> int:
    """Print the table; exit code 1 if more is resident than allowed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--what", nargs="+", choices=("export", "import"), default=["export", "import"])
    parser.add_argument("--without-reference", action="store_true", help="export: the checkpoint holds none")
    parser.add_argument("--folder", type=Path, help="where to write (three times the weights); default: temporary")
    add_json_option(parser)
    arguments = parser.parse_args()
    options, peaks = FAMILIES[FAMILY], []
    print(f"{FAMILY}: held is what the kernel cannot drop, resident counts pages of mapped files too")
    print(f"{'':10}{'weights':>12}{'held':>12}{'ratio':>8}{'resident':>12}{'ratio':>8}{'seconds':>10}")
    for what in arguments.what:
        with tempfile.TemporaryDirectory(dir=arguments.folder, prefix="checkpoint-memory-") as name:
            peak = measure(what, Path(name), options, with_reference=not arguments.without_reference)
        peaks.append(peak)
        sizes = f"{peak.weights_bytes / 1e9:9.2f} GB{peak.held_bytes / 1e9:9.2f} GB{peak.ratio:8.2f}"
        resident = f"{peak.resident_bytes / 1e9:9.2f} GB{peak.resident_ratio:8.2f}"
        print(f"{what:10}{sizes}{resident}{peak.seconds:10.0f}", flush=True)
    rows = [{**asdict(peak), "ratio": peak.ratio, "resident_ratio": peak.resident_ratio} for peak in peaks]
    write_figures(arguments.json, {"family": FAMILY, "allowed": ALLOWED, "peaks": rows})
    return int(any(peak.resident_ratio > ALLOWED for peak in peaks))


if __name__ == "__main__":
    sys.exit(main())
