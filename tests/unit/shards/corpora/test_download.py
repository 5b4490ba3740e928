"""Downloads from a real server on this machine: manners, failures, resuming, and the build that follows."""

from __future__ import annotations

import base64
import io
import itertools
import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pyarrow.parquet
import pytest
from rich.console import Console

from cclm.errors import ConfigError
from shards.__main__ import main
from shards.corpora.table import corpus_of
from shards.download.fetcher import Fetched, Fetcher
from shards.download.manners import RobotsRules, opted_out
from shards.download.options import DownloadOptions
from shards.download.store import download
from shards.download.turns import fetch_in_turns
from tests.unit.shards.corpora.picture_server import picture_server
from tests.unit.shards.corpora.tiny_files import build, picture, rows_skipped

QUICK = DownloadOptions(threads=4, retries=1, backoff_s=0.0, timeout_s=10.0)
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
def server():
    pytest.importorskip("urllib3")
    pytest.importorskip("protego")
    with picture_server() as running:
        yield running


@pytest.fixture
def listed(server, tmp_path):
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


def test_a_list_is_downloaded_politely_and_only_failures_again(server, listed):
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


def test_a_killed_download_goes_on_and_gives_the_same_bytes(server, listed, tmp_path):
    corpus = corpus_of("url_list", listed)

    class KilledError(Exception):
        pass

    def kill(_counts):
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


def test_another_list_in_the_same_folder_is_refused(server, listed, tmp_path):
    corpus = corpus_of("url_list", listed)
    download(corpus, QUICK)
    with (tmp_path / "cc3m.tsv").open("a") as file:
        file.write(f"new\t{server.url('/ok/new.jpg')}\n")
    for attempt in (corpus.parts, lambda: download(corpus, QUICK)):
        with pytest.raises(ConfigError, match="those of another list, or of one that has changed"):
            attempt()


def test_robots_that_cannot_be_had_and_robots_that_do_not_exist(server):
    server.robots_status = 500
    answer = Fetcher(replace(QUICK, retries=0)).fetch(server.url("/ok/a.jpg"))
    assert answer.status == "robots_unreachable" and server.asked["/ok/a.jpg"] == 0
    assert Fetcher(replace(QUICK, robots=False)).fetch(server.url("/private/x.jpg")).status == "success"
    server.robots_status = 404
    assert Fetcher(QUICK).fetch(server.url("/private/x.jpg")).status == "success"
    server.robots_status = 200
    assert Fetcher(QUICK).fetch(server.url("/moved/private")).status == "robots_denied"
    assert Fetcher(replace(QUICK, user_agent="other/1.0")).fetch(server.url("/ok/a.jpg")).status == "robots_denied"


def test_other_failures_have_their_own_words(server):
    fetcher = Fetcher(replace(QUICK, retries=0, max_bytes=100))
    assert fetcher.fetch(server.url("/ok/a.jpg")).status == "too_large"
    assert fetcher.fetch(server.url("/round")).status == "too_many_redirects"
    assert fetcher.fetch("http://[bad").status == "url_bad"
    port = server.server_port
    server.shutdown()
    server.server_close()
    assert (
        Fetcher(replace(QUICK, retries=0, robots=False)).fetch(f"http://127.0.0.1:{port}/x").status
        == "connection_failed"
    )


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
def test_headers_by_which_a_picture_opts_out(headers, directive):
    assert opted_out(headers, "cclm", DownloadOptions().opt_out) == directive


def test_a_host_is_asked_for_its_rules_once_and_may_ask_for_patience():
    pytest.importorskip("protego")
    asked = Counter()

    def fetch(url):
        asked[url] += 1
        return 200, b"User-agent: cclm\nCrawl-delay: 2.5\nDisallow: /no"

    rules = RobotsRules(fetch, "cclm")
    assert rules.delay_s("http://a") == 0.0
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda n: rules.refusal("http://a", f"http://a/{'no' if n % 2 else 'yes'}"), range(40)))
    assert answers == ["", "robots_denied"] * 20 and asked == {"http://a/robots.txt": 1}
    assert rules.delay_s("http://a") == 2.5


def test_hosts_take_turns():
    running, most = Counter(), Counter()

    def fetch(url):
        host = url.split("/")[2]
        running[host] += 1
        most[host] = max(most[host], running[host])
        running[host] -= 1
        return Fetched(status=host)

    urls = [f"http://big/{n}" for n in range(30)] + ["http://small/1", "nonsense"]
    with ThreadPoolExecutor(8) as pool:
        turns = fetch_in_turns(urls[:-1], fetch, lambda _: 0.0, pool=pool, threads=8, per_host=2)
        done = [position for position, _ in turns]
    assert sorted(done) == list(range(31)) and most["big"] <= 2
    assert done.index(30) < 20, "a small host does not wait behind a big one"


def test_a_delay_is_kept_between_the_starts_of_requests():
    ticks, starts = [0.0], []

    def clock():
        ticks[0] += 0.001
        return ticks[0]

    def delay_s(_origin):
        starts.append(ticks[0])
        return 0.01

    with ThreadPoolExecutor(4) as pool:
        urls = [f"http://a/{n}" for n in range(4)]
        done = fetch_in_turns(
            urls, lambda _: Fetched(status="success"), delay_s, pool=pool, threads=4, per_host=4, clock=clock
        )
        assert len(list(done)) == 4
    assert all(later - earlier >= 0.01 for earlier, later in itertools.pairwise(starts)) and len(starts) == 4


def test_sbu_in_both_of_its_forms(server, tmp_path):
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


def test_wit_joins_rows_of_one_picture_and_takes_pixels_or_downloads(server, tmp_path):
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


def test_the_command_tells_what_became_of_every_entry(server, listed, tmp_path):
    sets = {"sets": {"cc3m": {"view": "image_text", "corpus": "url_list", "options": listed, "max_bad_fraction": 0.9}}}
    (tmp_path / "recipe.yaml").write_text(json.dumps(sets))
    buffer = io.StringIO()
    command = ["download", str(tmp_path / "recipe.yaml"), "--retries", "1", "--backoff-s", "0", "--threads", "2"]
    assert main(command, Console(file=buffer, width=200)) == 0
    assert f"cc3m: 11 entries in {tmp_path / 'pictures'}: success 4" in buffer.getvalue()
    assert pyarrow.parquet.read_table(tmp_path / "pictures" / "00000.parquet").num_rows == 11
