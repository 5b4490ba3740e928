"""A saved folder carries its own code: it loads in a process that has never heard of `cclm`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers.dynamic_module_utils import get_relative_imports

import cclm.model
from cclm.model.image_processing_cclm import CCLMImageProcessor
from tests.unit.model.tiny import tiny_images, tiny_model, tiny_texts

PROGRAM = """
import json, sys
for name in ("cclm", "jaxtyping"):
    sys.modules[name] = None  # importing it fails, even where it is installed
import torch
from PIL import Image
from transformers import AutoConfig, AutoImageProcessor, AutoModel
folder, inputs, output = sys.argv[1:]
model = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=True)
assert AutoConfig.from_pretrained(folder, trust_remote_code=True).model_type == "cclm"
given = torch.load(inputs)
with torch.no_grad():
    result = {"score": model.score(given["images"], given["ids"], given["mask"])}
    result.update(model(given["images"], given["ids"], given["mask"]))
result["pixels"] = processor(Image.linear_gradient("L"), return_tensors="pt")["pixel_values"]
torch.save(result, output)
"""


ENTRY_FILES = ("configuration_cclm", "modeling_cclm", "image_processing_cclm", "processing_cclm")


def named_files(name: str) -> set[str]:
    """What `transformers` takes for a file's relative imports."""
    return set(get_relative_imports(Path(cclm.model.__file__).with_name(f"{name}.py")))


@pytest.mark.parametrize("entry", ENTRY_FILES)
def test_an_entry_file_names_every_file_that_it_needs(entry: str) -> None:
    """transformers 5.0 copies what an entry file names itself, not what those files name in turn."""
    needed, waiting = set[str](), [entry]
    while waiting:
        new = named_files(waiting.pop()) - needed
        needed |= new
        waiting += new
    assert needed - {entry} <= named_files(entry)


def test_the_configuration_names_the_networks_code() -> None:
    """So a folder with other code has another configuration class, and with it another model class."""
    assert named_files("configuration_cclm") | {"configuration_cclm"} >= {
        "modeling_cclm",
        *named_files("modeling_cclm"),
    }


@pytest.mark.slow
def test_a_fresh_process_loads_the_folder_and_computes_the_same(tmp_path: Path) -> None:
    model, folder = tiny_model(fusion={"null_memory": True}), tmp_path / "tiny"
    model.save_pretrained(folder)
    processor = CCLMImageProcessor(size={"height": 8, "width": 8})
    processor.save_pretrained(folder)
    assert set(json.loads((folder / "config.json").read_text())["auto_map"]) == {"AutoConfig", "AutoModel"}
    ids_BL, mask_BL = tiny_texts()
    torch.save({"images": tiny_images(), "ids": ids_BL, "mask": mask_BL}, tmp_path / "inputs.pt")

    away = tmp_path / "away"
    away.mkdir()
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    environment |= {
        "HF_HOME": str(tmp_path / "hub"),
        "HF_MODULES_CACHE": str(tmp_path / "modules"),
        "HF_HUB_OFFLINE": "1",
    }
    done = subprocess.run(
        [sys.executable, "-I", "-c", PROGRAM, str(folder), str(tmp_path / "inputs.pt"), str(tmp_path / "outputs.pt")],
        cwd=away,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]

    found = torch.load(tmp_path / "outputs.pt")
    with torch.no_grad():
        expected = dict(model(tiny_images(), ids_BL, mask_BL), score=model.score(tiny_images(), ids_BL, mask_BL))
    expected["pixels"] = processor(Image.linear_gradient("L"), return_tensors="pt")["pixel_values"]
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, msg=name)
