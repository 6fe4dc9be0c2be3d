"""Each layer of the sandbox alone stops what it is there to stop, in a process of its own."""

from __future__ import annotations

import json
import os
import re
import socket
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from omni_platform.media.sandbox import SANDBOX_LAYERS, exposed_by
from omni_platform.media.syscall_filter import _FORBIDDEN, _program

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the sandbox needs Linux")

_TRY = """
import json, os, socket, sys, threading
from omni_platform.media.sandbox import SandboxLimits, lock_down
layers, private, port = json.loads(sys.argv[1]), sys.argv[2], int(sys.argv[3])

def attempt(work):
    try:
        work()
    except (OSError, MemoryError) as error:
        return type(error).__name__
    return "done"

def write():
    with os.fdopen(os.open(private + ".new", os.O_WRONLY | os.O_CREAT), "wb", buffering=0) as file:
        file.write(b"x")

def connect():
    with socket.socket() as end:
        end.settimeout(5)
        end.connect(("127.0.0.1", port))

def fork():
    if os.fork() == 0:
        os._exit(0)
    os.wait()

def thread():
    one = threading.Thread(target=int)
    one.start()
    one.join()

def run():
    if os.path.basename(sys.argv[0]) == "x":
        return
    os.posix_spawn("/bin/true", ["true"], {})

held = lock_down(SandboxLimits(memory_bytes=64 << 20), layers)
tries = {
    "read": lambda: os.close(os.open(private, os.O_RDONLY)),
    "write": write,
    "connect": connect,
    "run": run,
    "fork": fork,
    "memory": lambda: len(bytearray(128 << 20)),
    "little memory": lambda: len(bytearray(16 << 20)),
    "thread": thread,
}
result = {"held": held, **{name: attempt(work) for name, work in tries.items()}}
os.write(1, json.dumps(result).encode())
"""


@pytest.fixture
def attempt(tmp_path: Path):
    """What a process can do after it has locked itself down with some layers."""
    (tmp_path / "private").write_text("key")
    with socket.create_server(("127.0.0.1", 0)) as server:

        def run(*layers: str, user: int | None = None) -> dict[str, str]:
            command = [sys.executable, "-c", _TRY, json.dumps(layers), str(tmp_path / "private")]
            result = subprocess.run(
                [*command, str(server.getsockname()[1])],
                stdout=subprocess.PIPE,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
                user=user,
                check=True,
            )
            outcome = json.loads(result.stdout)
            if missing := set(layers) - set(outcome.pop("held")):
                pytest.skip(f"this kernel does not offer {', '.join(sorted(missing))}")
            return {name for name, how in outcome.items() if how != "done"}

        yield run


def test_without_a_sandbox_everything_is_possible(attempt):
    assert attempt() == set()


@pytest.mark.parametrize(
    ("layer", "stopped"),
    [
        ("limits", {"write", "memory"}),
        ("namespace", {"connect"}),
        ("privileges", set()),  # seen below
        ("landlock", {"read", "write", "connect", "run"}),
        ("syscalls", {"read", "write", "connect", "run", "fork"}),
    ],
)
def test_each_layer_alone_stops_its_part(attempt, layer, stopped):
    assert attempt(layer) == stopped


def test_all_layers_together_leave_memory_and_threads(attempt):
    assert attempt(*SANDBOX_LAYERS) == {"read", "write", "connect", "run", "fork", "memory"}


def test_what_is_left_open_is_named():
    assert exposed_by(SANDBOX_LAYERS) == exposed_by(("limits", "privileges", "syscalls")) == []
    assert exposed_by(("limits", "landlock")) == ["the network"]
    assert exposed_by(()) == ["files", "the network", "all memory"]


@pytest.mark.skipif(os.getuid() != 0, reason="only root has rights to give up")
def test_root_gives_up_its_rights(tmp_path):
    program = (
        "import os\n"
        "from omni_platform.media.sandbox import SandboxLimits, lock_down\n"
        "lock_down(SandboxLimits(memory_bytes=1 << 30), ('privileges',))\n"
        "status = dict(line.split(':', 1) for line in open('/proc/self/status'))\n"
        "print(int(status['CapEff'], 16), status['NoNewPrivs'].strip())\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    result = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, env=environment)
    assert result.stdout.split() == ["0", "1"]


@pytest.mark.parametrize("machine", [0, 1], ids=["x86_64", "aarch64"])
def test_the_filter_is_a_whole_program_for_both_architectures(machine):
    """Decoded again: every jump ends inside, and every path ends in a verdict."""
    code = list(struct.iter_unpack("=HBBI", _program(machine)))
    for at, (operation, on_true, on_false, _) in enumerate(code):
        if operation & 0x07 == 0x05:  # a jump
            assert at + 1 + max(on_true, on_false) < len(code)
    assert code[-1][0] == 0x06 and code[-1][3] == 0x7FFF0000
    compared = [value for operation, _, _, value in code if operation == 0x15]
    assert len(compared) == len(set(compared))


@pytest.mark.parametrize(
    ("header", "column"),
    [("/usr/include/x86_64-linux-gnu/asm/unistd_64.h", 0), ("/usr/include/asm-generic/unistd.h", 1)],
    ids=["x86_64", "aarch64"],
)
def test_the_numbers_of_system_calls_are_those_of_the_kernel(header, column):
    if not Path(header).exists():
        pytest.skip("the kernel's headers are not installed")
    found = re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", Path(header).read_text())
    numbers = {name: int(value) for name, value in found}
    ours = {name: both[column] for name, both in _FORBIDDEN.items() if both[column] is not None}
    assert ours == {name: numbers[name] for name in ours}
