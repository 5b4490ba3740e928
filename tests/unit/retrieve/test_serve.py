"""The search page without a browser: what is shown and refused, how it begins and ends (`make test-page` has one)."""

from __future__ import annotations

import base64
import hashlib
import html
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from dataclasses import replace
from html.parser import HTMLParser
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from cclm.cli.__main__ import main
from cclm.errors import ConfigError, MissingDependencyError
from cclm.hub.open import OpenedModel
from cclm.retrieve.answer import MOST_CHARACTERS, SearchBox, guessed_language
from cclm.retrieve.embed import Embedder, embed
from cclm.retrieve.embed_source import Files, Shards
from cclm.retrieve.index import exact
from cclm.retrieve.search import Searcher, load_embedded, look_again
from cclm.retrieve.serve import address_of, is_loopback, listen, make_app
from tests.unit.data.data_sets import write_images
from tests.unit.hub.test_hub_folder import write
from tests.unit.retrieve.test_embed import facts_of

NUM_IMAGES = 9
VOID = {"meta", "link", "img", "input"}


@pytest.fixture(scope="module")
def box(opened: OpenedModel, tmp_path_factory: pytest.TempPathFactory) -> SearchBox:
    """Images with captions, embedded; the best five are ordered anew, four are shown."""
    folder = tmp_path_factory.mktemp("served")
    write_images(folder / "images", NUM_IMAGES)
    source = Shards(folder / "images", True)
    embed(Embedder(opened=opened), source, folder / "embedded", facts_of(opened, source))
    embedded = load_embedded(folder / "embedded")
    return SearchBox(
        searcher=Searcher(opened=opened, embedded=embedded, nearest=exact(embedded.feature_NE)),
        source=embedded.source(),
        texts=load_embedded(folder / "embedded", "text"),
        top_k=4,
        rerank_top=5,
        name="my <images>",
    )


def client_of(box: SearchBox, host: str = "127.0.0.1", base: str = "http://127.0.0.1:8000") -> Any:
    testclient = pytest.importorskip("starlette.testclient")
    return testclient.TestClient(make_app(box, host), base_url=base)


@pytest.fixture
def client(box: SearchBox) -> Any:
    return client_of(box)


def columns(page: str) -> dict[str, list[int]]:
    """Numbers of the images by column."""
    parts = page.split('<section aria-labelledby="')[1:]
    return {part.partition('"')[0]: [int(one) for one in re.findall(r'src="/image/(\d+)\?', part)] for part in parts}


def test_both_rankings_are_those_of_the_model(client: Any, box: SearchBox, opened: OpenedModel) -> None:
    reply = client.get("/", params={"q": "  a red\n car "})
    assert reply.status_code == 200 and "4 of 9 images for" in reply.text and "a red car</q>" in reply.text
    hits = box.searcher.best(["a red car"], 5)[0]
    again = look_again(opened, box.source, "a red car", hits)
    assert columns(reply.text) == {
        "dual": [hit.unit for hit in hits[:4]],
        "reranked": [hit.unit for hit in again[:4]],
    }
    assert (
        f"<b>{hits[0].cosine:.3f}</b> cosine" in reply.text
        and f"<b>{100 * (again[0].match or 0):.0f} %</b>" in reply.text
    )
    moved = [hits.index(next(hit for hit in hits if hit.unit == one.unit)) + 1 for one in again[:4]]
    for rank, before in enumerate(moved, start=1):
        assert ("same place" if rank == before else f"was {before}") in reply.text


def test_captions_name_images_and_are_examples_of_queries(client: Any, box: SearchBox) -> None:
    assert 1 <= len(box.examples) <= 8 and len({language for language, _ in box.examples}) == len(box.examples)
    first = client.get("/").text
    for language, text in box.examples:
        assert f'lang="{language}" dir="auto">{html.escape(text)}</a>' in first
    assert columns(first) == {} and "autofocus" in first
    found = client.get("/", params={"q": "a red car"}).text
    shown = columns(found)["dual"][0]
    assert html.escape(box.captions[shown]["en"]) in found and "autofocus" not in found


def test_without_a_second_column_or_captions(box: SearchBox) -> None:
    plain = replace(box, rerank_top=0, texts=None)
    page = client_of(plain).get("/", params={"q": "a"}).text
    assert list(columns(page)) == ["dual"] and 'class="caption"' not in page
    assert "For example" not in client_of(plain).get("/").text


@pytest.mark.parametrize(
    ("query", "what", "do"),
    [
        ("", "The query is empty.", "Type what the image should show"),
        (" \n\t ", "The query is empty.", "Type what the image should show"),
        ("a" * (MOST_CHARACTERS + 1), "The query has 1,001 characters", "Say it in a sentence or two."),
        ("☃☃", "The model&#39;s vocabulary knows no piece of this text.", "Try other words"),
    ],
)
def test_a_query_without_an_answer_is_told_what_to_do(client: Any, query: str, what: str, do: str) -> None:
    reply = client.get("/", params={"q": query})
    assert reply.status_code == 400 and what in reply.text and do in reply.text
    status = reply.text.partition('role="status">')[2].partition('<div id="found">')[0]
    assert what in status, "read aloud"
    assert columns(reply.text) == {}


def test_what_was_not_read_is_noted(client: Any, opened: OpenedModel) -> None:
    text = "a red car and many more words ☃"
    reply = client.get("/", params={"q": text})
    assert reply.status_code == 200 and len(columns(reply.text)) == 2
    assert "and the model reads the first 18: shorten it." in reply.text
    unknown = sum(letter not in opened.tokenizer._tokenizer.get_vocab() for letter in text.replace(" ", "▁"))
    assert f"{unknown} of {len(text)} tokens are not in the model&#39;s vocabulary" in reply.text and unknown


def test_the_language_is_named_with_its_certainty(client: Any) -> None:
    pytest.importorskip("py3langid")
    sentence = "Ein Mann mit einem orangefarbenen Hut, der etwas anstarrt"
    guess = guessed_language(sentence)
    assert guess is not None and (guess.tag, guess.words) == ("de", "German")
    page = client.get("/", params={"q": sentence}).text
    assert "Language: German." in page and '<q lang="de" dir="auto">' in page
    for probability, words in ((0.71, "German"), (0.31, "perhaps German (31 % sure)"), (0.29, "not clear")):
        assert replace(guess, probability=probability).words == words


def test_a_language_is_not_detected_without_the_package(monkeypatch: pytest.MonkeyPatch, client: Any) -> None:
    from cclm.rows.cells import language_identifier

    language_identifier.cache_clear()
    monkeypatch.setitem(sys.modules, "py3langid.langid", None)
    page = client.get("/", params={"q": "ein rotes Auto"}).text
    assert "Language: not detected" in page and len(columns(page)) == 2


def test_everything_is_escaped(client: Any) -> None:
    evil = "\"><script>alert('x')</script>"
    for page in (client.get("/", params={"q": evil}).text, client.get("/").text):
        assert page.count("<script") == 1 and "my <images>" not in page and "my &lt;images&gt;" in page
    assert (
        f'value="{html.escape(evil).replace("&#x27;", "&#39;").replace("&quot;", "&#34;")}"'
        in client.get("/", params={"q": evil}).text
    )


def test_only_images_of_the_set_are_served_small_and_by_number(client: Any, box: SearchBox) -> None:
    import io

    for address, longest in (("/image/3", 240), ("/image/3/large", 1024)):
        reply = client.get(address)
        assert reply.status_code == 200 and reply.headers["content-type"] == "image/jpeg"
        assert max(Image.open(io.BytesIO(reply.content)).size) <= longest
    for address in (
        "/image/99", "/image/-1", "/image/3/huge", "/image/images%2F..%2Fx", "/image/../embedded/_embedding.json",
        "/image/%2e%2e/%2e%2e/etc/passwd", f"/image/{'9' * 5000}", "/image/", "/manifest.json", "/search.py",
    ):  # fmt: skip
        assert client.get(address).status_code == 404, address
    assert client.post("/").status_code == 405


def test_texts_of_the_set_are_no_images(opened: OpenedModel, tmp_path: Path) -> None:
    root = tmp_path / "things"
    root.mkdir()
    (root / "a.txt").write_text("a secret\n")
    Image.new("RGB", (9, 9)).save(root / "b.png")
    source = Files(root)
    embed(Embedder(opened=opened), source, tmp_path / "out", facts_of(opened, source))
    embedded = load_embedded(tmp_path / "out")
    box = SearchBox(
        searcher=Searcher(opened=opened, embedded=embedded, nearest=exact(embedded.feature_NE)), source=source
    )
    client = client_of(box)
    assert [client.get(f"/image/{number}").status_code for number in (0, 1)] == [404, 200]
    (root / "b.png").unlink()
    fresh = client_of(replace(box))
    gone = fresh.get("/image/1")
    assert gone.status_code == 410 and "a readable file" in gone.text
    page = fresh.get("/", params={"q": "a"})
    assert page.status_code == 200 and "An image could not be read" in page.text, "the first column is still there"
    assert list(columns(page.text)) == ["dual", "reranked"]


@pytest.mark.parametrize(
    ("host", "is_answered"),
    [
        *((name, True) for name in ("127.0.0.1:8000", "localhost:9", "LOCALHOST", "[::1]:8000")),
        *(
            (name, False)
            for name in ("evil.example", "127.0.0.1.evil.example", "", "a@localhost", "[::1", "10.0.0.1:8000")
        ),
    ],
)
def test_a_page_of_another_name_reads_nothing(client: Any, host: str, is_answered: bool) -> None:
    for address in ("/", "/?q=a", "/image/1", "/nothing"):
        reply = client.get(address, headers={"host": host})
        assert (reply.status_code == 421) != is_answered, address


def test_other_machines_may_come_where_that_was_asked_for(box: SearchBox) -> None:
    assert client_of(box, "0.0.0.0", "http://search.example:8000").get("/").status_code == 200
    assert client_of(box, "127.0.0.2", "http://127.0.0.2:8000").get("/").status_code == 200
    assert [is_loopback(host) for host in ("127.0.0.2", "::1", "localhost", "0.0.0.0", "::", "a.example")] == [
        *(True, True, True), *(False, False, False)
    ]  # fmt: skip


def test_replies_let_nothing_else_in(client: Any) -> None:
    for address in ("/", "/image/1", "/nothing"):
        headers = client.get(address).headers
        assert headers["x-content-type-options"] == "nosniff" and headers["referrer-policy"] == "no-referrer"
        assert headers["cross-origin-resource-policy"] == "same-origin"
    first, second = client.get("/"), client.get("/", params={"q": "a red car"})
    assert first.headers["cache-control"] == "no-store"
    policy = first.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy and "unsafe" not in policy
    for page, element in product((first.text, second.text), ("style", "script")):
        (text,) = re.findall(rf"<{element}>(.*?)</{element}>", page, flags=re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{element}-src 'sha256-{digest}'" in policy


class Outline(HTMLParser):
    """Elements in order with attributes; fails where they are not nested."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.found: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def all_of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.found if name == tag]


@pytest.mark.parametrize("query", [None, "", "a red car"])
def test_the_page_is_whole_labelled_and_asks_nothing_of_others(client: Any, query: str | None) -> None:
    page = client.get("/", params={} if query is None else {"q": query}).text
    outline = Outline()
    outline.feed(page)
    assert outline.open == []
    (form,), (label,), (box,) = outline.all_of("form"), outline.all_of("label"), outline.all_of("input")
    assert (form["method"], form["action"]) == ("get", "/") and label["for"] == box["id"] and box["name"] == "q"
    assert outline.all_of("a")[0] == {"class": "skip", "href": "#results"}
    assert outline.all_of("main")[0]["id"] == "results"
    ids = [attributes["id"] for _, attributes in outline.found if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert all(attributes["aria-labelledby"] in ids for attributes in outline.all_of("section"))
    addresses = [
        value for _, attributes in outline.found for name, value in attributes.items() if name in ("src", "href")
    ]
    assert all(str(value).startswith(("/", "#", "data:,")) and not str(value).startswith("//") for value in addresses)
    assert "http" not in page and "url(" not in page and 'style="' not in page
    assert all("alt" in image for image in outline.all_of("img"))
    assert (len(outline.all_of("ol")) == 2) == bool(query)


def test_an_address_that_cannot_be_had_is_a_sentence() -> None:
    with listen("127.0.0.1", 0) as listening:
        port = listening.getsockname()[1]
        assert address_of(listening) == f"http://127.0.0.1:{port}/"
        with pytest.raises(ConfigError, match="Give another --port"):
            listen("127.0.0.1", port)
    for host, wrong in (("no.such.host.invalid", 0), ("127.0.0.1", 99999)):
        with pytest.raises(ConfigError, match="an address of this machine and a free port"):
            listen(host, wrong)


@pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6")
def test_an_address_of_six_has_brackets() -> None:
    try:
        listening = listen("::1", 0)
    except ConfigError:
        pytest.skip("this machine has no ::1")
    with listening:
        assert re.fullmatch(r"http://\[::1\]:\d+/", address_of(listening))


def test_a_missing_package_is_a_sentence(box: SearchBox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "starlette.applications", None)
    with pytest.raises(MissingDependencyError, match=r'pip install "cclm-pretraining\[serve\]"'):
        make_app(box)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ([], "expected texts to search for, or --serve"),
        (["a", "--serve"], "got both"),
        (["--serve", "--html", "x.html"], "neither a text nor --html"),
        (["--serve", "--kind", "text"], "they look at images"),
    ],
)
def test_options_that_contradict_are_refused(more: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["search", "nowhere", *more, "--model", "nowhere"]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.slow
def test_the_command_serves_until_it_is_asked_to_end(opened: OpenedModel, tmp_path: Path) -> None:
    """By SIGTERM; by SIGINT in `make test-page`."""
    write(opened, tmp_path / "model")
    write_images(tmp_path / "images", 4)
    source = Shards(tmp_path / "images", True)
    embed(Embedder(opened=opened), source, tmp_path / "embedded", facts_of(opened, source))
    command = [sys.executable, "-m", "cclm.cli", "search", str(tmp_path / "embedded"), "--serve", "--port", "0"]
    command += ["--model", str(tmp_path / "model")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            assert line, process.communicate(timeout=60)
            address = line.split()[0]
            with urllib.request.urlopen(f"{address}?q=ein%20rotes%20Auto", timeout=60) as reply:
                assert list(columns(reply.read().decode())) == ["dual", "reranked"]
            process.send_signal(signal.SIGTERM)
            rest, errors = process.communicate(timeout=60)
        finally:
            process.kill()
    assert (process.returncode, rest) == (0, "ended\n") and "Traceback" not in errors
