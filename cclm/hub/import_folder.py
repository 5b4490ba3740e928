"""`cclm import`: what others published, or an older version exported, becomes a folder like those of `cclm export`.

    PATH.th ─▶ convert ─▶ weights, config, modelling code, image processor, import.json (every key), README.md
                          with `--tokenizer`: the tokenizer too, and the same check in a fresh process as an export
    FOLDER  ─▶ the same weights bit for bit, checked again, with this version's code and form of config.json

Weights stay in their files, which are mapped into memory, and are written piece by piece. A folder whose config or
weights this version does not know is refused: it stays usable with its own code.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from cclm.data.options import ImageTransformConfig
from cclm.data.tokens import load_tokenizer
from cclm.engine.stored_weights import StoredTensor
from cclm.errors import CheckpointError
from cclm.files.atomic import file_sha256
from cclm.hub.export import SHARD_BYTES, check_target, export, staging_directory
from cclm.hub.hub_folder import hub_image_processor, write_model
from cclm.hub.open import Prepared, prepare_export
from cclm.hub.parity import ParityReport
from cclm.hub.weight_files import DTYPES, Dtype, Source, in_memory
from cclm.model.configuration_cclm import CCLMConfig
from cclm.model.options import ModelOptions
from cclm.pretrained.import_cclm import ImportReport, convert, meta_model, stored_tensors
from cclm.pretrained.published_sizes import family_of, options_of_state
from cclm.pretrained.source_files import read_folder, read_tensors
from cclm.report.facts import PARITY_NAME

REPORT_NAME = "import.json"


@dataclass(frozen=True, kw_only=True)
class Imported:
    """What an import did."""

    options: ModelOptions
    report: ImportReport
    parity: ParityReport | None = None
    """None without tokenizer."""

    @property
    def title(self) -> str:
        """The published family of these sizes in words; tied parameters count once."""
        count = meta_model(self.options).num_parameters()
        layout = "CCLM-3M/4M" if self.options.vision.architecture == "swin" else "CCLM-X2VLM"
        return f"{family_of(self.options) or 'unpublished sizes'} ({layout} layout, {count:,} parameters)"


def import_file(
    path: Path, to: Path, *, tokenizer: Path | None = None, image_size: int | None = None, text_heads: int | None = None
) -> Imported:
    """Convert a published file, or one of the same layout and other sizes, and write the folder `to`, as `export` does.

    `tokenizer`: a folder, or a hub name; None: the folder gets none. `image_size`: None: as in the file; position
    tables are interpolated. `text_heads`: None: heads of width 64, as in all published models.

    Raises:
        CheckpointError: see `convert` and `export`; `to` is then untouched.
    """
    check_target(to)
    published = read_tensors(path)
    options = options_of_state(published, text_heads=text_heads, image_size=image_size, where=str(path))
    done = Imported(options=options, report=convert(published, options, str(path))[1])
    del published  # the pages of the file that were read go with it

    def source() -> Mapping[str, StoredTensor]:
        return stored_tensors(read_tensors(path), options)

    if tokenizer is not None:
        prepared = _prepare(options, path, tokenizer)
        parity = export(
            prepared,
            to,
            source=source,
            papers=lambda parity: _papers(replace(done, parity=parity), path),
            dtype=stored_dtype(source()),
        )
        return replace(done, parity=parity)
    with staging_directory(to) as folder:
        config = CCLMConfig.from_options(options)
        write_model(config, folder, source, dtype=None, shard_bytes=SHARD_BYTES, origin=str(path))
        hub_image_processor(_transform(options)).save_pretrained(folder)
        for name, text in _papers(done, path).items():
            (folder / name).write_text(text, encoding="utf-8")
    return done


def import_export(folder: Path, to: Path) -> ParityReport:
    """Write an exported or imported folder, which has its tokenizer, anew, as `export` does.

    Raises:
        CheckpointError: `folder` is of another version or incomplete, or a fresh process computes something else than
            its weights do.
    """
    check_target(to)  # before anything long
    prepared, source = prepare_export(folder), folder_source(folder)
    card = folder / "README.md"
    text = card.read_text(encoding="utf-8") if card.is_file() else ""
    note = "\n\nWritten anew by `cclm import` with the same weights; the newest check is in `parity.json`.\n"
    return export(
        prepared,
        to,
        source=source,
        papers=lambda _: {"README.md": text.rstrip("\n").removesuffix(note.strip()).rstrip("\n") + note},
        dtype=stored_dtype(source()),
    )


def folder_source(folder: Path) -> Source:
    """Return the weights of a folder, opened anew at each call (CheckpointError: there are none, or a file that the
    index names is missing).
    """
    read_folder(folder)  # tells at once
    return lambda: in_memory(read_folder(folder))()


def stored_dtype(stored: Mapping[str, StoredTensor]) -> Dtype:
    """The one dtype of the floating-point weights (CheckpointError: there are several)."""
    found = {str(value.dtype).removeprefix("torch.") for value in stored.values() if value.dtype.is_floating_point}
    if len(found) != 1 or not found <= set(DTYPES):
        raise CheckpointError(
            where="weights", expected="one of float32, bfloat16 and float16", got=", ".join(sorted(found)),
            do="Export it again.",
        )  # fmt: skip
    return DTYPES[found.pop()]


def _prepare(options: ModelOptions, path: Path, tokenizer: Path) -> Prepared:
    """What the folder holds beside the weights (CheckpointError: a tokenizer of another vocabulary)."""
    words = load_tokenizer(tokenizer, "cclm")  # published models were trained on texts that were prepared in this way
    if words.vocab_size > options.text.vocab_size or words.pad_id != options.text.pad_token_id:
        raise CheckpointError(
            where=str(tokenizer),
            expected=f"at most {options.text.vocab_size} ids, padding {options.text.pad_token_id}",
            got=f"{words.vocab_size} ids, padding {words.pad_id}",
            do="Give the tokenizer that the model was trained with: XLM-RoBERTa's.",
        )
    first_row = options.text.pad_token_id + 1 if options.text.position_rule == "ids" else options.text.position_offset
    return Prepared(
        config=CCLMConfig.from_options(options),
        tokenizer=words,
        tokenizer_folder=tokenizer,
        transform=_transform(options),
        max_tokens=options.text.max_positions - first_row,
        origin=path,
    )


def _transform(options: ModelOptions) -> ImageTransformConfig:
    """How published models see images."""
    return ImageTransformConfig(size=options.vision.image_size, method="none")


def _papers(imported: Imported, path: Path) -> dict[str, str]:
    checked = "Not checked in a fresh process: the import had no tokenizer."
    if imported.parity is not None:
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
    return {REPORT_NAME: imported.report.as_json(), "README.md": text}
