"""Row counts of a preprocessed folder: every row that came in is in it once, used or quarantined."""

from __future__ import annotations

from omni_platform.data.manifest import ManifestRead
from omni_platform.data.parts import find_duplicates, read_column
from omni_platform.data.quarantine import count_reasons, read_quarantine


class AccountError(RuntimeError):
    """Rows in are not rows out plus rows quarantined; the output is not published."""


def account(manifest: ManifestRead, folder: str, *, encoder: str) -> dict[str, int]:
    """Hold what lies in the files of a folder against the manifest; returns the counts for its card.

    `encoder` is the fingerprint that every anchor must carry. Raises `AccountError` where a row is lost, is
    there twice, or segments and anchors do not belong together.
    """
    quarantined = read_quarantine(folder)
    used, refused = read_column(folder, "samples", "sample_id"), [row.row_id for row in quarantined]
    expected = [s.sample_id for s in manifest.samples] + [row.row_id for row in manifest.quarantined]
    lost, strange = set(expected) - {*used, *refused}, {*used, *refused} - set(expected)
    twice = find_duplicates([*used, *refused])
    if lost or strange or twice:
        raise AccountError(
            f"{len(expected)} rows in, {len(used)} out and {len(refused)} quarantined: lost {sorted(lost)[:3]}, "
            f"twice {twice[:3]}, from nowhere {sorted(strange)[:3]}; look into {folder} and run again"
        )
    segments, anchors = (read_column(folder, kind, "segment_id") for kind in ("segments", "anchors"))
    others = set(read_column(folder, "anchors", "encoder_fingerprint")) - {encoder}
    owners, clips = read_column(folder, "segments", "sample_id"), set(read_column(folder, "clips", "clip_id"))
    homeless = set(owners) - {*used, None} or set(read_column(folder, "segments", "clip_id")) - clips
    if segments != anchors or find_duplicates(segments) or others or homeless:
        raise AccountError(f"the {len(segments)} segments and {len(anchors)} anchors in {folder} do not match")
    num_others = owners.count(None)
    return {
        "rows_in": len(expected),
        "clips": len(clips),
        "samples": len(used),
        "segments": len(segments) - num_others,
        **({"other_segments": num_others} if num_others else {}),
        "quarantined": len(quarantined),
        **{f"quarantined.{reason}": count for reason, count in count_reasons(quarantined).items()},
    }
