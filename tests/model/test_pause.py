"""Controls with the form of latents: pause tokens are fed one learned vector, markers nothing at all."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from omni_model.batch import collate
from omni_model.folder import Preparation, load_folder, save_folder
from omni_model.generate import generate
from omni_model.learner import Learner
from omni_model.methods import make_method, without_slots
from omni_model.reason import Ask, Reasoner
from omni_model.sequence import IGNORE, Kind

SLOTS = {"num_visual": 3, "num_audio": 2}


@pytest.fixture(scope="module")
def prompts(prompt, film) -> list:
    return [prompt(film(index, 2), "Which col").build() for index in range(4)]


def _answer_part(plan) -> list[int]:
    """Kinds from the first trigger on."""
    return plan.kinds[int((plan.kinds == Kind.TRIGGER).nonzero()[0]) :].tolist()


@pytest.mark.parametrize("ospe", ["slot", "code_compat"])
def test_pause_tokens_stand_where_latents_would(lay_out, film, sample_with, latent, ospe):
    """Ids, kinds, labels and positions are those of LatentOmni: the two differ in what slots are fed alone."""
    pause = make_method("pause", {**SLOTS, "ospe": ospe})
    ours, theirs = (lay_out(method, film(), sample_with(2)) for method in (pause, latent(ospe=ospe)))
    for name in ("input_ids", "kinds", "labels", "position_ids"):
        assert torch.equal(getattr(ours, name), getattr(theirs, name)), name
    assert ours.spans == theirs.spans


def test_markers_are_a_trigger_and_a_stop(tokenizer, vocabulary, lay_out, film, sample_with):
    plan = lay_out(make_method("markers"), film(), sample_with(2))
    answer = tokenizer.decode(plan.input_ids).split("assistant\n")[1]
    look = "<Unified_Latent></Unified_Latent>"
    assert answer == f"The low tone:{look} red.{look} blue. Then: green. Answer: green<|im_end|>"
    assert _answer_part(plan)[:3] == [Kind.TRIGGER, Kind.STOP, Kind.TEXT]
    triggers, stops = ((plan.kinds == kind).nonzero()[:, 0] for kind in (Kind.TRIGGER, Kind.STOP))
    assert plan.labels[triggers].tolist() == [vocabulary.trigger] * 2
    assert plan.labels[stops].tolist() == [IGNORE] * 2
    assert torch.equal(plan.position_ids[:, stops], plan.position_ids[:, triggers] + 1)


@pytest.mark.parametrize("name", ["latent_omni", "pause", "markers"])
def test_words_can_be_the_answer_alone(tokenizer, lay_out, film, sample_with, name):
    """After the looks nothing but the answer is said, whatever the trajectory says in between."""
    slots = {} if name == "markers" else SLOTS
    plan = lay_out(make_method(name, {**slots, "words": "answer"}), film(), sample_with(2))
    answer = tokenizer.decode(plan.input_ids).split("assistant\n")[1]
    pads = "" if name == "markers" else "<Unified_Latent_pad>" * 5
    assert answer == f"<Unified_Latent>{pads}</Unified_Latent>" * 2 + "Answer: green<|im_end|>"
    learned = tokenizer.decode(plan.labels[plan.labels != IGNORE])
    assert learned == "<Unified_Latent>" * 2 + "Answer: green<|im_end|>"
    assert [(span.start_s, span.end_s) for span in plan.spans] == [(0, 1), (1, 2)]


@pytest.mark.parametrize("name", ["latent_omni", "pause", "markers"])
def test_words_can_be_the_opening_and_the_answer(tokenizer, lay_out, film, sample_with, name):
    """What is said before the first look stays; what would name what was seen does not."""
    slots = {} if name == "markers" else SLOTS
    plan = lay_out(make_method(name, {**slots, "words": "opening"}), film(), sample_with(2))
    learned = tokenizer.decode(plan.labels[plan.labels != IGNORE])
    assert learned == "The low tone:" + "<Unified_Latent>" * 2 + " Answer: green<|im_end|>"
    assert [(span.start_s, span.end_s) for span in plan.spans] == [(0, 1), (1, 2)]


@pytest.mark.parametrize("norm_match", [False, True])
def test_training_feeds_the_learned_vector_into_every_slot(new_backbone, mixed_plans, norm_match):
    """In one pass; with `norm_match` scaled to the size of the row's own clip."""
    fed = []

    class Recording(type(new_backbone())):
        def run(self, inputs_BQD, **rest):
            fed.append(inputs_BQD.detach())
            return super().run(inputs_BQD, **rest)

    method = make_method("pause", {**SLOTS, "norm_match": norm_match})
    learner = Learner(Recording(new_backbone().thinker), method).train()
    batch = collate(mixed_plans(method))
    out = learner(batch)
    assert set(out) == {"loss", "text", "count/text", "tokens", "positions"}
    out["loss"].backward()
    assert len(fed) == 1
    constant = learner.heads.feedback.constant
    assert constant.grad.abs().max() > 1e-4
    is_slot = (batch.kinds_BL == Kind.LATENT_VISUAL) | (batch.kinds_BL == Kind.LATENT_AUDIO)
    is_media = (batch.kinds_BL == Kind.VISUAL) | (batch.kinds_BL == Kind.AUDIO)
    for row in range(len(is_slot)):
        vectors = fed[0][row, is_slot[row]]
        scale = fed[0][row, is_media[row]].square().mean().sqrt() / constant.square().mean().sqrt()
        wanted = constant.detach() * (scale if norm_match else 1.0)
        torch.testing.assert_close(vectors, wanted.expand_as(vectors))


@pytest.mark.parametrize("norm_match", [False, True])
def test_decoding_feeds_the_same_vector(talker, vocabulary, prompts, norm_match):
    method = make_method("pause", {**SLOTS, "norm_match": norm_match})
    torch.manual_seed(0)
    heads = method.build_heads(talker.width)
    rollouts = generate(talker, heads, method, vocabulary, prompts, max_new_tokens=8, max_phases=2)
    assert any(rollout.latent_steps for rollout in rollouts)
    for rollout in rollouts:
        vectors = [event.vector for event in rollout.events if event.type == "latent"]
        for vector in vectors:
            assert torch.equal(vector, vectors[0])
            one = vector / vector.norm()
            torch.testing.assert_close(one, heads.feedback.constant.detach() / heads.feedback.constant.detach().norm())
            if not norm_match:
                assert torch.equal(vector, heads.feedback.constant)


@pytest.mark.parametrize(("name", "options"), [("pause", SLOTS), ("markers", {})])
def test_an_exported_control_answers_as_before(talker, tokenizer, vocabulary, film, raw_clips, tmp_path, name, options):
    """Through the folder and back, and its phases can be read though they hold nothing."""
    method = make_method(name, {**options, "bottleneck": "answer", "words": "answer"})
    heads = method.build_heads(talker.width)
    preparation = Preparation()
    save_folder(tmp_path, backbone=talker, tokenizer=tokenizer, method=method, heads=heads, preparation=preparation)
    loaded = load_folder(tmp_path)
    assert loaded.method == method
    assert loaded.heads.state_dict().keys() == heads.state_dict().keys()
    assert all(torch.equal(value, heads.state_dict()[key]) for key, value in loaded.heads.state_dict().items())
    assert len(heads.state_dict()) == (name == "pause")

    shared = {"sample_fps": 2.0, "options": ("red", "green", "blue")}
    asks = [Ask(question="Which col", frames=c.frames, waveform=c.waveform, **shared) for c in raw_clips]
    before = Reasoner(replace(loaded, loaded=replace(loaded.loaded, backbone=talker), heads=heads), "cpu")
    replies = Reasoner(loaded, "cpu").answer(asks, max_new_tokens=8, max_phases=2)
    assert replies == before.answer(asks, max_new_tokens=8, max_phases=2)
    counts = (method.num_visual, method.num_audio)
    assert any(reply.phases for reply in replies)
    for reply in replies:
        assert reply.latent_steps == sum(counts) * len(reply.phases)
        for phase in reply.phases:
            assert (phase.num_visual, phase.num_audio) == counts
            assert [moment.modality for moment in phase.moments] == ["visual", "audio"][: 2 * bool(sum(counts))]


def test_a_bare_phase_is_followed_by_its_stop(talker, vocabulary, prompts):
    method = make_method("markers")
    rollouts = generate(talker, method.build_heads(64), method, vocabulary, prompts, max_new_tokens=8, max_phases=2)
    assert any(vocabulary.trigger in rollout.tokens for rollout in rollouts)
    for rollout in rollouts:
        for event, after in pairwise(rollout.events):
            assert event.type != "latent"
            if event.token == vocabulary.trigger:
                assert (after.type, after.token, after.phase) == ("forced", vocabulary.stop, event.phase)
                assert after.position_ids == (event.position_ids[0] + 1,) * 3
        assert rollout.latents(0).shape == (0, 0)


def test_controls_say_what_they_lack(latent, lay_out, film, sample_with):
    with pytest.raises(ValueError, match=r"at least one slot .* method markers has none"):
        make_method("pause", {"num_visual": 0, "num_audio": 0})
    with pytest.raises(ValueError, match="sample s has 0 looks; pause takes 1 to 3"):
        lay_out(make_method("pause", SLOTS), film(), sample_with(0))
    with pytest.raises(ValueError, match=r"sample s has 4 looks; markers takes 1 to 3 \(max_train_phases\)"):
        lay_out(make_method("markers"), film(), sample_with(4))
    with pytest.raises(
        ValueError, match="words must be one of 'trajectory', 'evidence', 'opening', 'answer', got 'none'"
    ):
        make_method("markers", {"words": "none"})


def test_a_method_without_its_slots_answers_under_its_bottleneck(latent):
    for options, wanted in (
        ({"bottleneck": "strict"}, "strict"),
        ({"bottleneck": "strict", "bottleneck_until": 0.5}, "none"),
    ):
        bare = without_slots(latent(**options))
        assert (bare.name, bare.num_visual, bare.num_audio) == ("markers", 0, 0)
        assert bare.unroll.answering_bottleneck == wanted
