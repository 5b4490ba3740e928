"""Text → token ids: one `tokenizers.Tokenizer` with a frame around each text (`<s>` … `</s>`, `[CLS]` … `[SEP]`)."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NoReturn

from tokenizers import Regex, Tokenizer, pre_tokenizers

from cclm.data.options import Normalise
from cclm.data.tokenizer_file import SpecialTokens, file_bytes, special_tokens, tokenizer_file
from cclm.errors import ConfigError, DataError

# Threads inside the tokenizer must not exist when worker processes fork; the workers are the parallelism.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

SPECIAL_TOKENS = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
CACHED_TEXTS = 1 << 17
_Key = tuple[str, int, int | None]
"""A text, the longest result in tokens, the longest text in words."""
_DELETED = re.compile(r"[,.'!?\"()*#:;~]")


def pre_caption(text: str, max_words: int | None = None) -> str:
    """The published preparation of captions and sentences, for every language alike.

    Lower-cases, turns ASCII punctuation, `-` and `/` into spaces, `<person>` into `person`, runs of white space into
    one space, and keeps the first `max_words` words. An empty result stays empty; `TextTokenizer.encode` refuses it.
    """
    text = _DELETED.sub(" ", text.lower())
    text = text.replace("-", " ").replace("/", " ").replace("<person>", "person")
    return " ".join(re.sub(r"\s{2,}", " ", text).rstrip("\n").strip(" ").split(" ")[:max_words])


def read_special_as_text(tokenizer: Tokenizer) -> None:
    """Make a tokenizer read a special token that is written out in a text ("<mask>") as the text that it is.

    Captions are data: whoever can write one must not be able to hide words, or to end a text. The setting of
    `tokenizers` alone is not enough: "<mask>" is a piece of the vocabulary of XLM-R and its like, and the model would
    find it there. So the first character is cut from the others before the model sees them, after the normaliser (which
    makes "<mask>" of "＜MASK＞"). Texts without such a token keep their ids.
    """
    tokenizer.encode_special_tokens = True
    special = {token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special}
    special |= {token for token in SPECIAL_TOKENS if tokenizer.token_to_id(token) is not None}
    pattern = "|".join(f"{re.escape(token[0])}(?={re.escape(token[1:])})" for token in sorted(special) if token[1:])
    before = tokenizer.pre_tokenizer
    state = {} if before is None else json.loads(before.__getstate__())
    is_done = any(item.get("pattern") == {"Regex": pattern} for item in state.get("pretokenizers", ()))
    if pattern and not is_done:
        cut = pre_tokenizers.Split(Regex(pattern), "isolated")
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([cut] if before is None else [before, cut])


class TextTokenizer:
    """Encodes texts, and knows the special ids. Remembers texts that it has seen (short captions repeat a lot)."""

    def __init__(
        self, tokenizer: Tokenizer, normalise: Normalise = "none", special: SpecialTokens | None = None
    ) -> None:
        tokenizer.no_padding()
        tokenizer.no_truncation()
        read_special_as_text(tokenizer)
        self._tokenizer, self.normalise = tokenizer, normalise
        special = special or special_tokens(tokenizer)
        self.bos_id, self.eos_id = self._id(special.bos), self._id(special.eos)
        self.pad_id, self.mask_id = self._id(special.pad), self._id(special.mask)
        unknown = (tokenizer.token_to_id(name) for name in ("<unk>", "[UNK]"))
        self.unk_id: int | None = next((number for number in unknown if number is not None), None)
        self.vocab_size = int(tokenizer.get_vocab_size(with_added_tokens=True))
        self._known: dict[_Key, list[int]] = {}

    def encode(self, texts: Sequence[str], max_tokens: int, max_words: int | None = None) -> list[list[int]]:
        """Ids of each text, not to be changed: begin, up to `max_tokens` − 2 pieces, end.

        Raises:
            DataError: `text_empty`, `text_encoding`.
        """
        keys = [(text, max_tokens, max_words) for text in texts]
        if len(self._known) >= CACHED_TEXTS:
            self._known.clear()
        new = [key for key in dict.fromkeys(keys) if key not in self._known]
        if new:
            self._learn(new)
        return [self._known[key] for key in keys]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of some ids, special tokens left out."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))

    def __reduce__(self) -> NoReturn:
        """Refuse: `tokenizers` would forget in a pickle or copy that special tokens in a text are text."""
        raise TypeError("a TextTokenizer cannot be pickled or copied: load it anew (load_tokenizer)")

    def _learn(self, keys: Sequence[_Key]) -> None:
        texts = [self._clean(text, max_words) for text, _, max_words in keys]
        try:
            encodings = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        except TypeError as error:  # a lone surrogate: a terminal's bytes that are no UTF-8, an escape in JSON
            whole = "texts of whole Unicode characters"
            got, do = "half a character in one", "Write it in UTF-8."
            raise DataError(reason="text_encoding", expected=whole, got=got, do=do) from error
        for (text, max_tokens, max_words), encoding in zip(keys, encodings, strict=True):
            if not encoding.ids:
                raise DataError(
                    reason="text_empty",
                    expected="a text with at least one token",
                    got=repr(text[:80]),
                    do="Leave the sample out of the corpus.",
                )
            self._known[text, max_tokens, max_words] = [self.bos_id, *encoding.ids[: max_tokens - 2], self.eos_id]

    def _clean(self, text: str, max_words: int | None) -> str:
        if self.normalise == "cclm":
            return pre_caption(text, max_words)
        return " ".join(text.strip().split(" ")[:max_words])

    def _id(self, token: str) -> int:
        found = self._tokenizer.token_to_id(token)
        assert found is not None, "special_tokens looks them up"
        return int(found)


def load_tokenizer(source: Path | str, normalise: Normalise = "none") -> TextTokenizer:
    """The tokenizer of a folder or of a model on the hub (ConfigError: none, a broken one, no special tokens)."""
    file = tokenizer_file(source)
    content = file_bytes(file)
    try:
        tokenizer = Tokenizer.from_buffer(content)
    except Exception as error:  # the Rust binding raises bare Exception
        raise ConfigError(
            expected="a readable tokenizer.json", got=str(error), do="Make the tokenizer again.", where=str(source)
        ) from error
    return TextTokenizer(tokenizer, normalise, special_tokens(tokenizer, file))
