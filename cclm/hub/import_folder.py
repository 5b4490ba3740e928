"""`cclm import`: a published file becomes a Hugging Face folder like those that `cclm export` writes.

    PATH.th ─▶ convert ─▶ weights, config, modelling code, image processor, import.json (every key), README.md
                          with `--tokenizer`: the tokenizer too, and the same check in a fresh process as an export

Weights stay in the file, which is mapped into memory, and are written piece by piece; stacked ones are copied for the
check alone. So memory stays near the size of the weights, and without a check far below it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from torch import Tensor

from cclm.data.options import ImageTransformConfig, Normalise
from cclm.data.tokens import load_tokenizer
from cclm.engine.stored_weights import StoredTensor
from cclm.errors import CheckpointError
from cclm.files.atomic import file_sha256
from cclm.hub.export import SHARD_SIZE, check_target, give_memory_back, staging_directory
from cclm.hub.hub_folder import count_parameters, hub_image_processor, write_folder, write_model
from cclm.hub.mapped_pages import drop_pages_after_use
from cclm.hub.open import Prepared
from cclm.hub.parity import ParityReport, check_parity
from cclm.hub.reference_outputs import reference_of
from cclm.hub.weight_files import parse_size
from cclm.model.configuration_cclm import CCLMConfig
from cclm.model.modeling_cclm import CCLMModel
from cclm.model.options import ModelOptions
from cclm.pretrained.import_cclm import ImportReport, convert, meta_model, stored_tensors
from cclm.pretrained.published_file import read_tensors
from cclm.pretrained.published_sizes import family_of, options_of_state
from cclm.report.facts import PARITY_NAME

REPORT_NAME = "import.json"
NORMALISE: Normalise = "cclm"
"""Published models were trained on texts that `cclm.data.tokens` prepares in this way."""


@dataclass(frozen=True, kw_only=True)
class Imported:
    """What an import did."""

    options: ModelOptions
    """Sizes of the model."""
    family: str | None
    """The published family of these sizes."""
    num_parameters: int
    """Tied ones counted once."""
    report: ImportReport
    """The fate of every key."""
    parity: ParityReport | None
    """None without tokenizer."""

    @property
    def title(self) -> str:
        """The family in words."""
        layout = "CCLM-3M/4M" if self.options.vision.architecture == "swin" else "CCLM-X2VLM"
        return f"{self.family or 'unpublished sizes'} ({layout} layout, {self.num_parameters:,} parameters)"


def import_file(
    path: Path,
    to: Path,
    *,
    tokenizer: Path | None = None,
    image_size: int | None = None,
    text_heads: int | None = None,
) -> Imported:
    """Convert `path` and write the folder `to`.

    Args:
        path: a published file, or one of the same layout and other sizes.
        to: the folder to make; an older export or import there is replaced, anything else is refused.
        tokenizer: a tokenizer folder, or a hub name; its ids must fit the word embeddings. None: the folder gets none.
        image_size: pixels; None: as in the file. Position tables are interpolated.
        text_heads: attention heads of the text encoder; None: heads of width 64, as in all published models.

    Raises:
        CheckpointError: see `convert` and `check_parity`, or another import to `to` is running; `to` is then untouched.
    """
    check_target(to)
    published = read_tensors(path)
    options = options_of_state(published, text_heads=text_heads, image_size=image_size, where=str(path))
    state, report = convert(published, options, str(path))
    prepared = None if tokenizer is None else prepare(options, path, tokenizer)
    reference = None
    if prepared is not None:
        model = filled_model(options, state)
        drop_pages_after_use(model)
        reference = reference_of(model, prepared.tokenizer, prepared.transform, prepared.max_tokens)
        del model
    del published, state  # the pages of the file that were read go with them
    give_memory_back()
    with staging_directory(to) as folder:
        write_everything(options, path, folder, prepared)
        parity = None
        if prepared is not None and reference is not None:
            parity = check_parity(prepared, folder, reference=reference, dtype="float32")
        imported = Imported(
            options=options,
            family=family_of(options),
            num_parameters=count_parameters(config_of(options)),
            report=report,
            parity=parity,
        )
        write_papers(imported, folder, path)
    return imported


def config_of(options: ModelOptions) -> CCLMConfig:
    """The configuration that goes into the folder."""
    return CCLMConfig(**asdict(options))


def filled_model(options: ModelOptions, state: Mapping[str, Tensor]) -> CCLMModel:
    """A model whose parameters are the tensors of `state` (not copies), tied as the options say, ready to use."""
    model = meta_model(options)
    loaded = model.load_state_dict(dict(state), strict=False, assign=True)
    assert set(loaded.missing_keys) <= set(options.tied_weights), loaded.missing_keys
    assert not loaded.unexpected_keys, loaded.unexpected_keys
    model.tie_weights()
    model.eval()
    return model


def prepare(options: ModelOptions, path: Path, tokenizer: Path) -> Prepared:
    """What the folder holds beside the weights.

    Raises:
        CheckpointError: a tokenizer of another vocabulary.
    """
    words = load_tokenizer(tokenizer, NORMALISE)
    if words.vocab_size > options.text.vocab_size or words.pad_id != options.text.pad_token_id:
        raise CheckpointError(
            where=str(tokenizer),
            expected=f"at most {options.text.vocab_size} ids, padding {options.text.pad_token_id}",
            got=f"{words.vocab_size} ids, padding {words.pad_id}",
            do="Give the tokenizer that the model was trained with: XLM-RoBERTa's.",
        )
    first_row = options.text.pad_token_id + 1 if options.text.position_rule == "ids" else options.text.position_offset
    return Prepared(
        config=config_of(options),
        tokenizer=words,
        tokenizer_folder=tokenizer,
        transform=transform_of(options),
        max_tokens=options.text.max_positions - first_row,
        origin=path,
        run_folder=None,
    )


def transform_of(options: ModelOptions) -> ImageTransformConfig:
    """How published models see images."""
    return ImageTransformConfig(size=options.vision.image_size, method="none")


def write_everything(options: ModelOptions, path: Path, folder: Path, prepared: Prepared | None) -> None:
    """Write weights, config, code and image processor, and the tokenizer if there is one."""

    def source() -> Mapping[str, StoredTensor]:
        return stored_tensors(read_tensors(path), options)

    shard_bytes = parse_size(SHARD_SIZE)
    if prepared is not None:
        write_folder(prepared, folder, source, dtype=None, shard_bytes=shard_bytes)
        return
    write_model(config_of(options), folder, source, dtype=None, shard_bytes=shard_bytes, origin=str(path))
    hub_image_processor(transform_of(options)).save_pretrained(folder)


def write_papers(imported: Imported, folder: Path, path: Path) -> None:
    """Write the fate of every key, the parity report, and a README."""
    (folder / REPORT_NAME).write_text(imported.report.as_json(), encoding="utf-8")
    checked = "Not checked in a fresh process: the import had no tokenizer."
    if imported.parity is not None:
        (folder / PARITY_NAME).write_text(imported.parity.as_json(), encoding="utf-8")
        checked = (
            "A fresh process with `transformers` alone computes what the importer computes: largest difference "
            f"{imported.parity.max_abs:.1e} (`{PARITY_NAME}`)."
        )
    text = f"""---
library_name: transformers
pipeline_tag: zero-shot-image-classification
---
# {imported.title}

Converted from `{path.name}` (SHA-256 `{file_sha256(path)}`) by `cclm import`; what became of every key
is in `{REPORT_NAME}`. {imported.report.summary()}.

{checked}

```python
from transformers import AutoModel
model = AutoModel.from_pretrained("THIS FOLDER", trust_remote_code=True)
```

The weights keep the licence of the file that they came from.
"""
    (folder / "README.md").write_text(text, encoding="utf-8")
    for file in folder.iterdir():
        file.chmod(0o644)  # safetensors writes with the mode of a temporary file
