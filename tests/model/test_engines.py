"""Engines that feed own latents: the same loss and gradient by another way, and what each gradient runs through."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from omni_model import rollout
from omni_model.batch import collate
from omni_model.embedding import embed_batch
from omni_model.learner import Learner
from omni_model.masks import allowed, look_at, with_self
from omni_model.sequence import Kind
from omni_model.slots import fill_slots, read_latents
from omni_model.unroll import UnrollConfig, unroll

SLOTS = 5
EXACT = {"engine": "jacobi", "jacobi_sweeps": SLOTS, "jacobi_tolerance": 0.0}
OTHERS = {
    "two_pass": {"engine": "two_pass"},
    "jacobi": EXACT,
    "jacobi-plain-anchors": {**EXACT, "jacobi_carry": False, "jacobi_start": "anchors"},
}
GRADIENTS = ["full", "kv_only", "detached"]


@pytest.fixture
def batch(mixed_plans, random_anchors):
    """Three rows that differ in prompt length and have 1, 3 and 2 phases."""
    plans = mixed_plans()
    return collate(plans, anchors=random_anchors(plans, slots=SLOTS))


def _step(learner: Learner, batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Loss and the gradient of every weight, zeros where there is none."""
    learner.zero_grad(set_to_none=True)
    loss = learner.train()(batch)["loss"]
    loss.backward()
    grads = {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in learner.named_parameters()}
    return loss.detach(), grads


def _assert_same(ours, theirs, tolerance: float = 1e-4) -> None:
    torch.testing.assert_close(ours[0], theirs[0], atol=tolerance, rtol=0)
    assert ours[1].keys() == theirs[1].keys()
    for name, grad in theirs[1].items():
        close = tolerance * max(1.0, float(grad.abs().max()))
        torch.testing.assert_close(ours[1][name], grad, atol=close, rtol=0, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("bottleneck", ["none", "published", "answer", "strict"])
@pytest.mark.parametrize("gradient", GRADIENTS)
def test_every_engine_has_the_loss_and_gradient_of_the_recurrent_one(new_backbone, latent, batch, gradient, bottleneck):
    shared = {"feedback": "linear", "norm_match": True, "latent_weight": 0.01}
    shared |= {"gradient": gradient, "bottleneck": bottleneck}
    learner = Learner(new_backbone(), latent(**shared))
    wanted = _step(learner, batch)
    assert wanted[1]["backbone.thinker.model.language_model.layers.0.self_attn.k_proj.weight"].abs().max() > 1e-2
    for options in OTHERS.values():
        learner.method = latent(**shared, **options)
        _assert_same(_step(learner, batch), wanted)


def test_gradients_differ_where_they_should(new_backbone, latent, batch):
    """What the comparison above rests on."""
    learner = Learner(new_backbone(), latent(latent_weight=0.01))
    steps = {}
    for gradient in GRADIENTS:
        learner.method = latent(latent_weight=0.01, gradient=gradient)
        steps[gradient] = _step(learner, batch)
    name = "backbone.thinker.model.language_model.layers.0.self_attn.k_proj.weight"
    for one, other in (("full", "kv_only"), ("kv_only", "detached")):
        torch.testing.assert_close(steps[one][0], steps[other][0])
        assert (steps[one][1][name] - steps[other][1][name]).norm() > 0.1 * steps[one][1][name].norm()


def test_kv_only_is_the_gradient_with_the_fed_vectors_held(new_backbone, latent, batch):
    """The same weights, with the latents put into the sequence as numbers and one plain pass over it."""
    learner = Learner(new_backbone(), latent(latent_weight=0.01, gradient="kv_only"))
    ours = _step(learner, batch)
    with torch.no_grad():
        config = UnrollConfig(bottleneck="none")
        own = unroll(learner.backbone, learner.heads.feedback, batch, config, training=True).latents_BPKD
    anchors, fed = batch.anchors_BPKD, own.clone()

    class Held(type(learner.backbone)):
        """Feeds the recorded vectors whatever is put into the slots."""

        def run(self, inputs_BQD, **rest):
            return super().run(fill_slots(inputs_BQD, batch, fed), **rest)

    held = Learner(Held(learner.backbone.thinker), latent(latent_weight=0.01, engine="teacher_parallel"))
    held.heads = learner.heads
    held.zero_grad(set_to_none=True)
    assert anchors is batch.anchors_BPKD
    _assert_same(ours, _step(held, batch))


@pytest.mark.parametrize("engine", ["recurrent", "two_pass"])
@pytest.mark.parametrize(
    "options",
    [
        {"num_visual": 1, "num_audio": 0},
        {"num_visual": 1, "num_audio": 1, "feedback": "linear", "norm_match": True, "bottleneck": "strict"},
        {"num_visual": 1, "num_audio": 1, "teacher_share": 0.5},
    ],
    ids=["1", "2-strict", "2-taught"],
)
def test_a_few_slots_with_a_graph_are_the_chain_without_one(
    new_backbone, latent, mixed_plans, random_anchors, monkeypatch, engine, options
):
    """Latents, loss and the whole gradient."""
    method = latent(engine=engine, latent_weight=0.01, **options)
    plans, slots = mixed_plans(method), method.num_visual + method.num_audio
    batch = collate(plans, anchors=random_anchors(plans, slots=slots))
    assert slots <= rollout.FEW_SLOTS
    learner = Learner(new_backbone(), method).train()

    def run() -> tuple:
        torch.manual_seed(7)
        latents = unroll(learner.backbone, learner.heads.feedback, batch, method.unroll, training=True).latents_BPKD
        torch.manual_seed(7)
        return latents.detach(), _step(learner, batch)

    latents, direct = run()
    monkeypatch.setattr(rollout, "FEW_SLOTS", 0)
    wanted, chained = run()
    torch.testing.assert_close(latents, wanted, atol=5e-5, rtol=0)
    _assert_same(direct, chained)


@pytest.mark.parametrize("engine", ["recurrent", "two_pass", "jacobi"])
def test_what_words_teach_the_clip_through_slots(new_backbone, latent, batch, engine):
    """Under the strict bottleneck words see the clip through slots alone, so the towers learn from words only there.

    Of the slots' two ways, `full` uses both, `kv_only` one and `detached` none.
    """
    found = {}
    for gradient in GRADIENTS:
        method = latent(bottleneck="strict", gradient=gradient, sync_weight=0.0, latent_weight=0.0, **_exact(engine))
        _, grads = _step(Learner(new_backbone(), method), batch)
        found[gradient] = grads["backbone.thinker.model.visual.merger.mlp.2.weight"]
        assert grads["backbone.thinker.lm_head.weight"].abs().max() > 1e-3
    assert not found["detached"].any()
    assert found["kv_only"].abs().max() > 1e-4
    assert (found["full"] - found["kv_only"]).norm() > 0.1 * found["full"].norm()


def _exact(engine: str) -> dict:
    return EXACT if engine == "jacobi" else {"engine": engine}


# --- Sweeps ---


@torch.no_grad()
def _follow(backbone, feedback, batch) -> Callable[[torch.Tensor], torch.Tensor]:
    """F by its definition: the latents of all phases from one plain pass over the whole sequence."""
    embedded = embed_batch(backbone, batch).inputs_BLD
    seen = look_at(batch.kinds_BL, batch.blocks_BL)
    mask = with_self(allowed(seen, seen, bottleneck="none", training=True))

    def follow(fed_BPKD: torch.Tensor) -> torch.Tensor:
        inputs = fill_slots(embedded, batch, fed_BPKD)
        hidden = backbone.run(inputs, position_ids_3BQ=batch.position_ids_3BL, mask_BQK=mask)
        return read_latents(feedback, hidden, batch, torch.ones(len(inputs)))

    return follow


@pytest.mark.parametrize("start", ["trigger", "anchors"])
@torch.no_grad()
def test_a_sweep_takes_every_slot_from_the_sweep_before(
    backbone, latent, lay_out, film, sample_with, random_anchors, start
):
    """One phase, two and three sweeps, against whole passes; slot k of sweep t is exact for k <= t."""
    plans = [lay_out(latent(), film(i, 2 + i), sample_with(1)) for i in range(2)]
    batch = collate(plans, anchors=random_anchors(plans))
    feedback = latent().build_heads(backbone.width).feedback
    follow = _follow(backbone, feedback, batch)
    exact = unroll(backbone, feedback, batch, UnrollConfig(), training=True).latents_BPKD
    first = follow(torch.zeros_like(exact))[:, :, :1]
    guess = first.expand_as(exact) if start == "trigger" else torch.cat([first, batch.anchors_BPKD[:, :, 1:]], 2)
    for sweeps in (2, 3):
        wanted = guess
        for _ in range(sweeps):
            wanted = follow(wanted)
        options = {"jacobi_tolerance": 0.0, "jacobi_start": start, "jacobi_carry": False}
        config = UnrollConfig(engine="jacobi", jacobi_sweeps=sweeps, **options)
        found = unroll(backbone, feedback, batch, config, training=True).latents_BPKD
        torch.testing.assert_close(found, wanted, atol=5e-5, rtol=0)
        torch.testing.assert_close(found[:, :, :sweeps], exact[:, :, :sweeps], atol=5e-5, rtol=0)
        assert (found[:, :, -1] - exact[:, :, -1]).abs().max() > 1e-2


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_too_few_sweeps_give_the_same_with_a_graph_as_without(backbone, latent, batch, gradient):
    """The pass with the graph is one of the sweeps, not one more."""
    feedback = latent().build_heads(backbone.width).feedback
    config = UnrollConfig(engine="jacobi", jacobi_sweeps=3, jacobi_tolerance=0.0, gradient=gradient)
    live = unroll(backbone, feedback, batch, config, training=True)
    with torch.no_grad():
        plain = unroll(backbone, feedback, batch, config, training=True)
    torch.testing.assert_close(live.latents_BPKD, plain.latents_BPKD, atol=5e-5, rtol=0)
    torch.testing.assert_close(live.hidden_BLD, plain.hidden_BLD, atol=5e-5, rtol=0)


@torch.no_grad()
def test_in_evaluation_the_guess_needs_no_anchors(backbone, latent, mixed_plans, random_anchors):
    plans = mixed_plans()
    feedback = latent().build_heads(backbone.width).feedback
    config = {"engine": "jacobi", "jacobi_sweeps": 2, "jacobi_tolerance": 0.0}
    outcomes = [
        unroll(backbone, feedback, collate(plans), UnrollConfig(**config, jacobi_start=start), training=False)
        for start in ("trigger", "anchors")
    ]
    assert torch.equal(outcomes[0].latents_BPKD, outcomes[1].latents_BPKD)
    with pytest.raises(ValueError, match="the batch has none"):
        unroll(backbone, feedback, collate(plans), UnrollConfig(**config, jacobi_start="anchors"), training=True)


@torch.no_grad()
def test_slots_that_stand_still_end_the_sweeps(new_backbone, latent, batch):
    runs = []

    class Counting(type(new_backbone())):
        def run(self, inputs_BQD, **rest):
            runs.append(inputs_BQD.shape[1])
            return super().run(inputs_BQD, **rest)

    backbone = Counting(new_backbone().thinker)
    feedback = latent().build_heads(backbone.width).feedback

    def passes_over_slots(**options) -> int:
        runs.clear()
        config = UnrollConfig(engine="jacobi", jacobi_sweeps=50, **options)
        unroll(backbone, feedback, batch, config, training=True)
        return runs.count(SLOTS)

    phases = batch.triggers_BP.shape[1]
    # The last pass feeds the words after the slots too, and is not counted here.
    assert passes_over_slots(jacobi_tolerance=0.0) == 49 * phases
    # Nothing moves by ten times its size, so one sweep is enough; another one always comes on top.
    assert passes_over_slots(jacobi_tolerance=10.0) == 2 * phases
    # K - 1 sweeps are exact, and one more finds that nothing moves.
    assert passes_over_slots(jacobi_tolerance=1e-5) <= (SLOTS + 1) * phases


@torch.no_grad()
def test_a_row_stops_when_it_would_stop_alone(backbone, latent, mixed_plans, random_anchors):
    """Rows that move on must not drag along one that stands still."""
    plans = mixed_plans()
    anchors = random_anchors(plans, slots=SLOTS)
    feedback = latent(norm_match=True).build_heads(backbone.width).feedback
    config = UnrollConfig(engine="jacobi", jacobi_sweeps=SLOTS, jacobi_tolerance=0.5)
    together = unroll(backbone, feedback, collate(plans, anchors=anchors), config, training=True)
    for row, plan in enumerate(plans):
        alone = unroll(backbone, feedback, collate([plan], anchors=[anchors[row]]), config, training=True)
        ours = together.latents_BPKD[row, : len(plan.spans)]
        torch.testing.assert_close(ours, alone.latents_BPKD[0], atol=1e-4, rtol=0)
    exact = unroll(backbone, feedback, collate(plans), UnrollConfig(), training=True).latents_BPKD
    assert (together.latents_BPKD - exact).abs().max() > 1e-2  # they did stop early


@pytest.mark.parametrize(("field", "value"), [("jacobi_sweeps", 1), ("jacobi_tolerance", -0.1)])
def test_sweeps_that_make_no_sense_are_refused(field, value):
    with pytest.raises(ValueError, match=field):
        UnrollConfig(engine="jacobi", **{field: value})


# --- Recomputed activations ---


@pytest.mark.parametrize("engine", ["teacher_parallel", "recurrent", "two_pass", "jacobi"])
@pytest.mark.parametrize("gradient", GRADIENTS)
def test_recomputing_activations_changes_nothing(new_backbone, latent, batch, engine, gradient):
    method = latent(gradient=gradient, feedback="linear", latent_weight=0.01, **_exact(engine))
    learner = Learner(new_backbone(), method)
    wanted = _step(learner, batch)
    layer = learner.backbone.thinker.model.language_model.layers[1]
    forwards: list[bool] = []
    # Before the layer: a recomputation stops as soon as it has what the backward pass wants.
    layer.register_forward_pre_hook(lambda *_: forwards.append(torch.is_grad_enabled()))
    _assert_same(_step(learner, batch), wanted, 1e-6)
    kept = forwards.count(True)
    forwards.clear()
    learner.backbone.checkpoint_activations()
    _assert_same(_step(learner, batch), wanted, 1e-5)
    # Every pass with a graph happens again in the backward pass, those over slots once a backward sweep.
    assert forwards.count(True) >= 2 * kept
    assert not layer.gradient_checkpointing  # the stock switch would drop the cache


def test_recomputing_activations_keeps_less(new_backbone, latent, batch):
    learner = Learner(new_backbone(), latent()).train()
    kept = []
    for _ in range(2):
        storages: dict[int, int] = {}

        def pack(x: torch.Tensor, storages: dict[int, int] = storages) -> torch.Tensor:
            storages[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            loss = learner(batch)["loss"]
        kept.append(sum(storages.values()))
        loss.backward()
        learner.backbone.checkpoint_activations()
    assert kept[1] < 0.7 * kept[0]


def test_evaluation_is_not_recomputed(new_backbone, batch):
    backbone = new_backbone()
    backbone.checkpoint_activations()
    with torch.no_grad():
        embedded = embed_batch(backbone, batch).inputs_BLD
        mask = (batch.kinds_BL != Kind.PAD)[:, None].expand(-1, embedded.shape[1], -1)
        hidden = backbone.run(embedded, position_ids_3BQ=batch.position_ids_3BL, mask_BQK=mask)
    assert not hidden.requires_grad
