"""Files made to lead a media library to another file, and a watch over that other file."""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import av
from counted_clips import Recipe, make

PRIVATE_NUMBER = 100
"""Pictures of the private clip show this number and those after it; every other clip shows less."""
_SHORT = [40 * k for k in range(25)]
_IN_OPEN = 0x20


def write_private(folder: Path) -> Path:
    """A clip that nobody may read. The name is one that play lists accept."""
    path = folder / "private.ts"
    make(path, Recipe(suffix="ts", format="mpegts", stamps_ms=_SHORT, sound_s=(0, 1), first_number=PRIVATE_NUMBER))
    return path


def ordinary(folder: Path) -> dict[str, bytes]:
    """One short clip in each container that is made here, by suffix."""
    recipes = {
        "mp4": Recipe(),
        "mov": Recipe(format="mov"),
        "mkv": Recipe(format="matroska"),
        "webm": Recipe(video="libvpx-vp9", audio="libopus", video_options={"cpu-used": "8", "deadline": "realtime"}),
        "avi": Recipe(video="mpeg4", audio="pcm_s16le"),
        "flv": Recipe(),
        "wmv": Recipe(format="asf", video="wmv2", audio="wmav2"),
        "gif": Recipe(video="gif", pix_fmt="rgb8", audio=None),
        "mpg": Recipe(format="mpeg", video="mpeg2video", audio="mp2"),
        "ts": Recipe(format="mpegts"),
    }
    clips = {}
    for suffix, recipe in recipes.items():
        recipe.stamps_ms, recipe.sound_s = _SHORT, (0.0, 1.0)
        path = folder / f"ordinary.{suffix}"
        make(path, recipe)
        clips[suffix] = path.read_bytes()
    return clips


def polyglots(private: Path, clips: dict[str, bytes]) -> dict[str, bytes]:
    """Content by name; each would have some library open `private`, or is thought to."""
    hls = f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:1,\nfile://{private}\n#EXT-X-ENDLIST\n".encode()
    bare = hls.removeprefix(b"#EXTM3U\n")
    concat = f"ffconcat version 1.0\nfile '{private}'\n".encode()
    return {
        "hls": hls,
        "hls, path": hls.replace(b"file://", b""),
        "hls as AVI and transport stream": _packets(b"#EXTM3U\nAVI \n" + bare) + clips["ts"],
        "hls and transport stream": _packets(hls) + clips["ts"],
        "hls in RIFF": b"RIFF\x00\x10\x00\x00AVI \n" + hls,
        "hls with an AVI header": clips["avi"][:12] + hls + clips["avi"][12:],
        "hls in ftyp": b"\x00\x00\x00\x14ftypisom\x00\x00\x02\x00isom" + hls,
        "hls behind an mp4": clips["mp4"] + struct.pack(">I4s", 8 + len(hls), b"free") + hls,
        "hls as size of moov": b"#EXTmoov\n" + hls,
        "hls in gif": b"GIF89a\n" + hls,
        "hls in ebml": b"\x1a\x45\xdf\xa3\n" + hls,
        "hls in ogg": b"OggS\x00\n" + hls,
        "hls in flv": b"FLV\x01\x05\x00\x00\x00\x09\n" + hls,
        "hls in a program stream": b"\x00\x00\x01\xba\n" + hls,
        "hls after one sync byte": b"\x47\x40\n" + hls,
        "hls as an attachment": _with_attachment(private.parent, clips["mp4"], hls),
        "hls, encrypted": hls.replace(b"#EXTINF", f'#EXT-X-KEY:METHOD=AES-128,URI="{private}"\n#EXTINF'.encode()),
        "dash": _dash(private),
        "sdp": f"v=0\no=- 0 0 IN IP4 127.0.0.1\ns={private}\nc=IN IP4 127.0.0.1\nm=video 9 RTP/AVP 96\n".encode(),
        "ffconcat": concat,
        "concat without a header": concat.partition(b"\n")[2],
        "concat in ftyp": b"\x00\x00\x00\x14ftypisom\x00\x00\x02\x00isom" + concat,
        "avisynth": f'AVISource("{private}")\n'.encode(),
        "smil": f'<smil><body><video src="{private}"/></body></smil>\n'.encode(),
        "asx": f'<asx version="3.0"><entry><ref href="{private}"/></entry></asx>\n'.encode(),
        "reference to data in another file": with_data_reference(clips["mov"], private),
        "svg": f'<svg xmlns="http://www.w3.org/2000/svg"><image href="{private}"/></svg>'.encode(),
    }


def _packets(data: bytes) -> bytes:
    """Padded with # to whole packets of a transport stream."""
    return data + b"#" * (-len(data) % 188)


def _dash(private: Path) -> bytes:
    return (
        '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" '
        'mediaPresentationDuration="PT1S" profiles="urn:mpeg:dash:profile:isoff-on-demand:2011">'
        '<Period><AdaptationSet mimeType="video/mp4"><Representation id="1" bandwidth="1">'
        f"<BaseURL>file://{private}</BaseURL></Representation></AdaptationSet></Period></MPD>\n"
    ).encode()


def _with_attachment(folder: Path, clip: bytes, attachment: bytes) -> bytes:
    source, target = folder / "plain.mp4", folder / "attached.mkv"
    source.write_bytes(clip)
    with av.open(str(source)) as read, av.open(str(target), "w") as write:
        to = {stream.index: write.add_stream_from_template(stream) for stream in read.streams}
        write.add_attachment("list.m3u8", "application/vnd.apple.mpegurl", attachment)
        for packet in read.demux():
            if packet.dts is not None:
                packet.stream = to[packet.stream.index]
                write.mux(packet)
    return target.read_bytes()


def with_data_reference(clip: bytes, private: Path) -> bytes:
    """A mov whose tracks say that their data are in another file (an alias record with an absolute path)."""
    path = str(private).encode()
    path += b"\x00" * (len(path) % 2)
    alias = b"alis" + bytes(4) + bytes(10) + b"\x01-" + bytes(26) + bytes(12)
    alias += struct.pack("B63s", len(private.name), private.name.encode()) + bytes(16)
    alias += struct.pack(">hh", 0, 0) + bytes(16) + struct.pack(">hH", 2, len(path)) + path + b"\xff\xff\x00\x00"
    entry = struct.pack(">I", 4 + len(alias)) + alias
    return _edit_boxes(clip, b"dref", struct.pack(">II", 0, 1) + entry)


def _edit_boxes(data: bytes, kind: bytes, content: bytes) -> bytes:
    """Give all boxes of a kind another content. The index of the file must lie behind its data."""
    result, at = b"", 0
    while at < len(data):
        size, found = struct.unpack(">I4s", data[at : at + 8])
        body = data[at + 8 : at + size]
        if found == kind:
            body = content
        elif found in (b"moov", b"trak", b"mdia", b"minf", b"dinf"):
            body = _edit_boxes(body, kind, content)
        result += struct.pack(">I4s", 8 + len(body), found) + body
        at += size
    return result


class Watch:
    """Tells whether a file has been opened, by anyone (inotify)."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def was_opened(self) -> bool:
        """Whether it was opened since the last call."""
        try:
            return bool(os.read(self._descriptor, 65536))
        except OSError as error:
            if error.errno != errno.EAGAIN:
                raise
            return False


@contextmanager
def watch(path: Path) -> Iterator[Watch]:
    """Watch a file; Linux only."""
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    assert descriptor >= 0 and libc.inotify_add_watch(descriptor, os.fsencode(path), _IN_OPEN) >= 0
    try:
        yield Watch(descriptor)
    finally:
        os.close(descriptor)
