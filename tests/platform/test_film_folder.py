"""The film on disk: what the manifest says is what the clips show."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from omni_platform.artifacts import read_card
from omni_platform.data.manifest import read_manifest
from omni_platform.media.decode import MediaError, decode_clip
from omni_platform.media.film_folder import FilmConfig, write_film
from omni_platform.media.probe import probe
from omni_platform.media.scene import make_scene
from omni_platform.media.synth import render_frames, render_waveform


def test_a_rendered_clip_shows_and_sounds_like_its_scene(film):
    scene = make_scene(seed=5, index=2)
    clip = decode_clip(film / "clips" / "film-5-00002.mp4")
    drawn = render_frames(scene, times_s=np.arange(12) / 2, side_px=64)
    # Lossy, but the same pictures: each is nearest to those of its own shot.
    distance = np.abs(clip.frames[:, None].astype(int) - drawn[None]).mean((2, 3, 4))
    assert (distance.argmin(1) // 2).tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    assert distance.diagonal().max() < 8
    assert clip.waveform is not None
    sound = render_waveform(scene)
    assert np.corrcoef(clip.waveform, sound)[0, 1] > 0.99 and len(clip.waveform) == len(sound)


def test_the_film_has_the_wanted_clips_questions_and_broken_clips(film):
    manifest = read_manifest(film)
    assert manifest.quarantined == []
    good = [s for s in manifest.samples if s.sample_id.startswith("film-5-0")]
    assert len({s.clip_uri for s in good}) == 6 and len({s.question_type for s in good}) == 4
    assert all(Path(s.clip_uri).is_file() for s in good)
    bad = {Path(s.clip_uri).stem.split("-")[2]: s for s in manifest.samples if s not in good}
    assert set(bad) == {"missing", "truncated", "mute", "junk"}
    assert not probe(bad["mute"].clip_uri).has_audio
    for fault, reason in (("missing", "missing"), ("truncated", "truncated"), ("junk", "undecodable")):
        with pytest.raises(MediaError) as error:
            decode_clip(bad[fault].clip_uri)
        assert error.value.reason == reason
    assert read_card(film).counts == {"clips": 6, "samples": len(manifest.samples), "bad_clips": 4}


def test_a_film_is_reused_and_another_one_is_rendered_anew(tmp_path):
    config = FilmConfig(output_dir=str(tmp_path / "f"), num_clips=2, side_px=32, num_processes=1)
    _, reused = write_film(config)
    clip = tmp_path / "f" / "clips" / "film-0-00000.mp4"
    first = clip.stat()
    assert not reused and write_film(config)[1] and clip.stat() == first
    card, reused = write_film(replace(config, seed=1))
    assert not reused and not clip.exists() and card.config["seed"] == 1


def test_processes_beside_each_other_render_the_same_film(tmp_path):
    config = FilmConfig(output_dir=str(tmp_path / "one"), num_clips=3, bad_clips=2, side_px=32, num_processes=1)
    write_film(config)
    write_film(replace(config, output_dir=str(tmp_path / "two"), num_processes=2))
    one, two = ((tmp_path / name / "manifest.jsonl").read_text() for name in ("one", "two"))
    assert one == two and len(one.splitlines()) == 3 * 3 + 2
    for line in map(json.loads, one.splitlines()):
        clips = [tmp_path / name / line["clip"] for name in ("one", "two")]
        assert [c.exists() for c in clips] in ([True, True], [False, False])
        if clips[0].exists():
            assert clips[0].read_bytes() == clips[1].read_bytes()
