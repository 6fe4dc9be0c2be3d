"""Decoding: what is generated is what training would compute for the same words (invariants 1 and 2)."""

from __future__ import annotations

import pytest
import torch

from omni_model.batch import collate
from omni_model.generate import Rollout, generate
from omni_model.methods import make_method
from omni_model.sequence import Kind, Plan, PlanBuilder
from omni_model.unroll import unroll

QUESTIONS = ("Which col", "Which colour is", "Which colour is on scr", "Which colour is on screen?")
CLIPS = ((0, 2, True), (1, 3, True), (2, 2, False), (3, 3, True))
"""Film index, shots, sound."""


@pytest.fixture(scope="module")
def prompts(prompt, film) -> list[Plan]:
    return [prompt(film(*clip), question).build() for clip, question in zip(CLIPS, QUESTIONS, strict=True)]


@pytest.fixture(scope="module")
def roll(talker, vocabulary, prompts):
    """`roll(method)`: rollouts of all prompts, and the heads they were made with."""

    def make(method, heads=None, **options) -> tuple[list[Rollout], torch.nn.Module]:
        torch.manual_seed(0)
        heads = heads or method.build_heads(talker.width)
        options = {"max_new_tokens": 10, "max_phases": 2, **options}
        return generate(talker, heads, method, vocabulary, prompts, **options), heads

    return make


def _phases(rollout: Rollout) -> int:
    return len({e.phase for e in rollout.events if e.type == "latent"})


@pytest.fixture(scope="module")
def replay(tokenizer, vocabulary, film):
    """`replay(method, rollouts)`: the plans that training would see for the generated words."""

    def lay_out(method, rollouts: list[Rollout]) -> list[Plan]:
        plans = []
        for clip, question, rollout in zip(CLIPS, QUESTIONS, rollouts, strict=True):
            builder = PlanBuilder(tokenizer, vocabulary, film(*clip)).chat_prompt(question)
            for event in rollout.events:
                if event.token == vocabulary.trigger:
                    counts = {"num_visual": method.num_visual, "num_audio": method.num_audio}
                    builder.latent_span(**counts, offsets=method.slot_offsets(), start_s=0, end_s=1)
                elif event.type == "token":
                    builder.tokens([event.token], Kind.TEXT, learn=True)
            plans.append(builder.build())
        return plans

    return lay_out


def _logps(backbone, plan: Plan, hidden: torch.Tensor) -> list[float]:
    logp = torch.log_softmax(backbone.logits(hidden), -1)
    return [float(logp[i - 1, token]) for i, token in enumerate(plan.labels.tolist()) if token >= 0]


@pytest.mark.parametrize(
    "options",
    [
        {"ospe": "none"},
        {"ospe": "slot", "bottleneck": "answer"},
        {"ospe": "code_compat", "bottleneck": "strict"},
        {"ospe": "tmrope", "segment_s": 1.3, "feedback": "linear", "norm_match": True},
        {"ospe": "slot", "bottleneck": "strict", "norm_match": True, "num_visual": 4, "num_audio": 1},
    ],
    ids=lambda o: "-".join(str(v) for v in o.values()),
)
@torch.no_grad()
def test_training_on_the_generated_words_repeats_the_rollout(talker, roll, replay, prompts, options):
    """Positions, latents and log-probabilities, through the recurrent engine with the training mask."""
    method = make_method("latent_omni", {"num_visual": 3, "num_audio": 2, "bottleneck": "none", **options})
    rollouts, heads = roll(method)
    assert sum(_phases(r) for r in rollouts) >= 2
    plans = replay(method, rollouts)
    batch = collate(plans)
    outcome = unroll(talker, heads.feedback, batch, method.unroll, training=True)
    for row, (rollout, plan, prompt) in enumerate(zip(rollouts, plans, prompts, strict=True)):
        generated = plan.position_ids[:, len(prompt) :].T.tolist()
        assert generated == [list(e.position_ids) for e in rollout.events]
        assert len(plan.spans) == _phases(rollout)
        for phase in range(_phases(rollout)):
            torch.testing.assert_close(outcome.latents_BPKD[row, phase], rollout.latents(phase), atol=1e-4, rtol=0)
        recorded = [e.logp for e in rollout.events if e.type == "token"]
        assert recorded == pytest.approx(_logps(talker, plan, outcome.hidden_BLD[row]), abs=1e-4)


@pytest.mark.parametrize("bottleneck", ["none", "answer", "strict"])
@pytest.mark.parametrize(("name", "slots"), [("pause", {"num_visual": 3, "num_audio": 2}), ("markers", {})])
@torch.no_grad()
def test_controls_generate_what_training_on_the_words_computes(talker, roll, replay, prompts, name, slots, bottleneck):
    """Pause tokens and bare markers: places and log-probabilities of one teacher-forced pass."""
    method = make_method(name, {**slots, "bottleneck": bottleneck})
    rollouts, heads = roll(method)
    plans = replay(method, rollouts)
    assert sum(len(plan.spans) for plan in plans) >= 2
    outcome = unroll(talker, heads.feedback, collate(plans), method.unroll, training=True)
    for row, (rollout, plan, prompt) in enumerate(zip(rollouts, plans, prompts, strict=True)):
        generated = plan.position_ids[:, len(prompt) :].T.tolist()
        assert generated == [list(e.position_ids) for e in rollout.events]
        recorded = [e.logp for e in rollout.events if e.type == "token"]
        assert recorded == pytest.approx(_logps(talker, plan, outcome.hidden_BLD[row]), abs=1e-4)


@torch.no_grad()
def test_recorded_vectors_replay_in_one_forward(talker, roll, replay, latent):
    """Scoring never makes a latent again: the recorded ones are fed, whatever they were replaced by."""
    method = latent(engine="teacher_parallel")
    rollouts, heads = roll(method, override=lambda phase, slot, own: own.flip(-1) if slot == 1 else own)
    plans = replay(method, rollouts)
    recorded = [
        torch.stack([r.latents(p) for p in range(_phases(r))]) if _phases(r) else torch.zeros(0, 5, talker.width)
        for r in rollouts
    ]
    outcome = unroll(talker, heads.feedback, collate(plans, anchors=recorded), method.unroll, training=False)
    for row, (rollout, plan) in enumerate(zip(rollouts, plans, strict=True)):
        logps = [e.logp for e in rollout.events if e.type == "token"]
        assert logps == pytest.approx(_logps(talker, plan, outcome.hidden_BLD[row]), abs=1e-4)


@pytest.mark.parametrize("bottleneck", ["none", "strict"])
def test_a_batch_generates_what_its_rows_generate_alone(
    talker, vocabulary, roll, prompts, latent, bottleneck, assert_same_rollout
):
    method = latent(bottleneck=bottleneck, norm_match=True)
    together, heads = roll(method)
    for prompt, row in zip(prompts, together, strict=True):
        (alone,) = generate(talker, heads, method, vocabulary, [prompt], max_new_tokens=10, max_phases=2)
        assert_same_rollout(row, alone)


@pytest.mark.parametrize("bottleneck", ["none", "strict"])
@pytest.mark.parametrize(
    "options", [{"num_visual": 3, "num_audio": 2}, {"num_visual": 7, "num_audio": 3}], ids=["5", "10"]
)
def test_as_many_sweeps_as_slots_generate_the_same(talker, roll, latent, bottleneck, options, assert_same_rollout):
    """Token for token and vector for vector, though rows look at different moments and wait for each other."""
    shared = {"norm_match": True, "bottleneck": bottleneck, **options}
    one_by_one, heads = roll(latent(**shared))
    slots = options["num_visual"] + options["num_audio"]
    parallel = latent(**shared, engine="jacobi", jacobi_sweeps=slots, jacobi_tolerance=0.0)
    assert len({_phases(r) for r in one_by_one}) > 1
    for ours, theirs in zip(roll(parallel, heads)[0], one_by_one, strict=True):
        assert_same_rollout(ours, theirs)
    if slots > 5:
        rough, _ = roll(latent(**shared, engine="jacobi", jacobi_sweeps=2), heads)
        assert any(
            (r.latents(0) - t.latents(0)).abs().max() > 1e-2
            for r, t in zip(rough, one_by_one, strict=True)
            if _phases(r) and _phases(t)
        )


@pytest.mark.parametrize("tolerance", [0.0, 0.3])
def test_a_batch_in_sweeps_generates_what_its_rows_generate_alone(
    talker, vocabulary, roll, prompts, latent, tolerance, assert_same_rollout
):
    method = latent(norm_match=True, engine="jacobi", jacobi_sweeps=4, jacobi_tolerance=tolerance)
    together, heads = roll(method)
    for prompt, row in zip(prompts, together, strict=True):
        (alone,) = generate(talker, heads, method, vocabulary, [prompt], max_new_tokens=10, max_phases=2)
        assert_same_rollout(row, alone)


@torch.no_grad()
def test_training_in_sweeps_repeats_the_rollout_in_sweeps(talker, roll, replay, latent):
    """Too few sweeps give latents of their own, and the same ones in training and decoding."""
    method = latent(engine="jacobi", jacobi_sweeps=2, jacobi_tolerance=0.0, bottleneck="answer")
    rollouts, heads = roll(method)
    plans = replay(method, rollouts)
    outcome = unroll(talker, heads.feedback, collate(plans), method.unroll, training=True)
    assert sum(_phases(r) for r in rollouts) >= 2
    for row, (rollout, plan) in enumerate(zip(rollouts, plans, strict=True)):
        recorded = [e.logp for e in rollout.events if e.type == "token"]
        assert recorded == pytest.approx(_logps(talker, plan, outcome.hidden_BLD[row]), abs=1e-4)


def test_hidden_latents_change_the_words_and_not_the_first_phase(roll, latent, assert_same_rollout):
    """The slots of a phase still see each other, so its latents stay; the word after them does not see them."""
    own, heads = roll(latent())
    hidden, _ = roll(latent(), heads, hide_latents=True)
    logps = []
    for before, after in zip(own, hidden, strict=True):
        if not _phases(before):
            assert_same_rollout(before, after)
            continue
        torch.testing.assert_close(before.latents(0), after.latents(0), atol=1e-5, rtol=0)
        first = next(i for i, e in enumerate(before.events) if e.type == "forced") + 1
        logps.append(abs(before.events[first].logp - after.events[first].logp))
    assert min(logps) > 1e-3


def test_rows_differ_in_phases_and_in_how_they_end(roll, latent):
    """What the comparisons above rest on."""
    rollouts, _ = roll(latent())
    assert {_phases(r) for r in rollouts} == {0, 1, 2}
    assert {r.finish_reason for r in rollouts} == {"stop", "length"}


def test_a_phase_is_a_trigger_its_slots_and_a_forced_stop(roll, vocabulary, latent):
    rollouts, _ = roll(latent())
    for rollout in rollouts:
        events = list(rollout.events)
        phase = 0
        while events:
            event = events.pop(0)
            assert event.type == "token"
            assert event.logp is not None
            if event.token != vocabulary.trigger:
                assert event.phase == -1
                continue
            assert event.phase == phase
            slots, stop = events[:5], events[5]
            assert [e.type for e in slots] == ["latent"] * 5
            assert all(e.token is None and e.logp is None and e.phase == phase for e in slots)
            assert (stop.type, stop.token, stop.logp, stop.phase) == ("forced", vocabulary.stop, None, phase)
            assert stop.position_ids == (event.position_ids[0] + 6,) * 3
            del events[:6]
            phase += 1
        assert rollout.latent_steps == 5 * phase


@pytest.mark.parametrize("limit", [0, 1, 2, 4])
def test_the_number_of_phases_is_capped(talker, vocabulary, prompts, roll, latent, limit):
    """A model that always wants to look gets its looks, then the trigger is banned."""
    eager = _tilted(talker, {vocabulary.trigger: 100, vocabulary.chat_end: -100, vocabulary.pad: -100})
    method = latent()
    rollouts = generate(
        eager, method.build_heads(eager.width), method, vocabulary, prompts, max_new_tokens=6, max_phases=limit
    )
    assert [r.tokens.count(vocabulary.trigger) for r in rollouts] == [limit] * 4
    # Triggers count as tokens; slots and stops do not.
    assert [len(r.tokens) for r in rollouts] == [6] * 4
    assert [_phases(r) for r in rollouts] == [limit] * 4


@pytest.mark.parametrize("method", ["sft", "latent_omni"])
def test_banned_tokens_never_appear(talker, vocabulary, prompts, latent, method):
    v = vocabulary
    banned = [v.latent, v.stop, v.audio, v.video, v.image, v.chat_begin]
    banned += [v.audio_begin, v.audio_end, v.vision_begin, v.vision_end]
    method = make_method("sft") if method == "sft" else latent()
    if method.name == "sft":
        banned.append(v.trigger)
    loud = _tilted(talker, dict.fromkeys(banned, 100))
    rollouts = generate(loud, method.build_heads(loud.width), method, vocabulary, prompts, max_new_tokens=8)
    assert sum(len(r.tokens) for r in rollouts) > 8
    for rollout in rollouts:
        assert not set(rollout.tokens) & set(banned)
        # The recorded log-probability is that of the whole vocabulary, which wanted something else.
        assert all(e.logp < -10 for e in rollout.events if e.type == "token")


def _tilted(backbone, bonus: dict[int, float]):
    """The same model with something added to some tokens' logits."""

    class Tilted(type(backbone)):
        def logits(self, hidden):
            logits = super().logits(hidden).clone()
            logits[..., list(bonus)] += torch.tensor(list(bonus.values()))
            return logits

    return Tilted(backbone.thinker).eval()


@pytest.mark.parametrize("token", ["chat_end", "pad"])
def test_either_end_token_ends_the_turn(talker, vocabulary, prompts, latent, token):
    quiet = _tilted(talker, {getattr(vocabulary, token): 100})
    method = latent()
    rollouts = generate(quiet, method.build_heads(quiet.width), method, vocabulary, prompts)
    assert [(r.events, r.finish_reason) for r in rollouts] == [((), "stop")] * 4


@pytest.mark.parametrize("options", [{}, {"engine": "jacobi", "jacobi_sweeps": 5, "jacobi_tolerance": 0.0}])
def test_the_override_is_asked_for_the_slots_under_way_and_used_there_alone(roll, latent, options):
    method = latent(**options)
    own, heads = roll(method)
    asked = []

    def override(phase, slot, vectors):
        asked.append((phase, slot))
        return torch.full_like(vectors, 0.5) if (phase, slot) == (0, 2) else vectors

    changed, _ = roll(method, heads, override=override)
    assert set(asked) == {(p, s) for p in range(2) for s in range(5)}
    for before, after in zip(own, changed, strict=True):
        if not _phases(before):
            assert [e.token for e in before.events] == [e.token for e in after.events]
            continue
        first = next(i for i, e in enumerate(before.events) if e.type == "latent")
        assert [e.token for e in before.events[:first]] == [e.token for e in after.events[:first]]
        mine, theirs = before.latents(0), after.latents(0)
        torch.testing.assert_close(mine[:2], theirs[:2])
        assert torch.equal(theirs[2], torch.full_like(theirs[2], 0.5))
        # The next latent comes from the one that was fed.
        assert (mine[3] - theirs[3]).abs().max() > 1e-2


def test_a_prompt_is_one_question_without_phases(talker, vocabulary, tokenizer, latent, lay_out, film, sample_with):
    method = latent()
    heads = method.build_heads(talker.width)
    with pytest.raises(ValueError, match="no latent phase"):
        generate(talker, heads, method, vocabulary, [lay_out(method, film(), sample_with(1))])
    packed = PlanBuilder(tokenizer, vocabulary, film()).clip_turn().new_block().question_turn("Which?").build()
    with pytest.raises(ValueError, match="holds one question"):
        generate(talker, heads, method, vocabulary, [packed])
