from __future__ import annotations

import torch
from torch.nn import functional

from cclm.model.heads import MaskedLMDecoder, MaskedLMTransform, MatchingHead, ProjectionHead


def test_projections_are_unit_vectors() -> None:
    feature_BE = ProjectionHead(8, 4)(torch.randn(3, 8))
    torch.testing.assert_close(feature_BE.norm(dim=1), torch.ones(3))


def test_the_matching_head_is_linear_norm_gelu_linear() -> None:
    head, pooled = MatchingHead(8, 6), torch.randn(3, 8)
    hidden = functional.gelu(functional.layer_norm(head.widen(pooled), (6,)))
    torch.testing.assert_close(head(pooled), head.classify(hidden))


def test_the_transform_ends_with_a_norm() -> None:
    hidden = MaskedLMTransform(8, 1e-5)(torch.randn(5, 8))
    torch.testing.assert_close(hidden.mean(1), torch.zeros(5), atol=1e-6, rtol=0)


def test_the_decoder_lends_its_parameters_to_a_function() -> None:
    decoder, hidden = MaskedLMDecoder(8, 11), torch.randn(4, 8)
    decoder.bias.data.normal_()
    torch.testing.assert_close(decoder(hidden, functional.linear), hidden @ decoder.weight.T + decoder.bias)
    assert decoder(hidden, lambda states, weight, bias: weight is decoder.weight and bias is decoder.bias)
