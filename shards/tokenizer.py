"""Trains a Unigram tokenizer on the texts of shard sets and writes it as a Hugging Face folder.

sets --texts, each of a thing once--> sample (seeded, bounded) --normaliser--> sentencepiece --pieces--> tokenizer.json

The trainer is sentencepiece's; what is written needs only `tokenizers`. With one thread it gives the same bytes for the
same texts, with another number of threads other ones, so the number is fixed and stands in training.json.
"""

from __future__ import annotations

import hashlib
import heapq
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cclm.data.train_pieces import NUM_THREADS, cut_words, train_pieces
from cclm.files.atomic import replace_bytes
from cclm.rows.guard import mistaken
from cclm.shardfile.codec import canonical_json
from cclm.shardfile.reader import texts_of_things


class Sample(NamedTuple):
    """Texts to train on, and how many the sets hold; a text of several things stands here several times."""

    texts: list[str]
    num_texts: int


def sample_texts(folders: Sequence[Path], most: int, seed: int = 0) -> Sample:
    """Return at most `most` texts of shard sets: the same ones in whatever order the sets and their samples come.

    The same text of the same thing (an image's identity, a pair's group) counts once, however many images show it. A
    text is drawn by a hash of both, the smallest hashes stay, so memory holds the sample alone.
    """
    drawn: list[tuple[int, str]] = []  # a heap whose first entry is the largest hash, negative
    held: set[int] = set()
    num_texts = 0
    for thing, language, text in texts_of_things(folders):
        num_texts += 1
        place = "\0".join((thing, language, text)).encode("utf-8", "surrogatepass")
        number = -int.from_bytes(hashlib.blake2b(place, digest_size=8, key=str(seed).encode()).digest(), "big")
        if number in held or (len(drawn) == most and number < drawn[0][0]):
            continue
        held.add(number)
        if len(drawn) < most:
            heapq.heappush(drawn, (number, text))
        else:
            held.discard(heapq.heapreplace(drawn, (number, text))[0])
    return Sample([text for _, text in sorted(drawn)], num_texts)


def _empty_tokenizer() -> Any:
    """Return a tokenizer with everything but the vocabulary: NFKC, lower case, single spaces, "▁" before each word."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    tokenizer = Tokenizer(models.Unigram())
    spaces = normalizers.Replace(Regex(r"\s+"), " ")
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Lowercase(), spaces, normalizers.Strip()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return tokenizer


def train_tokenizer(texts: Sequence[str], vocab_size: int, character_coverage: float = 1.0) -> Any:
    """Return a trained `tokenizers.Tokenizer`; the same texts in any order give the same; one twice counts twice.

    `vocab_size` counts special tokens; it may be less if the texts have not so many pieces. `character_coverage`: share
    of the texts' characters that have a piece; the rarest others become `<unk>`. ConfigError: too small for the
    characters of the texts, or texts that the trainer refuses.
    """
    from tokenizers import AddedToken, models, processors

    from cclm.data.tokens import SPECIAL_TOKENS, read_special_as_text

    tokenizer = _empty_tokenizer()
    first, mask = SPECIAL_TOKENS[:-1], SPECIAL_TOKENS[-1]
    words = Counter(word for text in texts for word in cut_words(tokenizer.normalizer.normalize_str(text)))
    _check_size(words, vocab_size, len(SPECIAL_TOKENS), character_coverage)
    do = "Name sets with more texts, or another --vocab-size."
    pieces = train_pieces(words, vocab_size - len(SPECIAL_TOKENS), character_coverage, do)
    # The mask is a piece too, not only an added token: `vocab_size` then counts it, as in XLM-R.
    pieces = [(piece, score) for piece, score in pieces if piece not in SPECIAL_TOKENS]  # a text may spell them out
    vocabulary = [*((token, 0.0) for token in first), *pieces, (mask, 0.0)]
    tokenizer.model = models.Unigram(vocabulary, unk_id=first.index("<unk>"), byte_fallback=False)
    # The mask swallows the space before it: it stands for a word, and a word brings its own "▁".
    tokenizer.add_special_tokens([*first, AddedToken(mask, lstrip=True, normalized=False)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[(token, first.index(token)) for token in ("<s>", "</s>")],
    )
    read_special_as_text(tokenizer)
    return tokenizer


def _check_size(words: Mapping[str, int], vocab_size: int, num_special: int, coverage: float) -> None:
    """Refuse a vocabulary without room for the characters."""
    characters: Counter[str] = Counter({"▁": sum(words.values())})
    for word, count in words.items():
        for character in word:
            characters[character] += count
    covered, needed = 0, num_special
    for _, count in characters.most_common():
        if covered >= coverage * characters.total():
            break
        covered, needed = covered + count, needed + 1
    if not words or vocab_size < needed:
        got, do = f"{vocab_size:,}", "Raise --vocab-size, or lower --character-coverage."
        if not words:
            got, do = "no text at all", "Name shard sets that hold texts."
        mistaken(f"a vocabulary of at least {needed:,} (special tokens and characters)", got, do)


def write_tokenizer(tokenizer: Any, folder: Path, max_tokens: int, training: Mapping[str, Any]) -> None:
    """Write tokenizer.json and tokenizer_config.json, as `transformers.AutoTokenizer` reads them, and training.json:
    what it was made of and how. `max_tokens` is model_max_length, `<s>` and `</s>` included."""
    import sentencepiece

    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": max_tokens,
        "clean_up_tokenization_spaces": False,
        "split_special_tokens": True,  # "<mask>" in a text is text, as in training
        "bos_token": "<s>",
        "cls_token": "<s>",
        "eos_token": "</s>",
        "sep_token": "</s>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "mask_token": "<mask>",
    }
    trainer = {"trainer": f"sentencepiece {sentencepiece.__version__}", "num_threads": NUM_THREADS}
    for name, data in (
        ("training.json", canonical_json({**training, **trainer})),
        ("tokenizer_config.json", canonical_json(config)),
        ("tokenizer.json", tokenizer.to_str(pretty=True).encode("utf-8")),
    ):
        replace_bytes(folder / name, data + b"\n", durable=True)
