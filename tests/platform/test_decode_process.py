"""Decoding in a child: the same clips, and no clip can hold up or bring down the caller."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from omni_platform.media.decode import decode_clip
from omni_platform.media.decode_process import DecodeProcess, _report_layers
from omni_platform.media.errors import MediaError


@pytest.fixture
def decoder() -> Iterator[DecodeProcess]:
    with DecodeProcess() as process:
        yield process


@pytest.fixture
def captured(monkeypatch: pytest.MonkeyPatch) -> Iterator[DecodeProcess]:
    """A decoder whose process does what the option `attack` says (tests/platform/hostile_child.py)."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]))
    with DecodeProcess(memory_bytes=100 << 20, child="hostile_child") as process:
        yield process


def _refusal(decoder: DecodeProcess, source: Any = b"clip", *, deadline_s: float = 60, **options: Any) -> MediaError:
    with pytest.raises(MediaError) as error:
        decoder.decode(source, deadline_s=deadline_s, **options)
    return error.value


def _pid(decoder: DecodeProcess) -> int:
    assert decoder._child is not None
    return decoder._child.pid


def test_the_child_decodes_what_the_function_decodes_and_lives_on(decoder, film):
    path = film / "clips" / "film-5-00003.mp4"
    for source, options in ((path, {"fps": 4.0}), (path.read_bytes(), {}), (path, {"use_audio": False})):
        ours, theirs = decode_clip(source, **options), decoder.decode(source, deadline_s=60, **options)
        assert np.array_equal(ours.frames, theirs.frames)
        assert (ours.sample_fps, ours.duration_s) == (theirs.sample_fps, theirs.duration_s)
        assert (ours.waveform is None) == (theirs.waveform is None)
        if ours.waveform is not None:
            assert np.array_equal(ours.waveform, theirs.waveform)
    pid = _pid(decoder)
    for source, reason in ((film / "nowhere.mp4", "missing"), (b"junk", "container"), (film, "unreadable")):
        assert _refusal(decoder, source).reason == reason
    assert decoder.decode(path, deadline_s=60).has_audio and _pid(decoder) == pid


def test_an_open_file_is_a_clip_too_and_messages_use_the_given_name(decoder, film):
    path = film / "clips" / "film-5-00003.mp4"
    with path.open("rb") as file:
        assert decoder.decode(file, deadline_s=60).has_audio
    assert _refusal(decoder, b"junk", name="the clip").detail.startswith("the clip is in no container")


def test_a_pipe_is_refused_and_not_waited_for(decoder, tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")
    assert str(_refusal(decoder, tmp_path / "pipe.mp4")).endswith("pipe.mp4 is not a file [unreadable]")


def test_a_clip_that_hangs_is_cut_off_and_the_next_one_has_a_new_process(captured):
    captured.start()
    hanging = _pid(captured)
    error = _refusal(captured, deadline_s=0.3, name="endless.mp4", attack="hang")
    assert str(error) == "endless.mp4 was not decoded within 0.3 s [deadline]"
    with pytest.raises(ProcessLookupError):
        os.kill(hanging, 0)
    assert _refusal(captured, attack="environment", target="X").detail == "saw None" and _pid(captured) != hanging


def test_a_clip_over_its_time_ends_between_frames_and_the_process_lives_on(captured):
    captured.start()
    pid = _pid(captured)
    error = _refusal(captured, deadline_s=0.3, name="long.mp4", attack="work")
    assert str(error) == "long.mp4 was not decoded within 0.3 s [deadline]"
    assert _refusal(captured, attack="environment", target="X").reason == "attack" and _pid(captured) == pid


def test_a_clip_that_is_withdrawn_ends_between_frames_and_the_process_lives_on(captured):
    captured.start()
    pid, gone = _pid(captured), threading.Event()
    threading.Timer(0.3, gone.set).start()
    started = time.monotonic()
    assert _refusal(captured, should_stop=gone.is_set, attack="work").reason == "cancelled"
    assert time.monotonic() - started < 30
    assert _refusal(captured, attack="environment", target="X").reason == "attack" and _pid(captured) == pid


def test_a_withdrawal_that_the_process_does_not_notice_ends_it(captured):
    captured.start()
    hanging = _pid(captured)
    assert _refusal(captured, should_stop=lambda: True, attack="hang").reason == "cancelled"
    assert _refusal(captured, attack="environment", target="X").reason == "attack" and _pid(captured) != hanging


def test_a_clip_that_crashes_the_decoder_is_refused_and_the_next_one_decodes(captured):
    error = _refusal(captured, name="bad.mp4", attack="crash")
    assert str(error) == f"bad.mp4 brought the decoder down (exit status {-signal.SIGSEGV}) [undecodable]"
    assert _refusal(captured, attack="environment", target="X").reason == "attack"


def test_a_decoder_that_died_between_clips_is_replaced_and_no_clip_is_blamed(captured):
    captured.start()
    assert captured._child is not None
    captured._child.poll = lambda: None  # it dies after it was seen alive
    os.kill(_pid(captured), signal.SIGKILL)
    assert _refusal(captured, attack="environment", target="X").detail == "saw None"


def test_memory_is_bounded_and_a_clip_that_wants_more_is_refused(captured):
    error = _refusal(captured, name="big.mp4", attack="memory", target=str(200 << 20))
    assert str(error) == "big.mp4 takes more memory to decode than a clip may [too_large]"
    assert _refusal(captured, attack="memory", target=str(20 << 20)).detail == f"took {20 << 20}"


def test_processor_time_is_bounded_by_the_kernel_where_native_code_does_not_look(captured):
    assert _refusal(captured, name="slow.mp4", attack="spin").reason == "deadline"


def test_what_a_library_says_of_itself_does_not_reach_the_caller(captured):
    error = _refusal(captured, name="odd.mp4", attack="surprise")
    assert str(error) == "odd.mp4 cannot be decoded (RuntimeError) [undecodable]"


@pytest.mark.parametrize("lie", ["pickle", "huge", "negative", "partial", "list"])
def test_nothing_that_a_captured_process_answers_harms_its_caller(captured, lie):
    error = _refusal(captured, deadline_s=1, name="evil.mp4", attack=lie)
    assert error.reason in ("undecodable", "deadline")
    assert _refusal(captured, attack="environment", target="X").reason == "attack"


def test_the_environment_of_the_process_holds_no_keys(captured, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    assert _refusal(captured, attack="environment", target="AWS_SECRET_ACCESS_KEY").detail == "saw None"


@pytest.mark.skipif(sys.platform != "linux", reason="the sandbox needs Linux")
@pytest.mark.parametrize("attack", ["read", "write", "run", "fork", "signal"])
def test_a_captured_process_reaches_nothing(captured, attack, tmp_path):
    (tmp_path / "private").write_bytes(b"key!")
    assert _refusal(captured, attack=attack, target=str(tmp_path / "private")).detail.startswith("refused: Perm")
    assert [path.name for path in tmp_path.iterdir()] == ["private"]


def test_the_log_says_once_what_the_sandbox_leaves_open(caplog):
    for layers in (("limits", "landlock"), ("limits", "landlock")):
        _report_layers(layers)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "would reach the network on this machine (layers of the sandbox: limits, landlock)" in caplog.text


@pytest.mark.skipif(sys.platform != "linux", reason="the sandbox needs Linux")
def test_a_captured_process_reaches_no_address(captured):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert _refusal(captured, attack="connect", target=str(port)).detail.startswith("refused: ")


def test_the_child_does_not_outlive_a_parent_that_is_killed(film):
    program = (
        "import sys\n"
        "from omni_platform.media.decode_process import DecodeProcess, _report_layers\n"
        "decoder = DecodeProcess(child='hostile_child')\n"
        "decoder.start()\n"
        "print(decoder._child.pid, flush=True)\n"
        "decoder.decode(b'clip', deadline_s=600, attack='hang')\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, env=environment
    ) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        time.sleep(0.3)
        parent.kill()
        deadline = time.monotonic() + 60
        while Path(f"/proc/{child}").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not Path(f"/proc/{child}").exists()
