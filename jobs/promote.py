"""Make a registered version the one that is served: python jobs/promote.py name=latentomni which=candidate

A run registers its model with the alias `candidate`; serving follows `champion`, which only this command moves. It
prints the version that was served before and the command that goes back to it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from omni_platform import tracking
from omni_platform.config import parse_args


@dataclass(frozen=True, kw_only=True)
class PromoteConfig:
    """Which version gets the alias."""

    name: str
    """The registered model."""
    which: str = tracking.CANDIDATE
    """A version's number, or another alias of it."""
    to: str = tracking.CHAMPION
    """The alias that is moved."""
    tracking_uri: str | None = field(default=None, metadata={"env": "MLFLOW_TRACKING_URI"})

    def __post_init__(self) -> None:
        for field_name in ("name", "which", "to"):
            if not getattr(self, field_name):
                raise ValueError(f"{field_name} is empty")
        if self.to.isdigit():
            raise ValueError(f"to={self.to} is a version; an alias has a name, such as {tracking.CHAMPION}")


CONFIG = PromoteConfig


def main() -> None:
    config = parse_args(PromoteConfig)
    try:
        done = tracking.promote(config.name, config.which, to=config.to, tracking_uri=config.tracking_uri)
    except ValueError as error:
        raise SystemExit(f"promote: {error}") from None
    print(f"promote: {config.name}@{config.to} is version {done.version}, before: {done.previous or 'none'}")
    if done.previous is not None and done.previous != done.version:
        print(f"back: python jobs/promote.py name={config.name} which={done.previous} to={config.to}")


if __name__ == "__main__":
    main()
