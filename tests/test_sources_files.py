"""Folders, patterns, lists and single arguments: what is found, in which order, and what is said when nothing is."""

from __future__ import annotations

import http.server
import io
import os
import socketserver
import threading
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaledyolo.errors import SourceError
from scaledyolo.sources import Frame, FrameSource, open_source
from scaledyolo.sources.files import natural_key
from scaledyolo.sources.remote import without_password


def save(path: Path, value: int = 0) -> Path:
    """A small PNG whose every value is ``value``, whatever the suffix of the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(".png", np.full((4, 6, 3), value, np.uint8))[1].tobytes())
    return path


def names(source: FrameSource) -> list[str]:
    return [str(frame.relative) for frame in source]


def test_folder_is_listed_naturally_recursively_and_without_hidden_files(tmp_path: Path) -> None:
    for name in ("img10.png", "img2.PNG", "img1.jpg", "b/x.png", "b/a/y.png", "B2/z.png", ".hidden.png", ".git/h.png"):
        save(tmp_path / name)
    (tmp_path / "notes.md").write_text("no image")
    source = open_source(tmp_path)
    assert names(source) == ["img1.jpg", "img2.PNG", "img10.png", "b/x.png", "b/a/y.png", "B2/z.png"]
    assert source.num_frames == 6
    assert source.kind == "files"
    assert names(open_source(tmp_path, recursive=False)) == ["img1.jpg", "img2.PNG", "img10.png"]
    assert names(source) == names(source)  # may be iterated again


@given(st.lists(st.text(alphabet="aB019²-. é", max_size=8)))
def test_natural_order_is_total_and_deterministic(words: list[str]) -> None:
    backwards = words[::-1]
    assert sorted(words, key=natural_key) == sorted(backwards, key=natural_key)


def test_loops_of_links_end_and_broken_links_are_reported(tmp_path: Path) -> None:
    save(tmp_path / "a" / "1.png")
    (tmp_path / "a" / "loop").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    frames = list(open_source(tmp_path))
    assert [str(frame.relative) for frame in frames] == ["gone.jpg", "a/1.png"]
    assert "does not exist" in str(frames[0].error)


def test_pipes_are_left_alone(tmp_path: Path) -> None:
    save(tmp_path / "a.png")
    os.mkfifo(tmp_path / "pipe.jpg")
    assert names(open_source(tmp_path)) == ["a.png"]


def test_bad_member_is_a_frame_but_bad_single_file_raises(tmp_path: Path) -> None:
    save(tmp_path / "a.png", 7)
    (tmp_path / "b.jpg").write_bytes(b"not a picture")
    (tmp_path / "c.mp4").write_bytes(b"not a video either" * 20)
    save(tmp_path / "d.png", 9)
    frames = list(open_source(tmp_path))
    assert [frame.error is None for frame in frames] == [True, False, False, True]
    assert frames[3].image is not None
    assert (frames[3].image == 9).all()
    assert "looks like text" in str(frames[1].error)
    assert "cannot be read as video" in str(frames[2].error)
    assert open_source(tmp_path).num_frames is None  # because of the video
    single = open_source(tmp_path / "b.jpg")
    assert (single.kind, single.num_frames) == ("image", 1)
    with pytest.raises(SourceError, match="looks like text"):
        list(single)
    with pytest.raises(SourceError, match=r"c\.mp4 cannot be read as video"):
        open_source(tmp_path / "c.mp4")


def test_missing_paths_name_the_nearest(tmp_path: Path) -> None:
    save(tmp_path / "pictures" / "horses.jpg")
    with pytest.raises(SourceError, match=r"Did you mean 'horses\.jpg'\?"):
        open_source(tmp_path / "pictures" / "horse.jpg")
    with pytest.raises(SourceError, match=r"there is no .*picture\. Did you mean 'pictures'\?"):
        open_source(tmp_path / "picture" / "horses.jpg")
    with pytest.raises(SourceError, match="does not exist"):
        open_source("no\0where")
    with pytest.raises(SourceError, match="empty text"):
        open_source("")


def test_empty_folder_and_pattern(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="has no images or videos"):
        open_source(tmp_path)
    with pytest.raises(SourceError, match="no file matches"):
        open_source(str(tmp_path / "*.jpg"))


@pytest.mark.parametrize(
    "name",
    ["with space.png", "grüße 猫.png", "-leading.png", "new\nline.png", "[brackets]*.png", "100%.png", "no_suffix"],
)
def test_weird_names(tmp_path: Path, name: str) -> None:
    save(tmp_path / name, 3)
    (frame,) = open_source(tmp_path / name)
    assert frame.source == str(tmp_path / name)
    assert frame.relative == PurePosixPath(name)
    if name != "no_suffix":
        assert names(open_source(tmp_path)) == [name]


def test_undecodable_name(tmp_path: Path) -> None:
    raw = os.fsencode(tmp_path) + b"/caf\xe9.png"
    try:
        Path(os.fsdecode(raw)).write_bytes(save(tmp_path / "x" / "a.png").read_bytes())
    except OSError:
        pytest.skip("this file system takes UTF-8 only")
    assert next(iter(open_source(tmp_path))).image is not None
    with pytest.raises(SourceError) as caught:
        open_source(os.fsdecode(raw) + ".missing")
    str(caught.value).encode()


def test_working_folder_relative_leading_dash_and_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "-x.png")
    save(tmp_path / "0" / "a.png")
    assert names(open_source("-x.png")) == ["-x.png"]
    assert names(open_source("0")) == ["a.png"]  # a folder of that name comes before camera 0
    assert open_source("1").kind == "stream"


def test_pattern(tmp_path: Path) -> None:
    for name in ("a/1.png", "a/10.png", "a/2.png", "b/c/1.png", "b/c/1.txt"):
        save(tmp_path / name)
    assert names(open_source(str(tmp_path / "a" / "*.png"))) == ["1.png", "2.png", "10.png"]
    assert names(open_source(str(tmp_path / "**" / "1.png"))) == ["a/1.png", "b/c/1.png"]


def test_list_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    save(elsewhere / "here.png")
    save(tmp_path / "data" / "one.png")
    save(tmp_path / "data" / "two words ü.png")
    lines = ["\ufeffone.png", "", "# a comment", "two words ü.png  ", "here.png", str(tmp_path / "missing.png")]
    (tmp_path / "data" / "list.txt").write_text("\r\n".join(lines), encoding="utf-8", newline="")
    frames = list(open_source(tmp_path / "data" / "list.txt"))
    assert [frame.error is None for frame in frames] == [True, True, True, False]
    assert [str(frame.relative) for frame in frames[:2]] == ["data/one.png", "data/two words ü.png"]
    (tmp_path / "data" / "empty.txt").write_text("# nothing\n")
    with pytest.raises(SourceError, match="names no image"):
        open_source(tmp_path / "data" / "empty.txt")


@pytest.mark.parametrize("separator", ["\n", "\0"])
def test_standard_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, separator: str) -> None:
    paths = [save(tmp_path / "b.png"), save(tmp_path / "sub" / "a.png")]
    content = separator.join(map(str, paths)).encode()
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))
    source = open_source("-")
    assert source.num_frames == 2
    assert names(source) == ["b.png", "sub/a.png"]  # the order of the list


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_folder_without_permission(tmp_path: Path) -> None:
    save(tmp_path / "a.png")
    save(tmp_path / "closed" / "b.png").parent.chmod(0)
    frames = list(open_source(tmp_path))
    (tmp_path / "closed").chmod(0o755)
    assert [frame.error is None for frame in frames] == [True, False]


def test_frame_has_either_image_or_error() -> None:
    with pytest.raises(ValueError, match="both or none"):
        Frame(image=None, source="x")


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("rtps://camera/1", "Did you mean 'rtsp'"),
        ("concat://a|b", "unknown scheme"),
        ("s3://bucket/key", "unknown scheme"),
    ],
)
def test_unknown_schemes(url: str, words: str) -> None:
    with pytest.raises(SourceError, match=words):
        open_source(url)


def test_passwords_are_not_repeated() -> None:
    assert without_password("rtsp://user:s3cret@10.0.0.1/live") == "rtsp://user:***@10.0.0.1/live"
    assert without_password("rtsp://user:s3@c@ret@10.0.0.1/live") == "rtsp://user:***@10.0.0.1/live"
    assert without_password("rtsp://user:s3:c@10.0.0.1:554/a@b") == "rtsp://user:***@10.0.0.1:554/a@b"
    assert without_password("http://10.0.0.1:80/a?to=x@y") == "http://10.0.0.1:80/a?to=x@y"
    with pytest.raises(SourceError) as caught:
        list(open_source("http://user:s3cret@127.0.0.1:9/picture.jpg"))
    assert "s3cret" not in str(caught.value)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args: object, **kwargs: object) -> None:
            super().__init__(*args, directory=str(tmp_path), **kwargs)  # type: ignore[arg-type]

        def log_message(self, *args: object) -> None:
            pass

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Quiet) as running:
        running.daemon_threads = True
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{running.server_address[1]}", tmp_path
        running.shutdown()
        thread.join()


def test_images_by_url(server: tuple[str, Path], tmp_path: Path) -> None:
    address, folder = server
    save(folder / "sub" / "a.png", 5)
    (frame,) = open_source(f"{address}/sub/a.png?size=1")
    assert frame.image is not None
    assert (frame.image == 5).all()
    assert str(frame.relative) == "127.0.0.1/sub/a.png"
    with pytest.raises(SourceError, match="answered 404"):
        list(open_source(f"{address}/missing.png"))
    (folder / "list.txt").write_text(f"{address}/sub/a.png\nrtsp://camera/live\n{folder}/sub/a.png\n")
    frames = list(open_source(folder / "list.txt"))
    assert [frame.error is None for frame in frames] == [True, False, True]
    assert "open it by itself" in str(frames[1].error)
