"""A loaded model answers questions, alone or in a batch, and says which moments its latents resemble."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from omni_model.batch import join_media
from omni_model.folder import Preparation, load_folder, save_folder
from omni_model.pooling import norm_weighted_pool
from omni_model.reason import Ask, Reasoner, load_reasoner
from omni_platform.media.scene import make_scene
from omni_platform.media.synth import render_frames, render_waveform

LIMITS = {"max_new_tokens": 10, "max_phases": 2}


@pytest.fixture(scope="module")
def folder(new_backbone, tokenizer, vocabulary, latent, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported")
    backbone = new_backbone(seed=9)
    with torch.no_grad():
        backbone.thinker.lm_head.weight[vocabulary.trigger] *= 3.5
        backbone.thinker.lm_head.weight[vocabulary.chat_end] *= 2
    method = latent(num_visual=4, num_audio=2)
    save_folder(
        folder,
        backbone=backbone,
        tokenizer=tokenizer,
        method=method,
        heads=method.build_heads(64),
        preparation=Preparation(fps=2.0, fps_max_frames=32),
    )
    return folder


@pytest.fixture(scope="module")
def reasoner(folder) -> Reasoner:
    return load_reasoner(folder, device="cpu")


@pytest.fixture(scope="module")
def asks() -> list[Ask]:
    out = []
    for index, shots, sound in ((0, 2, True), (1, 3, True), (2, 2, False), (3, 4, True)):
        scene = make_scene(seed=3, index=index, num_shots=shots)
        out.append(
            Ask(
                question=f"Which colour is on screen in second {index}? Answer: red",
                frames=render_frames(scene, times_s=np.arange(2 * shots) / 2, side_px=64),
                sample_fps=2.0,
                waveform=render_waveform(scene) if sound else None,
                options=("red", "green", "blue"),
            )
        )
    return out


def test_a_batch_is_answered_as_its_questions_alone(reasoner, asks):
    together = reasoner.answer(asks, **LIMITS)
    alone = [reasoner.answer([ask], **LIMITS)[0] for ask in asks]
    for ours, theirs in zip(together, alone, strict=True):
        assert replace(ours, phases=()) == replace(theirs, phases=())
        assert len(ours.phases) == len(theirs.phases)
        for a, b in zip(ours.phases, theirs.phases, strict=True):
            assert (a.position, a.num_visual, a.num_audio) == (b.position, b.num_visual, b.num_audio)
            assert [(m.modality, m.start_s, m.end_s) for m in a.moments] == [
                (m.modality, m.start_s, m.end_s) for m in b.moments
            ]
    assert len({len(r.phases) for r in together}) > 1


def test_a_reply_counts_what_was_read_and_written(reasoner, asks):
    plans = [reasoner.plan(ask) for ask in asks]
    rollouts = reasoner.rollouts(plans, **LIMITS)
    for plan, rollout, reply in zip(plans, rollouts, reasoner.replies(asks, plans, rollouts), strict=True):
        assert reply.prompt_tokens == len(plan)
        assert reply.completion_tokens == len(rollout.tokens)
        assert reply.latent_steps == 6 * len(reply.phases)
        assert reply.finish_reason == rollout.finish_reason
        for number, phase in enumerate(reply.phases):
            trigger = rollout.events[phase.position]
            assert (trigger.type, trigger.phase) == ("token", number)
            assert (phase.num_visual, phase.num_audio) == (4, 2)


def test_moments_lie_in_the_clip_and_a_silent_clip_has_none_to_hear(reasoner, asks):
    for ask, reply in zip(asks, reasoner.answer(asks, **LIMITS), strict=True):
        for phase in reply.phases:
            heard = ["audio"] if ask.waveform is not None else []
            assert [m.modality for m in phase.moments] == ["visual", *heard]
            for moment in phase.moments:
                assert 0 <= moment.start_s < moment.end_s <= len(ask.frames) / 2
                assert moment.end_s - moment.start_s == 1.0
                assert -1 <= moment.similarity <= 1


@pytest.mark.parametrize("second", [0, 2])
def test_latents_that_are_a_moments_features_are_traced_to_it(reasoner, asks, second):
    ask = asks[3]
    plan = reasoner.plan(ask)
    with torch.inference_mode():
        encoded = reasoner._backbone.encode(join_media([plan.media]))
    look = torch.cat(
        [
            norm_weighted_pool(encoded.visual_ND[4 * second : 4 * second + 4], 4),
            norm_weighted_pool(encoded.audio_ND[25 * second : 25 * second + 25], 2),
        ]
    )
    (reply,) = reasoner.answer([ask], **LIMITS, override=lambda phase, slot, own: look[slot][None])
    assert reply.phases
    assert [(m.start_s, m.end_s) for m in reply.phases[0].moments] == [(second, second + 1)] * 2
    assert all(m.similarity > 0.99 for m in reply.phases[0].moments)


def _insisting(folder, token: int) -> Reasoner:
    """The model in the folder, which always finds this token likeliest."""
    exported = load_folder(folder)

    class Insisting(type(exported.loaded.backbone)):
        def logits(self, hidden):
            logits = super().logits(hidden).clone()
            logits[..., token] += 1000
            return logits

    backbone = Insisting(exported.loaded.backbone.thinker)
    return Reasoner(replace(exported, loaded=replace(exported.loaded, backbone=backbone)), "cpu")


def test_the_answer_is_never_read_from_the_question(folder, vocabulary, asks):
    """A model that says nothing answers nothing, though the question spells an answer out (invariant 12)."""
    for reply in _insisting(folder, vocabulary.chat_end).answer(asks):
        assert (reply.text, reply.answer, reply.phases, reply.finish_reason) == ("", "", (), "stop")


def test_clips_are_prepared_as_the_folder_says(reasoner, asks):
    assert (reasoner.fps, reasoner.max_frames, reasoner.method_name) == (2.0, 32, "latent_omni")
    plan = reasoner.plan(asks[0])
    assert plan.media.grid_thw == (2, 4, 4)  # 64 px frames fitted to 56
    assert plan.media.seconds_per_grid == 1.0
    thin = reasoner.plan(replace(asks[0], sample_fps=0.5))
    assert thin.media.seconds_per_grid == 4.0


def test_an_unused_row_of_the_vocabulary_spells_nothing(folder, tokenizer, asks):
    """The table has more rows than the tokenizer has tokens."""
    assert len(tokenizer) < 511
    (reply,) = _insisting(folder, 511).answer(asks[:1], max_new_tokens=3)
    assert (reply.text, reply.completion_tokens, reply.finish_reason) == ("", 3, "length")
