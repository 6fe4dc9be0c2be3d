"""Put an application on the Ray that is running, and take it away again."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager

from ray import serve
from ray.serve import Application
from ray.serve.config import HTTPOptions, ProxyLocation

from omni_serving.app import build_app
from omni_serving.config import ServeConfig

APP_NAME = "latentomni"
_PROXY_WAITS_LONGER_S = 30.0
_KEEP_ALIVE_S = 75


class DeployError(RuntimeError):
    """No replica came up; the message holds the cause."""


@contextmanager
def deployed(config: ServeConfig, app: Application | None = None) -> Iterator[str]:
    """Serve at `config.host:config.port` within the block; yields the base URL once requests are answered.

    `app` stands for `build_app(config)`. Requests that are being answered when the block ends are finished.
    Raises ValueError where the port is taken, `DeployError` where the model cannot be loaded.
    """
    _check_port_is_free(config)
    serve.start(
        proxy_location=ProxyLocation.HeadOnly,
        http_options=HTTPOptions(
            host=config.host,
            port=config.port,
            # The replica's own deadlines come first and explain themselves; this one is for a replica that hangs.
            request_timeout_s=config.request_timeout_s + _PROXY_WAITS_LONGER_S,
            keep_alive_timeout_s=_KEEP_ALIVE_S,
        ),
    )
    try:
        _run(app or build_app(config))
        host = "127.0.0.1" if config.host in ("0.0.0.0", "::") else config.host
        yield f"http://{host}:{config.port}"
    finally:
        serve.delete(APP_NAME)


def _run(app: Application) -> None:
    try:
        serve.run(app, name=APP_NAME, route_prefix="/")
    except RuntimeError as error:
        # Ray Serve names the deployment; why its replica did not start is the last line of a long message.
        application = serve.status().applications.get(APP_NAME)
        replicas = application.deployments.values() if application else ()
        reasons = [line for replica in replicas for line in replica.message.splitlines()[-1:]]
        raise DeployError(f"the model could not be loaded: {'; '.join(reasons) or error}") from None


def _check_port_is_free(config: ServeConfig) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((config.host, config.port))
        except OSError as error:
            raise ValueError(
                f"cannot listen on {config.host}:{config.port} ({error.strerror}); set another port=..."
            ) from None
