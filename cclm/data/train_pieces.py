"""Unigram pieces of counted words, trained by sentencepiece: the same words give the same pieces."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from typing import Final

from cclm.errors import ConfigError

NUM_THREADS: Final = 1
"""With one thread the trainer gives the same bytes for the same words, with another number other ones."""
LONGEST_WORD: Final = 500
"""Characters; longer words (texts in scripts without spaces) are cut, because what is too long is left out."""


def cut_words(text: str) -> Iterator[str]:
    """Yield the words between single spaces, none longer than `LONGEST_WORD`."""
    for word in text.split(" "):
        yield from (word[at : at + LONGEST_WORD] for at in range(0, len(word), LONGEST_WORD))


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


def train_pieces(words: Mapping[str, int], size: int, coverage: float, do: str) -> list[tuple[str, float]]:
    """Return at most `size` pieces and their log-probabilities, the likeliest first.

    Raises:
        ConfigError: the trainer refuses the words; `do` says what a user may change.
    """
    import sentencepiece

    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_lines(words),
            input_format="tsv",
            max_sentence_length=16 * LONGEST_WORD,
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
            do=do,
        ) from error
    trained = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    return [(trained.id_to_piece(number), trained.get_score(number)) for number in range(1, len(trained))]
