"""Serve a model over HTTP until SIGTERM or SIGINT.

python jobs/serve.py --config jobs/configs/serve/local.yaml port=8001
"""

from __future__ import annotations

import json
import os
import signal
import sys

from omni_platform.config import parse_args
from omni_serving.access import read_keys
from omni_serving.config import ServeConfig
from omni_serving.model_source import on_this_machine

CONFIG = ServeConfig


def main(argv: list[str] | None = None) -> None:
    config = parse_args(ServeConfig, argv)
    try:
        read_keys(config)
        if not os.environ.get("RAY_ADDRESS"):
            config = on_this_machine(config)
    except ValueError as error:
        sys.exit(f"serve: {error}")
    _serve(config)


def _serve(config: ServeConfig) -> None:
    # Ray Serve and torch take seconds to import, and what is wrong in a configuration is known before.
    from omni_platform.runtime import start_ray
    from omni_serving.deploy import DeployError, deployed
    from omni_serving.proxy import PROXY_ENV

    start_ray(env_vars=PROXY_ENV)
    try:
        # After Ray, which sets a handler of its own that ends the process at once.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, _stop)
        with deployed(config) as url:
            print(_greeting(config, url), flush=True)
            while True:
                signal.pause()
    except _Stop:
        print("stopped", flush=True)
    except (ValueError, DeployError) as error:
        sys.exit(f"serve: {error}")


class _Stop(BaseException):
    """A signal asked the process to end; like KeyboardInterrupt no `except Exception` takes it."""


def _stop(number: int, frame: object) -> None:
    # The first is enough: a second one must not cut off the cleaning up.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    raise _Stop


def _greeting(config: ServeConfig, url: str) -> str:
    folder = config.allowed_media_dirs[0] if config.allowed_media_dirs else ""
    clip = f"{folder}/clip.mp4" if folder else "data:video/mp4;base64,..."
    content = [
        {"type": "text", "text": "Which colour is on screen when the low tone sounds?"},
        {"type": "video_url", "video_url": {"url": clip}},
    ]
    body = json.dumps({"model": config.model_name, "messages": [{"role": "user", "content": content}]})
    return (
        f"serving {config.model_name} at {url}\n"
        f"try: curl {url}/v1/chat/completions -H 'Content-Type: application/json' -d '{body}'"
    )


if __name__ == "__main__":
    main()
