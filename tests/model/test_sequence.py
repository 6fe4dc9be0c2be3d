"""How a conversation about a clip is laid out."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from omni_model.prompt import prompt_template
from omni_model.sequence import IGNORE, Kind, PlanBuilder, prepare_media
from omni_platform.media.scene import make_scene
from omni_platform.media.synth import render_frames, render_waveform


def test_a_prompt_reads_as_the_chat_template_does(tokenizer, vocabulary, film):
    template = prompt_template("open", system_prompt="You listen well.")
    plan = PlanBuilder(tokenizer, vocabulary, film(0, 2), template=template).chat_prompt("Which colour?").build()
    text = tokenizer.decode(plan.input_ids)
    head, tail = "<|vision_bos|><|audio_bos|>", "<|audio_eos|><|vision_eos|>"
    media = text[text.index(head) : text.index(tail) + len(tail)]
    assert text == (
        f"<|im_start|>system\nYou listen well.<|im_end|>\n<|im_start|>user\n{media}Which colour?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert media == head + "<|VIDEO|>" * 8 + "<|AUDIO|>" * 50 + tail
    assert plan.labels.eq(IGNORE).all()
    asked = tokenizer.decode(plan.input_ids[plan.kinds == Kind.QUESTION])
    assert asked == "Which colour?"


def test_without_a_system_prompt_or_sound_there_is_neither(tokenizer, prompt, film):
    plan = prompt(film(0, 2, False), "Which?").build()
    text = tokenizer.decode(plan.input_ids)
    assert text.startswith("<|im_start|>user\n<|vision_bos|><|VIDEO|>")
    assert "<|VIDEO|><|vision_eos|>Which?" in text
    assert "audio" not in text.lower()


def test_every_media_token_has_its_source_and_time(prompt, film):
    plan = prompt(film(1, 3), "Which?").build()
    visual, audio = plan.kinds == Kind.VISUAL, plan.kinds == Kind.AUDIO
    assert plan.source[visual].tolist() == list(range(12))
    assert plan.source[audio].tolist() == list(range(75))
    torch.testing.assert_close(plan.times_s[visual], torch.arange(3.0).repeat_interleave(4))
    torch.testing.assert_close(plan.times_s[audio], torch.arange(75) / 25)
    rest = ~(visual | audio)
    assert plan.source[rest].eq(-1).all()
    assert plan.times_s[rest].isnan().all()


def test_questions_behind_one_clip_count_from_its_end(tokenizer, vocabulary, film):
    builder = PlanBuilder(tokenizer, vocabulary, film(0, 2)).clip_turn()
    shared = len(builder.build())
    end = builder.build().next_position
    for question in ("Which colour?", "Which tone sounds?"):
        builder.new_block().question_turn(question)
    plan = builder.build()
    assert plan.blocks[:shared].eq(0).all()
    for block in (1, 2):
        positions = plan.position_ids[0, plan.blocks == block]
        assert positions.tolist() == list(range(end, end + len(positions)))


def test_a_clip_knows_its_clock_and_its_token_counts():
    scene = make_scene(seed=0, index=0, num_shots=3)
    frames = render_frames(scene, times_s=np.arange(6) / 2, side_px=56)
    media = prepare_media(frames, sample_fps=2.0, waveform=render_waveform(scene))
    assert media.grid_thw == (3, 4, 4)
    assert (media.seconds_per_grid, media.num_visual_tokens, media.num_audio_tokens) == (1.0, 12, 75)
    thin = prepare_media(frames, sample_fps=0.8, waveform=None)
    assert (thin.seconds_per_grid, thin.num_audio_tokens) == (2.5, 0)
    assert prepare_media(frames[:5], sample_fps=2.0, waveform=None).grid_thw == (3, 4, 4)


def test_tokens_and_vectors_of_slots_keep_their_order(lay_out, film, sample_with, latent):
    plan = lay_out(latent(), film(), sample_with(3))
    triggers = (plan.kinds == Kind.TRIGGER).nonzero()[:, 0].tolist()
    assert [s.trigger for s in plan.spans] == triggers
    assert len({len(x) for x in (plan.input_ids, plan.kinds, plan.labels, plan.source, plan.blocks)}) == 1
    assert plan.position_ids.shape == (3, len(plan))


@pytest.mark.parametrize("text", ["", "Ünïcode ☃ and {braces} \\ <b>", "  spaces  "])
def test_any_words_can_be_laid_out(tokenizer, prompt, film, text):
    plan = prompt(film(), text).build()
    assert tokenizer.decode(plan.input_ids[plan.kinds == Kind.QUESTION]) == text
