"""What a deployment serves, to whom, and within which limits."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath

_REGISTRY = "models:/"


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
        counts = ("num_replicas", "max_new_tokens", "max_batch_size", "max_requests", "decode_workers", "fetch_workers")
        fetching = ("fetch_timeout_s", "fetch_min_bytes_per_s")
        decoding = ("decode_deadline_s", "decode_cpu_s", "decode_memory_bytes", "max_duration_s", "max_picture_pixels")
        for name in (*counts, "max_video_bytes", *fetching, *decoding):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
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
        if self.model.startswith(_REGISTRY):
            return self.model.removeprefix(_REGISTRY)
        return PurePosixPath(self.model).name
