"""Trains a Unigram tokenizer on the texts of shard sets and writes it as a Hugging Face folder.

sets --texts, each of a thing once--> sample (seeded, bounded) --normaliser--> sentencepiece --pieces--> tokenizer.json

The trainer is sentencepiece's; what is written needs only `tokenizers`. With one thread it gives the same bytes for the
same texts, with another number of threads other ones, so the number is fixed and stands in training.json.
"""

from __future__ import annotations

import hashlib
import heapq
import io
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from cclm.errors import ConfigError
from cclm.files.atomic import replace_bytes
from cclm.rows.guard import mistaken
from cclm.shardfile.codec import canonical_json
from cclm.shardfile.reader import texts_of_things

NUM_THREADS: Final = 1
_LONGEST_WORD: Final = 500
"""Characters; longer words (texts in scripts without spaces) are cut, because what is too long is left out."""


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
    """Return a trained `tokenizers.Tokenizer`; the same texts in any order give the same tokenizer.

    Args:
        texts: to train on; one that comes twice counts twice.
        vocab_size: number of tokens, special ones included; fewer if the texts have not so many pieces.
        character_coverage: share of the texts' characters that have a piece; the rarest others become `<unk>`.

    Raises:
        ConfigError: too small for the characters of the texts, or texts that the trainer refuses.
    """
    from tokenizers import AddedToken, models, processors

    from cclm.data.tokens import SPECIAL_TOKENS, read_special_as_text

    tokenizer = _empty_tokenizer()
    first, mask = SPECIAL_TOKENS[:-1], SPECIAL_TOKENS[-1]
    words = Counter(word for text in texts for word in _words(tokenizer.normalizer.normalize_str(text)))
    _check_size(words, vocab_size, len(SPECIAL_TOKENS), character_coverage)
    pieces = _train_pieces(words, vocab_size - len(SPECIAL_TOKENS), character_coverage)
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


def _words(text: str) -> Iterator[str]:
    for word in text.split(" "):
        yield from (word[at : at + _LONGEST_WORD] for at in range(0, len(word), _LONGEST_WORD))


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


def _lines(words: Mapping[str, int]) -> Iterator[str]:
    """Yield "text <tab> count" of the words, each before a space and at an end.

    The trainer takes its first pieces from a suffix array, which holds a string only where different characters follow
    it: a word that always stands before the same word would be no piece, and corpora of names are full of these.
    """
    for word, count in sorted(words.items()):
        if count > 1:
            yield f"{word} {word}\t{count // 2}"
        if count % 2:
            yield f"{word}\t1"


def _train_pieces(words: Mapping[str, int], size: int, coverage: float) -> list[tuple[str, float]]:
    """Return at most `size` pieces and their log-probabilities, the likeliest first."""
    import sentencepiece

    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_lines(words),
            input_format="tsv",
            max_sentence_length=16 * _LONGEST_WORD,
            model_writer=model,
            model_type="unigram",
            vocab_size=size + 1,  # and its own <unk>
            hard_vocab_limit=False,
            character_coverage=coverage,
            normalization_rule_name="identity",  # they are normalised
            unk_id=0,
            bos_id=-1,
            eos_id=-1,
            pad_id=-1,
            num_threads=NUM_THREADS,
            minloglevel=2,
        )
    except (RuntimeError, OSError) as error:
        raise ConfigError(
            expected="texts that sentencepiece can train on",
            got=" ".join(str(error).split()),
            do="Name sets with more texts, or another --vocab-size.",
        ) from error
    trained = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    return [(trained.id_to_piece(number), trained.get_score(number)) for number in range(1, len(trained))]


def write_tokenizer(tokenizer: Any, folder: Path, max_tokens: int, training: Mapping[str, Any]) -> None:
    """Write tokenizer.json and tokenizer_config.json, as `transformers.AutoTokenizer` reads them, and training.json.

    Args:
        tokenizer: of `train_tokenizer`.
        folder: is made if missing.
        max_tokens: model_max_length, `<s>` and `</s>` included.
        training: what it was made of and how.
    """
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
