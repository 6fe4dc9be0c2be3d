"""Position ids of whole sequences equal the stock model's, and latent slots stand where OSPE puts them."""

from __future__ import annotations

import math
from fractions import Fraction
from types import SimpleNamespace

import pytest
import torch
from transformers.models.qwen2_5_omni.processing_qwen2_5_omni import Qwen2_5OmniProcessor

from omni_model.positions import latent_offsets, layout_clip, place_latents
from omni_model.sequence import Kind, Media, Plan, PlanBuilder


def _media(grid: tuple[int, int, int], seconds_per_grid: float, mel_frames: int) -> Media:
    """A clip of which only the sizes matter."""
    mel = torch.zeros(128, mel_frames) if mel_frames else None
    return Media(patches=torch.zeros(0, 1176), grid_thw=grid, seconds_per_grid=seconds_per_grid, mel=mel)


def _stock_positions(backbone, plans: list[Plan]) -> torch.Tensor:
    """What the stock model computes from the tokens of right-padded rows: (3, B, L)."""
    length = max(len(p) for p in plans)
    ids, mask = torch.zeros(len(plans), length, dtype=torch.long), torch.zeros(len(plans), length)
    for row, plan in enumerate(plans):
        ids[row, : len(plan)], mask[row, : len(plan)] = plan.input_ids, 1
    clips = [p.media for p in plans if bool((p.kinds == Kind.VISUAL).any())]
    sounds = [m.mel.shape[1] for m in clips if m.mel is not None]
    positions, _ = backbone.thinker.get_rope_index(
        ids,
        video_grid_thw=torch.tensor([m.grid_thw for m in clips]) if clips else None,
        attention_mask=mask,
        use_audio_in_video=bool(sounds),
        audio_seqlens=torch.tensor(sounds) if sounds else None,
        second_per_grids=torch.tensor([m.seconds_per_grid for m in clips]),
    )
    return positions


SILENT = [((1, 4, 4), 1.0, 0), ((5, 4, 6), 1.0, 0), ((7, 8, 4), 0.4, 0), ((40, 4, 4), 2.56, 0), ((3, 20, 28), 1.0, 0)]
SOUNDING = [
    ((2, 4, 4), 1.0, 200),  # two seconds, one chunk
    ((5, 4, 4), 1.0, 500),
    ((5, 4, 6), 1.0, 487),  # odd numbers of mel frames
    ((3, 4, 4), 1.0, 301),
    ((6, 4, 4), 1 / 3, 200),
    ((9, 4, 4), 0.7, 633),  # seconds that do not divide into ids
    ((11, 6, 4), 2 / 2.9, 759),
    ((10, 4, 4), 1.0, 300),  # sound ends before the picture
    ((12, 4, 4), 1.0, 100),
    ((3, 4, 4), 1.0, 1000),  # and long after it
    ((30, 4, 4), 2.56, 7680),  # a grid longer than a chunk
    ((8, 4, 4), 5.3, 4240),
    ((2, 30, 40), 1.0, 200),  # more rows than ids in the clip's seconds
    ((1, 4, 4), 1.0, 3),
]


@pytest.mark.parametrize(("grid", "seconds_per_grid", "mel_frames"), SILENT + SOUNDING)
def test_a_sequence_with_a_clip_has_the_stock_models_positions(backbone, prompt, grid, seconds_per_grid, mel_frames):
    plan = prompt(_media(grid, seconds_per_grid, mel_frames)).text(" It is green.", Kind.TEXT).build()
    assert torch.equal(plan.position_ids, _stock_positions(backbone, [plan])[:, 0])
    assert plan.next_position == int(plan.position_ids[0, -1]) + 1


def test_any_frame_rate_gives_the_stock_models_positions(backbone, prompt):
    # Rates as they arise when a frame limit thins a clip out: float rounding must fall the same way.
    for step in range(1, 120):
        plan = prompt(_media((9, 4, 4), 2 / (0.05 * step), 800)).build()
        assert torch.equal(plan.position_ids, _stock_positions(backbone, [plan])[:, 0]), step


def test_text_alone_counts_up(backbone, tokenizer, vocabulary):
    builder = PlanBuilder(tokenizer, vocabulary, _media((1, 4, 4), 1.0, 0))
    plan = builder.text("Which tone sounds while the shape is red?", Kind.QUESTION).build()
    assert torch.equal(plan.position_ids, _stock_positions(backbone, [plan])[:, 0])
    assert torch.equal(plan.position_ids, torch.arange(len(plan)).expand(3, -1))


@pytest.mark.parametrize("cases", [SOUNDING[1:5], SILENT[:3], SOUNDING[7:10]])
def test_rows_of_a_padded_batch_have_the_stock_models_positions(backbone, prompt, cases):
    plans = [prompt(_media(*case), "Which?" * (i + 1)).build() for i, case in enumerate(cases)]
    stock = _stock_positions(backbone, plans)
    for row, plan in enumerate(plans):
        assert torch.equal(plan.position_ids, stock[:, row, : len(plan)])


@pytest.mark.parametrize(("grid", "seconds_per_grid", "mel_frames"), SOUNDING)
def test_tokens_are_interleaved_as_the_stock_processor_does(vocabulary, prompt, grid, seconds_per_grid, mel_frames):
    media = _media(grid, seconds_per_grid, mel_frames)
    # The processor itself cannot be built without torchvision; its method needs only these names.
    processor = SimpleNamespace(
        video_processor=SimpleNamespace(merge_size=2),
        audio_bos_token="(",
        audio_eos_token=")",
        video_token="v",
        audio_token="a",
        get_chunked_index=lambda *a: Qwen2_5OmniProcessor.get_chunked_index(None, *a),
    )
    expected = Qwen2_5OmniProcessor.replace_video_with_audio_token(
        processor,  # type: ignore[arg-type]
        {"video_grid_thw": [list(grid)], "video_second_per_grid": [seconds_per_grid]},
        0,
        {"num_audio_tokens": [media.num_audio_tokens]},
        0,
        position_id_per_seconds=25,
        seconds_per_chunk=2.0,
    )
    letters = {
        vocabulary.audio_begin: "(",
        vocabulary.audio_end: ")",
        vocabulary.video: "v",
        vocabulary.audio: "a",
    }
    ids = prompt(media).build().input_ids.tolist()
    begin, end = ids.index(vocabulary.vision_begin), ids.index(vocabulary.vision_end)
    assert "".join(letters[i] for i in ids[begin + 1 : end]) == expected


def test_tokens_of_one_moment_share_their_temporal_id():
    layout = layout_clip(grid_thw=(5, 4, 4), merge=2, seconds_per_grid=1.0, num_audio=125)
    visual, audio = ~layout.is_audio, layout.is_audio
    times_s = torch.empty(len(layout.is_audio))
    times_s[visual] = layout.visual_times_s[layout.source[visual]]
    times_s[audio] = layout.audio_times_s[layout.source[audio]]
    torch.testing.assert_close(layout.offsets[0].float(), times_s * 25)
    # Every tower row is taken exactly once, in order within its modality.
    assert layout.source[visual].tolist() == list(range(20))
    assert layout.source[audio].tolist() == list(range(125))
    assert layout.offsets[1:, audio].tolist() == [list(range(125))] * 2


# --- Latent slots ---


def _slowly(mode: str, visual: int, audio: int, seconds: str, base: int) -> tuple[list[tuple[int, ...]], int]:
    """Ids of the slots after a trigger at base - 1, and the stop's, in exact arithmetic, slot by slot."""

    def nearest(value: Fraction) -> int:
        return math.floor(value + Fraction(1, 2))

    total, ids = visual + audio, []
    for i in range(visual):
        t = {"tmrope": nearest(25 * Fraction(seconds) * i / visual)}.get(mode, i)
        ids.append((base + t,) * 3)
    for m in range(audio):
        if mode == "none":
            t = visual + m
        elif mode == "tmrope":
            t = nearest(25 * Fraction(seconds) * m / audio)
        else:
            t = nearest(Fraction(m * visual, audio)) if visual else m
        other = 0 if mode == "code_compat" else base + t
        ids.append((base + t, other, other))
    stop = max(i[0] for i in ids) + 1 if mode == "tmrope" else base + total
    return ids, stop


@pytest.mark.parametrize("mode", ["none", "slot", "tmrope", "code_compat"])
@pytest.mark.parametrize(("visual", "audio"), [(32, 8), (4, 2), (5, 2), (7, 3), (32, 7), (3, 5), (6, 0), (0, 4)])
def test_slots_stand_where_a_slow_computation_puts_them(mode, visual, audio):
    for seconds in ("5", "1", "2.5", "0.7", "7.3"):
        offsets, stop = latent_offsets(mode, num_visual=visual, num_audio=audio, segment_s=float(seconds))
        ids, stop_id = _slowly(mode, visual, audio, seconds, base=134)
        assert place_latents(offsets, 134).T.tolist() == [list(i) for i in ids]
        assert 134 + stop == stop_id


def test_the_papers_slots():
    slot, stop = latent_offsets("slot", num_visual=32, num_audio=8)
    assert stop == 40
    # Visual 4m and audio m are one moment: the same id on every axis.
    assert torch.equal(slot[:, 0:32:4], slot[:, 32:])
    tmrope, _ = latent_offsets("tmrope", num_visual=32, num_audio=8, segment_s=5.0)
    assert tmrope[0, 32:].tolist() == [0, 16, 31, 47, 63, 78, 94, 109]
    assert tmrope[0, :4].tolist() == [0, 4, 8, 12]
    assert int(tmrope[0, 31]) == 121
    assert torch.equal(tmrope[:, 0:32:4], tmrope[:, 32:])
    compat, _ = latent_offsets("code_compat", num_visual=32, num_audio=8)
    placed = place_latents(compat, 134)
    assert placed[0, 32:].tolist() == list(range(134, 166, 4))
    assert placed[1:, 32:].tolist() == [[0] * 8] * 2


@pytest.mark.parametrize("mode", ["none", "slot", "tmrope", "code_compat"])
def test_two_phases_each_count_from_their_own_trigger(film, lay_out, sample_with, latent, mode):
    method = latent(ospe=mode, num_visual=4, num_audio=2, segment_s=1.0)
    plan = lay_out(method, film(), sample_with(2))
    position = 0
    for index, kind in enumerate(plan.kinds.tolist()):
        if kind == Kind.TRIGGER:
            trigger_id = int(plan.position_ids[0, index])
            slots, stop_id = _slowly(mode, 4, 2, "1", base=trigger_id + 1)
            assert plan.position_ids[:, index + 1 : index + 7].T.tolist() == [list(i) for i in slots]
            assert plan.kinds[index + 7] == Kind.STOP
            assert plan.position_ids[:, index + 7].tolist() == [stop_id] * 3
            # Words go on from the stop, one id at a time.
            assert plan.position_ids[:, index + 8].tolist() == [stop_id + 1] * 3
            if mode != "tmrope":
                assert stop_id == trigger_id + 1 + 6
            position += 1
    assert position == len(plan.spans) == 2
    assert plan.next_position == int(plan.position_ids[0, -1]) + 1
