"""The probe reads what is there, does not read what is not, and is the ridge regression it says it is."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from omni_model.decodability import decodability, read_states, ridge_scores
from omni_model.generate import generate
from omni_model.methods import make_method, without_slots
from omni_model.replay import replay
from omni_model.sequence import Kind


def _random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_scores_are_those_of_the_normal_equations():
    features, labels = _random(40, 6).double(), torch.arange(40) % 3
    features[:, 2] = 5.0  # says nothing
    features[:, 4] *= 100.0
    learn = torch.arange(40) < 30
    x, test = features[learn].numpy(), features[~learn].numpy()
    for strength in (1e-3, 0.5):
        found = ridge_scores(features, labels, learn=learn, score=~learn, strengths=[7.0, strength])[1]
        keep = [0, 1, 3, 4, 5]
        mean, std = x[:, keep].mean(0), x[:, keep].std(0)
        x1 = np.c_[(x[:, keep] - mean) / std, np.ones(30)]
        penalty = np.diag([30 * strength] * 5 + [0.0])  # none on the intercept
        weights = np.linalg.solve(x1.T @ x1 + penalty, x1.T @ np.eye(3)[labels[learn]])
        scores = np.c_[(test[:, keep] - mean) / std, np.ones(10)] @ weights
        np.testing.assert_allclose(found.numpy(), scores, atol=1e-9)


def test_a_linear_code_is_read_and_noise_is_not():
    answers = [("red", "green", "blue")[i % 3] for i in range(150)]
    code = torch.eye(3)[torch.arange(150) % 3] @ _random(3, 20)
    found = decodability(code + 0.1 * _random(150, 20, seed=1), answers)
    assert (found.n, found.accuracy, found.chance) == (150, 1.0, pytest.approx(1 / 3))
    nothing = [decodability(_random(150, 20, seed=seed), answers).accuracy for seed in range(20)]
    assert np.mean(nothing) == pytest.approx(1 / 3, abs=0.04)


def test_the_strength_is_chosen_by_what_serves_rows_left_out():
    """About as many features as rows: without a penalty the probe fits the noise, with one it reads the answer."""
    answers = [("yes", "no")[i % 2] for i in range(80)]
    features = _random(80, 60)
    features[:, :10] += (torch.arange(80) % 2 * 2 - 1)[:, None]
    weak, strong = (decodability(features, answers, strengths=[s]).accuracy for s in (1e-9, 1.0))
    assert strong > weak + 0.1
    assert decodability(features, answers, strengths=(1e-9, 1.0)).accuracy == strong
    assert decodability(features, answers, strengths=(1.0, 1e-9)).accuracy == strong


def test_questions_about_one_clip_stay_together():
    """Every clip has a fingerprint and one answer: recognising the clip is not reading the answer."""
    clips = [i // 6 for i in range(180)]
    answers = [("red", "green")[int(v > 0)] for v in _random(30)[torch.tensor(clips)]]
    features = _random(30, 64, seed=3)[torch.tensor(clips)] + 0.01 * _random(180, 64, seed=4)
    assert decodability(features, answers).accuracy > 0.98
    together = decodability(features, answers, groups=clips)
    assert together.accuracy < 0.8


def test_too_little_to_tell_is_none():
    assert decodability(_random(50, 4), ["red"] * 50) is None
    assert decodability(_random(9, 4), ["red", "green", "blue"] * 3) is None
    assert decodability(_random(50, 4), ["red", "green"] * 25, groups=["a", "b"] * 25) is None
    with pytest.raises(ValueError, match="3 or more"):
        decodability(_random(50, 4), ["red", "green"] * 25, folds=2)


def test_states_are_read_where_they_say(new_backbone, vocabulary, prompt, film, latent):
    backbone = new_backbone(seed=9)
    backbone.thinker.lm_head.weight.data[vocabulary.trigger] *= 3.5
    plans = [prompt(film(*clip), q).build() for clip, q in (((0, 2), "Which col"), ((1, 3), "Which colour is"))]

    def states(method):
        torch.manual_seed(0)
        heads = method.build_heads(backbone.width)
        rollouts = generate(backbone, heads, method, vocabulary, plans, max_new_tokens=8, max_phases=2)
        replayed = replay(backbone, method, plans, rollouts)
        return rollouts, replayed, read_states(replayed)

    rollouts, replayed, rows = states(latent())
    assert any("after" in row for row in rows)
    for i, (plan, rollout, row) in enumerate(zip(plans, rollouts, rows, strict=True)):
        hidden = replayed.hidden_BLD[i]
        at = [n for n, kind in enumerate(plan.kinds.tolist()) if kind in (Kind.VISUAL, Kind.AUDIO)]
        torch.testing.assert_close(row["media"], sum(hidden[n] for n in at) / len(at))
        assert torch.equal(row["question"], hidden[len(plan) - 1])
        fed = [e.vector for e in rollout.events if e.type == "latent"]
        stops = [n for n, e in enumerate(rollout.events) if e.type == "forced"]
        assert ("latents" in row, "after" in row) == (bool(fed), bool(stops))
        if fed:
            torch.testing.assert_close(row["latents"], sum(fed) / len(fed))
            assert torch.equal(row["after"], hidden[len(plan) + stops[-1]])
    _, _, bare = states(without_slots(latent()))
    assert any("after" in row for row in bare)
    assert not any("latents" in row for row in bare)
    assert all(set(row) == {"media", "question"} for row in states(make_method("sft"))[2])
