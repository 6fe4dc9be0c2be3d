"""Look for what would go wrong later: python jobs/doctor.py output_dir=outputs

Versions against the tested ones, codecs, whether the output folder can be written, shared memory. Starts nothing; ends
with 1 where something is not well.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

from omni_platform.config import parse_args
from omni_platform.runtime import doctor


@dataclass(frozen=True, kw_only=True)
class DoctorConfig:
    """What to check."""

    output_dir: str = "outputs"
    """Where jobs are to write, a path or s3://."""


CONFIG = DoctorConfig


def main() -> None:
    checks = doctor(parse_args(DoctorConfig).output_dir)
    for check in checks:
        print(f"{'ok' if check.ok else 'NOT OK':<8}{check.name:<16}{check.detail}")
    sys.exit(0 if all(check.ok for check in checks) else 1)


if __name__ == "__main__":
    main()
