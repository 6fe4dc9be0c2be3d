"""What each method makes of a sample, and which options it takes."""

from __future__ import annotations

import pytest
import torch

from omni_model.methods import METHODS, make_method
from omni_model.sequence import IGNORE, Kind
from omni_platform.schema import Sample


def _words(tokenizer, plan) -> str:
    """The learned and unlearned answer, markers included."""
    start = int((plan.kinds == Kind.QUESTION).nonzero()[-1]) + 1
    return tokenizer.decode(plan.input_ids[start:]).split("assistant\n")[1]


def test_latent_omni_lays_out_the_trajectory(tokenizer, vocabulary, lay_out, film, sample_with, latent):
    plan = lay_out(latent(), film(), sample_with(2))
    pads = "<Unified_Latent_pad>" * 5
    look = f"<Unified_Latent>{pads}</Unified_Latent>"
    expected = f"The low tone:{look} red.{look} blue. Then: green. Answer: green<|im_end|>"
    assert _words(tokenizer, plan) == expected
    assert [(s.start_s, s.end_s, s.num_visual, s.num_audio) for s in plan.spans] == [(0, 1, 3, 2), (1, 2, 3, 2)]
    for span in plan.spans:
        kinds = plan.kinds[span.trigger : span.trigger + 7].tolist()
        slots = [Kind.LATENT_VISUAL] * 3 + [Kind.LATENT_AUDIO] * 2
        assert kinds == [Kind.TRIGGER, *slots, Kind.STOP]


def test_words_and_triggers_are_learned_slots_and_stops_are_not(vocabulary, lay_out, film, sample_with, latent):
    plan = lay_out(latent(), film(), sample_with(3))
    learned = plan.labels != IGNORE
    assert torch.equal(plan.labels[learned], plan.input_ids[learned])
    for kind in Kind:
        here = learned[plan.kinds == kind]
        if len(here):
            assert bool(here.all()) == (kind in (Kind.TEXT, Kind.TRIGGER)), kind
            assert bool(here.any()) == bool(here.all()), kind
    assert plan.input_ids[-1] == vocabulary.chat_end
    assert learned[-1]


def test_text_cot_is_the_trajectory_without_looks(tokenizer, lay_out, film, sample_with):
    plan = lay_out(make_method("text_cot"), film(), sample_with(2))
    assert _words(tokenizer, plan) == "The low tone: red. blue. Then: green. Answer: green<|im_end|>"
    assert plan.spans == ()
    assert set(plan.input_ids[plan.labels != IGNORE].tolist()).isdisjoint({10, 11, 12})


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("evidence", " red blue green Answer: green"),
        ("opening", "The low tone: Answer: green"),
        ("answer", "Answer: green"),
    ],
)
def test_text_cot_can_say_less(tokenizer, lay_out, film, sample_with, words, said):
    plan = lay_out(make_method("text_cot", {"words": words}), film(), sample_with(2))
    assert _words(tokenizer, plan) == said + "<|im_end|>"


def test_text_cot_can_say_when_it_looks(tokenizer, lay_out, film, sample_with):
    plan = lay_out(make_method("text_cot", {"times": True}), film(), sample_with(2))
    assert _words(tokenizer, plan) == "The low tone: at 0 s: red. at 1 s: blue. Then: green. Answer: green<|im_end|>"
    assert bool((plan.labels[-20:] != IGNORE).all())


def test_text_cot_and_latent_omni_learn_the_same_words(vocabulary, lay_out, film, sample_with, latent):
    looking, telling = (lay_out(m, film(), sample_with(2)) for m in (latent(), make_method("text_cot")))
    words = [t for t in looking.labels.tolist() if t not in (IGNORE, vocabulary.trigger)]
    assert words == [t for t in telling.labels.tolist() if t != IGNORE]


def test_sft_is_the_bare_answer(tokenizer, lay_out, film, sample_with):
    plan = lay_out(make_method("sft"), film(), sample_with(2))
    assert _words(tokenizer, plan) == "Answer: green<|im_end|>"


def test_every_method_shares_the_prompt(lay_out, film, sample_with, latent, prompt):
    sample = sample_with(1)
    begin = prompt(film(), sample.question).build()
    for method in (latent(), make_method("sft"), make_method("text_cot")):
        plan = lay_out(method, film(), sample)
        assert torch.equal(plan.input_ids[: len(begin)], begin.input_ids)
        assert torch.equal(plan.position_ids[:, : len(begin)], begin.position_ids)
        assert plan.labels[: len(begin)].eq(IGNORE).all()


def test_a_trajectory_with_too_many_or_no_looks_is_refused(lay_out, film, sample_with, latent):
    with pytest.raises(ValueError, match=r"sample far has 4 looks; latent_omni takes 1 to 3 \(max_train_phases\)"):
        lay_out(latent(), film(), sample_with(4, sample_id="far"))
    assert len(lay_out(latent(max_train_phases=4), film(), sample_with(4)).spans) == 4
    with pytest.raises(ValueError, match="sample s has 0 looks"):
        lay_out(latent(), film(), sample_with(0))


def test_text_cot_without_a_trajectory_is_refused(lay_out, film):
    bare = Sample(sample_id="bare", clip_uri="x", question="Which?", answer="red")
    with pytest.raises(ValueError, match="sample bare has no trajectory"):
        lay_out(make_method("text_cot"), film(), bare)
    assert lay_out(make_method("sft"), film(), bare)


def test_a_phase_has_at_least_one_slot():
    for counts in ({"num_visual": 0, "num_audio": 0}, {"num_visual": -1, "num_audio": 3}):
        with pytest.raises(ValueError, match="at least one slot"):
            make_method("latent_omni", counts)
    assert make_method("latent_omni", {"num_visual": 0, "num_audio": 2}).slot_offsets()[1] == 2


def test_methods_without_latents_have_no_slots():
    for name in ("sft", "text_cot"):
        method = make_method(name)
        assert (method.num_visual, method.num_audio, method.weights) == (0, 0, {})
        with pytest.raises(ValueError, match="has no latent phases"):
            method.slot_offsets()


def test_the_paper_is_the_default():
    method = make_method("latent_omni")
    assert (method.num_visual, method.num_audio, method.max_train_phases) == (32, 8, 3)
    assert method.weights == {"latent": 0.005, "sync": 1.0}
    assert (method.latent_reduction, method.ospe) == ("sum", "slot")
    assert method.unroll.engine == "recurrent"


def test_unknown_methods_and_options_name_what_is_known():
    with pytest.raises(ValueError, match=r"unknown method 'lvr'; known: latent_omni, markers, pause, sft, text_cot"):
        make_method("lvr")
    with pytest.raises(
        ValueError, match=r"method 'latent_omni' has no option \['num_visuals'\]; it knows: num_visual,"
    ):
        make_method("latent_omni", {"num_visuals": 4})
    with pytest.raises(ValueError, match=r"method 'sft' has no option \['ospe'\]; it knows: none"):
        make_method("sft", {"ospe": "slot"})


@pytest.mark.parametrize(
    ("option", "value", "complaint"),
    [
        ("ospe", "slots", "must be one of 'none', 'slot', 'tmrope', 'code_compat', got 'slots'"),
        ("engine", "recurent", "must be one of 'teacher_parallel', 'recurrent'"),
        ("bottleneck", "Strict", "must be one of 'none', 'published', 'answer', 'strict'"),
        ("latent_loss", "mae", "must be one of"),
        ("latent_reduction", "Mean", "must be one of"),
        ("norm_match", "false", "must be a bool, got 'false'"),
        ("detach_sync_inputs", 0, "must be a bool, got 0"),
        ("num_visual", 4.0, r"must be a int, got 4\.0"),
        ("num_audio", True, "must be a int, got True"),
        ("latent_weight", "5e-3", "must be a float, got '5e-3'"),
        ("teacher_share", 1.5, "between 0 and 1"),
        ("teacher_share_end", "0.5", "must be a float, got '0.5'"),
        ("jacobi_sweeps", 1, "take 2 or more, or engine: recurrent"),
        ("segment_s", 0, "segment_s must be above 0, got 0.0"),
    ],
)
def test_a_value_that_is_not_right_is_refused(option, value, complaint):
    """A misspelt choice must not fall through to some branch, nor the text "false" count as true (invariant 14)."""
    with pytest.raises(ValueError, match=complaint):
        make_method("latent_omni", {option: value})


def test_whole_numbers_serve_as_floats():
    method = make_method("latent_omni", {"sync_weight": 1, "latent_weight": 0})
    assert method.weights == {"latent": 0.0, "sync": 1.0}
    assert isinstance(method.sync_weight, float)
    assert isinstance(make_method("latent_omni", {"teacher_share_end": 1}).unroll.teacher_share_end, float)
    assert make_method("latent_omni", {"teacher_share_end": None}).unroll.teacher_share_end is None


def test_names_agree():
    assert {name: kind.name for name, kind in METHODS.items()} == {name: name for name in METHODS}
