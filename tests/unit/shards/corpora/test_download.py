"""Downloads from a real server on this machine: robots policy, failures, resuming, and the build that follows."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from cclm.errors import ConfigError
from shards.__main__ import main
from shards.corpora.table import corpus_of
from shards.download import fetcher as fetcher_module
from shards.download.fetcher import Fetcher, RobotsPolicy, opted_out, parsed_url, retry_after_s
from shards.download.options import TRANSIENT, DownloadOptions, Fetched
from shards.download.store import download
from tests.unit.shards.corpora.picture_server import PictureServer, picture_server
from tests.unit.shards.corpora.tiny_files import build, picture, rows_skipped

REPOSITORY = Path(__file__).parents[4]
QUICK = DownloadOptions(threads=4, retries=1, backoff_s=0.0, timeout_s=120.0, deadline_s=240.0)
PATHS = (
    "/ok/a.jpg",
    "/gone.jpg",
    "/flaky.jpg",
    "/down.jpg",
    "/private/x.jpg",
    "/optout.jpg",
    "/page",
    "/cut.jpg",
    "/moved",
)


@pytest.fixture
def server() -> Iterator[PictureServer]:
    with picture_server() as running:
        yield running


def fetch(url: str, options: DownloadOptions = QUICK) -> Fetched:
    async def one() -> Fetched:
        async with Fetcher(options) as fetcher:
            return await fetcher.fetch(url)

    return asyncio.run(one())


def write_list(folder: Path, urls: list[str]) -> dict[str, Any]:
    """Write a list as lines of JSON, which hold any text; return the options of its corpus."""
    lines = [json.dumps({"url": url, "caption": f"caption {number}"}) for number, url in enumerate(urls)]
    (folder / "list.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    captions = {"text": "caption", "language": "en"}
    return {
        "path": str(folder / "list.jsonl"),
        "downloads": str(folder / "pictures"),
        "captions": captions,
        "source": "x",
    }


@pytest.fixture
def listed(server: Any, tmp_path: Path) -> Any:
    """A list in CC3M's form: caption, tab, URL, no header."""
    lines = [f"caption {number}\t{server.url(path)}\n" for number, path in enumerate(PATHS)]
    (tmp_path / "cc3m.tsv").write_text("".join(lines) + "no url\nx\tftp://host/x.jpg\n", encoding="utf-8")
    return {
        "path": str(tmp_path / "cc3m.tsv"),
        "downloads": str(tmp_path / "pictures"),
        "columns": ["caption", "url"],
        "captions": {"text": "caption", "language": "en"},
        "source": "cc3m",
    }


EXPECTED = {
    "success": 4,
    "http_404": 1,
    "http_500": 1,
    "robots_denied": 1,
    "opted_out": 1,
    "image_format": 1,
    "line_broken": 1,
    "url_bad": 1,
}


def test_a_list_is_downloaded_politely_and_only_failures_again(server: Any, listed: Any) -> None:
    corpus = corpus_of("url_list", listed)
    assert dict(download(corpus, QUICK, shard_rows=4)) == EXPECTED
    assert server.asked["/robots.txt"] == 1 and server.asked["/private/x.jpg"] == 0
    assert (server.asked["/flaky.jpg"], server.asked["/down.jpg"], server.asked["/gone.jpg"]) == (2, 2, 1)
    made, refused = build("url_list", **listed)
    assert [record.captions["en"][0] for record in made] == ["caption 0", "caption 2", "caption 7", "caption 8"]
    assert made[0].image == picture(colour=len("/ok/a.jpg")) and made[0].ids["url"].endswith("/ok/a.jpg")
    assert refused == {name: count for name, count in EXPECTED.items() if name != "success"}

    server.asked.clear()
    server.healthy = True
    assert dict(download(corpus, QUICK)) == {name: n for name, n in EXPECTED.items() if name != "http_500"} | {
        "success": 5
    }
    assert set(server.asked) == {"/robots.txt", "/down.jpg"}, "only what may have passed"
    again, _ = build("url_list", **listed)
    assert [record.key for record in again if record.key in {old.key for old in made}] == [old.key for old in made]
    assert len(again) == 5

    server.asked.clear()
    download(corpus, QUICK)
    assert not server.asked, "nothing is left to do"
    download(corpus, QUICK, again=True)
    assert set(server.asked) == {"/robots.txt", "/gone.jpg", "/optout.jpg", "/page"}


def test_a_killed_download_goes_on_and_gives_the_same_bytes(server: Any, listed: Any, tmp_path: Path) -> None:
    corpus = corpus_of("url_list", listed)

    class KilledError(Exception):
        pass

    def kill(_counts: Any) -> None:
        raise KilledError

    with pytest.raises(KilledError):
        download(corpus, QUICK, shard_rows=4, on_shard=kill)
    with pytest.raises(
        ConfigError, match=r"a download that has not seen the whole list yet. Run `python -m shards down"
    ):
        corpus.parts()
    first = server.asked["/ok/a.jpg"]
    (tmp_path / "pictures" / ".00001.tar.partial").write_bytes(b"half")
    download(corpus, QUICK)
    assert server.asked["/ok/a.jpg"] == first == 1
    server.asked.clear()
    other = corpus_of("url_list", listed | {"downloads": str(tmp_path / "other")})
    download(other, QUICK, shard_rows=4)
    # A second life of the flaky paths succeeds at once, with the same bytes.
    for name in ("00000.tar", "00000.parquet", "00002.tar", "00002.parquet"):
        assert (tmp_path / "pictures" / name).read_bytes() == (tmp_path / "other" / name).read_bytes()


def test_another_list_in_the_same_folder_is_refused(server: Any, listed: Any, tmp_path: Path) -> None:
    corpus = corpus_of("url_list", listed)
    download(corpus, QUICK)
    with (tmp_path / "cc3m.tsv").open("a") as file:
        file.write(f"new\t{server.url('/ok/new.jpg')}\n")
    for attempt in (corpus.parts, lambda: download(corpus, QUICK)):
        with pytest.raises(ConfigError, match="those of another list, or of one that has changed"):
            attempt()


def test_robots_that_cannot_be_had_and_robots_that_do_not_exist(server: PictureServer) -> None:
    server.robots_status = 500
    answer = fetch(server.url("/ok/a.jpg"), replace(QUICK, retries=0))
    assert answer.status == "robots_unreachable" and server.asked["/ok/a.jpg"] == 0
    assert fetch(server.url("/private/x.jpg"), replace(QUICK, robots=False)).status == "success"
    server.robots_status = 404
    assert fetch(server.url("/private/x.jpg")).status == "success"
    server.robots_status = 200
    assert fetch(server.url("/moved/private")).status == "robots_denied"
    assert fetch(server.url("/ok/a.jpg"), replace(QUICK, user_agent="other/1.0")).status == "robots_denied"


@pytest.mark.parametrize(("moves", "status"), [(5, "robots_denied"), (6, "success")])
def test_robots_txt_is_followed_over_five_redirects(server: PictureServer, moves: int, status: str) -> None:
    server.robots_moves = moves
    assert fetch(server.url("/private/x.jpg")).status == status


def test_other_failures_have_their_own_words(server: PictureServer) -> None:
    options = replace(QUICK, retries=0, max_bytes=100)
    assert fetch(server.url("/ok/a.jpg"), options).status == "too_large"
    assert fetch(server.url("/round"), options).status == "too_many_redirects"
    port = server.server_port
    server.shutdown()
    server.server_close()
    assert fetch(f"http://127.0.0.1:{port}/x", replace(QUICK, retries=0, robots=False)).status == "connection_failed"


@pytest.mark.parametrize("path", ["/slow.jpg", "/slow_head.jpg"])
def test_an_answer_that_comes_byte_by_byte_has_a_deadline(server: PictureServer, path: str) -> None:
    answer = fetch(server.url(path), replace(QUICK, robots=False, deadline_s=1.5, retries=3, backoff_s=9.0))
    assert answer.status == "timeout" and answer.status in TRANSIENT and "1.5 s" in answer.message
    assert server.trickling.wait(60) and server.asked[path] == 1


NO_TEXT = ("", " ", "http://\x00/x")
MALFORMED = (
    "x",
    "http://",
    "http:/x",
    "https:///x",
    "//127.0.0.1/x",
    "ftp://127.0.0.1/x",
    "http://[bad",
    "http://127.0.0.1:99999/x",
    "http://127.0.0.1:port/x",
    "http://a b/x",
    "http://%zz/x",
    "http://a..b/x",
    f"http://{'a' * 70}.com/x",
    "http://1.2.3.4.5/x",
)


def test_malformed_urls_are_refused_once_and_white_space_around_a_url_is_not_part_of_it(
    server: PictureServer, tmp_path: Path
) -> None:
    sound = [f" {server.url('/ok/a.jpg')}", f"{server.url('/ok/b c.jpg')}\t\u3000"]
    corpus = corpus_of("url_list", write_list(tmp_path, [*sound, *NO_TEXT, *MALFORMED]))
    assert dict(download(corpus, QUICK)) == {"success": 2, "url_bad": len(MALFORMED), "line_broken": len(NO_TEXT)}
    assert server.asked.keys() == {"/robots.txt", "/ok/a.jpg", "/ok/b%20c.jpg"}
    server.asked.clear()
    download(corpus, QUICK)
    assert not server.asked, "none of them is tried again"
    made, refused = build("url_list", **write_list(tmp_path, [*sound, *NO_TEXT, *MALFORMED]))
    assert len(made) == 2 and refused["url_bad"] == len(MALFORMED)


@given(st.text(max_size=30), st.sampled_from(["", "http://", "https://", "http://127.0.0.1:", "http://127.0.0.1/"]))
def test_any_text_is_a_url_or_refused(text: str, before: str) -> None:
    try:
        url = parsed_url(before + text)
    except ValueError:
        return
    assert url.scheme in ("http", "https") and url.raw_host and str(url).encode("ascii")


def test_what_nobody_has_thought_of_costs_one_url(
    server: PictureServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stumble(headers: Any, *_: object) -> str:
        raise KeyError("surprise")

    urls = [server.url(path) for path in ("/late_iccp.png", "/ok/a.jpg")]
    options = write_list(tmp_path, urls)
    assert dict(download(corpus_of("url_list", options), QUICK)) == {"image_broken": 1, "success": 1}
    rows = pyarrow.parquet.read_table(tmp_path / "pictures" / "00000.parquet").to_pylist()
    assert "IndexError" in rows[0]["message"] and rows[0]["url"] == urls[0] and rows[0]["status"] not in TRANSIENT
    made, refused = build("url_list", **options)
    assert len(made) == 1 and refused == {"image_broken": 1}
    monkeypatch.setattr(fetcher_module, "opted_out", stumble)
    answer = fetch(urls[1])
    assert answer.status == "unexpected" and urls[1] in answer.message and "KeyError" in answer.message


def test_half_characters_in_a_list_cost_one_entry(server: PictureServer, tmp_path: Path) -> None:
    options = write_list(tmp_path, [server.url(f"/ok/{name}.jpg") for name in ("a", "b", "\ud800")])
    text = (tmp_path / "list.jsonl").read_text()
    (tmp_path / "list.jsonl").write_text(text.replace("caption 1", "half \\ud800"))
    assert dict(download(corpus_of("url_list", options), QUICK)) == {"success": 1, "line_broken": 2}


def test_a_list_that_was_touched_or_copied_is_the_same_list(
    server: PictureServer, listed: dict[str, Any], tmp_path: Path
) -> None:
    corpus = corpus_of("url_list", listed)
    download(corpus, QUICK)
    server.asked.clear()
    os.utime(tmp_path / "cc3m.tsv", (1, 1))
    assert len(corpus.parts()) == 1
    download(corpus, replace(QUICK, retries=0))
    assert set(server.asked) == {"/robots.txt", "/down.jpg"}
    old = json.loads((tmp_path / "pictures" / "list.json").read_text())
    assert old["stamp"].endswith("-1000000000"), "the next look need not hash"
    (tmp_path / "pictures" / "list.json").write_text(json.dumps({"stamp": old["stamp"], "shard_rows": 1000}))
    download(corpus, replace(QUICK, retries=0))  # a folder of an earlier version, without a hash


TELLING = """
import runpy, sys
from pathlib import Path
from shards.download import store
facts, told = store._facts_of, Path(sys.argv.pop(1))
def telling(fetched):
    if fetched.status != "not_tried":
        with told.open("a") as file:
            file.write(fetched.status + "\\n")
    return facts(fetched)
store._facts_of = telling
runpy.run_module("shards", run_name="__main__", alter_sys=True)
"""
"""The program, which writes down what it knows as soon as it does."""


@pytest.mark.slow
def test_control_c_ends_a_download_at_once_and_keeps_what_is_done(server: PictureServer, tmp_path: Path) -> None:
    paths = ["/ok/a.jpg", "/slow.jpg", "/ok/b.jpg", "/gone.jpg", "/slow_head.jpg"]
    options = write_list(tmp_path, [server.url(path) for path in paths])
    sets = {"sets": {"x": {"view": "image_text", "corpus": "url_list", "options": options}}}
    (tmp_path / "recipe.yaml").write_text(json.dumps(sets))
    told = tmp_path / "told"
    command = [sys.executable, "-c", TELLING, str(told), "download", str(tmp_path / "recipe.yaml"), "--per-host", "5"]
    command += ["--timeout-s", "600", "--deadline-s", "600"]
    process = subprocess.Popen(command, cwd=REPOSITORY, stderr=subprocess.PIPE, text=True)
    while not told.exists() or sorted(told.read_text().split()) != ["http_404", "success", "success"]:
        assert process.poll() is None
        time.sleep(0.05)
    assert server.trickling.wait(60)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130 and "Traceback" not in errors and "goes on" in errors
    rows = pyarrow.parquet.read_table(tmp_path / "pictures" / "00000.parquet").to_pylist()
    assert [row["status"] for row in rows] == ["success", "not_tried", "success", "http_404", "not_tried"]
    server.healthy = True
    server.asked.clear()
    assert dict(download(corpus_of("url_list", options), QUICK)) == {"success": 4, "http_404": 1}
    assert set(server.asked) == {"/robots.txt", "/slow.jpg", "/slow_head.jpg"}
    other = options | {"downloads": str(tmp_path / "other")}
    download(corpus_of("url_list", other), QUICK)
    for name in ("00000.tar", "00000.parquet"):
        assert (tmp_path / "pictures" / name).read_bytes() == (tmp_path / "other" / name).read_bytes()


def test_a_busy_host_is_waited_for_as_long_as_it_asks() -> None:
    assert [retry_after_s(value) for value in ("", "7", " 30 ", "soon", "-1", "Fri, 01 Jan 2010 00:00:00 GMT")] == [
        0.0,
        7.0,
        30.0,
        0.0,
        0.0,
        0.0,
    ]
    assert retry_after_s("Wed, 01 Jan 2098 00:00:00 GMT") > 1e9


@pytest.mark.parametrize(
    ("headers", "directive"),
    [
        ([("X-Robots-Tag", "noindex")], "X-Robots-Tag: noindex"),
        ([("x-robots-tag", "noarchive"), ("X-Robots-Tag", "CCLM: noimageai")], "X-Robots-Tag: noimageai"),
        ([("X-Robots-Tag", "googlebot: noindex, noai")], ""),
        ([("X-Robots-Tag", "unavailable_after: 1 Jan 2030, noai")], "X-Robots-Tag: noai"),
        ([("TDM-Reservation", "1")], "tdm-reservation: 1"),
        ([("tdm-reservation", "0"), ("Content-Type", "image/jpeg")], ""),
    ],
)
def test_headers_by_which_a_picture_opts_out(headers: Any, directive: str) -> None:
    assert opted_out(headers, "cclm") == directive


def test_a_host_is_asked_for_its_rules_once_and_may_ask_for_patience() -> None:
    asked: Counter[str] = Counter()

    async def robots_txt(url: str) -> tuple[int, bytes]:
        asked[url] += 1
        await asyncio.sleep(0.01)
        return 200, b"User-agent: cclm\nCrawl-delay: 2.5\nDisallow: /no"

    async def ask() -> list[str]:
        return await asyncio.gather(
            *(policy.refusal("http://a", f"http://a/{'no' if n % 2 else 'yes'}") for n in range(40))
        )

    policy = RobotsPolicy(robots_txt, "cclm")
    assert policy.delay_s("http://a") == 0.0
    assert asyncio.run(ask()) == ["", "robots_denied"] * 20 and asked == {"http://a/robots.txt": 1}
    assert policy.delay_s("http://a") == 2.5


def test_one_host_gets_few_requests_at_once_and_others_need_not_wait(server: PictureServer) -> None:
    done = []

    async def all_of(urls: list[str], options: DownloadOptions) -> None:
        async with Fetcher(options) as fetcher:

            async def one(url: str) -> None:
                assert (await fetcher.fetch(url)).status == "success"
                done.append(url)
                while url == urls[-1] and server.held < 2 and not server.release.is_set():
                    await asyncio.sleep(0.01)
                await asyncio.sleep(0.1)  # for one too many
                server.release.set()

            await asyncio.gather(*map(one, urls))

    with picture_server() as small:
        urls = [*(server.url(f"/held/{n}.jpg") for n in range(12)), small.url("/ok/small.jpg")]
        asyncio.run(all_of(urls, replace(QUICK, threads=8, per_host=2)))
    assert server.most_held == 2 and len(done) == 13
    assert done[0] == urls[-1], "a small host does not wait behind a large one"


def test_a_delay_is_kept_between_the_starts_of_requests(server: PictureServer, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []

    async def sleep(delay_s: float) -> None:
        pauses.append(delay_s)

    async def all_of() -> None:
        async with Fetcher(replace(QUICK, per_host=4, interval_s=0.1, robots=False)) as fetcher:
            await asyncio.gather(*(fetcher.fetch(server.url(f"/ok/{n}.jpg")) for n in range(4)))

    monkeypatch.setattr("shards.download.fetcher.time", SimpleNamespace(monotonic=lambda: 5.0, time=time.time))
    monkeypatch.setattr("asyncio.sleep", sleep)
    asyncio.run(all_of())
    assert pauses == pytest.approx([0.0, 0.1, 0.2, 0.3])


def test_sbu_in_both_of_its_forms(server: Any, tmp_path: Path) -> None:
    urls = [server.url(f"/ok/{n}.jpg") for n in range(3)]
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "SBU_captioned_photo_dataset_urls.txt").write_text("\n".join(urls) + "\n")
    (tmp_path / "text" / "SBU_captioned_photo_dataset_captions.txt").write_text("one\ntwo\n")
    (tmp_path / "json").mkdir()
    document = {"image_urls": urls, "captions": ["one", "two"], "user_ids": ["u"] * 3}
    (tmp_path / "json" / "sbu-captions-all.json").write_text(json.dumps(document))
    for form in ("text", "json"):
        options = {"folder": str(tmp_path / form), "downloads": str(tmp_path / form / "pictures")}
        assert dict(download(corpus_of("sbu", options), QUICK)) == {"success": 2, "line_broken": 1}
        made, refused = build("sbu", **options)
        assert [(record.captions["en"], record.ids["row"]) for record in made] == [(["one"], "1"), (["two"], "2")]
        assert refused == {"line_broken": 1}
    with pytest.raises(ConfigError, match=r"expected SBU_captioned_photo_dataset_urls.txt and"):
        corpus_of("sbu", {"folder": str(tmp_path), "downloads": str(tmp_path / "p")}).list_stamp()


WIT_HEADER = "language\tpage_url\timage_url\tpage_title\tcaption_reference_description\tcaption_alt_text_description\n"


def test_wit_joins_rows_of_one_picture_and_takes_pixels_or_downloads(server: Any, tmp_path: Path) -> None:
    first, second = server.url("/ok/Karvin%C3%A1.svg"), server.url("/ok/b.png")
    rows = [
        ("bg", "p", first, "t", '"Деление на ""окръга"",\nтук"', ""),
        ("en", "p", second, "t", "", "alt only"),
        ("en", "p", first, "t", "Districts", ""),
        ("de", "p", first, "t", " ", ""),
    ]
    (tmp_path / "wit.tsv").write_text(WIT_HEADER + "".join("\t".join(row) + "\n" for row in rows) + "broken\n", "utf-8")
    options = {"path": str(tmp_path / "wit.tsv"), "downloads": str(tmp_path / "pictures")}
    assert dict(download(corpus_of("wit", options), QUICK)) == {"success": 1, "line_broken": 3}
    (record,), refused = build("wit", **options)
    assert record.captions == {"bg": ['Деление на "окръга",\nтук'], "en": ["Districts"]} and refused == {
        "line_broken": 3
    }
    pixels = f"{first}\t{base64.b64encode(picture()).decode()}\tm\n{second}\t***\tm\n"
    (tmp_path / "pixels.csv").write_text(pixels)
    with_pixels = {"path": options["path"], "pixels": str(tmp_path / "pixels.csv")}
    fields = ["caption_reference_description", "caption_alt_text_description"]
    made, refused = build("wit", **with_pixels, fields=fields)
    assert [one.captions for one in made] == [record.captions] and made[0].ids == {"url": first}
    assert refused == {"base64_broken": 1, "line_broken": 2}
    (tmp_path / "pixels.csv").write_text("")
    assert build("wit", **with_pixels)[1] == {"image_missing": 1, "line_broken": 3}
    assert rows_skipped("wit", **with_pixels) == {}
    other = {"languages": ["bg"], "source": "w", "downloads": str(tmp_path / "bulgarian")}
    assert dict(download(corpus_of("wit", options | other), QUICK)) == {"success": 1, "line_broken": 1}
    for places in (options, with_pixels):
        assert rows_skipped("wit", **(places | other)) == {("w", "en"): 2, ("w", "de"): 1}


def test_the_command_tells_what_became_of_every_entry(server: Any, listed: Any, tmp_path: Path) -> None:
    sets = {"sets": {"cc3m": {"view": "image_text", "corpus": "url_list", "options": listed, "max_bad_fraction": 0.9}}}
    (tmp_path / "recipe.yaml").write_text(json.dumps(sets))
    buffer = io.StringIO()
    command = ["download", str(tmp_path / "recipe.yaml"), "--retries", "1", "--backoff-s", "0", "--threads", "2"]
    assert main(command, Console(file=buffer, width=200)) == 0
    assert f"cc3m: 11 entries in {tmp_path / 'pictures'}: success 4" in buffer.getvalue()
    assert pyarrow.parquet.read_table(tmp_path / "pictures" / "00000.parquet").num_rows == 11
