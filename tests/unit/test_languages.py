"""What people, files and data sets call a language, and its one tag."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cclm.languages import is_right_to_left, language_tag, same_language

ORDINARY = (
    "en de fr es ru zh ja ko ar hi tr id vi fi th sw el he it pl bn pt uk nl ms no nb nn tl sh bh ceb yue wuu arz"
)


@pytest.mark.parametrize(
    "tag", [*ORDINARY.split(), "pt-BR", "zh-Hans", "zh-Hant", "zh-TW", "en-GB", "sr-Latn", "ku-Arab", "und"]
)
def test_ordinary_tags_stay_as_they_are(tag: str) -> None:
    """Shard sets and recipes hold them: another tag would be another language in all counts."""
    assert language_tag(tag) == tag


@pytest.mark.parametrize(
    ("name", "tag"),
    [
        ("EN", "en"), (" no ", "no"), ("en_us", "en-US"), ("ZH-hant", "zh-Hant"), ("en-Latn", "en"),
        ("eng", "en"), ("deu", "de"), ("ger", "de"), ("fre", "fr"), ("chi", "zh"), ("cmn", "zh"), ("nor", "no"),
        ("zho_Hans", "zh-Hans"), ("arb_Arab", "ar"), ("zsm_Latn", "ms"), ("tgl_Latn", "tl"), ("hbs", "sh"),
        ("iw", "he"), ("in", "id"), ("ji", "yi"), ("jw", "jv"), ("mo", "ro"),
        ("pt_BR.UTF-8", "pt-BR"), ("sr@latin", "sr-Latn"), ("uz_UZ@cyrillic", "uz-Cyrl-UZ"), ("de@euro", "de"),
        ("ca@valencia", "ca-valencia"), ("simple", "en-simple"), ("zh-min-nan", "nan"), ("nds_nl", "nds-NL"),
    ],
)  # fmt: skip
def test_other_names_get_their_tag(name: str, tag: str) -> None:
    assert language_tag(name) == tag


@pytest.mark.parametrize(
    "name",
    ["", " ", "xx", "zzz", "english", "C", "POSIX", "1", "en-", "-en", "en--us", "de-DE-DE", "中文", "a\0b", "\udcff"],
)
def test_what_is_no_language_has_no_tag(name: str) -> None:
    assert language_tag(name) is None


@given(st.text(st.sampled_from("abeinrz-_@. EN1\udcff"), max_size=12))
def test_a_tag_is_its_own_tag(name: str) -> None:
    tag = language_tag(name)
    assert tag is None or language_tag(tag) == tag


@pytest.mark.parametrize(
    ("tag", "is_so"),
    [(tag, True) for tag in ("ar", "he", "iw", "ur", "ku-Arab", "dv")]
    + [(tag, False) for tag in ("en", "pa", "ku", "zh-Hant", "xx", "")],
)
def test_direction_of_writing(tag: str, is_so: bool) -> None:
    assert is_right_to_left(tag) is is_so


def test_regions_belong_to_their_language() -> None:
    assert same_language("en", "en") and same_language("en-US", "en")
    assert (
        not same_language("en", "en-US") and not same_language("enm", "en") and not same_language("zh-Hant", "zh-Hans")
    )
