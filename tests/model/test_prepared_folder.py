"""One prepared folder serves every method: any number of slots, lengths measured at load, and no anchors where none
are read."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from omni_model.anchors import build_clip_encoder, encode_anchors
from omni_model.folder import Preparation, load_backbone, save_folder
from omni_model.methods import make_method
from omni_model.task import build_task
from omni_platform import storage
from omni_platform.artifacts import Card, write_card
from omni_platform.data.batches import TrainingRows
from omni_platform.data.manifest import read_manifest
from omni_platform.data.stages import EncodeClips, decode_rows, input_tables
from omni_platform.media.film_folder import FilmConfig, write_film
from omni_platform.train.sizes import measure_rows, refusal_report

METHODS = {
    "latent_omni": {"num_visual": 3, "num_audio": 2},
    "pause": {"num_visual": 7, "num_audio": 4},
    "markers": {},
    "text_cot": {},
    "sft": {},
}


@pytest.fixture(scope="module")
def base(backbone, tokenizer, tmp_path_factory) -> str:
    folder: Path = tmp_path_factory.mktemp("base")
    method = make_method("sft")
    heads = method.build_heads(64)
    save_folder(folder, backbone=backbone, tokenizer=tokenizer, method=method, heads=heads, preparation=Preparation())
    return str(folder)


@pytest.fixture(scope="module")
def folder(base, tmp_path_factory) -> str:
    """Four clips of the film with three questions each, as the two stages of preprocessing leave them."""
    film, out = tmp_path_factory.mktemp("film") / "film", str(tmp_path_factory.mktemp("prepared") / "out")
    families = ("colour_at_tone", "tone_at_colour", "colour_after_tone")
    write_film(
        FilmConfig(
            output_dir=str(film), seed=5, num_clips=4, families=families, bad_clips=0, side_px=64, num_processes=1
        )
    )
    manifest = read_manifest(str(film))
    build = partial(build_clip_encoder, model_name_or_path=base)
    encode = EncodeClips(folder=out, build_encoder=build, max_length=32768, other_segments=2)
    options = {"fps": 2.0, "max_frames": 256, "max_pixels": 1280 * 720, "max_duration_s": None, "use_audio": True}
    for table in input_tables(manifest.samples, base=storage.parent(manifest.uri), clips_per_block=2):
        for decoded in decode_rows(table, options=options, deadline_s=60.0):
            encode(decoded)
    write_card(out, Card(name="anchors"))
    return out


@pytest.fixture(scope="module")
def task_of(base):
    def make(method: str, options: dict | None = None, **settings):
        options = METHODS[method] if options is None else options
        return build_task({"model_name_or_path": base, "method": method, "options": options, **settings})

    return make


@pytest.mark.parametrize("slots", [(1, 1), (3, 2), (6, 25), (32, 8)])
def test_every_number_of_slots_has_the_anchors_of_encoding_the_clips_again(folder, base, task_of, slots):
    """To the bit: looks of a second have fewer features than are pooled for storage."""
    num_visual, num_audio = slots
    again = partial(encode_anchors, load_backbone(base).backbone.eval(), num_visual=num_visual, num_audio=num_audio)
    task, rows = task_of("latent_omni", {"num_visual": num_visual, "num_audio": num_audio}), TrainingRows.open(folder)
    for index in range(0, len(rows), 3):
        row = rows.row(index)
        spans = [(look.start_s, look.end_s) for look in row.sample.looks]
        content = {"frames": row.frames, "sample_fps": row.sample_fps, "waveform": row.waveform}
        # All segments of the clip went through the towers together: one by one they would differ by rounding.
        whole = sorted({s for i in range(len(rows)) if rows.outline(i).clip_id == row.clip_id for s in _spans(rows, i)})
        wanted = dict(zip(whole, again(**content, spans=whole), strict=True))
        found = task.collate([row]).anchors_BPKD
        assert found.shape == (1, len(spans), sum(slots), 64)
        np.testing.assert_allclose(found[0].numpy(), np.stack([wanted[s] for s in spans]), rtol=0, atol=2e-5)


def _spans(rows: TrainingRows, index: int) -> list[tuple[float, float]]:
    return [(look.start_s, look.end_s) for look in rows.sample(index).looks]


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_on_the_folder_and_its_lengths_are_those_of_its_plans(folder, task_of, method):
    task, rows = task_of(method), TrainingRows.open(folder)
    sized = measure_rows(task, rows)
    assert sized.account == {"rows_in": 12, "rows_used": 12, "rows_refused": 0}
    plans = [task.plan(rows.row(i)) for i in range(12)]
    assert list(sized.lengths) == [len(plan) for plan in plans]
    batch = [sized.row(i) for i in range(4)]
    out = task.module.train()(task.collate(batch), sized.divisors(np.arange(4), micro_batches=1))
    counts = {name: int(out[f"count/{name}"]) for name in task.loss_weights}
    assert counts == {n: round(v) for n, v in sized.divisors(np.arange(4), micro_batches=1).items()}
    out["loss"].backward()
    assert any(p.grad is not None and p.grad.any() for p in task.module.parameters())


@pytest.mark.parametrize("method", [name for name in METHODS if name != "latent_omni"])
def test_methods_that_read_no_anchors_do_without_them(folder, task_of, tmp_path, method):
    shutil.copytree(folder, tmp_path / "rows")
    for file in (tmp_path / "rows" / "anchors").iterdir():
        file.unlink()
    task, rows = task_of(method), TrainingRows.open(tmp_path / "rows")
    loss = task.module.train()(task.collate([rows.row(i) for i in (0, 5)]))["loss"]
    assert torch.isfinite(loss)


def test_rows_that_are_too_long_for_the_method_are_counted_and_named(folder, task_of):
    """What fits one method may be too long for another: every row is used or named, and none is cut."""
    rows = TrainingRows.open(folder)
    lengths = dict(zip(rows.ids, measure_rows(task_of("latent_omni"), rows).lengths, strict=True))
    limit = sorted(lengths.values())[5]
    sized = measure_rows(task_of("latent_omni", max_length=limit), rows)
    too_long = {sample_id for sample_id, length in lengths.items() if length > limit}
    assert 0 < len(too_long) < 12
    assert sized.refused.keys() == too_long and set(sized.ids) == set(rows.ids) - too_long
    assert sized.account == {"rows_in": 12, "rows_used": 12 - len(too_long), "rows_refused": len(too_long)}
    assert max(sized.lengths) <= limit
    for index, sample_id in enumerate(sized.ids):
        assert sized.row(index).sample.sample_id == sized.outline(index).sample.sample_id == sample_id
    report = refusal_report(sized)
    assert report.startswith(f"12 rows in = {12 - len(too_long)} used + {len(too_long)} refused: ")
    assert all(sample_id in report for sample_id in too_long)
    assert f"more than max_length={limit}" in report
    with pytest.raises(ValueError, match=r"none of the 12 rows can be trained on. The first: sample .* max_length=9"):
        measure_rows(task_of("latent_omni", max_length=9), rows)
