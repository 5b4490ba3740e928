"""Trains a Unigram tokenizer on the texts of shard sets and writes it as a Hugging Face folder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from cclm.errors import ConfigError
from cclm.files.atomic import replace_bytes
from cclm.shardfile.codec import canonical_json
from cclm.shardfile.reader import ShardSet
from cclm.types import View
from shards.unigram import train_unigram

SPECIAL_TOKENS: Final = ("<s>", "<pad>", "</s>", "<unk>")
"""Ids 0 to 3, in XLM-R's order; `<mask>` gets the last id."""
MASK_TOKEN: Final = "<mask>"


def texts_of(folders: Sequence[Path]) -> dict[str, int]:
    """Return the texts of shard sets and how often each counts.

    The same text of the same thing (a picture's identity, a pair's group) counts once, however many pictures show it.
    """
    seen: set[tuple[str, str, str]] = set()
    for folder in folders:
        shards = ShardSet(folder)
        for shard, samples in enumerate(shards.samples_per_shard):
            for sample in range(samples):
                if shards.view is View.IMAGE_TEXT:
                    record = shards.image_text(shard, sample)
                    thing = record.identity or record.key
                    seen.update((thing, lang, text) for lang, texts in record.captions.items() for text in texts)
                else:
                    for pair in shards.text_group(shard, sample):
                        seen.update([(pair.group, pair.lang_a, pair.text_a), (pair.group, pair.lang_b, pair.text_b)])
        shards.close()
    return dict(Counter(text for _, _, text in seen))


def _empty_tokenizer() -> Any:
    """Return a tokenizer with everything but the vocabulary: NFKC, lower case, single spaces, "▁" before each word."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.NFKC(),
            normalizers.Lowercase(),
            normalizers.Replace(Regex(r"\s+"), " "),
            normalizers.Strip(),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return tokenizer


def train_tokenizer(texts: Mapping[str, int], vocab_size: int) -> Any:
    """Return a trained `tokenizers.Tokenizer`; the same texts give the same tokenizer.

    Args:
        texts: texts and how often each counts.
        vocab_size: number of tokens, special ones included; fewer if the texts have not so many pieces.

    Raises:
        ConfigError: too small for the characters of the texts.
    """
    from tokenizers import AddedToken, models, processors

    tokenizer = _empty_tokenizer()
    words: Counter[str] = Counter()
    for text, count in texts.items():
        for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(tokenizer.normalizer.normalize_str(text)):
            words[word] += count
    num_characters = len(set().union(*words)) if words else 0
    num_special = len(SPECIAL_TOKENS) + 1
    if not num_characters or vocab_size < num_special + num_characters:
        raise ConfigError(
            expected=f"a vocabulary of at least {num_special + num_characters:,} (special tokens and characters)",
            got=f"{vocab_size:,}" if num_characters else "no text at all",
            do="Raise --vocab-size." if num_characters else "Name shard sets that hold texts.",
        )
    pieces = train_unigram(words, vocab_size - num_special)
    # The mask is a piece too, not only an added token: `vocab_size` then counts it, as in XLM-R.
    vocabulary = [(token, 0.0) for token in SPECIAL_TOKENS] + pieces + [(MASK_TOKEN, 0.0)]
    tokenizer.model = models.Unigram(vocabulary, unk_id=SPECIAL_TOKENS.index("<unk>"), byte_fallback=False)
    # The mask swallows the space before it: it stands for a word, and a word brings its own "▁".
    tokenizer.add_special_tokens([*SPECIAL_TOKENS, AddedToken(MASK_TOKEN, lstrip=True, normalized=False)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[(token, SPECIAL_TOKENS.index(token)) for token in ("<s>", "</s>")],
    )
    return tokenizer


def write_tokenizer(tokenizer: Any, folder: Path, max_tokens: int) -> None:
    """Write tokenizer.json and tokenizer_config.json, as `transformers.AutoTokenizer` reads them.

    Args:
        tokenizer: of `train_tokenizer`.
        folder: is made if missing.
        max_tokens: model_max_length, `<s>` and `</s>` included.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": max_tokens,
        "clean_up_tokenization_spaces": False,
        "bos_token": "<s>",
        "cls_token": "<s>",
        "eos_token": "</s>",
        "sep_token": "</s>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "mask_token": MASK_TOKEN,
    }
    replace_bytes(folder / "tokenizer_config.json", canonical_json(config) + b"\n", durable=True)
    replace_bytes(folder / "tokenizer.json", tokenizer.to_str(pretty=True).encode("utf-8") + b"\n", durable=True)
