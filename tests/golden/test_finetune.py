"""Fine-tuning at its own resolution: retrieval with group ids, classes, two images, question answering."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from cclm.data.batch import Batch, PixelScale, Tokens
from cclm.data.collate import no_matching_rows
from cclm.distributed.collectives import SINGLE
from cclm.model.answer_decoder import AnswerDecoder, rank_answers
from cclm.model.encoders import FusionEncoder
from cclm.model.heads import MatchingHead
from cclm.objectives.contrastive import contrastive
from cclm.objectives.matching import matching, negative_weights
from cclm.objectives.options import ObjectiveConfig
from cclm.objectives.tokens import answer_log_likelihood
from cclm.pretrained.families import Task, finetuned
from cclm.pretrained.import_cclm import convert
from cclm.pretrained.published_names import answer_decoder_weights, published_weights, to_published
from cclm.pretrained.published_sizes import options_of_state
from cclm.train.step import CrossViewTraining
from cclm.views.annotated.answer import AnswerBatch, AnswerView
from cclm.views.annotated.classify import ClassifyBatch, ClassifyView
from cclm.views.annotated.options import AnswerConfig, ClassifyConfig
from tests.golden.finetuned import Finetuned
from tests.golden.sets import GoldenSet
from tests.golden.test_cases import expect_close
from tests.golden.test_files import digest
from tests.tiny_families import filled_model

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


def test_the_fine_tuned_file_itself_can_be_imported(golden: GoldenSet) -> None:
    """Its tensors are those that the set hashed (tables that were resized are compared by value above)."""
    tuned = Finetuned(golden)
    published = tuned.published({name: value.detach() for name, value in tuned.model().named_parameters()})
    hashes = tuned.facts("retrieval")["state_sha"]
    state = {name: value for name, value in published.items() if name in hashes}
    assert set(hashes) - set(state) == {name for name in hashes if name.endswith(("_index", "_mask", "_ids"))}
    for name, value in state.items():
        if not name.endswith("bias_table"):
            assert digest(value) == hashes[name], name
    options = options_of_state(state, text_heads=golden.options.text.num_heads)
    assert not options.masked_lm_head
    _, report = convert(state, options)
    assert report.count("used") + report.count("converted") == len(state)


@pytest.mark.parametrize("task", ["xvnli", "nlvr", "vqa"])
def test_files_of_the_other_tasks_can_be_imported(golden: GoldenSet, task: Task) -> None:
    """Made from the pre-trained weights by the published rules; the set's hashes say that they are those files."""
    tuned = swin_only(golden, task)
    hashes, state = tuned.facts(task)["state_sha"], tuned.file(task)
    assert set(hashes) == set(state)
    for name, value in state.items():
        if not name.endswith(("bias_table", "_index", "_mask", "_ids")):
            assert digest(value) == hashes[name], name
    options = options_of_state(state, text_heads=golden.options.text.num_heads)
    assert options.vision.image_size == tuned.options.vision.image_size
    converted, report = convert(state, options)
    assert len(report.keys) == len(state)
    assert report.count("used") + report.count("converted") + report.count("dropped") == len(state)
    model, record = filled_model(options, converted), tuned.record
    ids_BL, mask_BL, images = record["text_ids"], record["text_atts"].bool(), record["image"]
    with torch.no_grad():
        if task == "vqa":
            answers = {"answer_ids": record["vqa.in.cand_ids"], "answer_attention_mask": record["vqa.in.cand_atts"]}
            expected = record["vqa.rank_topk_probs"]
            found, order = model.answer(images, ids_BL, mask_BL, **answers, top_k=expected.shape[1])
            assert torch.equal(order, record["vqa.rank_topk_ids"])
        else:
            expected = record[f"{task}.logits"]
            num_texts = len(expected)
            if task == "nlvr":
                images = torch.stack(images.split(num_texts), 1)
            found = model.classify(images[:num_texts], ids_BL[:num_texts], mask_BL[:num_texts])
    expect_close(found, expected, task)


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
    losses = {"loss_itc": itc / len(rows), "loss_itm": itm.mean()}
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


def swin_only(golden: GoldenSet, tag: str) -> Finetuned:
    """The tasks that only the Swin layout's sets hold."""
    tuned = Finetuned(golden)
    if f"{tag}.loss" not in tuned.record:
        pytest.skip(f"{golden.folder.name} has no {tag}")
    return tuned


def fresh_head(tuned: Finetuned, tag: str) -> MatchingHead:
    """The head that the set began with."""
    places = {"0": "widen", "1": "norm", "3": "classify"}
    prefix = f"{tag}.param.cls_head."
    state = {}
    for key, value in tuned.record.items():
        if key.startswith(prefix):
            place, part = key.removeprefix(prefix).split(".")
            state[f"{places[place]}.{part}"] = value
    head = MatchingHead(tuned.options.width, state["widen.weight"].shape[0], state["classify.weight"].shape[0])
    head.load_state_dict(state)
    return head


def head_gradients(head: MatchingHead) -> dict[str, Tensor]:
    """By published names."""
    places = {"widen": "0", "norm": "1", "classify": "3"}
    found = {}
    for name, value in head.named_parameters():
        place, part = name.split(".")
        assert value.grad is not None
        found[f"cls_head.{places[place]}.{part}"] = value.grad
    return found


def gradients_of(module: nn.Module, prefix: str = "") -> dict[str, Tensor]:
    return {f"{prefix}{name}": value.grad for name, value in module.named_parameters() if value.grad is not None}


def test_classification(golden: GoldenSet) -> None:
    tuned = swin_only(golden, "xvnli")
    record, model, head = tuned.record, tuned.model(), fresh_head(tuned, "xvnli")
    mask_BL = record["text_atts"].bool()
    fused = model.fuse(model.encode_texts(record["text_ids"], mask_BL), mask_BL, model.encode_images(record["image"]))
    logits = head(fused[:, 0])
    expect_close(logits.detach(), record["xvnli.logits"], "xvnli.logits")
    loss = functional.cross_entropy(logits, record["xvnli.in.targets"])
    assert loss.item() == pytest.approx(record["xvnli.loss"].item(), abs=1e-5, rel=1e-4)
    loss.backward()
    tuned.compare_gradients("xvnli", {**tuned.published(gradients_of(model)), **head_gradients(head)})


def test_two_images(golden: GoldenSet) -> None:
    tuned = swin_only(golden, "nlvr")
    record, model, head = tuned.record, tuned.model(), fresh_head(tuned, "nlvr")
    fusion = FusionEncoder(tuned.options.width, replace(tuned.options.fusion, num_memories=2), "auto").eval()
    fusion.start_from(model.fusion_encoder)
    num_texts = len(record["nlvr.in.targets"])
    ids_BL, mask_BL = record["text_ids"][:num_texts], record["text_atts"][:num_texts].bool()
    memories = model.encode_images(record["image"]).split(num_texts)
    fused = fusion(model.encode_texts(ids_BL, mask_BL), mask_BL, *memories)
    logits = head(fused[:, 0])
    expect_close(logits.detach(), record["nlvr.logits"], "nlvr.logits")
    loss = functional.cross_entropy(logits, record["nlvr.in.targets"])
    assert loss.item() == pytest.approx(record["nlvr.loss"].item(), abs=1e-5, rel=1e-4)
    loss.backward()
    doubled = replace(tuned.options, fusion=replace(tuned.options.fusion, num_layers=len(fusion.stack.layers)))
    ours = {**gradients_of(model), **gradients_of(fusion, "fusion_encoder.")}
    renamed = to_published(ours, published_weights(doubled))
    published = {name.replace("text_encoder.bert.", "text_encoder."): value for name, value in renamed.items()}
    tuned.compare_gradients("nlvr", {**published, **head_gradients(head)})


def test_question_answering(golden: GoldenSet) -> None:
    tuned = swin_only(golden, "vqa")
    record, model = tuned.record, tuned.model()
    decoder = AnswerDecoder(tuned.options).eval()
    decoder.start_from(model)
    mask_BL = record["text_atts"].bool()
    question = model.fuse(
        model.encode_texts(record["text_ids"], mask_BL), mask_BL, model.encode_images(record["image"])
    )
    rows = torch.arange(len(mask_BL)).repeat_interleave(record["vqa.in.k"])
    ids, answer_mask = record["vqa.in.answer_ids"], record["vqa.in.answer_atts"].bool()
    logits = decoder(ids, answer_mask, question[rows], mask_BL[rows])
    expect_close(logits.detach()[answer_mask], record["vqa.decoder_logits"][answer_mask], "vqa.decoder_logits")
    likelihood = answer_log_likelihood(logits, ids, answer_mask)
    loss = -(likelihood * record["vqa.in.weights"]).sum() / len(mask_BL)
    assert loss.item() == pytest.approx(record["vqa.loss"].item(), abs=1e-5, rel=1e-4)
    loss.backward()
    weights = answer_decoder_weights(tuned.options)
    answers = to_published(gradients_of(decoder, "answer_decoder."), weights)
    tuned.compare_gradients("vqa", {**tuned.published(gradients_of(model)), **answers})
    candidates, candidate_mask = record["vqa.in.cand_ids"], record["vqa.in.cand_atts"].bool()
    expected = record["vqa.rank_topk_probs"]
    probability, order = rank_answers(decoder, question, mask_BL, candidates, candidate_mask, expected.shape[1])
    assert torch.equal(order, record["vqa.rank_topk_ids"])
    expect_close(probability, expected, "vqa.rank_topk_probs")


@pytest.mark.parametrize("tag", ["xvnli", "nlvr"])
def test_tasks_reach_the_published_values_in_training_and_in_evaluation(golden: GoldenSet, tag: Task) -> None:
    """Through the view, the training step and the step's one fusion call, not the network's parts."""
    tuned = swin_only(golden, tag)
    options = finetuned(golden.options, tag, tuned.options.vision.image_size)
    record = tuned.record
    options = replace(options, num_classes=record[f"{tag}.logits"].shape[1])
    converted, _ = convert(tuned.file(tag), options)
    model = filled_model(options, {name: value.clone() for name, value in converted.items()}).requires_grad_()
    number, label_R = (2 if tag == "nlvr" else 1), record[f"{tag}.in.targets"]
    rows = len(label_R)
    settings = ClassifyConfig(sources={}, images_per_row=number, batch_size=rows)
    batch = ClassifyBatch(
        images_BCHW=record["image"][: number * rows],
        pixel_scale=PixelScale(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)),
        text=Tokens(ids_BL=record["text_ids"][:rows], mask_BL=record["text_atts"][:rows].bool()),
        identity_R=torch.arange(rows),
        ledger_S=torch.arange(rows),
        label_R=label_R,
        **no_matching_rows(range(rows)),
    )
    view = ClassifyView("classify", settings)
    module = CrossViewTraining(model, {"classify": view}, ObjectiveConfig(), SINGLE).eval()
    losses = module(Batch(step=0, views={"classify": batch}))
    assert losses.total.item() == pytest.approx(record[f"{tag}.loss"].item(), abs=1e-5, rel=1e-4)
    losses.total.backward()
    ours = gradients_of(model)
    renamed = to_published(ours, published_weights(options))
    tuned.compare_gradients(
        tag, {name.replace("text_encoder.bert.", "text_encoder."): v for name, v in renamed.items()}
    )
    with torch.no_grad():
        found = view.predict(model, batch)["probability"]
    expect_close(found, record[f"{tag}.logits"].softmax(-1), tag)


def test_the_question_task_reaches_the_published_values(golden: GoldenSet) -> None:
    """Through the view and the training step; and the same best answers."""
    tuned = swin_only(golden, "vqa")
    options, record = finetuned(golden.options, "vqa", tuned.options.vision.image_size), tuned.record
    converted, _ = convert(tuned.file("vqa"), options)
    model = filled_model(options, {name: value.clone() for name, value in converted.items()}).requires_grad_()
    rows = len(record["text_ids"])
    question_A = torch.arange(rows).repeat_interleave(record["vqa.in.k"])
    batch = AnswerBatch(
        images_BCHW=record["image"],
        pixel_scale=PixelScale(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)),
        text=Tokens(ids_BL=record["text_ids"], mask_BL=record["text_atts"].bool()),
        identity_R=torch.arange(rows),
        ledger_S=torch.arange(rows),
        answers=Tokens(ids_BL=record["vqa.in.answer_ids"], mask_BL=record["vqa.in.answer_atts"].bool()),
        question_A=question_A,
        class_A=torch.full_like(question_A, -1),
        score_A=record["vqa.in.weights"].float(),
        candidates=Tokens(ids_BL=record["vqa.in.cand_ids"], mask_BL=record["vqa.in.cand_atts"].bool()),
        **no_matching_rows(range(rows)),
    )
    expected = record["vqa.rank_topk_probs"]
    settings = AnswerConfig(sources={}, answers="", top_k=expected.shape[1], answer_weights="scores", batch_size=rows)
    view = AnswerView("answer", settings)
    module = CrossViewTraining(model, {"answer": view}, ObjectiveConfig(), SINGLE).eval()
    losses = module(Batch(step=0, views={"answer": batch}))
    assert losses.total.item() == pytest.approx(record["vqa.loss"].item(), abs=1e-5, rel=1e-4)
    losses.total.backward()
    renamed = to_published(gradients_of(model), published_weights(options))
    fine = {name.replace("text_encoder.bert.", "text_encoder."): value for name, value in renamed.items()}
    tuned.compare_gradients("vqa", fine)
    with torch.no_grad():
        found = view.predict(model, batch)
    assert torch.equal(found["answer"], record["vqa.rank_topk_ids"][:, 0])
    expect_close(found["probability"], expected[:, 0], "vqa.rank_topk_probs")
