"""What a request may name as its clip, and what it is told otherwise."""

from __future__ import annotations

import asyncio
import functools
import http.server
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from omni_platform.media.decode import decode_clip
from omni_platform.media.scene import make_scene
from omni_platform.media.synth import write_mp4
from omni_serving.config import ServeConfig
from omni_serving.decoding import DecodePool
from omni_serving.errors import RequestError


def config_for(film, **changes) -> ServeConfig:
    return ServeConfig(**{"model": "m", "allowed_media_dirs": (str(film.folder),), **changes})


def fetch(url, config):
    """As a request does: through a pool of decoders of its own."""

    async def one_clip():
        pool = DecodePool(config, fps=2.0, max_frames=16)
        try:
            return await pool.clip(url if isinstance(url, Uploaded) else str(url), client="a")
        finally:
            pool.close()

    return asyncio.run(one_clip())


class Uploaded(type(Path())):
    """A file that this server wrote itself."""


def refusal(url, config) -> RequestError:
    with pytest.raises(RequestError) as caught:
        fetch(url, config)
    return caught.value


@pytest.fixture
def upload(tmp_path) -> Callable[[bytes], Uploaded]:
    def write(data: bytes) -> Uploaded:
        path = Uploaded(tmp_path / "upload")
        path.write_bytes(data)
        return path

    return write


def test_every_way_to_name_a_clip_gives_the_one_decoders_frames_and_sound(film, upload) -> None:
    expected = decode_clip(film.clip, fps=2.0, max_frames=16)
    quoted = film.folder / "a clip.mp4"
    quoted.write_bytes(film.clip.read_bytes())
    ways = [film.clip, film.clip.as_uri(), quoted.as_uri(), "clip.mp4", upload(film.clip.read_bytes())]
    for url in ways:
        clip = fetch(url, config_for(film))
        assert (clip.frames == expected.frames).all()
        assert (clip.waveform == expected.waveform).all()


def test_a_file_outside_is_refused_in_the_same_words_whether_it_exists_or_not(film, tmp_path) -> None:
    config = config_for(film)
    secret = tmp_path / "secret.mp4"
    there = refusal(secret, config)
    secret.write_bytes(film.clip.read_bytes())
    assert str(refusal(secret, config)) == str(there)
    traversal = f"{film.folder}/../{tmp_path.name}/secret.mp4"
    sibling = f"{film.folder}-other/clip.mp4"  # begins with the allowed folder's name
    urls = [
        traversal,
        sibling,
        f"../{tmp_path.name}/secret.mp4",
        f"file://{traversal}",
        "clip.mp4\0",
        "",
        "/",
    ]
    urls.append("file://" + traversal.replace("..", "%2e%2e"))
    for url in urls:
        assert (refusal(url, config).status, refusal(url, config).code) == (400, "media_not_allowed")


def test_a_link_out_of_the_folder_is_followed_before_the_check(film, tmp_path) -> None:
    secret = tmp_path / "secret.mp4"
    secret.write_bytes(film.clip.read_bytes())
    (film.folder / "link.mp4").symlink_to(secret)
    (film.folder / "dir").symlink_to(tmp_path)
    (film.folder / "within.mp4").symlink_to(film.clip)
    config = config_for(film)
    assert refusal("link.mp4", config).code == "media_not_allowed"
    assert refusal(film.folder / "dir" / "secret.mp4", config).code == "media_not_allowed"
    assert fetch("within.mp4", config).has_audio


def test_an_allowed_folder_may_itself_be_a_link(film, tmp_path) -> None:
    (tmp_path / "alias").symlink_to(film.folder)
    config = config_for(film, allowed_media_dirs=(str(tmp_path / "alias"),))
    assert fetch(tmp_path / "alias" / "clip.mp4", config).has_audio


def test_what_is_no_regular_file_is_not_opened(film) -> None:
    os.mkfifo(film.folder / "pipe.mp4")
    for name in ("pipe.mp4", ".", "nothing.mp4"):
        assert refusal(film.folder / name, config_for(film)).code == "media_missing"


def test_without_allowed_folders_no_file_is_opened(film) -> None:
    problem = refusal(film.clip, config_for(film, allowed_media_dirs=()))
    assert problem.code == "media_not_allowed"
    assert "data:" in problem.message


def test_a_file_that_is_too_large_is_refused(film) -> None:
    problem = refusal(film.clip, config_for(film, max_video_bytes=film.clip.stat().st_size - 1))
    assert (problem.status, problem.code) == (413, "media_too_large")


def test_a_clip_that_is_too_long_is_refused(film) -> None:
    problem = refusal(film.clip, config_for(film, max_duration_s=5.5))
    assert (problem.status, problem.code) == (413, "media_too_long")
    assert "6.0 s" in problem.message and "5.5 s" in problem.message


def test_pictures_that_are_too_large_are_refused_by_the_header(film) -> None:
    problem = refusal(film.clip, config_for(film, max_picture_pixels=1000))
    assert (problem.status, problem.code) == (413, "media_too_large")
    assert problem.message.endswith("allowed are 1000; scale it down")


def test_broken_media_is_explained(film, upload) -> None:
    whole = film.clip.read_bytes()
    cases = {
        b"this is no video": "media_container",
        whole[: len(whole) // 2]: "media_truncated",
        whole[:200]: "media_truncated",
        whole[:40] + bytes(len(whole) - 40): "media_truncated",
    }
    for data, code in cases.items():
        problem = refusal(upload(data), config_for(film))
        assert (problem.status, problem.code) == (400, code)
        assert "check that the file plays" in problem.message
        assert "the video" in problem.message and "/" not in problem.message


def test_a_play_list_is_refused_before_a_codec_library_opens_it(film, tmp_path, upload) -> None:
    secret = tmp_path / "secret.mp4"
    secret.write_bytes(film.clip.read_bytes())
    hls = f"#EXTM3U\n#EXT-X-TARGETDURATION:6\n#EXTINF:6,\nfile://{secret}\n#EXT-X-ENDLIST\n"
    concat = f"ffconcat version 1.0\nfile '{secret}'\n"
    for text in (hls, concat):
        assert refusal(upload(text.encode()), config_for(film)).code == "media_container"


def test_a_mute_clip_is_answered_without_sound(film, tmp_path) -> None:
    import av

    with av.open(str(film.clip)) as source, av.open(str(film.folder / "mute.mp4"), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(source.streams.video[0]):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    assert fetch("mute.mp4", config_for(film)).waveform is None


def test_other_schemes_are_refused(film) -> None:
    for url in ("ftp://host/clip.mp4", "s3://bucket/clip.mp4", f"file://elsewhere{film.clip}"):
        assert refusal(url, config_for(film)).code == "bad_url"


def test_http_is_refused_unless_the_host_is_named(film) -> None:
    with media_host(film.folder) as (url, name):
        assert refusal(url, config_for(film)).code == "media_not_allowed"
        open_to = functools.partial(config_for, film)
        assert refusal(url, open_to(allowed_media_hosts=("example.org",))).code == "media_not_allowed"
        named = open_to(allowed_media_hosts=(name,))
        assert fetch(url, named).has_audio
        disguised = url.replace("http://", f"http://{name}@localhost:1/")
        assert refusal(disguised, named).code == "media_not_allowed"
        assert refusal(url.replace("//", "//user@"), named).code == "media_not_allowed"
        assert refusal(url.replace("clip.mp4", "none.mp4"), named).code == "media_unreachable"
        assert refusal(url.replace("clip.mp4", "moved"), named).code == "media_redirect"
        small = open_to(allowed_media_hosts=(name,), max_video_bytes=1000)
        assert refusal(url, small).status == 413
    assert refusal(url, named).code == "media_unreachable"


@contextmanager
def media_host(folder: Path) -> Iterator[tuple[str, str]]:
    """A real web server over the folder on loopback; `/moved` redirects away."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path != "/moved":
                return super().do_GET()
            self.send_response(302)
            self.send_header("Location", "http://localhost:1/clip.mp4")
            return self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=folder)) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            name = f"127.0.0.1:{server.server_port}"
            yield f"http://{name}/clip.mp4", name
        finally:
            server.shutdown()
            thread.join()


def test_a_long_clip_is_sampled_and_not_cut(tmp_path) -> None:
    write_mp4(make_scene(seed=1, index=1, num_shots=6, shot_s=2.0), tmp_path / "long.mp4")
    config = ServeConfig(model="m", allowed_media_dirs=(str(tmp_path),))
    clip = fetch(tmp_path / "long.mp4", config)
    assert len(clip.frames) == 16 and clip.sample_fps == pytest.approx(16 / 12)
