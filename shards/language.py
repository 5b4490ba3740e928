"""Which language a text is in, by py3langid (a maintained package that carries its model of 130 languages)."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Final

from shards.guard import optional_library

_FAMILIES: Final = {
    "nb": "no", "nn": "no", "wuu": "zh", "yue": "zh", "arz": "ar", "ary": "ar", "uzs": "uz", "fil": "tl",
}  # fmt: skip
"""Tags that count as another: short texts do not tell them apart, or corpora use either."""


def language_probability(text: str, language: str) -> tuple[float | None, str]:
    """Return the probability that a text is in a language, and the likeliest language.

    Args:
        text: the text.
        language: a BCP-47 tag; its region and script are not looked at.

    Returns:
        None instead of a probability for a language that the model does not know.
    """
    family = _family(language.split("-")[0].lower())
    probabilities: dict[str, float] = {}
    for label, probability in _identifier().rank(text):
        probabilities[_family(label)] = probabilities.get(_family(label), 0.0) + probability
    return probabilities.get(family), max(probabilities, key=lambda name: probabilities[name])


def _family(label: str) -> str:
    return _FAMILIES.get(label, label)


@lru_cache(maxsize=1)
def _identifier() -> Any:
    """Return the model.

    Raises:
        MissingDependencyError: without py3langid.
    """
    do = 'pip install "cclm-pretraining[filters]", or leave min_language_probability out.'
    langid = optional_library("py3langid.langid", "it identifies languages", do=do)
    return langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE, norm_probs=True)
