"""Downloads from a server on this machine that behaves as badly as the internet; the network is never touched."""

from __future__ import annotations

import errno
import hashlib
import json
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from scaledyolo import transfer
from scaledyolo.arch.zoo import ZOO
from scaledyolo.download import CHECKSUM_RECORD, fetch
from scaledyolo.errors import DownloadError, UsageError
from scaledyolo.weights_registry import WeightsEntry, weights_registry

CONTENT = bytes(range(256)) * 4000  # about 1 MB: several chunks
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@dataclass
class Behaviour:
    """What the server does with one path."""

    content: bytes = CONTENT
    status: int = 200
    location: str = ""
    content_type: str = "application/octet-stream"
    etag: str = '"one"'
    knows_ranges: bool = True
    # How many bytes of the body are sent before the connection is closed, per request; afterwards everything.
    cuts: list[int] = field(default_factory=list)
    failures: list[int] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=dict)
    says_length: bool = True
    shift: int = 0


class Server:
    """A web server on 127.0.0.1 with one ``Behaviour`` per path, which remembers the requests."""

    def __init__(self) -> None:
        self.paths: dict[str, Behaviour] = {}
        self.requests: list[tuple[str, dict[str, str]]] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.requests.append((self.path, dict(self.headers)))
                answer(self, server.paths.get(self.path, Behaviour(status=404)))

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()
        self.address = f"http://127.0.0.1:{self._http.server_port}"

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def ranges(self) -> list[str | None]:
        return [headers.get("Range") for _, headers in self.requests]


def answer(handler: BaseHTTPRequestHandler, behaviour: Behaviour) -> None:
    if behaviour.failures:
        handler.send_error(behaviour.failures.pop(0))
        return
    if behaviour.location:
        handler.send_response(behaviour.status)
        handler.send_header("Location", behaviour.location)
        handler.send_header("Content-Length", "0")
        handler.end_headers()
        return
    asked = handler.headers.get("Range")
    start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and behaviour.knows_ranges else 0
    if handler.headers.get("If-Range", behaviour.etag) != behaviour.etag:
        start = 0
    if start and start >= len(behaviour.content):
        handler.send_error(416)
        return
    if behaviour.status >= 400:
        handler.send_error(behaviour.status)
        return
    body = behaviour.content[start:]
    handler.send_response(206 if start else behaviour.status)
    if start:
        place = start + behaviour.shift
        handler.send_header("Content-Range", f"bytes {place}-{len(behaviour.content) - 1}/{len(behaviour.content)}")
    if behaviour.etag:
        handler.send_header("ETag", behaviour.etag)
    handler.send_header("Content-Type", behaviour.content_type)
    for name, value in behaviour.headers.items():
        handler.send_header(name, value)
    if behaviour.says_length:
        handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body[: behaviour.cuts.pop(0)] if behaviour.cuts else body)


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Back-off is recorded and not waited for; no test may depend on the caches of this machine."""
    waits: list[float] = []
    monkeypatch.setattr(transfer.time, "sleep", waits.append)
    monkeypatch.setenv("no_proxy", "*")
    return waits


Get = Callable[..., Path]


@pytest.fixture
def get(server: Server, tmp_path: Path) -> Get:
    """``get(behaviour, **entry fields)`` serves one file and fetches it."""

    def fetch_it(behaviour: Behaviour | None = None, *, allow_download: bool = True, **fields: Any) -> Path:
        if behaviour is not None:
            server.paths["/w"] = behaviour
        values: dict[str, Any] = {"checksum": f"sha256:{SHA256}", "bytes": len(CONTENT)}
        urls = (f"{server.address}/w",)
        entry = WeightsEntry("net", "net.weights", "public domain", **{"urls": urls, **values, **fields})
        return fetch("net", tmp_path, allow_download=allow_download, registry={"net": entry})

    return fetch_it


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def test_fresh_then_cached(get: Get, server: Server, tmp_path: Path) -> None:
    path = get(Behaviour())
    assert path == tmp_path / "net.weights"
    assert path.read_bytes() == CONTENT
    assert leftovers(tmp_path) == ["net.weights"]
    assert "scaledyolo" in server.requests[0][1]["User-Agent"]
    assert get(allow_download=False) == path
    assert get() == path
    assert len(server.requests) == 1


def test_nothing_is_fetched_unasked(get: Get, server: Server, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match="scaledyolo download net"):
        get(Behaviour(), allow_download=False)
    assert server.requests == []
    assert leftovers(tmp_path) == []


def test_progress_reaches_the_total(server: Server, tmp_path: Path) -> None:
    server.paths["/w"] = Behaviour()
    seen: list[tuple[int, int | None]] = []
    entry = WeightsEntry("net", "net.weights", "", (f"{server.address}/w",))
    fetch("net", tmp_path, progress=lambda done, total: seen.append((done, total)), registry={"net": entry})
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_cut_connection_resumes_in_the_same_call(get: Get, server: Server, no_waiting: list[float]) -> None:
    path = get(Behaviour(cuts=[300_000, 200_000]))
    assert path.read_bytes() == CONTENT
    assert server.ranges() == [None, "bytes=300000-", "bytes=500000-"]
    assert server.requests[1][1]["If-Range"] == '"one"'
    assert no_waiting == [1.0, 2.0]


def test_interrupted_download_resumes_in_the_next_call(get: Get, server: Server, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match="connection ended after 500000 of"):
        get(Behaviour(cuts=[100_000] * transfer.ATTEMPTS))
    assert leftovers(tmp_path) == ["net.weights.part", "net.weights.part.json"]
    assert get(Behaviour()).read_bytes() == CONTENT
    assert server.ranges()[-1] == "bytes=500000-"
    assert leftovers(tmp_path) == ["net.weights"]


def test_file_that_changed_meanwhile_starts_again(get: Get, server: Server, tmp_path: Path) -> None:
    with pytest.raises(DownloadError):
        get(Behaviour(cuts=[1000] * transfer.ATTEMPTS, content=bytes(len(CONTENT)), etag='"old"'))
    assert get(Behaviour()).read_bytes() == CONTENT
    assert server.requests[-1][1]["If-Range"] == '"old"'


def test_server_that_ignores_ranges_starts_again(get: Get) -> None:
    assert get(Behaviour(cuts=[300_000], knows_ranges=False)).read_bytes() == CONTENT


def test_server_that_continues_elsewhere_starts_again(get: Get, server: Server) -> None:
    assert get(Behaviour(cuts=[300_000], shift=5)).read_bytes() == CONTENT
    assert server.ranges() == [None, "bytes=300000-", None]


def test_without_validator_and_checksum_nothing_is_appended(get: Get, server: Server) -> None:
    assert get(Behaviour(cuts=[300_000], etag=""), checksum=None).read_bytes() == CONTENT
    assert server.ranges() == [None, None]


def test_without_validator_a_known_checksum_allows_appending(get: Get, server: Server) -> None:
    assert get(Behaviour(cuts=[300_000], etag="")).read_bytes() == CONTENT
    assert server.ranges() == [None, "bytes=300000-"]


def test_bad_remains_are_thrown_away_and_fetched_anew(get: Get, tmp_path: Path, server: Server) -> None:
    """The rest fits by its validator but the beginning is damaged on our disk: one fresh attempt follows."""
    with pytest.raises(DownloadError):
        get(Behaviour(cuts=[100_000] * transfer.ATTEMPTS))
    (tmp_path / "net.weights.part").write_bytes(bytes(500_000))
    assert get(Behaviour()).read_bytes() == CONTENT
    assert server.ranges()[-2:] == ["bytes=500000-", None]


def test_partial_file_longer_than_the_server_has(get: Get, tmp_path: Path, server: Server) -> None:
    with pytest.raises(DownloadError):
        get(Behaviour(cuts=[100_000] * transfer.ATTEMPTS), bytes=None)
    (tmp_path / "net.weights.part").write_bytes(bytes(2 * len(CONTENT)))
    assert get(Behaviour(), bytes=None).read_bytes() == CONTENT


def test_body_without_length_is_verified_all_the_same(get: Get) -> None:
    assert get(Behaviour(says_length=False), bytes=None).read_bytes() == CONTENT
    with pytest.raises(DownloadError, match="bytes where"):
        get(Behaviour(says_length=False, content=CONTENT[:-1]), checksum=f"sha256:{'0' * 64}")


@pytest.mark.parametrize("algorithm", ["sha256", "sha512", "sha1", "md5"])
def test_every_kind_of_checksum(get: Get, algorithm: str) -> None:
    digest = hashlib.new(algorithm, CONTENT).hexdigest()
    assert get(Behaviour(), checksum=f"{algorithm}:{digest.upper()}").read_bytes() == CONTENT


def test_wrong_checksum_says_expected_and_found(get: Get, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match=f"{SHA256[:16]}.* but the publisher's is {'0' * 16}"):
        get(Behaviour(), checksum="sha256:" + "0" * 64)
    assert leftovers(tmp_path) == []


def test_damaged_cached_file_is_replaced_only_by_a_good_one(get: Get, tmp_path: Path) -> None:
    path = get(Behaviour())
    path.write_bytes(bytes(len(CONTENT)))
    with pytest.raises(DownloadError, match="not what was promised"):
        get(allow_download=False)
    with pytest.raises(DownloadError, match="404"):
        get(Behaviour(status=404))
    assert path.read_bytes() == bytes(len(CONTENT))
    assert get(Behaviour()).read_bytes() == CONTENT


def test_unknown_checksum_is_recorded_then_enforced(get: Get, tmp_path: Path) -> None:
    path = get(Behaviour(), checksum=None)
    record = json.loads((tmp_path / CHECKSUM_RECORD).read_text())
    assert record == {"net.weights": {"checksum": f"sha256:{SHA256}", "bytes": len(CONTENT)}}
    path.unlink()
    other = bytes(len(CONTENT))
    with pytest.raises(DownloadError, match="first download"):
        get(Behaviour(content=other), checksum=None)
    assert not path.exists()
    assert get(Behaviour(), checksum=None) == path
    path.write_bytes(other)
    with pytest.raises(DownloadError, match="first download"):
        get(checksum=None, allow_download=False)


def test_damaged_record_is_not_overwritten(get: Get, tmp_path: Path) -> None:
    (tmp_path / CHECKSUM_RECORD).write_text("{")
    with pytest.raises(DownloadError, match="is damaged"):
        get(Behaviour(), checksum=None)
    assert (tmp_path / CHECKSUM_RECORD).read_text() == "{"


@pytest.mark.parametrize(("difference", "accepted"), [(0, True), (4, True), (-4, True), (5, False), (-100, False)])
def test_size_computed_from_the_network_allows_for_the_header(get: Get, difference: int, accepted: bool) -> None:
    fields = {"bytes": None, "checksum": None, "bytes_of_network": len(CONTENT) + difference}
    if accepted:
        assert get(Behaviour(), **fields).is_file()
    else:
        with pytest.raises(DownloadError, match="bytes where"):
            get(Behaviour(), **fields)


@pytest.mark.parametrize("status", [403, 404, 410])
def test_permanent_refusal_is_not_repeated(get: Get, server: Server, status: int) -> None:
    with pytest.raises(DownloadError, match=f"answered {status}"):
        get(Behaviour(status=status))
    assert len(server.requests) == 1


def test_transient_failures_are_repeated(get: Get, server: Server, no_waiting: list[float]) -> None:
    assert get(Behaviour(failures=[503, 429, 500])).read_bytes() == CONTENT
    assert no_waiting == [1.0, 2.0, 4.0]
    with pytest.raises(DownloadError, match=r"answered 502 .*\(5 attempts\)"):
        get(Behaviour(failures=[502] * 9), checksum="md5:" + "0" * 32)


def test_other_addresses_are_tried_in_order(get: Get, server: Server) -> None:
    server.paths["/bad"] = Behaviour(content=bytes(len(CONTENT)))
    addresses = tuple(f"{server.address}/{path}" for path in ("gone", "bad", "w"))
    assert get(Behaviour(), urls=addresses).read_bytes() == CONTENT
    assert [path for path, _ in server.requests] == ["/gone", "/bad", "/w"]


def test_all_addresses_failing_names_each(get: Get, server: Server) -> None:
    server.paths["/page"] = Behaviour(content=b"<html>", content_type="text/html; charset=utf-8")
    with pytest.raises(DownloadError) as caught:
        get(urls=(f"{server.address}/gone", f"{server.address}/page"))
    assert "/gone: the server answered 404" in str(caught.value)
    assert "/page: the server sent a web page" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_web_page_that_claims_to_be_binary(get: Get, tmp_path: Path) -> None:
    page = b"\n<!DOCTYPE html><title>Quota exceeded</title>"
    with pytest.raises(DownloadError, match="web page"):
        get(Behaviour(content=page), bytes=None, checksum=None)
    assert leftovers(tmp_path) == []


def test_compressed_answer_is_refused(get: Get) -> None:
    with pytest.raises(DownloadError, match="gzip"):
        get(Behaviour(headers={"Content-Encoding": "gzip"}))


@pytest.mark.parametrize("says_length", [True, False])
def test_more_than_promised_is_cut_off(get: Get, tmp_path: Path, says_length: bool) -> None:
    with pytest.raises(DownloadError, match=f"{len(CONTENT)}"):
        get(Behaviour(content=CONTENT * 3, says_length=says_length))
    assert not (tmp_path / "net.weights").exists()
    part = tmp_path / "net.weights.part"
    assert not part.exists() or part.stat().st_size <= len(CONTENT)


def test_redirect_is_followed(get: Get, server: Server) -> None:
    server.paths["/from"] = Behaviour(status=302, location="/w")
    assert get(Behaviour(cuts=[1000]), urls=(f"{server.address}/from",)).read_bytes() == CONTENT
    assert server.ranges()[-1] == "bytes=1000-"


@pytest.mark.parametrize("place", ["file:///etc/passwd", "ftp://127.0.0.1/x", "data:,x", "/w"])
def test_redirect_elsewhere_or_in_circles_is_not_followed(get: Get, place: str) -> None:
    with pytest.raises(DownloadError) as caught:
        get(Behaviour(status=302, location=place))
    assert "\n" not in str(caught.value)


def test_redirect_from_https_to_http_is_not_followed() -> None:
    request = transfer.urllib.request.Request("https://example.org/x")
    with pytest.raises(transfer.TransferError, match="from https to http"):
        transfer._WebOnlyRedirects().redirect_request(request, None, 302, "", {}, "http://example.org/x")  # type: ignore[arg-type]


@pytest.mark.parametrize("address", ["file:///etc/passwd", "ftp://127.0.0.1/x", "data:,x", "/etc/passwd"])
def test_only_web_addresses_are_fetched(get: Get, address: str) -> None:
    with pytest.raises(DownloadError, match="only http and https"):
        get(urls=(address,))


def test_nobody_listens(get: Get, no_waiting: list[float]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(DownloadError, match="no connection"):
        get(urls=(f"http://127.0.0.1:{port}/w",))
    assert len(no_waiting) == transfer.ATTEMPTS - 1


def test_full_disk_before_the_download(get: Get, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("scaledyolo.download.shutil.disk_usage", lambda folder: usage)
    with pytest.raises(DownloadError, match="need 1 MB in .* 0 MB are free"):
        get(Behaviour())
    assert server.requests == []


def test_full_disk_during_the_download(get: Get, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        """A file on a disk that is full after the first half of what is written."""

        def __init__(self, partial: transfer.Partial) -> None:
            self.out = partial.path.open("ab", buffering=0)
            self.left = 400_000

        def __enter__(self) -> Full:
            return self

        def __exit__(self, *_: object) -> None:
            self.out.close()

        def write(self, data: memoryview) -> int:
            if not self.left:
                raise OSError(errno.ENOSPC, "No space left on device")
            count = self.out.write(data[: self.left])
            self.left -= count
            return count

    with monkeypatch.context() as patch:
        patch.setattr(transfer, "_opened", Full)
        with pytest.raises(DownloadError, match="no space left"):
            get(Behaviour())
    assert not (tmp_path / "net.weights").exists()
    assert get().read_bytes() == CONTENT


def test_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    entry = WeightsEntry("net", "net.weights", "", ("http://127.0.0.1:1/x",))
    with pytest.raises(DownloadError, match="cannot be used"):
        fetch("net", tmp_path / "file" / "folder", registry={"net": entry})


def test_page_to_be_opened_by_hand(get: Get, tmp_path: Path) -> None:
    by_hand: dict[str, Any] = {"urls": (), "page": "https://drive.example/x", "checksum": None}
    with pytest.raises(DownloadError, match=r"open https://drive.example/x in .* save the file as .*net.weights"):
        get(**by_hand)
    (tmp_path / "net.weights").write_bytes(CONTENT[:-7])
    with pytest.raises(DownloadError, match="not what was promised"):
        get(**by_hand)
    (tmp_path / "net.weights").write_bytes(CONTENT)
    assert get(**by_hand, allow_download=False).read_bytes() == CONTENT
    assert CHECKSUM_RECORD in leftovers(tmp_path)


def test_threads_fetch_once(get: Get, server: Server) -> None:
    server.paths["/w"] = Behaviour()
    with ThreadPoolExecutor(8) as pool:
        paths = list(pool.map(lambda _: get(checksum=None), range(8)))
    assert {path.read_bytes() for path in paths} == {CONTENT}
    assert len(server.requests) == 1


def test_processes_fetch_once(server: Server, tmp_path: Path) -> None:
    server.paths["/w"] = Behaviour()
    code = (
        "import sys\n"
        "from scaledyolo.download import fetch\n"
        "from scaledyolo.weights_registry import WeightsEntry\n"
        "entry = WeightsEntry('net', 'net.weights', '', (sys.argv[1],))\n"
        "fetch('net', sys.argv[2], registry={'net': entry})\n"
    )
    arguments = [sys.executable, "-c", code, f"{server.address}/w", str(tmp_path)]
    running = [subprocess.Popen(arguments, env={"no_proxy": "*", "PATH": ""}) for _ in range(3)]
    assert [process.wait(60) for process in running] == [0, 0, 0]
    assert (tmp_path / "net.weights").read_bytes() == CONTENT
    assert len(server.requests) == 1


# The registry that comes with the package


def test_unknown_name_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="Did you mean 'yolov4-tiny'"):
        fetch("yolov4-tyni", tmp_path)


def test_registry_is_complete_and_consistent() -> None:
    entries = weights_registry().values()
    files = [entry.file for entry in entries]
    assert len(files) == len(set(files)) > 50
    lengths = {"sha256": 64, "sha512": 128, "sha384": 96, "sha1": 40, "md5": 32}
    for entry in entries:
        assert entry.licence
        assert entry.provenance
        assert bool(entry.urls) != bool(entry.page), entry.name
        assert all(url.startswith(("https://", "http://")) and "drive.google" not in url for url in entry.urls)
        assert Path(entry.file).name == entry.file
        assert (entry.checksum is None) == (entry.trust == "none")
        if entry.checksum is not None:
            algorithm, digest = entry.checksum.split(":")
            assert len(bytes.fromhex(digest)) * 2 == lengths[algorithm]
        assert entry.model is None or entry.model in ZOO
        assert entry.name not in ZOO or entry.model == entry.name


def test_registry_states_what_evaluation_must_know() -> None:
    registry = weights_registry()
    assert all(registry[name].seen_val2017 for name in ("yolov2", "yolov3", "yolov4", "yolov4-tiny", "yolov3-spp"))
    assert "GPL-3.0" in registry["yolov4-p7"].licence
    assert "public domain" in registry["yolov4"].licence


def test_registry_sizes_agree_with_the_specification(shared: Path) -> None:
    """Every published or computed size in the package equals the one in the list it was made from, by address."""
    listed = json.loads((shared / "spec" / "weights-registry.json").read_text())
    sizes = {url: row["bytes"] or row["bytes_from_cfg"] for row in listed for url in [row["url"], *row["url_alt"]]}
    for entry in weights_registry().values():
        for url in (*entry.urls, *([entry.page] if entry.page else [])):
            assert entry.expected_bytes == sizes[url]


def test_frozen_entries_can_be_derived() -> None:
    entry = weights_registry()["yolov4-tiny"]
    assert replace(entry, bytes=None).accepts_size(24251276 + 4)
    assert not entry.accepts_size(24251276 + 4)
