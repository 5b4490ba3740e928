"""Every kind of model, from ZeRO-3 on two ranks to a folder that works in an environment without this project."""

from __future__ import annotations

import json
import re
import subprocess
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from cclm.checkpoint.collective import save_checkpoint
from cclm.data.tokens import load_tokenizer
from cclm.distributed.collectives import Collectives
from cclm.engine.protocol import Losses
from cclm.hub.export import checkpoint_source
from cclm.hub.hub_folder import write_folder
from cclm.hub.open import Prepared, longest_text, model_config, prepare_run, transform_of
from cclm.hub.parity import ParityReport, clean_environment, compare, outputs_of_clean_process
from cclm.hub.probe import ProbeInputs, compute, make_probe, probe_inputs
from cclm.hub.reference_outputs import ReferenceOutputs, make_recorder, read_reference
from cclm.hub.weight_files import INDEX_NAME, Dtype
from cclm.model.modeling_cclm import CCLMModel
from cclm.recipe.read import read_run_config
from tests.clean_environment import make_clean_environment
from tests.engine_values import full_parameters
from tests.kinds import KINDS as EVERY_KIND
from tests.kinds import lively_model, with_vocabulary
from tests.ranks.harness import Case, make_deepspeed, on_ranks
from tests.unit.data.data_sets import make_tokenizer

pytestmark = pytest.mark.slow
MAX_TOKENS = 16
KINDS = {kind: options for kind, options in EVERY_KIND.items() if kind not in ("siglip", "siglip2", "clip", "swinv2")}
"""One image tower of the transformers library stands for all of them here; each has its own tests."""
DTYPES: dict[str, tuple[Dtype, ...]] = {"swin_regions": ("float32", "bfloat16", "float16")}
"""One kind in every dtype, the others in fp32."""


@dataclass(frozen=True)
class Step:
    """A batch with nothing in it."""

    step: int = 0
    update: int = 0
    part: int = 0


class Training(nn.Module):
    """Trains every parameter of a model on the probe."""

    def __init__(self, model: CCLMModel, inputs: ProbeInputs) -> None:
        super().__init__()
        self.model, self.inputs = model, inputs

    def forward(self, batch: Step) -> Losses:
        """Everything that the model says, squared."""
        parts = [value.square().mean() for value in compute(self.model, self.inputs).values()]
        return Losses(total=torch.stack(parts).sum(), metrics={})


def make_module(run: Path, talk: Collectives) -> nn.Module:
    torch.set_num_threads(1)
    prepared = prepared_for(run)
    inputs = probe_inputs(make_probe(), prepared.tokenizer, prepared.transform, prepared.max_tokens)
    return Training(lively_model(prepared.config.options()), inputs)


def prepared_for(run: Path) -> Prepared:
    """What a run folder says before it has a checkpoint."""
    config = read_run_config(run)
    tokenizer = load_tokenizer(config.data.tokenizer)
    return Prepared(
        config=model_config(config.model, tokenizer),
        tokenizer=tokenizer,
        tokenizer_folder=Path(config.data.tokenizer),
        transform=transform_of(config),
        max_tokens=longest_text(config),
        origin=run,
        run_folder=run,
    )


def train_all(runs: list[Path]) -> dict[str, dict[str, Tensor]]:
    """One update of every kind, a checkpoint with its reference, and the weights after it (on rank 0)."""
    weights = {}
    for run in runs:
        case = Case(make_module=partial(make_module, run), make_batch=lambda *_: Step(), num_steps=1, seed=3)
        engine = make_deepspeed(case)
        engine.backward(engine.forward(Step()))
        engine.update(0)
        prepared = prepared_for(run)
        record = make_recorder(prepared.tokenizer, prepared.transform, prepared.max_tokens)
        save_checkpoint(engine, run, 1, {}, keep=1, reference_outputs=record)
        weights[run.name] = full_parameters(engine)
    return weights


@dataclass(frozen=True)
class Trained:
    """All kinds after training."""

    folder: Path
    weights: dict[str, dict[str, Tensor]]

    def export(self, kind: str, dtype: Dtype) -> Path:
        return self.folder / "exports" / f"{kind}-{dtype}"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("kinds")
    make_tokenizer().save(str(folder / "tokenizer.json"))
    vocab_size = load_tokenizer(folder).vocab_size
    runs = [folder / kind for kind in KINDS]
    for run in runs:
        run.mkdir()
        images = {"images": {"path": str(folder / "images")}}
        view = {"sources": images, "max_tokens": MAX_TOKENS, "transform": {"size": 32}}
        model = asdict(with_vocabulary(KINDS[run.name], vocab_size))
        config = {
            "run_folder": str(run),
            "views": {"image_text": view},
            "data": {"tokenizer": str(folder)},
            "model": model,
            "optimizer": {"total_steps": 1},
        }
        (run / "config.yaml").write_text(yaml.safe_dump(json.loads(json.dumps(config))))
    return Trained(folder, on_ranks(train_all, 2, runs, timeout_s=600.0)[0])


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_clean_environment(tmp_path_factory.mktemp("clean") / "venv")


@pytest.fixture(scope="module")
def reports(trained: Trained, python: Path) -> dict[str, ParityReport]:
    """All exports, asked in one process of the clean environment."""
    asked: list[tuple[Path, ReferenceOutputs, Prepared, Dtype]] = []
    for kind in KINDS:
        prepared = prepare_run(trained.folder / kind)
        reference = read_reference(prepared.origin)
        assert reference is not None
        assert all(value.std(0).max() > 0.03 for name, value in reference.outputs.items() if name.endswith("features"))
        for dtype in DTYPES.get(kind, ("float32",)):
            source, to = checkpoint_source(prepared.origin), trained.export(kind, dtype)
            write_folder(prepared, to, source, dtype=dtype, shard_bytes=20_000)
            asked.append((to, reference, prepared, dtype))
    found = outputs_of_clean_process([(to, reference.probe) for to, reference, _, _ in asked], python)
    return {
        to.name: compare(reference, outputs, dtype=dtype, tolerance=None, where=to.name, prepared=prepared)
        for (to, reference, prepared, dtype), outputs in zip(asked, found, strict=True)
    }


def test_the_environment_has_nothing_of_ours(python: Path) -> None:
    names = ("cclm", "deepspeed", "webdataset", "pyarrow", "jaxtyping", "pip", "pretrain")
    code = f"import importlib.util, sys; sys.exit(str([n for n in {names} if importlib.util.find_spec(n)] or '') or 0)"
    done = subprocess.run([str(python), "-I", "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("kind", list(KINDS))
def test_every_kind_computes_in_a_clean_environment_what_the_engine_computed(
    reports: dict[str, ParityReport], kind: str
) -> None:
    report = reports[f"{kind}-float32"]
    assert report.reference == "training engine: DeepSpeed, ZeRO stage 3, 2 ranks, fp32"
    assert report.failures == []
    expected = {"image_features", "text_features", "match_logits"}
    expected |= {"boxes"} if KINDS[kind].box_head else set()
    expected |= {"masked_lm_logits"} if KINDS[kind].masked_lm_head else set()
    assert set(report.parts) == expected
    assert set(report.recall) == ({"features"} if kind == "nlvr_pairs" else {"features", "matching"})


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_halves_hold_within_their_own_tolerance_only(reports: dict[str, ParityReport], dtype: str) -> None:
    report = reports[f"swin_regions-{dtype}"]
    assert report.failures == []
    assert report.max_abs > 1e-4, "a half is not fp32"


@pytest.mark.parametrize("kind", list(KINDS))
def test_the_files_hold_the_weights_of_the_ranks_bit_by_bit(
    trained: Trained, reports: dict[str, ParityReport], kind: str
) -> None:
    folder, weights = trained.export(kind, "float32"), trained.weights[kind]
    assert (folder / INDEX_NAME).exists() and len(list(folder.glob("*.safetensors"))) > 1
    stored = {name: value for path in folder.glob("*.safetensors") for name, value in load_file(path).items()}
    assert {f"model.{name}" for name in stored} == set(weights), "every parameter once, tied ones under one name"
    assert all(torch.equal(value, weights[f"model.{name}"]) for name, value in stored.items())
    again = CCLMModel.from_pretrained(folder)
    assert len(dict(again.named_parameters())) == len(weights), "ties survive"


def test_the_examples_of_the_documentation_run_in_the_clean_environment(
    trained: Trained, reports: dict[str, ParityReport], python: Path, tmp_path: Path
) -> None:
    text = (Path(__file__).parents[2] / "docs" / "export.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    others = ("import mteb", "sentence_transformers")
    blocks = [block for block in blocks if not any(one in block for one in others)]  # run by tests/mteb
    program = "\n".join(blocks).replace("path/to/export", str(trained.export("swin_regions", "float32")))
    program = program.replace("path/to/pairs-export", str(trained.export("nlvr_pairs", "float32")))
    program += (
        "\nassert similarity.shape == match.shape == (2, 3) and best.image.shape == (3, 2)"
        "\nassert len(words) == 2 and len(words[0]) == 3 and len(read.row) == 2"
        "\nassert boxes.shape == (2, 4) and logits.shape == (2, 2)"
        "\nassert {item['label'] for item in labels} == {'rotes Auto', 'blue box'} and len(vector) == 8"
    )
    for name, colour in (("picture.png", "red"), ("other.png", "blue")):
        Image.new("RGB", (40, 30), colour).save(tmp_path / name)
    environment = clean_environment(tmp_path)
    done = subprocess.run(
        [str(python), "-I", "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert len(blocks) == 5 and done.returncode == 0, done.stderr[-3000:]
