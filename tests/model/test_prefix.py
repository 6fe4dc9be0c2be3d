"""Rows that share a clip learn and answer as they would apart: the same loss, gradients, hidden states and words."""

from __future__ import annotations

import pytest
import torch

from omni_model.batch import collate
from omni_model.generate import generate
from omni_model.learner import Learner
from omni_model.methods import make_method
from omni_model.prompt import prompt_template
from omni_model.sequence import Kind, Plan, PlanBuilder
from omni_model.unroll import unroll

FIVE, TWO = {"num_visual": 3, "num_audio": 2}, {"num_visual": 1, "num_audio": 1}
LATENT = {"latent_weight": 0.01, "feedback": "linear", "norm_match": True}
METHODS = {
    "markers": ("markers", {}),
    "pause": ("pause", {**FIVE, "norm_match": True}),
    "teacher_parallel": ("latent_omni", {**FIVE, **LATENT, "engine": "teacher_parallel"}),
    "recurrent-2": ("latent_omni", {**TWO, **LATENT}),
    "recurrent-5": ("latent_omni", {**FIVE, **LATENT}),
    "kv_only": ("latent_omni", {**FIVE, **LATENT, "gradient": "kv_only"}),
    "detached": ("latent_omni", {**FIVE, **LATENT, "gradient": "detached"}),
    "two_pass": ("latent_omni", {**FIVE, **LATENT, "engine": "two_pass"}),
    "jacobi": ("latent_omni", {**FIVE, **LATENT, "engine": "jacobi", "jacobi_sweeps": 3}),
}
CASES = [(name, bottleneck) for name in METHODS for bottleneck in ("none", "published", "answer", "strict")]
CASES += [("sft", "none"), ("text_cot", "none")]
ROWS = ((0, 2, 1), (1, 3, 3), (0, 2, 2), (0, 2, 1), (2, 2, 1))
"""Clip of the film, its shots, looks of the question: three questions about the first clip, one about each other."""


@pytest.fixture(scope="module")
def plans_for(lay_out, film, sample_with):
    def lay(method) -> list[Plan]:
        return [lay_out(method, film(index, shots), sample_with(looks)) for index, shots, looks in ROWS]

    return lay


def _method(name: str, bottleneck: str = "none"):
    if name in ("sft", "text_cot"):
        return make_method(name)
    kind, options = METHODS[name]
    return make_method(kind, {**options, "bottleneck": bottleneck})


def _step(learner: Learner, batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    learner.zero_grad(set_to_none=True)
    loss = learner(batch)["loss"]
    loss.backward()
    return loss.detach(), {n: p.grad for n, p in learner.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(("name", "bottleneck"), CASES)
def test_sharing_a_clip_changes_neither_loss_nor_gradient(new_backbone, plans_for, random_anchors, name, bottleneck):
    """Clips of different lengths, more questions about one than about another, more looks in one than in another."""
    method = _method(name, bottleneck)
    plans = plans_for(method)
    slots = method.num_visual + method.num_audio
    anchors = random_anchors(plans, slots=slots) if slots else None
    learner = Learner(new_backbone(), method).train()
    shared, apart = (collate(plans, anchors=anchors, share_clips=share) for share in (True, False))
    assert shared.shared is not None and apart.shared is None
    (loss, grads), (wanted_loss, wanted) = _step(learner, shared), _step(learner, apart)
    torch.testing.assert_close(loss, wanted_loss, rtol=1e-4, atol=0)
    assert grads.keys() == wanted.keys()
    # A bias of keys moves no attention: its gradient is nothing but rounding.
    for weight, grad in wanted.items():
        close = 1e-4 * max(float(grad.abs().max()), 0.1)
        torch.testing.assert_close(grads[weight], grad, rtol=0, atol=close, msg=lambda m, w=weight: f"{w}: {m}")


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", ["markers", "pause", "recurrent-5", "two_pass", "jacobi"])
@torch.no_grad()
def test_hidden_states_and_latents_are_those_of_rows_apart(backbone, plans_for, name, training):
    method = _method(name, "published")
    plans = plans_for(method)
    feedback = method.build_heads(backbone.width).feedback
    shared, apart = (
        unroll(backbone, feedback, collate(plans, share_clips=share), method.unroll, training=training)
        for share in (True, False)
    )
    for row, plan in enumerate(plans):
        behind = slice(plan.prefix_length, len(plan))
        torch.testing.assert_close(shared.hidden_BLD[row, behind], apart.hidden_BLD[row, behind], atol=5e-5, rtol=0)
    torch.testing.assert_close(shared.latents_BPKD, apart.latents_BPKD, atol=5e-5, rtol=0)


STRICT = {**FIVE, "bottleneck": "strict", "norm_match": True}
PROBES = {
    "own": {},
    "flipped": {"override": lambda phase, slot, own: own.flip(-1) if slot == 1 else own},
    "hidden": {"hide_latents": True},
}


@pytest.mark.parametrize("probe", PROBES)
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("sft", {}),
        ("text_cot", {}),
        ("markers", {"bottleneck": "answer"}),
        ("pause", {**STRICT, "bottleneck": "none"}),
        ("latent_omni", {**FIVE, "bottleneck": "none"}),
        ("latent_omni", {**FIVE, "bottleneck": "answer"}),
        ("latent_omni", STRICT),
        ("latent_omni", {"num_visual": 1, "num_audio": 1, "bottleneck": "published"}),
        ("latent_omni", {**STRICT, "engine": "jacobi", "jacobi_sweeps": 4, "jacobi_tolerance": 0.3}),
    ],
    ids=lambda v: v if isinstance(v, str) else "-".join(str(x) for x in v.values()),
)
def test_questions_about_one_clip_generate_what_they_generate_alone(
    talker, vocabulary, prompt, film, assert_same_rollout, name, options, probe
):
    """Three about one clip and one each about two others, longer and mute, in mixed order."""
    method = make_method(name, options)
    torch.manual_seed(0)
    heads = method.build_heads(talker.width)
    clips = ((0, 2), (1, 3), (0, 2), (2, 2, False), (0, 2))
    questions = ("Which col", "Which colour is", "Which colour is on scr", "Which colour is on screen?", "Which")
    asked = [prompt(film(*clip), question).build() for clip, question in zip(clips, questions, strict=True)]
    limits = {"max_new_tokens": 8, "max_phases": 2, **PROBES[probe]}
    together = generate(talker, heads, method, vocabulary, asked, **limits)
    for one, row in zip(asked, together, strict=True):
        (alone,) = generate(talker, heads, method, vocabulary, [one], **limits)
        assert_same_rollout(row, alone, within=5e-4)
    # What the comparison rests on: some look where they can, and not all alike.
    assert any(vocabulary.trigger in row.tokens for row in together) == method.has_phases
    assert len({tuple(row.tokens) for row in together}) > 1


def test_a_shared_clip_is_encoded_and_run_once(new_backbone, plans_for):
    """The towers see three clips, and so many positions go through the model; questions follow in one piece."""

    class Counting(type(new_backbone())):
        def encode(self, media):
            self.grids = media.grid_thw.tolist()
            return super().encode(media)

        def run(self, inputs_BQD, **rest):
            self.shapes = [*getattr(self, "shapes", []), tuple(inputs_BQD.shape[:2])]
            return super().run(inputs_BQD, **rest)

    counting, method = Counting(new_backbone().thinker), make_method("sft")
    plans = plans_for(method)
    batch = collate(plans, share_clips=True)
    unroll(counting, method.build_heads(64).feedback, batch, method.unroll, training=False)
    assert counting.grids == [[2, 4, 4], [3, 4, 4], [2, 4, 4]]
    prefix = max(plan.prefix_length for plan in plans)
    rest = max(len(plan) - plan.prefix_length for plan in plans)
    assert counting.shapes == [(3, prefix), (3, 3 * rest)]


def test_the_prefix_ends_where_the_question_begins(tokenizer, vocabulary, film, prompt):
    plan = prompt(film(0, 2)).build()
    first = int((plan.kinds == Kind.QUESTION).nonzero()[0])
    assert plan.prefix_length == first
    template = prompt_template("open", system_prompt="Listen.")
    told = PlanBuilder(tokenizer, vocabulary, film(0, 2), template=template).chat_prompt("Which?").build()
    assert told.prefix_length == int((told.kinds == Kind.QUESTION).nonzero()[0]) > first
    with pytest.raises(ValueError, match="give them the same system prompt"):
        collate([plan, told], share_clips=True)


def test_constant_keys_in_the_second_pass_take_no_shared_clips(backbone, latent, plans_for):
    method = latent(engine="two_pass", gradient="detached")
    batch = collate(plans_for(method), share_clips=True)
    feedback = method.build_heads(backbone.width).feedback
    with pytest.raises(ValueError, match="two_pass with gradient detached takes no rows that share a clip"):
        unroll(backbone, feedback, batch, method.unroll, training=True)
