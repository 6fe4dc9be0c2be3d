"""The measures of a batch are those of its parts, in the rows they belong to, and plain numbers."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from omni_model.attention import summarise_gaze
from omni_model.decodability import decodability, read_states
from omni_model.generate import generate
from omni_model.geometry import effective_rank, mean_cosine, norm_ratio
from omni_model.measures import measure, summarise_measures
from omni_model.methods import make_method, without_slots
from omni_model.moments import Moments
from omni_model.replay import replay

SPANS = ((0.0, 1.0), (1.0, 2.0), (2.0, 3.0))


@pytest.fixture(scope="module")
def talker(new_backbone, vocabulary):
    backbone = new_backbone(seed=9)
    with torch.no_grad():
        backbone.thinker.lm_head.weight[vocabulary.trigger] *= 3.5
    return backbone


@pytest.fixture(scope="module")
def prompts(prompt, film):
    questions = ("Which col", "Which colour is", "Which colour is on screen?")
    return [prompt(film(i, 3), question).build() for i, question in enumerate(questions)]


@pytest.fixture(scope="module")
def roll(talker, vocabulary, prompts):
    def make(method, max_phases=2):
        torch.manual_seed(0)
        heads = method.build_heads(talker.width)
        return generate(talker, heads, method, vocabulary, prompts, max_new_tokens=8, max_phases=max_phases)

    return make


def test_figures_of_a_row_are_those_of_its_measures(talker, prompts, roll, latent, attention_along):
    method = latent()
    rollouts = [*roll(method)[:2], roll(method, max_phases=0)[2]]  # the last one never looks
    figures = measure(talker, method, prompts, rollouts)
    json.dumps(figures)
    replayed = replay(talker, method, prompts, rollouts)
    states = read_states(replayed)
    gazes = attention_along(talker, method, prompts, rollouts)
    visual = torch.cat([r.latents(p)[:3] for r in rollouts for p in {e.phase for e in r.events} - {-1}])
    assert len(visual) > 3
    for row, (plan, rollout, found) in enumerate(zip(prompts, rollouts, figures, strict=True)):
        assert found["attention"] == pytest.approx(summarise_gaze(gazes[row]))
        assert {k: torch.tensor(v) for k, v in found["states"].items()}.keys() == states[row].keys()
        for site, state in states[row].items():
            torch.testing.assert_close(torch.tensor(found["states"][site]), state, atol=1e-4, rtol=0)
        assert ("latents" in found) == bool(rollout.latent_steps)
        if rollout.latent_steps:
            fed = torch.stack([e.vector for e in rollout.events if e.type == "latent"])
            media = replayed.track.inputs_BLD[row, : len(plan)][(plan.kinds == 3) | (plan.kinds == 4)]
            assert found["latents"]["norm_ratio"] == pytest.approx(norm_ratio(fed, media))
            assert found["latents"]["effective_rank_visual"] == pytest.approx(effective_rank(visual))
            assert found["latents"]["mean_cosine_visual"] == pytest.approx(mean_cosine(visual))


def test_retrieval_asks_for_the_look_of_the_phases_number(talker, prompts, roll, latent):
    """Anchors that are a row's own latents in the right place are found; moved by one moment they are not.

    The visual ones stand in the right place always.
    """
    method = latent()
    rollouts = roll(method)
    row = next(i for i, r in enumerate(rollouts) if r.latent_steps == 10)
    generator = torch.Generator().manual_seed(0)
    for shift, expected in ((0, 1.0), (1, 0.0)):
        anchors = [{span: torch.randn(5, 64, generator=generator) for span in SPANS} for _ in rollouts]
        for phase, look in ((0, 2), (1, 1)):
            anchors[row][SPANS[look]][:3] = rollouts[row].latents(phase)[:3]
            anchors[row][SPANS[(look + shift) % 3]][3:] = rollouts[row].latents(phase)[3:]
        looks = [[SPANS[2], SPANS[1]] for _ in rollouts]
        moments = Moments(["a", "b", "c"], looks, anchors)
        found = measure(talker, method, prompts, rollouts, moments=moments)[row]["retrieval"]
        assert (found["clip_chance"], found["batch_chance"]) == (pytest.approx(1 / 3), pytest.approx(1 / 9))
        for scope in ("clip", "batch"):
            assert (found[f"{scope}_visual"], found[f"{scope}_audio"]) == (1.0, expected)
    one_look = Moments(["a", "b", "c"], [[SPANS[2]]] * 3, anchors)
    assert measure(talker, method, prompts, rollouts, moments=one_look)[row]["retrieval"]["clip_audio"] == 0.0


def test_retrieval_takes_what_all_latents_share_from_them(talker, prompts, roll, latent):
    """Latents that differ little beside a large common part point as well as their differences do."""
    method = latent()
    generator = torch.Generator().manual_seed(0)
    common, unlike = 50.0 * torch.randn(64, generator=generator), []
    rollouts = []
    for rollout in roll(method):
        events = [
            replace(event, vector=event.vector + common) if event.vector is not None else event
            for event in rollout.events
        ]
        rollouts.append(replace(rollout, events=tuple(events)))
        unlike.append([rollout.latents(0) - common])  # anchors share another part than the latents do
    looks = [[SPANS[0]]] * len(rollouts)
    rivals = {span: torch.randn(5, 64, generator=generator) - common for span in SPANS[1:]}
    moments = Moments(["a", "b", "c"], looks, [{SPANS[0]: own[0], **rivals} for own in unlike])
    for found in measure(talker, method, prompts, rollouts, moments=moments):
        assert found["retrieval"]["clip_visual"] == found["retrieval"]["clip_audio"] == 1.0


def test_methods_without_latents_leave_them_out(talker, prompts, roll, latent):
    for method in (make_method("sft"), without_slots(latent())):
        for found in measure(talker, method, prompts, roll(method)):
            assert "latents" not in found
            assert "retrieval" not in found
            assert "words_on_media" in found["attention"]


def test_a_summary_takes_means_and_probes_by_question_type():
    generator = torch.Generator().manual_seed(0)
    records = [
        {
            "question_type": ("tone", "colour")[i % 2],
            "expected": ("red", "green")[i // 2 % 2],
            "clip_id": f"clip-{i}",
            "measures": {
                "attention": {"words_on_media": 0.1 * (i % 2)} | ({"ratio_paper": 0.5} if i == 0 else {}),
                "retrieval": {"clip_visual": float(i % 4 == 0), "clip_chance": 0.5} if i < 8 else {},
                "states": {
                    "media": torch.randn(3, generator=generator).tolist(),
                    "after": [float(i // 2 % 2), 1.0] if i % 2 else [0.0, 1.0],
                },
            },
        }
        for i in range(80)
    ]
    summary = summarise_measures([*records, {**records[0], "measures": None}])
    assert summary["attention"] == {"words_on_media": pytest.approx(0.05), "ratio_paper": 0.5}
    retrieval = summary["retrieval"]["clip_visual"]
    assert (retrieval["mean"], retrieval["n"], retrieval["chance"]) == (0.25, 8, 0.5)
    assert 0.0 <= retrieval["low"] < 0.25 < retrieval["high"]
    assert set(summary["retrieval"]) == {"clip_visual"}
    by_type = {kind: found["clip_visual"] for kind, found in summary["retrieval_by_type"].items()}
    assert {kind: (found["mean"], found["n"]) for kind, found in by_type.items()} == {
        "tone": (0.5, 4),
        "colour": (0.0, 4),
    }
    assert "latents" not in summary
    probes = summary["decodability"]
    assert probes["colour"]["after"]["accuracy"] == 1.0
    assert probes["tone"]["after"]["accuracy"] <= 0.5 == probes["tone"]["after"]["chance"]
    rows = [r for r in records if r["question_type"] == "tone"]
    slow = decodability(torch.tensor([r["measures"]["states"]["media"] for r in rows]), [r["expected"] for r in rows])
    assert probes["tone"]["media"]["accuracy"] == slow.accuracy
    assert summarise_measures([{"question_type": "tone"}]) == {}
