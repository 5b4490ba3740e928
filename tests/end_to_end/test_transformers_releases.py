"""An exported folder in the oldest and in the newest allowed release of `transformers`, each in a clean environment."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from cclm.hub.hub_folder import write_folder
from cclm.hub.open import OpenedModel
from cclm.hub.parity import clean_environment, compare, outputs_of_clean_process
from cclm.hub.reference_outputs import reference_of
from cclm.hub.weight_files import in_memory
from tests.clean_environment import NoRegistryError, add_release, make_clean_environment
from tests.unit.hub.small_model import opened as opened
from tests.unit.hub.small_model import tokenizer_folder as tokenizer_folder

pytestmark = pytest.mark.slow

PROJECT = Path(__file__).parents[2] / "pyproject.toml"
PROGRAM = """
import sys
from pathlib import Path
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel, AutoProcessor, AutoTokenizer, pipeline
folder, other, again, two = sys.argv[1:]
image, texts = Image.linear_gradient("L").resize((40, 30)), ["a red circle", "zwei"]

def similarity(folder):
    model = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    with torch.inference_mode():
        return model, processor, model(**processor([image], texts)).logits_per_image

model, processor, expected = similarity(folder)
with torch.inference_mode():
    left = processor([image], texts, padding_side="left", size={"height": 16, "width": 16})
    torch.testing.assert_close(model(**left).logits_per_image, expected)
try:
    processor([image], do_center_crop=True)
except ValueError as error:
    assert "do_center_crop" in str(error)
else:
    raise SystemExit("an option without effect was accepted")
for kind in (AutoImageProcessor, AutoTokenizer):
    kind.from_pretrained(folder, trust_remote_code=True)
model.save_pretrained(again)
processor.save_pretrained(again)
torch.testing.assert_close(similarity(again)[2], expected)
for place in (folder, again):
    classify = pipeline("zero-shot-image-classification", model=place, trust_remote_code=True)
    assert len(classify(image, candidate_labels=texts, hypothesis_template="{}")) == 2
    assert len(pipeline("image-feature-extraction", model=place, trust_remote_code=True)(image)[0]) == 8
assert model.to(torch.bfloat16).dtype == torch.bfloat16
# other code under the same folder name: both ways, each runs its own
torch.testing.assert_close(similarity(other)[2], 2 * expected)
torch.testing.assert_close(similarity(folder)[2], expected)
torch.testing.assert_close(similarity(two)[2], 2 * expected)
"""


def allowed() -> dict[str, str]:
    """The oldest and the newest release that pyproject.toml allows, as requirements."""
    lines = (line.strip(' ",') for line in PROJECT.read_text(encoding="utf-8").splitlines())
    ours = next(Requirement(line) for line in lines if line.startswith("transformers"))
    oldest = next(one.version for one in ours.specifier if one.operator == ">=")
    return {"oldest": f"transformers=={oldest}.*", "newest": str(ours)}


@pytest.fixture(scope="module", params=["oldest", "newest"])
def python(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    make_clean_environment(folder / "base")
    try:
        return add_release(folder / "base", folder / "venv", allowed()[request.param])
    except NoRegistryError as error:
        pytest.skip(f"pip reaches no registry: {error}")


def test_an_exported_folder_loads_computes_and_is_saved_again(
    python: Path, opened: OpenedModel, tmp_path: Path
) -> None:
    export = tmp_path / "first" / "export"
    export.parent.mkdir()
    write_folder(opened, export, in_memory(opened.model.state_dict()), dtype="float32", shard_bytes=10**9)
    reference = reference_of(opened)
    (found,) = outputs_of_clean_process([(export, reference.probe)], python)
    report = compare(reference, found, dtype="float32", tolerance=None, where=str(export), prepared=opened)
    assert report.failures == []

    others = [shutil.copytree(export, tmp_path / name / "export") for name in ("second", "third")]
    for other in others:
        code = other / "modeling_cclm.py"
        text = code.read_text()
        assert text.count("image_BE @ text_CE.T / present") == 1
        if other.parent.name == "second":
            code.write_text(text.replace("image_BE @ text_CE.T / present", "2 * image_BE @ text_CE.T / present"))
        else:  # a file that an entry file imports
            code = other / "heads.py"
            text = code.read_text()
            assert text.count("functional.normalize(") == 1
            code.write_text(text.replace("functional.normalize(", "2**0.5 * functional.normalize("))
    arguments = [str(export), str(others[0]), str(tmp_path / "again" / "export"), str(others[1])]
    done = subprocess.run(
        [str(python), "-I", "-c", PROGRAM, *arguments],
        cwd=tmp_path,
        env=clean_environment(tmp_path),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
