"""Attention measured without touching the kernel is what the eager kernel has."""

from __future__ import annotations

import pytest
import torch

from omni_model.attention import Gaze, media_ratio, summarise_gaze, watch
from omni_model.generate import generate
from omni_model.methods import make_method
from omni_model.replay import lay_track, replay
from omni_model.sequence import Kind

QUESTIONS = ("Which col", "Which colour is on screen?")
CLIPS = ((0, 2, True), (1, 3, True))
"""Film index, shots, sound."""


@pytest.fixture(scope="module")
def talker(new_backbone, vocabulary):
    backbone = new_backbone(seed=9)
    with torch.no_grad():
        backbone.thinker.lm_head.weight[vocabulary.trigger] *= 3.5
    return backbone


@pytest.fixture(scope="module")
def prompts(prompt, film):
    return [prompt(film(*clip), question).build() for clip, question in zip(CLIPS, QUESTIONS, strict=True)]


@pytest.fixture(scope="module")
def roll(talker, vocabulary, prompts):
    def make(method):
        torch.manual_seed(0)
        heads = method.build_heads(talker.width)
        return generate(talker, heads, method, vocabulary, prompts, max_new_tokens=6, max_phases=2)

    return make


def _eager_weights(backbone, run) -> list[torch.Tensor]:
    """What the eager kernel of every layer returns while `run()` goes on: (B, H, L, L) each."""
    seen: list[torch.Tensor] = []
    layers = backbone.thinker.model.language_model.layers
    hooks = [layer.self_attn.register_forward_hook(lambda _, __, out: seen.append(out[1])) for layer in layers]
    before = backbone.thinker.config._attn_implementation
    backbone.thinker.set_attn_implementation("eager")
    try:
        run()
    finally:
        backbone.thinker.set_attn_implementation(before)
        for hook in hooks:
            hook.remove()
    return seen


@pytest.mark.parametrize("hide_latents", [False, True])
@pytest.mark.parametrize("bottleneck", ["none", "answer"])
def test_shares_are_those_of_the_eager_kernel(talker, prompts, roll, latent, bottleneck, hide_latents, attention_along):
    method = latent(bottleneck=bottleneck)
    rollouts = roll(method)
    assert any(r.latent_steps for r in rollouts)
    track = replay(talker, method, prompts, rollouts).track
    weights = _eager_weights(talker, lambda: replay(talker, method, prompts, rollouts, hide_latents=hide_latents))
    assert len(weights) == 2
    gazes = attention_along(talker, method, prompts, rollouts, hide_latents=hide_latents)
    for row, (gaze, rollout) in enumerate(zip(gazes, rollouts, strict=True)):
        assert len(gaze.kinds_S) == len(rollout.events) > 0
        for layer, weights_BHLL in enumerate(weights):
            for step, query in enumerate(track.generated_BL[row].nonzero()[:, 0].tolist()):
                over_keys = weights_BHLL[row, :, query].mean(0)
                kinds = track.kinds_BL[row].tolist()
                for shares, names in (
                    (gaze.media_NS, ("VISUAL", "AUDIO")),
                    (gaze.latents_NS, ("LATENT_VISUAL", "LATENT_AUDIO")),
                    (gaze.signs_NS, ("TEMPLATE", "MARKER", "TRIGGER", "STOP")),
                ):
                    expected = sum(float(w) for w, k in zip(over_keys, kinds, strict=True) if Kind(k).name in names)
                    assert float(shares[layer, step]) == pytest.approx(expected, abs=1e-5)
    words = torch.cat([g.kinds_S == Kind.TEXT for g in gazes])
    seen = torch.cat([g.latents_NS for g in gazes], 1)[:, words].sum() > 0
    assert bool(seen) != hide_latents


def test_hooks_are_gone_afterwards_even_after_a_failure(talker, prompts, roll, latent, attention_along):
    method = latent()
    rollouts = roll(method)

    def hooks() -> int:
        return sum(len(module._forward_pre_hooks) for module in talker.modules())

    assert hooks() == 0
    attention_along(talker, method, prompts, rollouts)
    assert hooks() == 0
    track = lay_track(talker, method, prompts, rollouts, device="cpu")
    with pytest.raises(ZeroDivisionError), watch(talker, track):
        assert hooks() > 0
        raise ZeroDivisionError
    assert hooks() == 0


def test_ratios_with_and_without_credit_for_words_that_look_at_latents():
    gaze = Gaze(
        kinds_S=torch.tensor([int(Kind.TRIGGER), int(Kind.LATENT_VISUAL), int(Kind.STOP), int(Kind.TEXT)]),
        media_NS=torch.tensor([[0.0, 0.0, 0.0, 0.0], [0.5, 0.4, 0.2, 0.1]]),
        latents_NS=torch.tensor([[0.0, 0.0, 0.0, 0.0], [0.0, 0.3, 0.1, 0.4]]),
        signs_NS=torch.tensor([[1.0, 1.0, 1.0, 1.0], [0.25, 0.25, 0.25, 0.25]]),
    )
    assert media_ratio([gaze], credit=False) == pytest.approx(1.2 / 3.0)
    assert media_ratio([gaze], credit=True) == pytest.approx((1.2 + 0.1 + 0.4) / 3.0)  # not the latent's own 0.3
    assert media_ratio([gaze], layer=None, credit=False) == pytest.approx(0.6 / 1.5)
    figures = summarise_gaze(gaze)
    assert figures["words_on_media"] == pytest.approx(0.05)
    assert figures["words_on_latents"] == pytest.approx(0.2)
    assert figures["latents_on_latents"] == pytest.approx(0.15)


def test_methods_without_latents_leave_out_what_they_have_not(talker, prompts, roll, attention_along):
    method = make_method("sft")
    rollouts = roll(method)
    gazes = attention_along(talker, method, prompts, rollouts)
    assert set(summarise_gaze(gazes[0])) == {"words_on_media", "ratio_paper", "ratio_direct"}
    silent = [r.__class__(events=(), finish_reason="stop") for r in rollouts]
    assert summarise_gaze(attention_along(talker, method, prompts, silent)[0]) == {}
