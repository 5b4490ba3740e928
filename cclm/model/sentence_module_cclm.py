"""What `sentence-transformers` runs of a CCLM folder: texts of any language and images to unit vectors of one space.

    SentenceTransformer("path/to/folder", trust_remote_code=True).encode(["a red kite", Image.open("kite.png"), …])

The package is asked for by whoever uses it, never by this module: what it runs is a torch module with these methods.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor, nn

from .modeling_cclm import CCLMModel
from .processing_cclm import CCLMProcessor

IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".gif", ".bmp", ".tiff", ".webp")
"""Of strings that are read as a picture's path, as sentence-transformers does, if there is such a file."""


class CCLMSentenceModule(nn.Module):
    """The dual encoder and its processor."""

    modalities = ("text", "image")
    save_in_root = True

    def __init__(self, model: Any, processor: Any) -> None:
        super().__init__()
        self.model, self.processor = model, processor

    @classmethod
    def load(
        cls,
        model_name_or_path: str,
        *,
        token: Any = None,
        cache_folder: str | None = None,
        revision: str | None = None,
        local_files_only: bool = False,
        model_kwargs: Mapping[str, Any] | None = None,
        **_: Any,
    ) -> CCLMSentenceModule:
        """Load it from a folder or from the Hub. `model_kwargs`: for `from_pretrained` (`dtype`, …)."""
        place = {"token": token, "cache_dir": cache_folder, "revision": revision, "local_files_only": local_files_only}
        model = CCLMModel.from_pretrained(model_name_or_path, **place, **(model_kwargs or {}))
        return cls(model, CCLMProcessor.from_pretrained(model_name_or_path, trust_remote_code=True, **place))

    def preprocess(self, inputs: Sequence[Any], prompt: str | None = None, **_: Any) -> dict[str, Tensor]:
        """Texts, or images (Pillow's, or paths of files), to what `forward` takes.

        Raises:
            ValueError: both in one call, or neither.
        """
        pictures = [_picture(one) for one in inputs]
        if all(picture is not None for picture in pictures):
            return dict(self.processor(images=pictures))
        if all(isinstance(one, str) and picture is None for one, picture in zip(inputs, pictures, strict=True)):
            return dict(self.processor(text=[(prompt or "") + text for text in inputs]))
        kinds = sorted({type(one).__name__ for one in inputs})
        raise ValueError(
            f"inputs: expected texts, or images of Pillow, got {', '.join(kinds)}. Encode each kind by itself."
        )

    def forward(self, features: dict[str, Any], **_: Any) -> dict[str, Any]:
        """Add `sentence_embedding`, unit vectors (B, E)."""
        if "pixel_values" in features:
            found = self.model.get_image_features(features["pixel_values"].to(self.model.dtype))
        else:
            found = self.model.get_text_features(features["input_ids"], features["attention_mask"])
        return {**features, "sentence_embedding": found}

    def get_embedding_dimension(self) -> int:
        """Return E."""
        return int(self.model.config.projection_width)

    @property
    def tokenizer(self) -> Any:
        """The folder's tokenizer."""
        return self.processor.tokenizer

    @property
    def max_seq_length(self) -> int:
        """Tokens of a text; more are cut off."""
        return int(self.tokenizer.model_max_length)

    def save(self, output_path: str, *_: Any, **__: Any) -> None:
        """Write model and processor into a folder."""
        self.model.save_pretrained(output_path)
        self.processor.save_pretrained(output_path)


def _picture(given: Any) -> Image.Image | None:
    if isinstance(given, Image.Image):
        return given
    if isinstance(given, str) and given.lower().endswith(IMAGE_ENDINGS) and Path(given).is_file():
        return Image.open(given)
    return None
