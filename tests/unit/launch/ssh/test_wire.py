from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from launch.machine import Machine
from launch.ssh.wire import Answer, Question, Reader, answer_of, encode, message_of, question_of

MACHINE = Machine(host="n1", cores=(0, 1), quota_cores=1.5, num_gpus=0, free_port=4000)
QUESTION = Question(
    folder="/a b", run_folder="/run", interface=None, master="n1", port=1, is_alone=False, environment={"X": "é\n'"}
)


def read(*parts: bytes) -> list[object]:
    reader = Reader()
    return [message for part in parts for message in reader.feed(part)]


def test_questions_and_answers_arrive_as_they_were() -> None:
    answer = Answer(complaints=("one", "two"), machine=MACHINE, address="10.0.0.1")
    asked, answered = read(encode(message_of(QUESTION)), encode(message_of(answer)))
    assert question_of(asked) == QUESTION  # type: ignore[arg-type]
    assert answer_of(answered) == answer  # type: ignore[arg-type]


def test_a_message_is_one_line_whatever_is_in_it() -> None:
    assert encode(message_of(QUESTION)).count(b"\n") == 1
    assert encode(message_of(QUESTION)).isascii()


def test_chatter_is_kept_apart_even_without_an_end_of_line() -> None:
    reader = Reader()
    stream = b"Welcome to n1!\n\n\xff last login" + encode({"a": 1}) + b"bye\n"
    assert list(reader.feed(stream)) == [{"a": 1}]
    assert reader.chatter == "bye"


@given(messages=st.lists(st.dictionaries(st.text(), st.text()), max_size=5), cuts=st.lists(st.integers(0, 200)))
def test_it_does_not_matter_how_the_stream_is_cut(messages: list[dict[str, str]], cuts: list[int]) -> None:
    stream = b"".join(encode(message) for message in messages)
    edges = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    assert read(*(stream[a:b] for a, b in pairwise(edges))) == messages
