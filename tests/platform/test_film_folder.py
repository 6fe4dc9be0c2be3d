"""The film on disk: what the manifest says is what the clips show."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from omni_platform.artifacts import read_card
from omni_platform.config import ConfigError, load_config
from omni_platform.data.manifest import read_manifest
from omni_platform.media.decode import MediaError, decode_clip
from omni_platform.media.film_folder import FilmConfig, write_film
from omni_platform.media.probe import probe
from omni_platform.media.scene import make_scene, make_sync_scene
from omni_platform.media.synth import render_frames, render_waveform
from omni_platform.schema import LookStep


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
    for fault, reason in (("missing", "missing"), ("truncated", "truncated"), ("junk", "container")):
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


def test_a_film_of_synchrony_shows_its_flashes_and_asks_when_they_were(tmp_path):
    config = FilmConfig(
        output_dir=str(tmp_path / "f"), world="synchrony", seed=2, num_clips=3, bad_clips=4, side_px=32, num_processes=1
    )
    card, _ = write_film(config)
    # What was left to the world is written down.
    assert card.config["families"] == ["flash_before_beep"] and card.config["fps"] == 25
    samples = read_manifest(tmp_path / "f").samples
    assert [s.sample_id for s in samples[:4]] == [*(f"sync-2-0000{k}-q0" for k in range(3)), "sync-2-missing-000-q0"]
    assert len(samples) == 7 and {s.question_type for s in samples} == {"flash_before_beep"}
    for index, sample in enumerate(samples[:3]):
        flash = make_sync_scene(seed=2, index=index).flash
        assert flash is not None
        clip = decode_clip(sample.clip_uri, fps=25.0)
        bright = np.flatnonzero(clip.frames[:, :3, :3].mean((1, 2, 3)) > 200)
        assert len(clip.frames) == 50 and (bright / 25).tolist() == pytest.approx([flash.start_s, flash.start_s + 0.04])
        (look,) = (step for step in sample.trajectory if isinstance(step, LookStep))
        assert look.start_s < flash.start_s < flash.end_s < look.end_s
    reasons = []
    for sample in samples[3:]:
        try:
            reasons.append("mute" if not decode_clip(sample.clip_uri, fps=25.0).has_audio else "whole")
        except MediaError as error:
            reasons.append(error.reason)
    assert reasons == ["missing", "truncated", "mute", "container"]


def test_noise_reaches_the_files(tmp_path):
    spreads, hisses = [], []
    for name, noise in {"plain": {}, "strong": {"picture_noise": 25.0, "hiss": 0.03}}.items():
        config = FilmConfig(output_dir=str(tmp_path / name), num_clips=1, side_px=64, num_processes=1, **noise)
        assert not write_film(config)[1]
        clip = decode_clip(tmp_path / name / "clips" / "film-0-00000.mp4")
        assert clip.waveform is not None
        scene = make_scene(seed=0, index=0)
        quiet = [scene.tone_in(k) for k in range(6)].index("none")
        spreads.append((clip.frames[:, :4].astype(float) - scene.background).std())
        hisses.append(clip.waveform[quiet * 16_000 + 1000 : (quiet + 1) * 16_000 - 1000].std())
    assert spreads[1] / spreads[0] == pytest.approx(5, rel=0.25)
    assert hisses[1] / hisses[0] == pytest.approx(10, rel=0.1)


def test_questions_about_the_other_world_are_refused():
    with pytest.raises(ValueError, match="flash_before_beep cannot be asked about scenes of shots; render a film"):
        FilmConfig(output_dir="f", families=("colour_at_tone", "flash_before_beep"))
    with pytest.raises(ConfigError, match=r"colour_at_tone cannot be .* synchrony; .* world=shots"):
        load_config(FilmConfig, None, ["output_dir=f", "world=synchrony", "families=[flash_step, colour_at_tone]"])
    with pytest.raises(ConfigError, match="'world' must be one of 'shots', 'synchrony'"):
        load_config(FilmConfig, None, ["output_dir=f", "world=flashes"])


def test_files_of_synchrony_hold_whole_flashes():
    assert FilmConfig(output_dir="f", world="synchrony", fps=50).fps == 50
    with pytest.raises(ValueError, match="need fps=25 or a multiple of it, got 30"):
        FilmConfig(output_dir="f", world="synchrony", fps=30)
