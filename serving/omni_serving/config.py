"""What a deployment serves, to whom, and within which limits."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath

REGISTRY = "models:/"
_ABOVE_ZERO = (
    *("num_replicas", "max_new_tokens", "max_batch_size", "max_requests", "max_model_len", "request_timeout_s"),
    *("max_uploads", "max_upload_bytes_in_flight", "body_idle_timeout_s", "body_timeout_s"),
    *("max_video_bytes", "max_duration_s", "max_picture_pixels", "decode_deadline_s", "decode_workers"),
    *("decode_cpu_s", "decode_memory_bytes", "fetch_timeout_s", "fetch_min_bytes_per_s", "fetch_workers"),
)


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """One served model. The same fields are the `args` of a RayService application."""

    model: str
    """The exported model: a folder, or `models:/name@alias` in the MLflow registry."""
    served_model_name: str | None = None
    """The name clients put in `model`; None = the folder's last part, or `name@alias`."""
    tracking_uri: str | None = None
    """Where the registry is; None = MLFLOW_TRACKING_URI, then the project's default."""
    device: str = "auto"
    """`auto`, `cpu` or `cuda`."""

    host: str = "127.0.0.1"
    """Address to listen on. RayService sets its own (`http_options`), this one is for `jobs/serve.py`."""
    port: int = 8000
    """Port to listen on; see `host`."""
    num_replicas: int = 1
    """Copies of the model, each with its own queue."""
    num_cpus_per_replica: float = 1.0
    """CPU cores that Ray reserves for a replica."""
    num_gpus_per_replica: float = 0.0
    """GPUs that Ray reserves for a replica."""

    max_new_tokens: int = 256
    """The most tokens a request may ask for, and what it gets if it does not say."""
    max_phases: int = 4
    """The most latent phases a request may ask for, and what it gets if it does not say."""
    max_batch_size: int = 8
    """Requests that share one model call."""
    batch_wait_s: float = 0.01
    """How long an idle model waits for company after the first request."""
    max_requests: int = 64
    """Requests inside one replica (decoding, waiting or answered right now); the next one gets a 429."""
    max_model_len: int | None = None
    """The most positions of a request: prompt, clip, new tokens and latent slots together. None = what the model's
    configuration names (`max_position_embeddings`), at most 32768. Memory grows with it."""
    request_timeout_s: float = 600.0
    """Time for a whole request, from its headers to the end of its answer; after that a 504."""

    max_uploads: int = 512
    """Requests whose body is still arriving at one replica. At capacity, one that has stopped sending is ended with a
    408 to make room; where all are sending, a new one gets a 429."""
    max_upload_bytes_in_flight: int = 1024 * 1024 * 1024
    """Bytes of bodies that are arriving or whose clip is not yet decoded, in one replica; beyond, a 429."""
    body_idle_timeout_s: float = 10.0
    """How long to wait for the next byte of a body before a 408."""
    body_timeout_s: float = 120.0
    """Time for a whole body to arrive before a 408."""
    upload_dir: str | None = None
    """Where clips sent as data URIs are kept until they are decoded; None = a folder in the system's temporary one."""

    allowed_hosts: tuple[str, ...] = ()
    """Names (without port, `*.` for any subdomain) that the Host header of a request may hold. Empty: `host` and the
    loopback names; `*`: any. A web page that points its own name at this address is refused by this."""
    cors_allowed_origins: tuple[str, ...] = ()
    """Origins, such as `https://app.example.org`, whose web pages may call the server; `*`: any. Empty: none."""
    api_keys_env: str | None = None
    """The environment variable of the replicas that holds the bearer keys, separated by commas or white space. A
    request then needs `Authorization: Bearer KEY`; /health does not."""
    api_keys_file: str | None = None
    """A file with one bearer key a line, instead of the environment variable."""

    allowed_media_dirs: tuple[str, ...] = ()
    """Folders whose files a request may name. Empty: clips come as data URIs only."""
    allowed_media_hosts: tuple[str, ...] = ()
    """`host` or `host:port` names that the server may fetch clips from. Empty: http(s) is refused. A name that
    leads into a private network is refused unless that address or network (`10.0.0.0/8`) is listed too."""
    fetch_timeout_s: float = 30.0
    """Time for fetching one clip over http(s)."""
    fetch_min_bytes_per_s: int = 32 * 1024
    """A host that sends less, on average after five seconds, is given up."""
    fetch_workers: int = 8
    """Clips that one replica fetches at once; one client gets half of them at most."""
    max_video_bytes: int = 64 * 1024 * 1024
    """Size of a clip's file; a larger one gets a 413."""
    max_duration_s: float = 120.0
    """Length of a clip; a longer one gets a 413."""
    max_picture_pixels: int = 4096 * 2304
    """Pixels of a clip's pictures as its file holds them; larger ones get a 413."""
    decode_deadline_s: float = 30.0
    """Time for decoding one clip; one that takes longer is refused."""
    decode_cpu_s: float = 60.0
    """CPU time for decoding one clip, over all threads of its codec."""
    decode_memory_bytes: int = 2 * 1024**3
    """Memory for decoding one clip; one that needs more gets a 413."""
    decode_workers: int = 2
    """Clips that one replica decodes at once."""

    def __post_init__(self) -> None:
        if not self.model:
            raise ValueError("model is empty: give a folder or models:/name@alias")
        for name in _ABOVE_ZERO:
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise ValueError(f"{name} must be above 0, got {value}")
        if self.api_keys_env and self.api_keys_file:
            raise ValueError("api_keys_env and api_keys_file are both set: keep one of them")
        if self.max_upload_bytes_in_flight < self.max_video_bytes * 2:
            raise ValueError(
                f"max_upload_bytes_in_flight ({self.max_upload_bytes_in_flight}) must be at least twice "
                f"max_video_bytes ({self.max_video_bytes}): a clip grows by a third in base64"
            )
        for name in ("max_phases", "batch_wait_s"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if not 0 < self.port < 65536:
            raise ValueError(f"port must lie in 1..65535, got {self.port}")

    @property
    def model_name(self) -> str:
        """The name of the model in requests and replies."""
        if self.served_model_name:
            return self.served_model_name
        if self.model.startswith(REGISTRY):
            return self.model.removeprefix(REGISTRY)
        return PurePosixPath(self.model).name
