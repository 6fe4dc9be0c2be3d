"""Rows at random, and the plan of an epoch: nothing twice, nothing left out, any step at once."""

from __future__ import annotations

import pickle
from dataclasses import replace

import numpy as np
import pytest
from stored_features import features_of, segment_of

from omni_platform.artifacts import Card, CardError, write_card
from omni_platform.data.batches import TrainingRows, epoch_order, step_indices
from omni_platform.data.parts import Part, write_part
from omni_platform.data.segments import cut_segments
from omni_platform.media.decode import DecodedClip
from omni_platform.schema import LookStep, Sample, TextStep

NUM_CLIPS = 7


def _clip(number: int) -> DecodedClip:
    frames = np.full((2 + 2 * (number % 2), 4, 6, 3), number, np.uint8)  # clips differ in length
    wave = None if number == 3 else np.full(1000 + number, number / 1024, np.float32)
    return DecodedClip(frames=frames, sample_fps=2.0 + number, waveform=wave, duration_s=1.0)


def _sample(number: int, question: int) -> Sample:
    looks = tuple(LookStep(start_s=0.1 * i, end_s=0.1 * i + 0.2) for i in range(question))
    return Sample(
        sample_id=f"c{number}-q{question}",
        clip_uri=f"c{number}.mp4",
        question="q",
        answer="a",
        options=("a", "b"),
        trajectory=(TextStep(text="x"), *looks),
    )


def _write(folder, *, clips_per_part: int, order: range) -> None:
    numbers = list(order)
    for at in range(0, len(numbers), clips_per_part):
        part = Part()
        for number in numbers[at : at + clips_per_part]:
            part.add_clip(f"clip{number}", f"c{number}.mp4", _clip(number))
            for question in range(3):
                sample = _sample(number, question)
                part.add_sample(sample, f"clip{number}", length=100 * number + question)
                for segment in cut_segments(sample, f"clip{number}"):
                    anchors_KD = np.full((3, 5), number + segment.index / 10, np.float32)
                    part.add_segment(segment, segment_of(anchors_KD, num_visual=2), encoder="e")
        write_part(str(folder), part)
    write_card(folder, Card(name="anchors"))


@pytest.fixture
def folder(tmp_path):
    _write(tmp_path / "rows", clips_per_part=3, order=range(NUM_CLIPS))
    return tmp_path / "rows"


def test_every_row_comes_with_its_own_clip_and_anchors(folder):
    rows = TrainingRows.open(folder, cached_clips=2)
    assert len(rows) == len(rows.ids) == 3 * NUM_CLIPS and rows.ids == sorted(rows.ids)
    # In any order, then one after the other, which meets clips that are still in memory.
    for index in [*np.random.default_rng(0).permutation(len(rows)), *range(len(rows))]:
        row = rows.row(int(index))
        number, question = (int(part[1:]) for part in rows.ids[index].split("-"))
        clip = _clip(number)
        assert row.sample == _sample(number, question) == rows.sample(int(index))
        assert row.clip_id == f"clip{number}" and row.sample_fps == 2.0 + number
        assert np.array_equal(row.frames, clip.frames) and row.frames.dtype == np.uint8
        assert (row.waveform is None) == (number == 3)
        if row.waveform is not None and clip.waveform is not None:
            assert row.waveform.dtype == np.float32 and np.array_equal(row.waveform, clip.waveform)
        anchors = features_of(row.anchors, (3, 5))
        assert anchors.shape == (question, 3, 5) and anchors.dtype == np.float32
        for i in range(question):
            assert np.all(anchors[i] == np.float32(number + i / 10))


def test_rows_and_their_order_do_not_depend_on_how_the_folder_was_written(folder, tmp_path):
    _write(tmp_path / "other", clips_per_part=2, order=range(NUM_CLIPS - 1, -1, -1))
    one, other = TrainingRows.open(folder), TrainingRows.open(tmp_path / "other")
    assert one.ids == other.ids
    assert epoch_order(one.ids, 1, 2).tolist() == epoch_order(other.ids, 1, 2).tolist()


def test_outlines_tell_the_shape_of_every_clip_and_read_none(folder):
    rows = TrainingRows.open(folder)
    clips = sorted((folder / "clips").iterdir())
    for file in clips:
        file.rename(file.with_suffix(".away"))
    for index, sample_id in enumerate(rows.ids):
        outline = rows.outline(index)
        number = int(sample_id[1])
        assert (outline.sample, outline.clip_id) == (rows.sample(index), f"clip{number}")
        shape = (outline.num_frames, outline.height_px, outline.width_px)
        assert shape == _clip(number).frames.shape[:3] and outline.sample_fps == 2.0 + number
        assert outline.num_samples == (None if number == 3 else 1000 + number)
        assert outline.pooled_bins == (None, None)


def test_outlines_tell_in_how_many_bins_segments_were_pooled(tmp_path):
    part, sample = Part(), _sample(0, 1)
    part.add_clip("clip0", "c0.mp4", _clip(0))
    part.add_sample(sample, "clip0")
    as_is = segment_of(np.ones((3, 5), np.float32), num_visual=2)
    pooled = replace(as_is.audio, num_features=8)  # twice the bins
    for segment in cut_segments(sample, "clip0"):
        part.add_segment(segment, replace(as_is, audio=pooled), encoder="e")
    write_part(str(tmp_path), part)
    write_card(tmp_path, Card(name="anchors"))
    assert TrainingRows.open(tmp_path).outline(0).pooled_bins == (None, 4)


@pytest.mark.parametrize("version", [1, 2])
def test_a_folder_of_another_schema_is_refused_with_the_way_out(folder, version):
    write_card(folder, Card(name="anchors", schema_version=version))
    with pytest.raises(CardError, match=rf"version {version} of the schema.*reads version 3: preprocess the manifest"):
        TrainingRows.open(folder)


def test_a_reader_travels_between_processes_and_reads_on(folder):
    rows = TrainingRows.open(folder)
    rows.row(0)
    copy = pickle.loads(pickle.dumps(rows))
    assert np.array_equal(copy.row(5).frames, rows.row(5).frames) and copy.ids == rows.ids


def test_a_folder_without_a_card_is_not_read(folder):
    (folder / "card.json").unlink()
    with pytest.raises(CardError, match="not finished"):
        TrainingRows.open(folder)


def test_the_order_of_an_epoch_is_a_pure_function_of_seed_epoch_and_ids():
    ids = [f"row{i}" for i in range(50)]
    order = epoch_order(ids, 3, 1)
    assert sorted(order) == list(range(50)) and order.tolist() != list(range(50))
    assert epoch_order(ids, 3, 1).tolist() == order.tolist()
    assert epoch_order(ids, 3, 2).tolist() != order.tolist() != epoch_order(ids, 4, 1).tolist()
    # The rows are met in the same order when they are listed in another one, or when one of them is gone.
    back = epoch_order(ids[::-1], 3, 1)
    assert [ids[::-1][i] for i in back] == [ids[i] for i in order]
    fewer = [i for i in ids if i != "row7"]
    assert [fewer[i] for i in epoch_order(fewer, 3, 1)] == [ids[i] for i in order if i != 7]


@pytest.mark.parametrize(("world_size", "per_device_batch", "accumulation"), [(1, 2, 1), (2, 3, 1), (3, 1, 4)])
def test_the_steps_of_an_epoch_take_every_row_once(world_size, per_device_batch, accumulation):
    order = epoch_order([str(i) for i in range(41)], 0, 0)
    size = world_size * per_device_batch * accumulation
    taken: list[int] = []
    for step in range(len(order) // size):
        for rank in range(world_size):
            batches = step_indices(
                order,
                step,
                rank=rank,
                world_size=world_size,
                per_device_batch=per_device_batch,
                accumulation=accumulation,
            )
            assert len(batches) == accumulation and all(len(b) == per_device_batch for b in batches)
            taken += [row for batch in batches for row in batch]
    assert len(taken) == len(set(taken)) == 41 // size * size
    assert set(taken) == set(order[: len(taken)].tolist())


def test_a_step_takes_the_same_rows_whatever_came_before_and_however_many_workers_share_it():
    order = epoch_order([str(i) for i in range(48)], 0, 0)

    def rows_of(step: int, world_size: int, accumulation: int) -> set[int]:
        shares = (
            step_indices(order, step, rank=r, world_size=world_size, per_device_batch=2, accumulation=accumulation)
            for r in range(world_size)
        )
        return {row for share in shares for batch in share for row in batch}

    for step in (5, 0, 3):
        assert rows_of(step, 1, 4) == rows_of(step, 2, 2) == rows_of(step, 4, 1)
        assert rows_of(step, 2, 2) == set(order[8 * step : 8 * step + 8].tolist())


@pytest.mark.parametrize(("step", "rank"), [(6, 0), (-1, 0), (0, 2)])
def test_steps_and_ranks_outside_the_plan_are_refused(step, rank):
    with pytest.raises(IndexError, match="does not exist"):
        step_indices(np.arange(25), step, rank=rank, world_size=2, per_device_batch=2, accumulation=1)
