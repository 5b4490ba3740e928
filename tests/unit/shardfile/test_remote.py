from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cclm.errors import CclmError, ConfigError, MissingDependencyError
from cclm.files.atomic import file_sha256
from cclm.shardfile import cache as fetch_module
from cclm.shardfile.cache import FetchError, FileCache, Wanted, cache_folder, fetch
from cclm.shardfile.options import CacheConfig, is_remote
from cclm.shardfile.reader import ShardSet
from cclm.shardfile.remote import RemoteShardSet, local_path, manifest_bytes, open_set
from tests.unit.data.data_sets import write_images, write_pairs
from tests.unit.shardfile.servers import FolderServer, s3_server, server

__all__ = ["server"]
pytest.importorskip("aiohttp")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("sets") / "images", 24, per_shard=8)


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch_module, "FIRST_PAUSE_S", 0.001)


@pytest.fixture
def cache(tmp_path: Path) -> CacheConfig:
    return CacheConfig(folder=str(tmp_path / "cache"))


def all_keys(shards: ShardSet) -> list[str]:
    return [
        shards.image_text(shard, sample).key
        for shard, size in enumerate(shards.samples_per_shard)
        for sample in range(size)
    ]


def names(cache: CacheConfig) -> set[str]:
    assert cache.folder is not None
    return {path.name for path in Path(cache.folder).glob("*/*") if path.suffix != ".lock"}


def test_a_remote_set_reads_like_the_local_one(images: Path, server: FolderServer, cache: CacheConfig) -> None:
    remote = open_set(f"{server.url}/images/", cache)
    assert all_keys(remote) == all_keys(ShardSet(images)) == [f"k{number}" for number in range(24)]
    assert remote.locate(1, 2) == ShardSet(images).locate(1, 2)
    assert manifest_bytes(f"{server.url}/images", cache) == (images / "manifest.json").read_bytes()
    assert all_keys(open_set(f"{server.url}/images", cache)) == all_keys(remote)
    assert max(server.requests[name] for name in server.requests if name != "manifest.json") == 1  # kept
    assert not any(name.endswith(".growing") for name in names(cache))


def test_local_paths_are_local(images: Path) -> None:
    assert local_path(f"file://{images}") == images and local_path("s3://bucket/set") is None
    assert not is_remote(images)
    assert type(open_set(images)) is type(open_set(f"file://{images}")) is ShardSet
    assert manifest_bytes(images) == (images / "manifest.json").read_bytes()


@pytest.mark.parametrize("fault", ["503", "cut", "other"])
def test_what_may_pass_is_tried_again(server: FolderServer, cache: CacheConfig, fault: str) -> None:
    server.faults = {"images-000001.tar": [fault, fault], "manifest.json": ["503"]}
    assert len(all_keys(open_set(f"{server.url}/images", cache))) == 24
    assert server.requests["images-000001.tar"] == 3


def test_pauses_grow_and_the_last_attempt_is_the_last(server: FolderServer, tmp_path: Path) -> None:
    server.faults = {"images-000000.tar": ["other"] * 9}
    pauses: list[float] = []
    url, target = f"{server.url}/images/images-000000.tar", tmp_path / "file"
    with pytest.raises(FetchError) as caught:
        fetch(url, target, "0" * 64, attempts=4, pause=pauses.append)
    text = str(caught.value)
    assert text.startswith(url) and "attempt 4 of 4" in text and "SHA-256 " + "0" * 64 in text
    assert server.requests["images-000000.tar"] == 4
    assert len(pauses) == 3 and all(0.0005 * 2**n <= pause <= 0.001 * 2**n for n, pause in enumerate(pauses))


def test_what_will_not_pass_is_told_at_once(server: FolderServer, cache: CacheConfig) -> None:
    with pytest.raises(FetchError, match="expected a file that exists and may be read"):
        open_set(f"{server.url}/nothing", cache)
    assert server.requests["manifest.json"] == 1
    server.faults = {"manifest.json": ["401"]}
    with pytest.raises(FetchError, match="credentials"):
        open_set(f"{server.url}/images", cache)
    assert server.requests["manifest.json"] == 2
    with pytest.raises(FetchError, match="or a URL with http"):
        open_set("nonsense://corpus", cache)


def test_a_missing_package_is_told_with_its_command(monkeypatch: pytest.MonkeyPatch, cache: CacheConfig) -> None:
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(MissingDependencyError, match="pip install fsspec gcsfs"):
        open_set("gs://bucket/set", cache)
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(MissingDependencyError, match="pip install fsspec s3fs"):
        open_set("s3://bucket/set", cache)


def test_a_broken_server_leaves_nothing_behind(server: FolderServer, cache: CacheConfig) -> None:
    server.faults = {"images-000000.tar": ["cut"] * 99}
    shards = open_set(f"{server.url}/images", cache)
    with pytest.raises(FetchError):
        shards.image_text(0, 0)
    assert names(cache) == {"manifest.json", "images-000000.index.arrow"}


def test_a_full_disk_is_told_at_once_and_not_blamed_on_the_network(
    server: FolderServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    class FullDisk:
        def get_file(self, path: str, target: str) -> None:
            calls.append(path)
            raise OSError(errno.ENOSPC, "No space left on device", target)

    monkeypatch.setattr(fetch_module, "open_system", lambda url: (FullDisk(), url))
    cache = FileCache(CacheConfig(folder=str(tmp_path / "cache")))
    with pytest.raises(FetchError, match="expected room on the cache's disk, got No space left"):
        cache.get(Wanted(url=f"{server.url}/a.tar", path=tmp_path / "cache" / "a.tar", sha256=None, size_bytes=1))
    assert len(calls) == 1


def test_files_used_longest_ago_make_room(images: Path, server: FolderServer, tmp_path: Path) -> None:
    tar, index = (max(path.stat().st_size for path in images.glob(f"*.{end}")) for end in ("tar", "arrow"))
    cache = CacheConfig(folder=str(tmp_path / "cache"), size_bytes=2 * tar + 3 * index)
    shards = open_set(f"{server.url}/images", cache)
    for shard in (0, 1, 0, 2):
        shards.close()
        shards.image_text(shard, 0)
        time.sleep(0.02)  # file times have a grain
    tars = sorted(name for name in names(cache) if name.endswith(".tar"))
    assert tars == ["images-000000.tar", "images-000002.tar"]
    assert shards.image_text(1, 0).key == "k8"  # comes again
    assert server.requests["images-000001.tar"] == 2


def test_an_open_shard_survives_its_eviction(server: FolderServer, cache: CacheConfig) -> None:
    shards = open_set(f"{server.url}/images", cache)
    shards.image_text(0, 0)
    for path in shards.folder.glob("images-000000*"):
        path.unlink()
    assert shards.image_text(0, 7).key == "k7"
    assert server.requests["images-000000.tar"] == 1


def test_a_shard_larger_than_the_cache_is_told(server: FolderServer, tmp_path: Path) -> None:
    shards = open_set(f"{server.url}/images", CacheConfig(folder=str(tmp_path / "cache"), size_bytes=2000))
    with pytest.raises(FetchError, match=r"Raise data\.cache\.size_bytes"):
        shards.image_text(0, 0)


def test_prefetched_shards_come_in_the_background(server: FolderServer, cache: CacheConfig) -> None:
    shards = open_set(f"{server.url}/images", cache)
    server.faults = {"images-000001.tar": ["cut"] * 99}
    for shard in (0, 1, 2, 0):
        shards.prefetch(shard)
    deadline = time.monotonic() + 60
    while not {"images-000000.tar", "images-000002.tar"} <= names(cache):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    server.faults.clear()
    assert all_keys(shards) == [f"k{number}" for number in range(24)]
    assert server.requests["images-000000.tar"] == server.requests["images-000002.tar"] == 1


READER = """
import sys
from cclm.shardfile.options import CacheConfig
from cclm.shardfile.remote import open_set
shards = open_set(sys.argv[1], CacheConfig(folder=sys.argv[2]))
print(sum(len(shards.image_text(shard, sample).key) for shard in range(3) for sample in range(8)))
"""


def start_reader(url: str, folder: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", READER, url, folder], stdout=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_the_processes_of_a_node_fetch_a_shard_once(server: FolderServer, cache: CacheConfig) -> None:
    assert cache.folder is not None
    readers = [start_reader(f"{server.url}/images", cache.folder) for _ in range(3)]
    totals = {reader.communicate(timeout=300)[0] for reader in readers}
    assert [reader.returncode for reader in readers] == [0, 0, 0] and len(totals) == 1
    assert all(count == 1 for name, count in server.requests.items() if name != "manifest.json")


@pytest.mark.slow
def test_a_killed_process_leaves_no_lock_and_no_half_file(server: FolderServer, cache: CacheConfig) -> None:
    assert cache.folder is not None
    server.faults = {"images-000001.tar": ["slow"]}
    reader = start_reader(f"{server.url}/images", cache.folder)
    assert server.is_waiting.wait(300)
    deadline = time.monotonic() + 60  # the server waits; what it sent has yet to be read and written
    while not (growing := [name for name in names(cache) if name.endswith(".tar.growing")]):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    FileCache(cache)  # does not sweep away what is growing
    assert growing[0] in names(cache)
    reader.send_signal(signal.SIGKILL)
    reader.wait(60)
    FileCache(cache)
    assert not any(name.endswith(".growing") for name in names(cache))
    assert len(all_keys(open_set(f"{server.url}/images", cache))) == 24


def test_another_manifest_is_another_set(tmp_path: Path, cache: CacheConfig) -> None:
    write_images(tmp_path / "set", 8, per_shard=8)
    server = FolderServer(tmp_path)
    try:
        assert all_keys(open_set(f"{server.url}/set", cache))[0] == "k0"
        for path in (tmp_path / "set").iterdir():
            path.unlink()
        write_images(tmp_path / "set", 8, first=50, per_shard=8)  # the same names, other content
        assert all_keys(open_set(f"{server.url}/set", cache))[0] == "k50"
    finally:
        server.close()


def test_the_default_folder_is_the_users_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("CCLM_SHARD_CACHE", raising=False)
    assert cache_folder(CacheConfig()).name == f"cclm-shards-{os.getuid()}"
    monkeypatch.setenv("CCLM_SHARD_CACHE", str(tmp_path))
    assert cache_folder(CacheConfig()) == tmp_path
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="expected a cache folder that can be written"):
        FileCache(CacheConfig(folder=str(tmp_path / "file")))


def test_files_without_a_hash_are_fetched_too(images: Path, server: FolderServer, cache: CacheConfig) -> None:
    assert cache.folder is not None
    path = Path(cache.folder) / "any" / "manifest"
    wanted = Wanted(url=f"{server.url}/images/manifest.json", path=path, size_bytes=0, sha256=None)
    assert FileCache(cache).get(wanted).read_bytes() == (images / "manifest.json").read_bytes()
    assert file_sha256(path) == file_sha256(images / "manifest.json")
    assert issubclass(FetchError, CclmError)


@pytest.mark.slow
def test_a_real_s3_server(images: Path, tmp_path: Path, cache: CacheConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("moto")
    s3fs = pytest.importorskip("s3fs")
    pairs = write_pairs(tmp_path / "pairs", 20)
    for name, value in (("AWS_ACCESS_KEY_ID", "any"), ("AWS_SECRET_ACCESS_KEY", "any"), ("AWS_REGION", "us-east-1")):
        monkeypatch.setenv(name, value)
    with s3_server() as address:
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        s3fs.S3FileSystem.clear_instance_cache()
        store = s3fs.S3FileSystem()
        store.mkdir("corpus")
        for folder in (images, pairs):
            store.put(f"{folder}/", f"corpus/sets/{folder.name}/", recursive=True)
        remote = open_set("s3://corpus/sets/images", cache)
        assert isinstance(remote, RemoteShardSet)
        assert all_keys(remote) == all_keys(ShardSet(images))
        texts, local = open_set("s3://corpus/sets/pairs", cache), ShardSet(pairs)
        assert list(texts.read_groups(0)) == list(local.read_groups(0))
        with pytest.raises(FetchError, match="expected a file that exists"):
            open_set("s3://corpus/sets/none", cache)
    s3fs.S3FileSystem.clear_instance_cache()
