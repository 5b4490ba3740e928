"""Which language a text is in: py3langid, a maintained package that carries its model of 130 languages."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from cclm.rows.guard import optional_library


@lru_cache(maxsize=1)
def language_identifier(do: str) -> Any:
    """Return the model: `rank(text)` gives (language, probability), the likeliest first.

    `do`: what to do without the package (MissingDependencyError).
    """
    langid = optional_library("py3langid.langid", "it identifies languages", do=do)
    return langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE, norm_probs=True)
