"""The weighted sum of named losses, and which weights they reach."""

from __future__ import annotations

import pytest
import torch

from omni_model.batch import collate
from omni_model.learner import Learner
from omni_model.methods import make_method
from omni_model.unroll import unroll


@pytest.mark.parametrize("engine", ["teacher_parallel", "recurrent"])
def test_the_loss_is_the_weighted_sum_of_raw_terms(new_backbone, latent, mixed_plans, random_anchors, engine):
    method = latent(engine=engine, latent_weight=0.02, sync_weight=0.5, latent_reduction="mean")
    plans = mixed_plans(method)
    torch.manual_seed(0)
    out = Learner(new_backbone(), method)(collate(plans, anchors=random_anchors(plans)))
    assert {n for n in out if not n.startswith("count/")} == {"loss", "text", "latent", "sync", "tokens", "positions"}
    torch.testing.assert_close(out["loss"].detach(), out["text"] + 0.02 * out["latent"] + 0.5 * out["sync"])
    assert out["loss"].requires_grad
    assert not any(out[name].requires_grad for name in ("text", "latent", "sync"))
    assert out["tokens"] == sum(len(p) for p in plans)
    assert out["positions"] == len(plans) * max(len(p) for p in plans)


def test_the_declared_reductions_differ_by_the_width(new_backbone, latent, mixed_plans, random_anchors):
    plans = mixed_plans()
    batch = collate(plans, anchors=random_anchors(plans))
    terms = []
    for reduction in ("sum", "mean"):
        torch.manual_seed(0)
        learner = Learner(new_backbone(), latent(latent_reduction=reduction))
        terms.append(learner(batch)["latent"])
    torch.testing.assert_close(terms[0], 64 * terms[1])


@pytest.mark.parametrize("name", ["sft", "text_cot"])
def test_methods_without_latents_have_the_text_loss_alone(new_backbone, lay_out, film, sample_with, name):
    method = make_method(name)
    plans = [lay_out(method, film(i, 2 + i), sample_with(1 + i)) for i in range(2)]
    learner = Learner(new_backbone(), method)
    out = learner(collate(plans))
    assert set(out) == {"loss", "text", "tokens", "positions", "count/text"}
    torch.testing.assert_close(out["loss"].detach(), out["text"])
    assert list(learner.heads.parameters()) == []


def test_the_published_mask_acts_in_training_alone(new_backbone, latent, mixed_plans, random_anchors):
    plans = mixed_plans()
    batch = collate(plans, anchors=random_anchors(plans))
    text = {}
    for bottleneck in ("none", "published", "answer"):
        learner = Learner(new_backbone(), latent(bottleneck=bottleneck, engine="teacher_parallel"))
        for training in (True, False):
            text[bottleneck, training] = learner.train(training)(batch)["text"]
    assert text["none", True] == text["none", False] == text["published", False]
    assert text["answer", True] == text["answer", False] == text["published", True]
    assert (text["answer", True] - text["none", True]).abs() > 1e-3


def test_the_latent_loss_without_anchors_says_what_to_do(new_backbone, latent, mixed_plans):
    with pytest.raises(ValueError, match="preprocess the manifest"):
        Learner(new_backbone(), latent())(collate(mixed_plans()))


@pytest.mark.parametrize(
    "options", [{"latent_loss": "cosine"}, {"latent_loss": "infonce"}, {"normalise_anchors": True}]
)
def test_latent_losses_of_every_kind_teach_the_model(new_backbone, latent, mixed_plans, random_anchors, options):
    method = latent(engine="teacher_parallel", **options)
    learner, plans = Learner(new_backbone(), method), mixed_plans()
    batch = collate(plans, anchors=random_anchors(plans))
    outcome = unroll(learner.backbone, learner.heads.feedback, batch, method.unroll, training=True)
    loss = method.losses(learner.heads, outcome, batch)["latent"].mean
    loss.backward()
    assert loss > 0
    assert learner.backbone.thinker.model.language_model.norm.weight.grad.any()


def test_anchors_can_be_brought_to_the_size_of_hidden_states(new_backbone, latent, mixed_plans, random_anchors):
    plans = mixed_plans()
    anchors = random_anchors(plans)
    scaled = [a / a.square().mean(-1, keepdim=True).sqrt() for a in anchors]
    options = {"engine": "teacher_parallel", "sync_weight": 0.0}
    backbone = new_backbone()
    losses = []
    for targets, normalise in ((anchors, True), (scaled, False)):
        method = latent(**options, normalise_anchors=normalise)
        learner, batch = Learner(backbone, method), collate(plans, anchors=targets)
        outcome = unroll(
            backbone, learner.heads.feedback, collate(plans, anchors=anchors), method.unroll, training=True
        )
        losses.append(method.losses(learner.heads, outcome, batch)["latent"].mean)
    torch.testing.assert_close(losses[0], losses[1])
