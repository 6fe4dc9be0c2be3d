"""Refused rows are counted, and too many of them end the job."""

from __future__ import annotations

import pytest

from omni_platform.data.parts import write_table
from omni_platform.data.quarantine import QuarantineError, count_reasons, read_quarantine, refuse_share, to_table
from omni_platform.schema import Quarantined


def _rows(*reasons: str) -> list[Quarantined]:
    return [
        Quarantined(row_id=f"r{i}", stage="decode", reason=reason, detail=f"clip {i} is {reason}")
        for i, reason in enumerate(reasons)
    ]


def test_quarantined_rows_are_read_back_from_all_parts(tmp_path):
    rows = _rows("missing", "no_audio", "missing")
    write_table(str(tmp_path / "quarantine" / "part-1.parquet"), to_table(rows[1:]))
    write_table(str(tmp_path / "quarantine" / "part-2.parquet"), to_table(rows[:1]))
    assert read_quarantine(tmp_path) == rows
    assert count_reasons(rows) == {"missing": 2, "no_audio": 1}
    assert read_quarantine(tmp_path / "nowhere") == []


def test_a_share_is_allowed_and_more_is_an_error_that_counts_and_shows():
    rows = _rows("missing", "missing", "no_audio")
    refuse_share(rows, 30, 0.1, where="out")
    refuse_share([], 30, 0.0, where="out")
    message = r"3 of 29 rows were quarantined \(2 missing, 1 no_audio\).*0\.1.*r0: clip 0 is missing.*out/quarantine"
    with pytest.raises(QuarantineError, match=message):
        refuse_share(rows, 29, 0.1, where="out")
    with pytest.raises(QuarantineError, match="never all"):
        refuse_share(rows, 3, 1.0, where="out")
