"""Sound and pictures by their time stamps: what is placed where, exactly."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import av
import numpy as np
import pytest

from omni_platform.media.clock import Clock
from omni_platform.media.pyav_frames import upright
from omni_platform.media.sound import SoundTrack

RATE = 16_000


def _frame(start_s: float | None, samples: np.ndarray, *, rate: int = RATE, layout: str = "mono") -> av.AudioFrame:
    frame = av.AudioFrame.from_ndarray(samples.astype(np.int16), format="s16", layout=layout)
    frame.sample_rate, frame.time_base = rate, Fraction(1, 1_000_000)
    frame.pts = None if start_s is None else round(start_s * 1_000_000)
    return frame


def _render(
    stamps_s: Sequence[float | None],
    *,
    rejoins: bool = False,
    joints: list[tuple[Fraction, Fraction]] | None = None,
    lasts_s: float = 1.0,
) -> np.ndarray:
    """Frames of 20 ms that hold 1000, 1001, ... at the given stamps; int16 of the result."""
    track = SoundTrack(RATE, rejoins=rejoins)
    for k, stamp in enumerate(stamps_s):
        track.add(_frame(stamp, np.full((1, 320), 1000 + k)))
    track.finish()
    wave = track.render(joints or [(Fraction(0), Fraction(0))], lasts_s)
    assert wave is not None and wave.dtype == np.float32 and len(wave) == round(lasts_s * RATE)
    return np.round(wave * 32768).astype(int)


def _blocks(*values: int, lasts_s: float = 1.0) -> np.ndarray:
    wave = np.repeat(values, 320)
    return np.pad(wave, (0, round(lasts_s * RATE) - len(wave)))


def test_a_gap_is_kept_as_silence():
    assert np.array_equal(_render([0.0, 0.02, 0.1, 0.12]), _blocks(1000, 1001, 0, 0, 0, 1002, 1003))


def test_jitter_tears_nothing_apart():
    rng = np.random.default_rng(0)
    stamps_s = [0.02 * k + rng.uniform(-0.007, 0.007) * (k > 0) for k in range(40)]
    assert np.array_equal(_render(stamps_s), _blocks(*range(1000, 1040)))
    assert np.array_equal(_render([0.0, None, None, 0.06]), _blocks(1000, 1001, 1002, 1003))


def test_stamps_that_drift_are_followed():
    """A clock one percent slow: after 4 s the samples alone would be 40 ms off."""
    track = SoundTrack(RATE, rejoins=False)
    for k in range(200):
        track.add(_frame(k * 0.0202, np.full((1, 320), 1000 + k)))
    track.finish()
    wave = track.render([(Fraction(0), Fraction(0))], 4.1)
    assert wave is not None
    for k in range(200):
        found = np.flatnonzero(np.round(wave * 32768) == 1000 + k)[0] / RATE
        assert found == pytest.approx(k * 0.0202, abs=0.0151)


def test_sound_lies_to_the_first_picture_as_its_stamps_do():
    early = _render([0.0, 0.02, 0.04], joints=[(Fraction(1, 50), Fraction(0))])
    assert np.array_equal(early, _blocks(1001, 1002))
    late = _render([0.06, 0.08], joints=[(Fraction(1, 50), Fraction(0))])
    assert np.array_equal(late, _blocks(0, 0, 1000, 1001))
    assert _render([0.98, 1.0], lasts_s=1.0)[-320:].tolist() == [1000] * 320
    track = SoundTrack(RATE, rejoins=False)
    track.add(_frame(5.0, np.full((1, 320), 7)))
    track.finish()
    assert track.render([(Fraction(0), Fraction(0))], 1.0) is None
    assert track.end_s == 5.02 and track.length_s == pytest.approx(0.02)


def test_joined_parts_follow_their_pictures_or_each_other():
    stamps_s = [1.0, 1.02, 1.0, 1.02]
    joints = [(Fraction(1), Fraction(0)), (Fraction(1), Fraction(1, 10))]
    together = _render(stamps_s, rejoins=True, joints=joints)
    # Steps back of less than 0.1 s are no joint: the later frame covers the earlier one.
    assert np.array_equal(together, _blocks(1002, 1003))
    far = [1.0, 1.02, 1.04, 1.06, 1.08, 1.1, 1.0, 1.02]
    joined = _render(far, rejoins=True, joints=[(Fraction(1), Fraction(0)), (Fraction(1), Fraction(1, 5))])
    assert np.array_equal(joined, _blocks(*range(1000, 1006), 0, 0, 0, 0, 1006, 1007))
    alone = _render(far, rejoins=True, joints=[(Fraction(1), Fraction(0))])
    assert np.array_equal(alone, _blocks(*range(1000, 1008)))


def test_every_channel_of_5_1_but_the_bass_is_heard():
    names = [channel.name for channel in av.AudioLayout("5.1").channels]
    for at, name in enumerate(names):
        samples = np.zeros((16_000, 6), np.int16)
        samples[:, at] = 8000
        track = SoundTrack(RATE, rejoins=False)
        track.add(_frame(0.0, samples.reshape(1, -1), layout="5.1"))
        track.finish()
        wave = track.render([(Fraction(0), Fraction(0))], 1.0)
        assert wave is not None
        heard = wave[8000] * 32768 / 8000
        # The usual weights, scaled so that all channels together do not clip.
        weight = {"FL": 0.5**0.5, "FR": 0.5**0.5, "FC": 1.0, "LFE": 0.0}.get(name, 0.5)
        assert heard == pytest.approx(weight / (2 * 0.5**0.5 + 1.0 + 2 * 0.5), abs=0.01), name


def test_a_change_of_rate_or_channels_leaves_no_gap():
    track = SoundTrack(RATE, rejoins=False)
    track.add(_frame(0.0, np.full((1, 8000), 1000)))
    track.add(_frame(0.5, np.full((1, 24_000), 2000), rate=48_000))
    track.add(_frame(1.0, np.full((1, 16_000), 3000), layout="stereo"))
    track.finish()
    wave = track.render([(Fraction(0), Fraction(0))], 1.5)
    assert wave is not None
    middle = [round(float(wave[at]) * 32768) for at in (4000, 12_000, 20_000)]
    assert middle == pytest.approx([1000, 2000, 3000], abs=2)


def test_pictures_stand_or_step_forward():
    clock = Clock(Fraction(1, 1000), rejoins=False)
    placed = [clock.place(stamp, 40) for stamp in (5000, 5040, None, 5110, 5100, 60_000)]
    assert placed == [0.0, 0.04, 0.08, 0.11, 0.11, 55.0] and clock.end_s == 55.04
    assert clock.joints == [(Fraction(5), Fraction(0))]


def test_a_jump_is_a_joint_only_where_parts_are_joined():
    stamps = [1000, 1040, 1080, 1000, 1040, 90_000]
    joined = Clock(Fraction(1, 1000), rejoins=True)
    assert [joined.place(stamp, 40) for stamp in stamps] == [0.0, 0.04, 0.08, 0.08, 0.08, 0.12]
    far = [1000, 1040, 1080, 1120, 1000, 1040, 90_000]
    joined = Clock(Fraction(1, 1000), rejoins=True)
    assert [joined.place(stamp, 40) for stamp in far] == [0.0, 0.04, 0.08, 0.12, 0.16, 0.2, 0.24]
    assert joined.joints == [
        (Fraction(1), Fraction(0)),
        (Fraction(1), Fraction(4, 25)),
        (Fraction(90), Fraction(6, 25)),
    ]
    assert joined.end_s == 0.28


@pytest.mark.parametrize(
    ("matrix", "expected"),
    [
        ((1, 0, 0, 1), [[1, 2, 3], [4, 5, 6]]),
        ((-1, 0, 0, 1), [[3, 2, 1], [6, 5, 4]]),
        ((1, 0, 0, -1), [[4, 5, 6], [1, 2, 3]]),
        ((-1, 0, 0, -1), [[6, 5, 4], [3, 2, 1]]),
        ((0, 1, -1, 0), [[4, 1], [5, 2], [6, 3]]),
        ((0, -1, 1, 0), [[3, 6], [2, 5], [1, 4]]),
        ((0, 1, 1, 0), [[1, 4], [2, 5], [3, 6]]),
        ((0, -1, -1, 0), [[6, 3], [5, 2], [4, 1]]),
    ],
)
def test_pictures_are_turned_and_mirrored_as_their_matrix_says(matrix, expected):
    picture = np.array([[1, 2, 3], [4, 5, 6]], np.uint8)[..., None].repeat(3, 2)
    turned = upright(picture, np.array(matrix, np.int32).reshape(2, 2) << 16)
    assert turned[..., 0].tolist() == expected
