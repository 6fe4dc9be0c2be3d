"""Decoding in a child: the same clips, and no clip can hold up or bring down the caller."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from omni_platform.media.decode import decode_clip
from omni_platform.media.decode_process import DecodeProcess
from omni_platform.media.probe import MediaError


@pytest.fixture
def decoder() -> Iterator[DecodeProcess]:
    with DecodeProcess() as process:
        yield process


@pytest.fixture
def endless(tmp_path: Path) -> Path:
    """A clip that no decoder ever gets to read: a pipe that nobody writes to."""
    path = tmp_path / "endless.mp4"
    os.mkfifo(path)
    return path


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
    for source, reason in ((film / "nowhere.mp4", "missing"), (b"junk", "undecodable")):
        with pytest.raises(MediaError) as error:
            decoder.decode(source, deadline_s=60)
        assert error.value.reason == reason
    assert decoder.decode(path, deadline_s=60).has_audio and _pid(decoder) == pid


def test_a_clip_that_hangs_is_cut_off_and_the_next_one_decodes(decoder, film, endless):
    path = film / "clips" / "film-5-00003.mp4"
    decoder.decode(path, deadline_s=60)
    hanging = _pid(decoder)
    with pytest.raises(MediaError, match=r"endless\.mp4 was not decoded within 0\.3 s") as error:
        decoder.decode(endless, deadline_s=0.3)
    assert error.value.reason == "deadline"
    with pytest.raises(ProcessLookupError):
        os.kill(hanging, 0)
    assert decoder.decode(path, deadline_s=60).has_audio and _pid(decoder) != hanging


def test_a_clip_that_crashes_the_decoder_is_refused_and_the_next_one_decodes(decoder, film, endless):
    path = film / "clips" / "film-5-00003.mp4"
    decoder.decode(path, deadline_s=60)
    threading.Timer(0.3, os.kill, (_pid(decoder), signal.SIGSEGV)).start()
    with pytest.raises(MediaError, match=r"endless\.mp4 brought the decoder down .*-11") as error:
        decoder.decode(endless, deadline_s=60)
    assert error.value.reason == "undecodable"
    assert decoder.decode(path, deadline_s=60).has_audio


def test_the_child_does_not_outlive_a_parent_that_is_killed(film, endless):
    program = (
        "import sys\n"
        "from omni_platform.media.decode_process import DecodeProcess\n"
        "decoder = DecodeProcess()\n"
        "decoder.decode(sys.argv[1], deadline_s=60)\n"
        "print(decoder._child.pid, flush=True)\n"
        "decoder.decode(sys.argv[2], deadline_s=600)\n"
    )
    clip = str(film / "clips" / "film-5-00000.mp4")
    command = [sys.executable, "-c", program, clip, str(endless)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        with endless.open("wb"):  # opens when the child reads, which then waits for data that never come
            parent.kill()
            deadline = time.monotonic() + 60
            while Path(f"/proc/{child}").exists() and time.monotonic() < deadline:
                time.sleep(0.05)
            assert not Path(f"/proc/{child}").exists()
