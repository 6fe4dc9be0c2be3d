"""A second run into one output is refused at once, and a dead one's place is taken."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import pytest

from omni_platform import lease, storage
from omni_platform.holder import Holder
from omni_platform.lease import LeaseHeldError, LeaseLostError, hold, hold_all, read_holder, work_folder

HOLD = """
import sys, time
from omni_platform.lease import hold
with hold(sys.argv[1], owner="training run a"):
    print("held", flush=True)
    time.sleep(600)
"""
TRY = """
import sys
from omni_platform.lease import LeaseHeldError, hold
sys.stdin.readline()
try:
    with hold(sys.argv[1], owner="one of many"):
        print("won", flush=True)
        sys.stdin.readline()
except LeaseHeldError as error:
    print("refused", flush=True)
"""


@pytest.fixture(params=["local", "memory", "s3"])
def out(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "s3":
        yield request.getfixturevalue("s3") + "/out"
        return
    if request.param == "local":
        yield str(tmp_path / "out")
        return
    bucket = f"bucket-{uuid.uuid4().hex}"
    yield f"memory://{bucket}/out"
    if fsspec.filesystem("memory").exists(f"/{bucket}"):
        fsspec.filesystem("memory").rm(f"/{bucket}", recursive=True)


def start(program: str, out: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", program, out], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def say(process: subprocess.Popen) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def hear(process: subprocess.Popen) -> str:
    assert process.stdout is not None
    return next(line.strip() for line in process.stdout if "taking over" not in line)


def leave_behind(out: str, **changes: Any) -> None:
    """The lease of a run on another machine."""
    with hold(out, owner="preprocess") as mine:
        of_another = {"host": "node-7", "machine": "another", "beat_at_s": time.time(), **changes}
        theirs = replace(mine.holder, **of_another)
    storage.write_bytes(storage.join(work_folder(out), "lease.json"), json.dumps(theirs.__dict__).encode())


def test_the_second_is_refused_at_once_with_the_name_of_the_first(out: str) -> None:
    with hold(out, owner="training run a") as held:
        before_s = time.monotonic()
        with pytest.raises(LeaseHeldError) as refused, hold(out, owner="training run b"):
            pass
        assert time.monotonic() - before_s < 3
        assert read_holder(out) == held.holder
    expected = (
        rf"{out} is being written by training run a \(process {os.getpid()} on {socket.gethostname()}, since "
        rf"\S+, last sign of life \d s ago\)\. Wait for it, end it, or choose another place; "
        r"if it is dead, it can be replaced 30 s after its last sign of life"
    )
    assert re.fullmatch(expected, str(refused.value))
    with hold(out, owner="training run b"):  # given back
        pass


def test_nothing_is_left_and_neighbours_do_not_mind(tmp_path: Path) -> None:
    with hold(tmp_path / "train", owner="a"), hold(tmp_path / "train.v2", owner="b"), hold(tmp_path / "tr", owner="c"):
        assert len(list(tmp_path.iterdir())) == 3
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_fails_gives_its_output_back(out: str) -> None:
    with pytest.raises(RuntimeError, match="fails"), hold(out, owner="a"):
        raise RuntimeError("fails")
    assert read_holder(out) is None


def test_all_or_none_are_held(tmp_path: Path) -> None:
    with hold(tmp_path / "b", owner="other"):
        refused = pytest.raises(LeaseHeldError, match="b is being written by other")
        with refused, hold_all([tmp_path / "a", tmp_path / "b"], owner="mine"):
            pass
        assert read_holder(tmp_path / "a") is None


def test_a_process_that_was_killed_here_is_replaced_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "out")
    first = start(HOLD, out)
    assert hear(first) == "held"
    with pytest.raises(LeaseHeldError, match=f"training run a \\(process {first.pid} on"), hold(out, owner="b"):
        pass
    first.send_signal(signal.SIGKILL)
    first.wait()
    before_s = time.monotonic()
    with hold(out, owner="b"):
        assert time.monotonic() - before_s < 3
    said = capsys.readouterr().out
    assert said == (
        f"{out}: taking over from training run a (process {first.pid} on {socket.gethostname()}), which has ended\n"
    )


def test_a_process_number_that_is_used_again_is_another_process(tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    with hold(out, owner="a") as held:
        ended = replace(held.holder, process_start="1")
    storage.write_bytes(storage.join(work_folder(out), "lease.json"), json.dumps(ended.__dict__).encode())
    with hold(out, owner="b"):
        pass


def test_of_many_that_start_together_one_gets_it(tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    leave = tmp_path / "leave"
    with hold(out, owner="dead") as held:
        leave.write_text(json.dumps(replace(held.holder, process_start="1").__dict__))
    for _ in range(3):  # the second time on they all find a dead one's lease
        many = [start(TRY, out) for _ in range(6)]
        for process in many:
            say(process)
        answers = [hear(process) for process in many]
        for process in many:
            process.communicate("\n")
            assert process.returncode == 0
        assert sorted(answers) == ["refused"] * 5 + ["won"]
        storage.write_bytes(storage.join(work_folder(out), "lease.json"), leave.read_bytes())


def test_one_on_another_machine_is_replaced_when_it_has_been_silent(
    out: str, capsys: pytest.CaptureFixture[str]
) -> None:
    leave_behind(out, heartbeat_s=0.5)
    with pytest.raises(LeaseHeldError, match=r"preprocess \(process \d+ on node-7"), hold(out, owner="b"):
        pass
    time.sleep(3.1)
    with hold(out, owner="b"):
        assert "on node-7), which shows no sign of life any more" in capsys.readouterr().out


def test_one_whose_clock_is_behind_is_not_taken_for_dead(out: str) -> None:
    """Its lease looks old, but is rewritten while it is watched."""
    leave_behind(out, heartbeat_s=0.3, beat_at_s=time.time() - 3600)
    file, ended = storage.join(work_folder(out), "lease.json"), threading.Event()

    def beat() -> None:
        while not ended.wait(0.1):
            theirs = json.loads(storage.read_bytes(file))
            storage.write_bytes(file, json.dumps({**theirs, "beat_at_s": theirs["beat_at_s"] + 0.1}).encode())

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        with pytest.raises(LeaseHeldError, match=r"last sign of life 3[56]"), hold(out, owner="b"):
            pass
    finally:
        ended.set()
        thread.join()


def test_a_holder_stays_alive_longer_than_a_lease_lives(out: str) -> None:
    with hold(out, owner="a", heartbeat_s=0.3):
        time.sleep(2.5)  # a lease that is not renewed lives for 1.8 s
        with pytest.raises(LeaseHeldError), hold(out, owner="b"):
            pass


def test_a_holder_that_was_replaced_is_told_and_publishes_nothing(out: str) -> None:
    lost = threading.Event()
    with hold(out, owner="suspended", heartbeat_s=0.1, on_lost=lost.set) as held:
        held.check()
        file = storage.join(work_folder(out), "lease.json")
        other = json.dumps(replace(held.holder, token="other").__dict__).encode()
        # On a store, a heartbeat that has read the file just before may write over the first one.
        for _ in range(20):
            storage.write_bytes(file, other)
            if lost.wait(0.5):
                break
        with pytest.raises(LeaseLostError, match="out was taken over by another run"):
            held.check()
    holder = read_holder(out)
    assert holder is not None and holder.token == "other"  # and does not give away what is not its own


def test_a_lease_that_cannot_be_read_is_refused_with_its_file(out: str) -> None:
    file = storage.join(work_folder(out), "lease.json")
    storage.write_bytes(file, b'{"from": "a later version"}')
    refused = pytest.raises(LeaseHeldError, match=f"cannot read: {file}. If no other run writes there, remove it")
    with refused, hold(out, owner="a"):
        pass
    assert storage.read_bytes(file) == b'{"from": "a later version"}'


def test_a_store_that_ignores_conditions_is_read_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both write, the later one stays, and the earlier one finds another token than its own."""
    out = f"memory://bucket-{uuid.uuid4().hex}/out"
    monkeypatch.setattr(lease.storage, "create_bytes", storage.write_bytes)
    both = threading.Barrier(2)
    read = lease.read_holder

    def read_together(destination: str) -> Holder | None:
        found = read(destination)
        if found is None:
            with_timeout = both.wait(10)
            time.sleep(0.2 * with_timeout)
        return found

    monkeypatch.setattr(lease, "read_holder", read_together)
    outcomes: list[str] = []

    def run(name: str) -> None:
        try:
            with hold(out, owner=name):
                outcomes.append("won")
                time.sleep(2)
        except LeaseHeldError:
            outcomes.append("refused")

    threads = [threading.Thread(target=run, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["refused", "won"]


@pytest.mark.parametrize("s3", ["no conditions"], indirect=True)
def test_a_server_without_conditional_puts_still_tells_two_runs_apart(s3: str) -> None:
    storage.create_bytes(f"{s3}/a", b"1")
    storage.create_bytes(f"{s3}/a", b"2")  # it does not know the condition
    refused = pytest.raises(LeaseHeldError, match="out is being written by a")
    with hold(f"{s3}/out", owner="a"), refused, hold(f"{s3}/out", owner="b"):
        pass


def test_a_whole_bucket_has_its_work_folder_inside() -> None:
    assert work_folder("s3://bucket") == "s3://bucket/.work"
    assert work_folder("s3://bucket/run/") == "s3://bucket/.run.work"
    assert work_folder("/a/b") == "/a/.b.work"
