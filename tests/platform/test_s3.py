"""The data rooms on a real S3: Ceph's RADOS Gateway on loopback, from the Debian packages.

apt-get install --no-install-recommends radosgw ceph-mon ceph-osd
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
import uuid
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import boto3
import pytest

from omni_platform import storage
from omni_platform.artifacts import read_card
from omni_platform.data.batches import TrainingRows
from omni_platform.data.pipeline import PreprocessConfig, preprocess
from omni_platform.data.quarantine import read_quarantine
from omni_platform.lease import LeaseHeldError, hold
from omni_platform.media.film_folder import FilmConfig, write_film
from omni_platform.staging import ForeignFilesError, staged_output

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("radosgw") is None, reason="radosgw (a real S3 server) is not installed"),
]

_CONF = """
[global]
fsid = {fsid}
mon host = [v2:127.0.0.1:{mon_port}/0]
mon initial members = a
public addr = 127.0.0.1
cluster addr = 127.0.0.1
ms bind ipv6 = false
auth cluster required = none
auth service required = none
auth client required = none
auth supported = none
# With no authentication the protocol's secure mode has no key to work with: radosgw would hang.
ms mon client mode = crc
ms mon service mode = crc
ms mon cluster mode = crc
run dir = {folder}
admin socket = {folder}/$name.$pid.asok
log file = {folder}/$name.log
crash dir = {folder}
mon data = {folder}/mon
osd data = {folder}/osd
rgw data = {folder}/rgw
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 1
osd pool default pgp num = 1
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
mon allow pool size one = true
mon max pg per osd = 500
osd objectstore = memstore
memstore device bytes = 1073741824
osd class load list = *
osd class default list = *
rgw frontends = beast endpoint=127.0.0.1:{s3_port}
rgw rados pool pg num min = 1
rgw dynamic resharding = false
rgw enable gc threads = false
rgw run sync thread = false
"""


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """`s3://` URI of an empty bucket on a server of this module's own."""
    folder = tmp_path_factory.mktemp("ceph")
    mon_port, s3_port = _free_port(), _free_port()
    conf = folder / "ceph.conf"
    fsid = str(uuid.uuid4())
    conf.write_text(_CONF.format(fsid=fsid, folder=folder, mon_port=mon_port, s3_port=s3_port))
    for name in ("mon", "osd", "rgw"):
        (folder / name).mkdir()
    servers: list[subprocess.Popen] = []
    try:
        _start_ceph(conf, fsid, mon_port, s3_port, servers)
        with pytest.MonkeyPatch.context() as environment:
            for name, value in {
                "AWS_ENDPOINT_URL": f"http://127.0.0.1:{s3_port}",
                "AWS_ACCESS_KEY_ID": "key",
                "AWS_SECRET_ACCESS_KEY": "secret",
                "AWS_DEFAULT_REGION": "us-east-1",
                "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
                "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required",
            }.items():
                environment.setenv(name, value)
            boto3.client("s3").create_bucket(Bucket="house")
            yield "s3://house"
    finally:
        for server in reversed(servers):
            server.kill()
            server.wait()


def _start_ceph(conf: Path, fsid: str, mon_port: int, s3_port: int, servers: list[subprocess.Popen]) -> None:
    """One monitor, one in-memory object store, one gateway, one user."""
    folder = conf.parent

    def run(*words: str) -> str:
        return subprocess.run(words, check=True, capture_output=True, text=True, timeout=120).stdout.strip()

    def serve(*words: str) -> None:
        # -f: in the foreground, so that it is our child and ends when we say so.
        servers.append(subprocess.Popen([*words, "-f"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))

    address = f"[v2:127.0.0.1:{mon_port}]"
    run("monmaptool", "--create", "--fsid", fsid, "--addv", "a", address, str(folder / "monmap"))
    run("ceph-mon", "--mkfs", "-i", "a", "--monmap", str(folder / "monmap"), "-c", str(conf))
    serve("ceph-mon", "-i", "a", "-c", str(conf))
    number = run("ceph", "-c", str(conf), "osd", "new", osd_id := str(uuid.uuid4()))
    run("ceph-osd", "-i", number, "--mkfs", "--osd-uuid", osd_id, "-c", str(conf))
    run("ceph", "-c", str(conf), "osd", "crush", "add", f"osd.{number}", "1.0", "host=here", "root=default")
    serve("ceph-osd", "-i", number, "-c", str(conf))
    _wait(lambda: "1 up" in run("ceph", "-c", str(conf), "osd", "stat"))
    serve("radosgw", "-n", "client.rgw", "-c", str(conf))
    _wait(lambda: _listens(s3_port))
    admin = ("radosgw-admin", "-c", str(conf), "-n", "client.rgw", "user", "create")
    run(*admin, "--uid=tests", "--display-name=tests", "--access-key=key", "--secret-key=secret")


def _wait(condition) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline, "the S3 server did not start"
        time.sleep(0.2)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_files_are_written_whole_read_listed_and_removed(bucket, tmp_path):
    folder = f"{bucket}/files"
    storage.write_bytes(f"{folder}/a.txt", b"one")
    storage.write_bytes(f"{folder}/deep/b.txt", b"two")
    big = os.urandom(12_000_000)  # more than one part of an upload
    storage.write_bytes(f"{folder}/big.bin", big)
    assert storage.list_files(folder) == [f"{folder}/a.txt", f"{folder}/big.bin"]
    assert storage.list_files(folder, ".txt") == [f"{folder}/a.txt"]
    assert storage.read_bytes(f"{folder}/big.bin") == big
    with storage.open_read(f"{folder}/big.bin") as file:
        file.seek(11_999_990)
        assert file.read() == big[-10:]
    with storage.local_copy(f"{folder}/a.txt") as path:
        assert path.read_bytes() == b"one"
    assert not path.exists()
    before = storage.signatures(folder)
    storage.write_bytes(f"{folder}/a.txt", b"1st")
    assert storage.signatures(folder)["a.txt"] != before["a.txt"]
    with pytest.raises(FileNotFoundError):
        storage.read_bytes(f"{folder}/none")
    storage.remove(folder)
    assert not storage.exists(f"{folder}/a.txt") and not storage.exists(f"{folder}/deep/b.txt")


@pytest.mark.parametrize("size", [10, 12_000_000])
def test_a_write_that_fails_leaves_the_old_object(bucket, size):
    uri = f"{bucket}/failing/a.bin"
    storage.write_bytes(uri, b"old")

    def fail() -> None:
        with storage.open_write(uri) as file:
            file.write(b"x" * size)
            raise RuntimeError("the writer dies")

    with pytest.raises(RuntimeError):
        fail()
    assert storage.read_bytes(uri) == b"old"


def test_results_are_complete_when_their_marker_is_there(bucket):
    folder = f"{bucket}/results"
    with staged_output(folder, key="key1", owner="test") as staged:
        storage.write_bytes(storage.join(staged.folder, "deep", "part"), b"1")
    with staged_output(folder, key="key1", owner="test") as staged:
        assert storage.read_bytes(storage.join(staged.folder, "deep", "part")) == b"1"
        staged.commit(marker="done.json", data=b"{}")
    assert storage.list_tree(folder) == ["_files.json", "deep/part", "done.json"]
    storage.write_bytes(f"{folder}/mine.txt", b"")
    with pytest.raises(ForeignFilesError, match=r"mine\.txt"), staged_output(folder, key="key2", owner="test"):
        pass
    storage.remove(f"{folder}/mine.txt")
    with staged_output(folder, key="key2", owner="test") as staged:
        staged.commit(marker="done.json", data=b"{}")
    assert storage.list_tree(folder) == ["_files.json", "done.json"]


def test_one_run_at_a_time_writes_an_output(bucket):
    refused = pytest.raises(LeaseHeldError, match="held is being written by a")
    with hold(f"{bucket}/held", owner="a"), refused, hold(f"{bucket}/held", owner="b"):
        pass
    storage.create_bytes(f"{bucket}/once", b"1")
    with pytest.raises(FileExistsError):
        storage.create_bytes(f"{bucket}/once", b"2")


def test_the_film_is_preprocessed_from_and_to_the_store(bucket, request, stub_encoder):
    config = FilmConfig(output_dir=f"{bucket}/film", num_clips=4, bad_clips=4, side_px=64, num_processes=1)
    write_film(config)
    assert write_film(config)[1] and read_card(f"{bucket}/film").counts["clips"] == 4

    request.getfixturevalue("local_ray")  # after the server, so that its workers inherit the address
    job = PreprocessConfig(manifest=f"{bucket}/film", output_dir=f"{bucket}/anchors", clips_per_part=3)
    result = preprocess(job, partial(stub_encoder))
    assert (result.card.counts["samples"], result.card.counts["quarantined"]) == (12, 4)
    reasons = {row.reason: row.detail for row in read_quarantine(result.folder)}
    assert set(reasons) == {"missing", "truncated", "no_audio", "container"}
    assert f"{bucket}/film/clips/film-0-missing-000.mp4" in reasons["missing"]
    assert preprocess(job, partial(stub_encoder)).reused

    rows = TrainingRows.open(f"{bucket}/anchors", cached_clips=1)
    assert len(rows) == 12
    for index in (11, 0, 5):
        row = rows.row(index)
        assert row.frames.shape == (12, 32, 32, 3) and row.waveform is not None and len(row.waveform) == 96_000
        assert len(row.anchors) == len(row.sample.looks)
        assert all(segment.visual.values.shape[1] == 3 for segment in row.anchors)
