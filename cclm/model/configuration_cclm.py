"""The shape of a CCLM network as an HF config (JSON, for checkpoints) around the typed options of recipes."""

from __future__ import annotations

import sys
from dataclasses import asdict, fields
from typing import Any

from transformers import PreTrainedConfig

CODE_FILES = """
from .answer_decoder import …
from .beit import …
from .encoders import …
from .heads import …
from .hf_text import …
from .hf_vision import …
from .inference import …
from .kernels import …
from .layers import …
from .modeling_cclm import …
from .options import …
from .packing import …
from .reading import …
from .shapes import …
from .swin import …
from .vision import …
"""
"""The network's code, in the form that `transformers` searches for in this file's text. It keeps one model class for
each configuration class, and loads a new one where one of these files differs: so two exports in one process run each
their own code."""
if "CCLMConfig" in globals() and __package__ and __package__.startswith("transformers_modules"):
    # Run again, because a second export of the same folder name has other code (transformers before 5.6): its other
    # files are read anew, too. The models that are there keep the code that they came with.
    for _name in [name for name in sys.modules if name.startswith(f"{__package__}.") and name != __name__]:
        del sys.modules[_name]

from .options import LayerOptions, ModelOptions, options_from_dict  # noqa: E402


class CCLMConfig(PreTrainedConfig):  # type: ignore[misc]  # transformers is seen untyped
    """`ModelOptions` as a Hugging Face config: `vision`, `text` and `fusion` are plain dicts, as in the JSON.

    Keyword arguments are the fields of `ModelOptions`; unknown ones go to `PreTrainedConfig`, unknown ones inside a
    block are an error.
    """

    model_type = "cclm"

    def __init__(self, **kwargs: Any) -> None:
        given = {item.name: kwargs.pop(item.name) for item in fields(ModelOptions) if item.name in kwargs}
        options = options_from_dict(given)
        for item in fields(ModelOptions):
            value = getattr(options, item.name)
            setattr(self, item.name, _plain(asdict(value)) if isinstance(value, LayerOptions) else value)
        kwargs.pop("tie_word_embeddings", None)
        super().__init__(
            tie_word_embeddings=bool(options.tied_weights),  # HF's word for "some weights have two names"
            pad_token_id=kwargs.pop("pad_token_id", options.text.pad_token_id),
            **kwargs,
        )

    @classmethod
    def from_options(cls, options: ModelOptions) -> CCLMConfig:
        """Wrap typed options."""
        return cls(**asdict(options))

    def options(self) -> ModelOptions:
        """Return the typed view of this config."""
        return options_from_dict({item.name: getattr(self, item.name) for item in fields(ModelOptions)})


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """Tuples as lists: what JSON gives back, so that a loaded config equals the saved one."""
    return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}
