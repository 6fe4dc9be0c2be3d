"""Controls replace exactly what they say, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from omni_model.generate import Event, Rollout, generate
from omni_model.methods import make_method, without_slots
from omni_model.probes import (
    INTERVENTIONS,
    blind,
    choose_donors,
    control,
    intervene,
    interventions_for,
    paired_difference,
)
from omni_model.reason import Ask

WIDTH = 6


def _rollout(number: int, phases: int) -> Rollout:
    """Slot s of phase p of rollout n is fed 100 n + 10 p + s."""
    events = [
        Event(type="latent", position_ids=(0, 0, 0), vector=torch.full((WIDTH,), 100.0 * number + 10 * p + s), phase=p)
        for p in range(phases)
        for s in range(3)
    ]
    return Rollout(events=tuple(events), finish_reason="stop")


OWN = [_rollout(0, 1), _rollout(1, 2), _rollout(2, 0)]
VECTORS = torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(0)) * torch.tensor([[1.0], [5.0], [0.1]])


def test_zero_and_noise():
    assert not control("zero", OWN)(0, 0, VECTORS).any()
    noise = control("noise", OWN, seed=1)(0, 0, VECTORS)
    torch.testing.assert_close(noise.norm(dim=-1), VECTORS.norm(dim=-1))
    assert torch.cosine_similarity(noise, VECTORS).abs().max() < 0.99
    assert torch.equal(noise, control("noise", OWN, seed=1)(0, 0, VECTORS))


def test_other_rows_latents_of_the_same_phase_or_the_last_one():
    override = control("other", OWN, donors=[1, 0, 1])
    assert override(0, 2, VECTORS)[:, 0].tolist() == [102, 2, 102]
    assert override(1, 0, VECTORS)[:, 0].tolist() == [110, 0, 110]  # row 0 looked only once
    nothing = control("other", OWN, donors=[2, 2, 0])
    assert nothing(0, 0, VECTORS)[:, 0].tolist() == [0, 0, 0]  # a donor that never looked


def test_gold_is_the_anchors():
    anchors = [torch.arange(3.0)[None, :, None].expand(1, 3, WIDTH) + 10 * n for n in range(3)]
    override = control("gold", OWN, anchors=anchors)
    assert override(0, 1, VECTORS)[:, 0].tolist() == [1, 11, 21]
    assert override(1, 2, VECTORS)[:, 0].tolist() == [2, 12, 22]


def test_first_is_each_phases_own_first_latent():
    override = control("first", OWN)
    assert override(0, 0, VECTORS)[:, 0].tolist() == [0, 100, 0]
    assert override(0, 2, VECTORS)[:, 0].tolist() == [0, 100, 0]
    assert override(1, 2, VECTORS)[:, 0].tolist() == [0, 110, 0]


def test_an_intervention_changes_what_it_says_and_nothing_else(latent):
    method = latent(num_visual=5, num_audio=1, bottleneck="published")
    anchors = [torch.ones(1, 6, WIDTH)] * 3

    def what(name, of=method):
        given = intervene(name, of, OWN, max_phases=3, donors=[1, 0, 1], anchors=anchors)
        counts = given.method.num_visual, given.method.num_audio
        bottleneck = given.method.unroll.answering_bottleneck
        return counts, bottleneck, given.max_phases, given.hide_latents, given.override is not None

    for which in ("zero", "noise", "other", "first", "gold"):
        assert what(f"latents_{which}") == ((5, 1), "published", 3, False, True)
        override = intervene(f"latents_{which}", method, OWN, max_phases=3, donors=[1, 0, 1], anchors=anchors).override
        expected = control(which, OWN, donors=[1, 0, 1], anchors=anchors)(0, 1, VECTORS)
        assert torch.equal(override(0, 1, VECTORS), expected)
    assert what("span_removed") == ((5, 1), "published", 0, False, False)
    assert what("markers_only") == ((0, 0), "published", 3, False, False)
    assert what("half_budget") == ((2, 1), "published", 3, False, False)
    assert what("double_budget") == ((10, 2), "published", 3, False, False)
    assert what("double_budget", latent(num_visual=0, num_audio=2))[0] == (0, 4)
    assert what("media_blocked") == ((5, 1), "answer", 3, False, False)
    assert what("latents_blocked") == ((5, 1), "published", 3, True, False)
    # Nothing is lifted where more is blocked already.
    assert what("media_blocked", latent(bottleneck="strict"))[1] == "strict"
    assert {name for name in INTERVENTIONS if what(name) == what("latents_zero")} == {
        name for name in INTERVENTIONS if name.startswith("latents_") and name != "latents_blocked"
    }
    with pytest.raises(ValueError, match="unknown intervention 'shuffled'"):
        what("shuffled")


def test_which_interventions_change_anything(latent):
    assert interventions_for(latent(), gold=True) == INTERVENTIONS
    assert set(INTERVENTIONS) - set(interventions_for(latent(), gold=False)) == {"latents_gold"}
    answer = interventions_for(latent(bottleneck="answer", num_visual=1, num_audio=1), gold=True)
    assert set(INTERVENTIONS) - set(answer) == {"media_blocked", "half_budget"}
    assert interventions_for(without_slots(latent()), gold=True) == ("span_removed", "media_blocked")
    for name in ("sft", "text_cot"):
        assert interventions_for(make_method(name), gold=True) == ()


def test_interventions_reach_the_decoder(new_backbone, vocabulary, prompt, film, latent):
    """What was generated shows what was done to it, and every intervention but none changes what is said."""
    backbone = new_backbone(seed=9)
    backbone.thinker.lm_head.weight.data[vocabulary.trigger] *= 3.5
    prompts = [prompt(film(i, 3), question).build() for i, question in enumerate(("Which col", "Which colour is"))]
    method = latent()
    heads = method.build_heads(backbone.width)

    def roll(given):
        return generate(
            backbone,
            heads,
            given.method,
            vocabulary,
            prompts,
            max_new_tokens=8,
            max_phases=given.max_phases,
            override=given.override,
            hide_latents=given.hide_latents,
        )

    own = generate(backbone, heads, method, vocabulary, prompts, max_new_tokens=8, max_phases=2)
    assert all(r.latent_steps in (5, 10) for r in own)
    for name, slots in (("span_removed", 0), ("markers_only", 0), ("half_budget", 2), ("double_budget", 10)):
        given = intervene(name, method, own, max_phases=2)
        changed = roll(given)
        for rollout in changed:
            phases = len({e.phase for e in rollout.events} - {-1})
            assert rollout.latent_steps == phases * slots
            assert (phases == 0) == (name == "span_removed"), name
    for row in roll(intervene("latents_first", method, own, max_phases=2)):
        for latents_KD in (row.latents(p) for p in {e.phase for e in row.events} - {-1}):
            assert torch.equal(latents_KD, latents_KD[:1].expand(5, -1))
    for name in ("media_blocked", "latents_blocked"):
        changed = roll(intervene(name, method, own, max_phases=2))
        for before, after in zip(own, changed, strict=True):
            # The same until the first latents are in, and another probability for the first word that follows them.
            stop = next(i for i, e in enumerate(before.events) if e.type == "forced")
            assert all(
                torch.equal(a.vector, b.vector)
                for a, b in zip(before.events[:stop], after.events[:stop], strict=True)
                if a.type == "latent"
            )
            assert before.events[stop + 1].logp != pytest.approx(after.events[stop + 1].logp, abs=1e-4), name


def test_controls_say_what_they_lack():
    with pytest.raises(ValueError, match="needs a donor row"):
        control("other", OWN)
    with pytest.raises(ValueError, match="needs the anchors"):
        control("gold", OWN)


def test_donors_are_about_another_clip_and_the_same_kind_of_question_where_possible():
    clips, groups = ["a", "a", "b", "b", "c"], ["x", "y", "y", "z", "x"]
    donors = choose_donors(clips, groups)
    assert all(clips[i] != clips[j] for i, j in enumerate(donors))
    assert donors == [4, 2, 1, 4, 0]
    # Those with another answer come first, but not before those of the same kind.
    clips, groups = ["a", "b", "c", "d"], ["x", "x", "x", "y"]
    assert choose_donors(clips, groups, ["red", "Red", "blue", "green"]) == [2, 2, 0, 0]
    assert choose_donors(clips, groups, ["red", "red", "red", "red"]) == [1, 2, 0, 0]
    with pytest.raises(ValueError, match="at least two clips"):
        choose_donors(["a", "a"], ["x", "y"])


def test_blinding_keeps_the_sequence_and_takes_the_senses():
    ask = Ask(
        question="Which?",
        frames=np.full((4, 8, 8, 3), 7, np.uint8),
        sample_fps=2.0,
        waveform=np.full(32_000, 0.5, np.float32),
    )
    for which, seen, heard in (("no_audio", True, False), ("no_video", False, True), ("neither", False, False)):
        changed = blind(ask, which)
        assert changed.frames.shape == ask.frames.shape
        assert changed.waveform.shape == ask.waveform.shape
        assert (bool(changed.frames.any()), bool(changed.waveform.any())) == (seen, heard)


def test_a_paired_difference_has_an_interval_around_its_mean():
    first, second = [1.0] * 30 + [0.0] * 10, [0.0] * 20 + [1.0] * 20
    interval = paired_difference(first, second)
    assert interval.mean == pytest.approx(0.25)
    assert interval.low < 0.25 < interval.high
    same = paired_difference(first, first)
    assert (same.mean, same.low, same.high) == (0.0, 0.0, 0.0)
    with pytest.raises(ValueError, match="at least one question"):
        paired_difference([], [])
