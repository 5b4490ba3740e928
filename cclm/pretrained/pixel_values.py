"""How an image tower was shown its images: mean and deviation of the channels, from the source that names the tower.

model.vision.source: google/siglip2-base-patch16-256 ─ preprocessor_config.json ─▶ transform.mean, transform.std
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from cclm.data.options import ImageTransformConfig, Triple
from cclm.errors import ConfigError

NAMES = ("preprocessor_config.json", "processor_config.json")
"""Where it stands: alone, or since transformers 5 inside the processor's file."""


def with_pixel_values(transform: ImageTransformConfig, source: str) -> ImageTransformConfig:
    """Fields that are still at their default take the source's values; a source that says nothing changes nothing.

    Raises:
        ConfigError: the source's file cannot be read.
    """
    found = pixel_values(source)
    if found is None:
        return transform
    default = ImageTransformConfig()
    mean, std = found
    return replace(
        transform,
        mean=mean if transform.mean == default.mean else transform.mean,
        std=std if transform.std == default.std else transform.std,
    )


def pixel_values(source: str) -> tuple[Triple, Triple] | None:
    """Mean and deviation that a Hugging Face model's images are normalised with; None where no file says so.

    Raises:
        ConfigError: its file is not what `transformers` writes.
    """
    for path in _files(source):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            content = content.get("image_processor", content)
            if not content.get("do_normalize", True):
                return (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
            if "image_mean" in content and "image_std" in content:
                return _triple(content["image_mean"]), _triple(content["image_std"])
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise ConfigError(
                where=str(path),
                expected="image_mean and image_std with a number for each of three channels",
                got=f"{type(error).__name__}: {error}",
                do="Correct the file, or remove it and set transform.mean and transform.std in the recipe.",
            ) from error
    return None


def _triple(value: Any) -> Triple:
    red, green, blue = [float(value)] * 3 if isinstance(value, int | float) else map(float, value)
    return red, green, blue


def _files(source: str) -> list[Path]:
    """Those of the files that the folder or the named model has."""
    from transformers.utils.hub import cached_file

    found = (cached_file(source, name, _raise_exceptions_for_missing_entries=False) for name in NAMES)
    return [Path(path) for path in found if path is not None]
