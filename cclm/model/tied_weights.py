"""Which parameters of a model are one tensor under several names."""

from __future__ import annotations

from .options import ModelOptions


def tied_weights(options: ModelOptions) -> dict[str, str]:
    """Second name of a parameter → the name under which it is stored."""
    tied = {}
    if options.masked_lm_head and options.tie_decoder:
        tied["masked_lm_decoder.weight"] = "text_encoder.embeddings.words.weight"
    if options.answer_decoder and options.tie_decoder:
        tied["answer_decoder.masked_lm_decoder.weight"] = "answer_decoder.embeddings.words.weight"
    number = options.fusion.num_memories
    for layer in range(options.fusion.num_layers * number):
        if first := layer % number:
            stack, part = "fusion_encoder.stack.layers", "cross_attention.key_value"
            for kind in ("weight", "bias"):
                tied[f"{stack}.{layer}.{part}.{kind}"] = f"{stack}.{layer - first}.{part}.{kind}"
    return tied
