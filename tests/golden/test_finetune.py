"""Fine-tuning: retrieval with group ids, at the fine-tuning resolution."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cclm.objectives.contrastive import contrastive
from cclm.objectives.matching import matching, negative_weights
from cclm.objectives.term import shares
from tests.golden.finetuned import Finetuned
from tests.golden.sets import GoldenSet
from tests.golden.test_cases import expect_close

TABLE = 1e-6
"""Absolute and relative, of interpolated tables."""


def retrieval_draws(record: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """For each text its wrong image, for each image its wrong text."""
    if "retrieval.neg_idx" in record:
        first, second = record["retrieval.neg_idx"].chunk(2)
        return first, second
    return record["retrieval.neg.idx_first_for_second"], record["retrieval.neg.idx_second_for_first"]


def test_tables_after_loading(golden: GoldenSet) -> None:
    tuned = Finetuned(golden)
    published = tuned.published({name: value.detach() for name, value in tuned.model().named_parameters()})
    prefix = "retrieval.param."
    for key, expected in tuned.record.items():
        if key.startswith(prefix) and key.endswith("relative_position_bias_table"):
            table = published[key.removeprefix(prefix)]
            torch.testing.assert_close(table, expected, atol=TABLE, rtol=TABLE, msg=key)
    assert set(tuned.facts("retrieval")["grad_norm"]) - set(published) <= {"text_encoder.embeddings.position_ids"}


def test_retrieval(golden: GoldenSet) -> None:
    tuned = Finetuned(golden)
    record, model = tuned.record, tuned.model()
    mask_BL, identity_B = record["text_atts"].bool(), record["retrieval.in.idx"]
    image_BND = model.encode_images(record["image"])
    text_BLD = model.encode_texts(record["text_ids"], mask_BL)
    image_BE, text_BE = model.project_images(image_BND), model.project_texts(text_BLD, mask_BL)
    temperature = model.temperature()
    itc = contrastive(image_BE, text_BE, identity_B, identity_B, temperature)
    first, second = retrieval_draws(record)
    rows = torch.arange(len(identity_B))
    query, memory = torch.cat([rows, rows, second]), torch.cat([rows, first, rows])
    fused = model.fuse(text_BLD[query], mask_BL[query], image_BND[memory])
    logits = model.match_logits(fused, mask_BL[query])
    itm, _ = matching(logits, (torch.arange(len(query)) < len(rows)).long())
    losses = shares({"loss_itc": itc, "loss_itm": itm})
    for name, value in losses.items():
        assert value.item() == pytest.approx(record[f"retrieval.{name}"].item(), abs=1e-5, rel=1e-4)
    values = {
        "image_embeds": image_BND,
        "image_feat": image_BE,
        "text_feat": text_BE,
        "contrastive_logits": image_BE @ text_BE.T / temperature,
        "itm_head_logits": logits,
        "sim_matrix": image_BE @ text_BE.T,
    }
    for name, value in values.items():
        expect_close(value.detach(), record[f"retrieval.{name}"], name)
    expect_close(text_BLD.detach()[mask_BL], record["retrieval.text_embeds"][mask_BL], "text_embeds")
    torch.stack(list(losses.values())).sum().backward()
    gradients = {name: value.grad for name, value in model.named_parameters() if value.grad is not None}
    tuned.compare_gradients("retrieval", tuned.published(gradients))


def test_pairs_of_one_image_are_never_negatives(golden: GoldenSet) -> None:
    record = Finetuned(golden).record
    logits, identity = record["retrieval.contrastive_logits"], record["retrieval.in.idx"]
    same = identity[:, None] == identity
    first, second = retrieval_draws(record)
    assert not same[torch.arange(len(identity)), first].any()
    assert not same[torch.arange(len(identity)), second].any()
    if "retrieval.neg_weights" in record:
        expected = [record["retrieval.neg_weights"][: len(identity)], record["retrieval.neg_weights"][len(identity) :]]
    else:
        expected = [record["retrieval.neg.weights_t2i"], record["retrieval.neg.weights_i2t"]]
    expect_close(negative_weights(logits.T, same), expected[0], "texts to images")
    expect_close(negative_weights(logits, same), expected[1], "images to texts")


def test_score_matrix(golden: GoldenSet) -> None:
    tuned = Finetuned(golden)
    record, model = tuned.record, tuned.model()
    expected = record["retrieval.itm_score_matrix"]
    num_images, num_texts = expected.shape
    with torch.no_grad():
        scores = model.score(
            record["image"].repeat_interleave(num_texts, 0),
            record["text_ids"].repeat(num_images, 1),
            record["text_atts"].repeat(num_images, 1),
        )
    expect_close(scores[:, 1].view(num_images, num_texts), expected, "itm_score_matrix")
