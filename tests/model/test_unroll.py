"""The engines against a slow reference that reruns the whole sequence for every slot, without a cache."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from omni_model.batch import collate, join_media
from omni_model.learner import Learner
from omni_model.methods import make_method
from omni_model.sequence import Kind, Plan
from omni_model.unroll import UnrollConfig, unroll

ENGINES = {
    "teacher_parallel": {"engine": "teacher_parallel"},
    "recurrent": {"engine": "recurrent"},
    "two_pass": {"engine": "two_pass"},
    "jacobi": {"engine": "jacobi", "jacobi_sweeps": 5, "jacobi_tolerance": 0.0},
}
"""As many sweeps as slots: exact."""


# --- The reference. It shares with the engines only the stock model and the plan. ---


def _slow_inputs(backbone, plan: Plan) -> list[torch.Tensor]:
    encoded = backbone.encode(join_media([plan.media]))
    vectors = list(backbone.embed(plan.input_ids))
    for i, (kind, row) in enumerate(zip(plan.kinds.tolist(), plan.source.tolist(), strict=True)):
        if kind == Kind.VISUAL:
            vectors[i] = encoded.visual_ND[row]
        elif kind == Kind.AUDIO:
            vectors[i] = encoded.audio_ND[row]
    return vectors


def _slow_hidden(backbone, plan: Plan, vectors: list[torch.Tensor]) -> torch.Tensor:
    """Hidden states of the first positions, with a plain causal mask: (n, D)."""
    n = len(vectors)
    causal = torch.ones(n, n, dtype=torch.bool).tril()[None]
    positions = plan.position_ids[:, None, :n]
    return backbone.run(torch.stack(vectors)[None], position_ids_3BQ=positions, mask_BQK=causal)[0]


def _slow_row(backbone, feedback, plan: Plan) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Hidden states (L, D) and, per phase, latents (K, D)."""
    vectors = _slow_inputs(backbone, plan)
    media = torch.stack([v for v, k in zip(vectors, plan.kinds, strict=True) if k in (Kind.VISUAL, Kind.AUDIO)])
    scale = media.detach().square().mean().sqrt()
    phases = []
    for span in plan.spans:
        latents = []
        for slot in range(1, span.num_slots + 1):
            before = _slow_hidden(backbone, plan, vectors[: span.trigger + slot])
            vectors[span.trigger + slot] = feedback(before[-1][None], scale[None])[0]
            latents.append(vectors[span.trigger + slot])
        phases.append(torch.stack(latents))
    return _slow_hidden(backbone, plan, vectors), phases


def _slow_loss(learner: Learner, plans: list[Plan], anchors: list[torch.Tensor]) -> torch.Tensor:
    """Text loss plus 0.01 times squared distance summed over the width, token by token and phase by phase."""
    words, distances = [], []
    for plan, targets in zip(plans, anchors, strict=True):
        hidden, phases = _slow_row(learner.backbone, learner.heads.feedback, plan)
        logp = torch.log_softmax(learner.backbone.logits(hidden), -1)
        words += [-logp[i - 1, label] for i, label in enumerate(plan.labels.tolist()) if label >= 0]
        distances += [((z - a) ** 2).sum(-1).mean() for z, a in zip(phases, targets, strict=True)]
    return torch.stack(words).mean() + 0.01 * torch.stack(distances).mean()


@pytest.mark.parametrize(
    "options",
    [{"feedback": "raw"}, {"feedback": "linear", "norm_match": True, "ospe": "none"}],
    ids=["raw", "linear-norm"],
)
def test_cached_rollout_equals_the_slow_reference(new_backbone, latent, mixed_plans, random_anchors, options):
    """Hidden states, latents, loss and the gradient of every weight (invariant 1)."""
    method = latent(num_visual=2, num_audio=1, latent_weight=0.01, sync_weight=0.0, **options)
    learner = Learner(new_backbone(), method).train()
    plans = mixed_plans(method)[:2]
    anchors = random_anchors(plans, slots=3)
    batch = collate(plans, anchors=anchors)

    outcome = unroll(learner.backbone, learner.heads.feedback, batch, method.unroll, training=True)
    for row, plan in enumerate(plans):
        hidden, phases = _slow_row(learner.backbone, learner.heads.feedback, plan)
        torch.testing.assert_close(outcome.hidden_BLD[row, : len(plan)], hidden, atol=1e-4, rtol=0)
        for phase, latents in enumerate(phases):
            torch.testing.assert_close(outcome.latents_BPKD[row, phase], latents, atol=1e-4, rtol=0)

    loss = learner(batch)["loss"]
    loss.backward()
    ours = {name: p.grad for name, p in learner.named_parameters()}
    learner.zero_grad(set_to_none=True)
    slow = _slow_loss(learner, plans, anchors)
    slow.backward()
    torch.testing.assert_close(loss, slow, atol=1e-4, rtol=0)
    for name, p in learner.named_parameters():
        if p.grad is None:
            assert ours[name] is None or not ours[name].any(), name
        else:
            torch.testing.assert_close(ours[name], p.grad, atol=1e-4 * max(1, float(p.grad.abs().max())), rtol=0)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("options", [{}, {"bottleneck": "strict", "feedback": "linear", "norm_match": True}])
@torch.no_grad()
def test_a_batch_equals_its_rows_alone(
    backbone, latent, mixed_plans, lay_out, random_anchors, engine, options, film, sample_with
):
    """Rows of other lengths, clips and numbers of phases, none among them, change nothing (invariant 2)."""
    method = latent(**ENGINES[engine], **options)
    no_look = lay_out(make_method("text_cot"), film(4, 2, False), sample_with(2))
    plans = [*mixed_plans(method), no_look]
    anchors = random_anchors(plans)
    feedback = method.build_heads(backbone.width).feedback
    together = unroll(backbone, feedback, collate(plans, anchors=anchors), method.unroll, training=True)
    padded = collate(plans, anchors=anchors, min_phases=5)
    in_step = unroll(backbone, feedback, padded, method.unroll, training=True)
    for row, (plan, targets) in enumerate(zip(plans, anchors, strict=True)):
        alone = unroll(backbone, feedback, collate([plan], anchors=[targets]), method.unroll, training=True)
        phases = len(plan.spans)
        for outcome in (together, in_step):
            close = {"atol": 5e-5, "rtol": 0}
            torch.testing.assert_close(outcome.hidden_BLD[row, : len(plan)], alone.hidden_BLD[0], **close)
            if phases:
                torch.testing.assert_close(outcome.latents_BPKD[row, :phases], alone.latents_BPKD[0], **close)
            assert outcome.present_BP[row].sum() == phases
            assert not outcome.latents_BPKD[row, phases:].any()


@torch.no_grad()
def test_own_latents_as_constants_have_the_same_values(backbone, latent, mixed_plans, random_anchors):
    plans = mixed_plans()
    batch = collate(plans, anchors=random_anchors(plans))
    full = _run(backbone, latent(), batch)
    real = batch.kinds_BL != Kind.PAD
    for gradient in ("kv_only", "detached"):
        for engine in ("recurrent", "two_pass"):
            constant = _run(backbone, latent(engine=engine, gradient=gradient), batch)
            torch.testing.assert_close(full.hidden_BLD[real], constant.hidden_BLD[real], atol=5e-5, rtol=0)
            torch.testing.assert_close(full.latents_BPKD, constant.latents_BPKD, atol=5e-5, rtol=0)


@pytest.mark.parametrize("engine", ["recurrent", "two_pass", "jacobi"])
@torch.no_grad()
def test_teacher_share_goes_from_own_latents_to_teacher_forcing(backbone, latent, mixed_plans, random_anchors, engine):
    plans = mixed_plans()
    batch = collate(plans, anchors=random_anchors(plans))
    taught, own = (_run(backbone, latent(**ENGINES[e]), batch) for e in ("teacher_parallel", "recurrent"))
    real = batch.kinds_BL != Kind.PAD

    def hidden(share: float, training: bool = True) -> torch.Tensor:
        torch.manual_seed(7)
        method = latent(teacher_share=share, **ENGINES[engine])
        return _run(backbone, method, batch, training=training).hidden_BLD[real]

    close = {"atol": 5e-5, "rtol": 0}
    torch.testing.assert_close(hidden(1.0), taught.hidden_BLD[real], **close)
    torch.testing.assert_close(hidden(0.0), own.hidden_BLD[real], **close)
    torch.testing.assert_close(hidden(1.0, training=False), own.hidden_BLD[real], **close)
    half = hidden(0.5)
    assert (half - taught.hidden_BLD[real]).abs().max() > 0.1
    assert (half - own.hidden_BLD[real]).abs().max() > 0.1
    torch.manual_seed(7)
    mixed = _run(backbone, latent(teacher_share=0.5), batch)
    torch.testing.assert_close(half, mixed.hidden_BLD[real], **close)


def _run(backbone, method, batch, *, training: bool = True):
    feedback = method.build_heads(backbone.width).feedback
    return unroll(backbone, feedback, batch, method.unroll, training=training)


@pytest.mark.parametrize("options", [ENGINES["teacher_parallel"], {"teacher_share": 0.5}])
def test_engines_that_feed_anchors_refuse_a_batch_without(backbone, latent, mixed_plans, options):
    with pytest.raises(ValueError, match="the batch has none"):
        _run(backbone, latent(**options), collate(mixed_plans()))


def test_a_share_is_between_0_and_1():
    with pytest.raises(ValueError, match=r"teacher_share is a share between 0 and 1, got 1\.5"):
        UnrollConfig(teacher_share=1.5)
    with pytest.raises(ValueError, match=r"teacher_share_end is a share between 0 and 1, got -1"):
        UnrollConfig(teacher_share_end=-1)


@torch.no_grad()
def test_the_share_runs_in_a_straight_line_over_training(backbone, latent, mixed_plans, random_anchors):
    falling = UnrollConfig(teacher_share=0.8, teacher_share_end=0.2)
    assert [falling.teacher_share_at(p) for p in (0.0, 0.5, 1.0)] == pytest.approx([0.8, 0.5, 0.2])
    assert UnrollConfig(teacher_share=0.8).teacher_share_at(1.0) == 0.8
    plans = mixed_plans()
    batch = collate(plans, anchors=random_anchors(plans))
    learner = Learner(backbone, latent(sync_weight=0.0, teacher_share=1.0, teacher_share_end=0.0)).train()

    def loss_at(step: int, total_steps: int) -> torch.Tensor:
        learner.begin_step(step, total_steps)
        return learner(batch)["loss"]

    taught, own = (
        Learner(backbone, latent(sync_weight=0.0, engine=engine)).train()(batch)["loss"]
        for engine in ("teacher_parallel", "recurrent")
    )
    backbone.eval()
    close = {"atol": 1e-4, "rtol": 0}
    torch.testing.assert_close(loss_at(0, 11), taught, **close)
    torch.testing.assert_close(loss_at(10, 11), own, **close)
    torch.manual_seed(7)
    half_way = loss_at(5, 11)
    torch.manual_seed(7)
    torch.testing.assert_close(half_way, Learner(backbone, latent(sync_weight=0.0, teacher_share=0.5))(batch)["loss"])
    # One step alone begins at the start; a step too many stays at the end.
    torch.testing.assert_close(loss_at(0, 1), taught, **close)
    torch.testing.assert_close(loss_at(11, 11), own, **close)


@torch.no_grad()
def test_a_bottleneck_can_be_lifted_for_good(backbone, latent, mixed_plans, random_anchors):
    """Up to its share of training it acts, afterwards and when answering it does not."""
    plans = mixed_plans()
    batch = collate(plans, anchors=random_anchors(plans))
    lifted = latent(bottleneck="strict", bottleneck_until=0.5)

    def hidden(method, training: bool, progress: float = 0.0) -> torch.Tensor:
        feedback = method.build_heads(backbone.width).feedback
        return unroll(backbone, feedback, batch, method.unroll, training=training, progress=progress).hidden_BLD

    strict, none = (hidden(latent(bottleneck=name), True) for name in ("strict", "none"))
    assert (strict - none).abs().max() > 0.1
    for progress, wanted in ((0.0, strict), (0.5, strict), (0.51, none), (1.0, none)):
        assert torch.equal(hidden(lifted, True, progress), wanted), progress
    assert torch.equal(hidden(lifted, False), none)
    assert torch.equal(hidden(latent(bottleneck="strict"), False, 1.0), strict)
    assert [lifted.unroll.answering_bottleneck, latent(bottleneck="answer").unroll.answering_bottleneck] == [
        "none",
        "answer",
    ]
    for share in (0.0, 1.5):
        with pytest.raises(
            ValueError, match=rf"above 0 and up to 1, got {share}; for none at all take bottleneck: none"
        ):
            latent(bottleneck_until=share)


@torch.no_grad()
def test_the_learner_lifts_the_bottleneck_at_its_step(backbone, latent, mixed_plans, random_anchors):
    plans = mixed_plans()
    batch = collate(plans, anchors=random_anchors(plans))
    options = {"sync_weight": 0.0, "bottleneck": "answer"}
    learner = Learner(backbone, latent(**options, bottleneck_until=0.5)).train()
    losses = []
    for step in (0, 5, 6, 10):
        learner.begin_step(step, 11)
        losses.append(learner(batch)["loss"])
    blocked = Learner(backbone, latent(**options)).train()(batch)["loss"]
    assert losses[0] == losses[1] == blocked
    assert losses[2] == losses[3]
    assert (losses[2] - blocked).abs() > 1e-3
    backbone.eval()


# --- Gradient (invariant 3) ---


def _text_loss(learner: Learner, batch) -> torch.Tensor:
    """Cross-entropy of the words in the model's own precision: the learner's text loss is always float32."""
    outcome = unroll(learner.backbone, learner.heads.feedback, batch, learner.method.unroll, training=True)
    wanted = batch.labels_BL[:, 1:]
    return F.cross_entropy(learner.backbone.logits(outcome.hidden_BLD[:, :-1][wanted >= 0]), wanted[wanted >= 0])


def test_words_teach_what_only_the_slots_use(new_backbone, latent, mixed_plans):
    """The feedback acts at the slots alone; its gradient of the text loss agrees with finite differences."""
    method = latent(feedback="linear", sync_weight=0.0, **ENGINES["recurrent"])
    learner = Learner(new_backbone(), method).double()
    batch = collate(mixed_plans(method)[1:])
    weight = learner.heads.feedback.linear.weight
    _text_loss(learner, batch).backward()
    assert weight.grad.abs().max() > 1e-3
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        direction = torch.randn(weight.shape, generator=generator, dtype=weight.dtype)
        direction = direction / direction.norm() + weight.grad / weight.grad.norm()
        step, values = 1e-3, []
        for sign in (1, -1):
            with torch.no_grad():
                weight += sign * step * direction
                values.append(_text_loss(learner, batch))
                weight -= sign * step * direction
        slope = (values[0] - values[1]) / (2 * step)
        torch.testing.assert_close(slope, (weight.grad * direction).sum(), rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize("engine", ["recurrent", "two_pass", "jacobi"])
@pytest.mark.parametrize("gradient", ["kv_only", "detached"])
def test_constant_latents_teach_the_feedback_nothing(new_backbone, latent, mixed_plans, engine, gradient):
    method = latent(feedback="linear", sync_weight=0.0, gradient=gradient, **ENGINES[engine])
    learner = Learner(new_backbone(), method)
    _text_loss(learner, collate(mixed_plans(method)[1:])).backward()
    grad = learner.heads.feedback.linear.weight.grad
    assert grad is None or not grad.any()
    assert learner.backbone.thinker.lm_head.weight.grad.any()


def test_the_latent_loss_teaches_the_feedback_in_every_engine(new_backbone, latent, mixed_plans, random_anchors):
    for options in [*ENGINES.values(), {"gradient": "kv_only"}, {"gradient": "detached"}]:
        method = latent(feedback="linear", sync_weight=0.0, **options)
        learner = Learner(new_backbone(), method).train()
        plans = mixed_plans(method)
        learner(collate(plans, anchors=random_anchors(plans)))["loss"].backward()
        assert learner.heads.feedback.linear.weight.grad.abs().max() > 1e-3
