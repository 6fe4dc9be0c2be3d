"""Edit lists that begin within a picture: what FFmpeg moves, and by how much."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO

from av.container import InputContainer

from omni_platform.media.native import native_errors, read_packets
from omni_platform.media.probe import open_clip


def start_within_picture_s(file: str | Path | bytes | BinaryIO, name: str) -> Fraction:
    """By how many seconds the pictures of an mp4 are stamped too early, because its edit list begins within one.

    FFmpeg then leaves that picture out and lets the next one begin at once, up to one picture earlier than the file
    says, while the sound stays where it was. Without its reading of edit lists the same packets have their own times.
    """
    with open_clip(file, name) as container, native_errors(name, "reading its edit list"):
        moved = _first_packets(container, 1)
    if not moved:
        return Fraction(0)
    (position, stamp_s) = moved[0]
    plain = open_clip(file, name, options={"advanced_editlist": "0"})
    with plain as container, native_errors(name, "reading its edit list"):
        unmoved = dict(_first_packets(container, 10_000, until=position))
    late_s = unmoved.get(position, stamp_s) - stamp_s
    # More than a picture is another kind of edit, whose stamps are right as they are.
    return late_s if 0 < late_s < 1 else Fraction(0)


def _first_packets(
    container: InputContainer, number: int, until: int | None = None
) -> list[tuple[int | None, Fraction]]:
    """Position in the file and time stamp of the first packets of the pictures, in order of the file."""
    found: list[tuple[int | None, Fraction]] = []
    video: Any = container.streams.best("video")
    for packet in read_packets(container, video):
        if packet.pts is None or not packet.size:
            continue
        found.append((packet.pos, packet.pts * packet.time_base))
        if len(found) >= number or packet.pos == until:
            break
    return found
