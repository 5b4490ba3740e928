"""Which text of a record is taken: language and caption, by two uniform numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cclm.data.mix_plan import RequestedLanguage
from cclm.errors import DataError
from cclm.views.image_options import ImageViewConfig


def choose_caption(
    captions: Mapping[str, Sequence[str]],
    config: ImageViewConfig,
    language_draw: float,
    caption_draw: float,
    requested: RequestedLanguage | None = None,
) -> tuple[str, int]:
    """Pick a language (the requested one, or all alike) and one of its captions, by two uniform numbers."""
    names = sorted(captions) if config.languages is None else [name for name in config.languages if name in captions]
    names = [name for name in names if captions[name]]
    found = None if requested is None else requested.pick(names, language_draw)
    if not names or (requested is not None and found is None):
        raise DataError(
            reason="caption_missing",
            expected="a caption in "
            + ("any language" if config.languages is None else ", ".join(config.languages))
            + ("" if requested is None else f" with a weight ({', '.join(requested.weights)})"),
            got=f"captions in {', '.join(sorted(captions)) or 'no language'}",
            do="Change `languages`, or leave the record out of the shards.",
        )
    name = found or names[int(language_draw * len(names))]
    count, first = len(captions[name]), config.first_caption_probability
    if count == 1:
        return name, 0
    if first is None:
        return name, int(caption_draw * count)
    if caption_draw < first:
        return name, 0
    rest = (caption_draw - first) / (1.0 - first)
    return name, min(count - 1, 1 + int(rest * (count - 1)))


def other_captions(
    captions: Mapping[str, Sequence[str]],
    language: str,
    choice: int,
    config: ImageViewConfig,
    requested: RequestedLanguage | None = None,
) -> dict[str, Sequence[str]]:
    """What the second caption is chosen from: the other languages (with a weight, if languages have weights); without
    any, the language's other captions."""
    wanted = captions if config.languages is None else {name: captions.get(name, ()) for name in config.languages}
    if requested is not None:
        wanted = {name: texts for name, texts in wanted.items() if name in requested.weights}
    rest: dict[str, Sequence[str]] = {name: texts for name, texts in wanted.items() if texts and name != language}
    if not rest:
        own = captions[language]
        rest = {language: [*own[:choice], *own[choice + 1 :]]}
    if not any(rest.values()):
        raise DataError(
            reason="caption_single",
            expected="two captions in the wanted languages (captions_per_image: 2)",
            got="one",
            do="Set captions_per_image: 1, or leave the record out of the shards.",
        )
    return rest
