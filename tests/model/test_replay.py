"""One pass over a recorded sequence gives what decoding saw, step by step."""

from __future__ import annotations

import pytest
import torch

from omni_model.generate import generate
from omni_model.methods import make_method, without_slots
from omni_model.probes import control
from omni_model.replay import replay
from omni_model.sequence import Kind

QUESTIONS = ("Which col", "Which colour is", "Which colour is on screen?")
CLIPS = ((0, 2, True), (1, 3, True), (2, 2, False))
"""Film index, shots, sound."""


@pytest.fixture(scope="module")
def talker(new_backbone, vocabulary):
    """A toy model that looks now and then and sometimes ends its turn."""
    backbone = new_backbone(seed=9)
    with torch.no_grad():
        backbone.thinker.lm_head.weight[vocabulary.trigger] *= 3.5
        backbone.thinker.lm_head.weight[vocabulary.chat_end] *= 2
    return backbone


@pytest.fixture(scope="module")
def prompts(prompt, film):
    return [prompt(film(*clip), question).build() for clip, question in zip(CLIPS, QUESTIONS, strict=True)]


@pytest.fixture(scope="module")
def roll(talker, vocabulary, prompts):
    def make(method, **options):
        torch.manual_seed(0)
        heads = method.build_heads(talker.width)
        return generate(talker, heads, method, vocabulary, prompts, max_new_tokens=8, max_phases=2, **options)

    return make


@torch.no_grad()
def _check_logits(talker, prompts, rollouts, replayed) -> None:
    """Every chosen token has the log-probability it had, and is the likeliest of what is not banned."""
    checked = 0
    for row, (plan, rollout) in enumerate(zip(prompts, rollouts, strict=True)):
        for i, event in enumerate(rollout.events):
            if event.type == "token":
                logits = talker.logits(replayed.hidden_BLD[row, len(plan) + i - 1]).float()
                assert torch.log_softmax(logits, -1)[event.token].item() == pytest.approx(event.logp, abs=1e-4)
                checked += 1
    assert checked > 10


@pytest.mark.parametrize("bottleneck", ["none", "answer", "strict"])
@pytest.mark.parametrize("feedback", ["raw", "linear"])
def test_a_replay_has_the_logits_of_decoding(talker, prompts, roll, latent, bottleneck, feedback):
    method = latent(bottleneck=bottleneck, feedback=feedback, norm_match=feedback == "linear")
    rollouts = roll(method)
    assert sum(r.latent_steps for r in rollouts) >= 10
    _check_logits(talker, prompts, rollouts, replay(talker, method, prompts, rollouts))


def test_so_it_has_with_sweeps_with_latents_exchanged_or_hidden_and_without_slots(talker, prompts, roll, latent):
    sweeping = latent(engine="jacobi", jacobi_sweeps=3)
    rollouts = roll(sweeping)
    _check_logits(talker, prompts, rollouts, replay(talker, sweeping, prompts, rollouts))
    method = latent()
    exchanged = roll(method, override=control("noise", rollouts))
    _check_logits(talker, prompts, exchanged, replay(talker, method, prompts, exchanged))
    hidden = roll(method, hide_latents=True)
    _check_logits(talker, prompts, hidden, replay(talker, method, prompts, hidden, hide_latents=True))
    with pytest.raises(AssertionError):
        _check_logits(talker, prompts, hidden, replay(talker, method, prompts, hidden))
    for bare in (without_slots(method), make_method("sft")):
        rollouts = roll(bare)
        assert not any(r.latent_steps for r in rollouts)
        _check_logits(talker, prompts, rollouts, replay(talker, bare, prompts, rollouts))


def test_a_track_names_every_position(talker, prompts, roll, latent):
    method = latent()
    rollouts = roll(method)
    track = replay(talker, method, prompts, rollouts).track
    for row, (plan, rollout) in enumerate(zip(prompts, rollouts, strict=True)):
        length = len(plan) + len(rollout.events)
        assert track.generated_BL[row].tolist() == [len(plan) <= i < length for i in range(track.kinds_BL.shape[1])]
        assert track.kinds_BL[row, : len(plan)].tolist() == plan.kinds.tolist()
        assert not track.kinds_BL[row, length:].any()
        kinds = track.kinds_BL[row, len(plan) : length].tolist()
        for phase in {e.phase for e in rollout.events} - {-1}:
            first = track.phases_BL[row].tolist().index(phase) - len(plan)
            span = [Kind.TRIGGER, *[Kind.LATENT_VISUAL] * 3, *[Kind.LATENT_AUDIO] * 2, Kind.STOP]
            assert kinds[first : first + 7] == span
            fed = track.inputs_BLD[row, len(plan) + first + 1 :][:5]
            assert torch.equal(fed, rollout.latents(phase))
        words = [k for e, k in zip(rollout.events, kinds, strict=True) if e.phase < 0]
        assert set(words) <= {int(Kind.TEXT)}
    assert int(track.is_latent.sum()) == sum(r.latent_steps for r in rollouts)
    assert int(track.is_media.sum()) == sum(p.media.num_visual_tokens + p.media.num_audio_tokens for p in prompts)


def test_nothing_generated_is_no_trouble(talker, prompts, roll, latent):
    method = latent()
    rollouts = [r.__class__(events=(), finish_reason="stop") for r in roll(method)]
    replayed = replay(talker, method, prompts, rollouts)
    assert not replayed.track.generated_BL.any()
