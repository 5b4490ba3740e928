"""The answer view: a question about an image, answered by a decoder that writes, or by a class for each known answer.

| memory | query | head |
|---|---|---|
| image | question | answer decoder (xGQA as published), or classes (the baselines of IGLUE) |

Of multiple choice (CVQA), the decoder's mean log-probability a token says which of a question's own choices is best.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from cclm.annotations.questions import read_answers
from cclm.annotations.rows import QuestionRow
from cclm.data.batch import Tokens
from cclm.data.collate import int64, pad
from cclm.errors import ConfigError
from cclm.model.heads import present
from cclm.model.modeling_cclm import CCLMModel
from cclm.objectives.options import ObjectiveConfig
from cclm.objectives.tokens import answer_log_likelihood
from cclm.views.annotated.options import AnswerConfig
from cclm.views.annotated.rows import Row
from cclm.views.annotated.source import AnnotatedSource, AnnotatedView, Line, RowSample
from cclm.views.images import ImageBatch
from cclm.views.view import Contribution, EncodedView, RowLoss


@dataclass(frozen=True, kw_only=True)
class AnswerBatch(ImageBatch):
    """R questions with A answers."""

    answers: Tokens
    """A texts, from `<s>` to `</s>`."""
    question_A: Int[Tensor, " a"]
    """Which question each answers."""
    class_A: Int[Tensor, " a"]
    """Its number among the known answers; -1: it is none of them."""
    score_A: Float[Tensor, " a"]
    """How right it is."""
    candidates: Tokens | None = None
    """All known answers; None in training, and where each question has choices of its own."""
    choices: Tokens | None = None
    """Those choices, of all questions one after another."""
    question_C: Int[Tensor, " c"] | None = None
    """Whose choice each is."""


class AnswerSource(AnnotatedSource[AnswerConfig, AnswerBatch]):
    """Questions with their answers.

    Raises:
        ConfigError: as the base; a row of the sources that is no question with an answer; no answer is a known one.
    """

    stream_bits = 1 << 59
    sample_purpose = 18

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        for row in chain.from_iterable(self._rows):
            if not answers_of(row):
                do = "Give annotation files with answers."
                raise ConfigError(where=f"row {row.id}", expected="a question with answers", got="none", do=do)
        asked = [row for row in chain.from_iterable(self._rows) if not choices_of(row)]
        if asked and not any(answer in self._number for row in asked for answer, _ in answers_of(row)):
            raise ConfigError(
                where=f"views.{self.name}.answers", expected="answers to questions of its sources",
                got=f"none in {self.config.answers}", do="Name the file of all answers that belongs to them.",
            )  # fmt: skip

    @cached_property
    def _known(self) -> tuple[str, ...]:
        """All answers that are chosen from."""
        return read_answers(self.config.path(self.config.answers))

    @cached_property
    def _number(self) -> Mapping[str, int]:
        return {answer: number for number, answer in enumerate(self._known)}

    @cached_property
    def _candidates(self) -> Tokens:
        return pad(self.tokenizer.encode(self._known, self.config.max_answer_tokens), self.tokenizer.pad_id)

    def collate(self, samples: Sequence[RowSample], rows: range) -> AnswerBatch:
        """Make a batch of samples (ConfigError: a row that is no question)."""
        given = [answers_of(sample.row) for sample in samples]
        texts = [answer for answers in given for answer, _ in answers]
        ids = self.tokenizer.encode(texts, self.config.max_answer_tokens)
        ids = ids or [[self.tokenizer.bos_id, self.tokenizer.eos_id]]  # of a test set whose answers are not published
        return AnswerBatch(
            answers=pad(ids, self.tokenizer.pad_id),
            question_A=int64([number for number, answers in enumerate(given) for _ in answers]),
            class_A=int64([self._number.get(answer, -1) for answer in texts]),
            score_A=torch.tensor([score for answers in given for _, score in answers]),
            **self.shared_fields(samples, rows),
        )

    def evaluated(self, rows: Sequence[Row], first: int = 0) -> AnswerBatch:
        """Build a batch for evaluation, with all known answers or the questions' own choices.

        Raises:
            ConfigError: some questions have choices and others have none.
        """
        batch = super().evaluated(rows, first)
        choices = [choices_of(row) for row in rows]
        if not any(choices):
            return replace(batch, candidates=self._candidates)
        if not all(choices):
            without = rows[choices.index(())].id
            do = "Put them into a file of their own."
            raise ConfigError(where=f"row {without}", expected="choices, as others have them", got="none", do=do)
        ids = self.tokenizer.encode([one for of_row in choices for one in of_row], self.config.max_answer_tokens)
        question_C = int64([number for number, of_row in enumerate(choices) for _ in of_row])
        return replace(batch, choices=pad(ids, self.tokenizer.pad_id), question_C=question_C)


class AnswerView(AnnotatedView[AnswerConfig, AnswerBatch]):
    """Questions about images."""

    source = AnswerSource

    def contribute(self, objectives: ObjectiveConfig, batch: AnswerBatch, encoded: EncodedView) -> Contribution:
        """Let each question read its image."""
        has_classes = self.config.head == "classes"
        loss = self._class_loss if has_classes else self._decoder_loss

        def losses(model: CCLMModel, fused_RLD: Tensor, mask_RL: Tensor) -> dict[str, RowLoss]:
            return {"answers": RowLoss(loss_F=loss(model, batch, fused_RLD, mask_RL), weight=1.0)}

        return self.reading(batch, encoded, losses, is_pooled=has_classes)

    def _decoder_loss(self, model: CCLMModel, batch: AnswerBatch, fused_RLD: Tensor, mask_RL: Tensor) -> Tensor:
        """Negative log-likelihood of the answers, of the same weight each (as published) or by their scores."""
        decoder, of_A = present(model.answer_decoder, "answers", "answer_decoder: true"), batch.question_A
        ids_AL, mask_AL = batch.answers.ids_BL, batch.answers.mask_BL
        logits_ALV = decoder(ids_AL, mask_AL, fused_RLD[of_A], mask_RL[of_A])
        weight_A = torch.ones_like(batch.score_A) if self.config.answer_weights == "equal" else batch.score_A
        nothing_R = torch.zeros(len(batch.row_R), device=of_A.device)
        total_R = nothing_R.index_add(0, of_A, weight_A).clamp_min(1e-6)
        likelihood_A = answer_log_likelihood(logits_ALV, ids_AL, mask_AL)
        return nothing_R.index_add(0, of_A, -likelihood_A * weight_A / total_R[of_A])

    def _class_loss(self, model: CCLMModel, batch: AnswerBatch, fused_RLD: Tensor, mask_RL: Tensor) -> Tensor:
        """Binary cross-entropy with each known answer, the targets being scores; summed over answers."""
        logits_RC = self._of_known(model.class_logits([fused_RLD], mask_RL).float())
        target_RC = torch.zeros_like(logits_RC)
        is_known_A = batch.class_A >= 0
        score_A = batch.score_A * is_known_A
        target_RC = target_RC.index_put((batch.question_A, batch.class_A.clamp_min(0)), score_A, accumulate=True)
        return functional.binary_cross_entropy_with_logits(logits_RC, target_RC, reduction="none").sum(1)

    def _of_known(self, logits_RC: Tensor) -> Tensor:
        """Return the logits (ConfigError: there are not as many classes as known answers)."""
        if logits_RC.shape[1] == len(self._known):
            return logits_RC
        raise ConfigError(
            where="model.num_classes",
            expected=f"{len(self._known)}, as many as {self.config.answers} has answers",
            got=str(logits_RC.shape[1]),
            do="Correct it.",
        )

    def predict(self, model: CCLMModel, batch: AnswerBatch) -> dict[str, Tensor]:
        """Return the number and the probability of the best known answer to each question, (R,) each; or the score of
        each choice, (C,)."""
        pixels, text = batch.normalised().images, batch.text
        if batch.choices is not None and batch.question_C is not None:
            score_C = model.score_answers(
                pixels,
                text.ids_BL,
                text.mask_BL,
                answer_ids=batch.choices.ids_BL,
                answer_attention_mask=batch.choices.mask_BL,
                question_of=batch.question_C,
            )
            return {"choice": score_C}
        assert batch.candidates is not None, "only batches for evaluation have them"
        if self.config.head == "classes":
            logits_RC = self._of_known(model.classify(pixels, text.ids_BL, text.mask_BL)).float()
            score_R, best_R = logits_RC.softmax(-1).max(1)
            return {"answer": best_R, "probability": score_R}
        probability_RK, answer_RK = model.answer(
            pixels,
            text.ids_BL,
            text.mask_BL,
            answer_ids=batch.candidates.ids_BL,
            answer_attention_mask=batch.candidates.mask_BL,
            top_k=self.config.top_k,
        )
        return {"answer": answer_RK[:, 0], "probability": probability_RK[:, 0]}

    @cached_property
    def _known(self) -> tuple[str, ...]:
        return read_answers(self.config.path(self.config.answers))

    def judge(self, rows: Sequence[Row], outputs: Mapping[str, Tensor]) -> list[Line]:
        """Say the best answer to each question, with its probability among those that were looked at.

        `is_unknown`: no right answer is in the list of known ones.
        """
        known = frozenset(() if "choice" in outputs else self._known)
        if "choice" in outputs:
            parts = torch.split(outputs["choice"].float(), [len(choices_of(row)) for row in rows])
            best = [(int(part.argmax()), float(part.softmax(0).max())) for part in parts]
            said = [(choices_of(row)[number], score) for row, (number, score) in zip(rows, best, strict=True)]
        else:
            answers = zip(outputs["answer"].tolist(), outputs["probability"].tolist(), strict=True)
            said = [(self._known[answer], score) for answer, score in answers]
        return [
            {
                "id": row.id,
                "language": row.language,
                "answers": [list(pair) for pair in answers],
                "predicted": answer,
                "score": score,
                **({"is_unknown": True} if known and answers and known.isdisjoint(dict(answers)) else {}),
            }
            for row, answers, (answer, score) in zip(rows, map(answers_of, rows), said, strict=True)
        ]


def choices_of(row: Row) -> tuple[str, ...]:
    """Return what an answer is chosen from; nothing: all known answers."""
    return row.choices if isinstance(row, QuestionRow) else ()


def answers_of(row: Row) -> tuple[tuple[str, float], ...]:
    """Return the answers to a question; nothing: they are not published (ConfigError: it is no question)."""
    if isinstance(row, QuestionRow):
        return row.answers
    raise ConfigError(
        where=f"row {row.id}", expected="a question", got="another row", do="Give annotation files with questions."
    )
