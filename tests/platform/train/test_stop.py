"""A request to stop: signals raise a flag, and workers see it."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest
import ray

from omni_platform.train.stop import RunStopped, StopFlag, StopWatch, stop_on_signals


@pytest.fixture(scope="module", autouse=True)
def ray_session() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        ray.init(address="local", num_cpus=1, include_dashboard=False, _node_ip_address="127.0.0.1")
        yield
        ray.shutdown()


def test_signals_raise_the_flag_once_and_end_the_process_the_second_time() -> None:
    flag = StopFlag.options(name="flag-of-this-test").remote()  # type: ignore[attr-defined]
    watch = StopWatch("flag-of-this-test")
    before = signal.getsignal(signal.SIGTERM)
    with stop_on_signals(flag) as request:
        os.kill(os.getpid(), signal.SIGTERM)
        assert request.signum == signal.SIGTERM
        assert ray.get(flag.is_raised.remote())
        with pytest.raises(SystemExit) as ended:
            os.kill(os.getpid(), signal.SIGINT)
        assert ended.value.code == 128 + signal.SIGINT
    assert signal.getsignal(signal.SIGTERM) is before
    assert sees(watch)


def test_a_stopped_run_ends_as_its_signal_would() -> None:
    assert RunStopped(signal.SIGTERM, "").exit_code == 143
    assert RunStopped(signal.SIGINT, "").exit_code == 130


def test_a_flag_that_is_gone_stops_nobody() -> None:
    flag = StopFlag.options(name="flag-that-goes").remote()  # type: ignore[attr-defined]
    watch = StopWatch("flag-that-goes")
    assert ray.get(flag.is_raised.remote()) is False
    ray.kill(flag)
    assert not sees(watch, looks=20)


def sees(watch: StopWatch, looks: int = 1000) -> bool:
    """Whether the watch has seen the flag after some looks, each of which lets the answer come in."""
    for _ in range(looks):
        if watch.seen():
            return True
        ray.wait([watch._question] if watch._question is not None else [ray.put(0)], timeout=10)
    return False
