"""A trial learns what the training jobs would learn from the same questions, in an order that its seed decides."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from stored_segments import stored

from omni_model.encoded import EncodedQuestions, encode_clips, load_encoded, save_encoded
from omni_model.folder import Loaded
from omni_model.learner import Learner
from omni_model.methods import make_method
from omni_model.sequence import Kind
from omni_model.task import ReasoningTask, TaskConfig
from omni_model.trial import Layouts, Lessons, TrialConfig, chosen, train
from omni_platform.data.batches import TrainingRow

FIVE = {"num_visual": 3, "num_audio": 2}
METHODS = {
    "sft": ("sft", {}),
    "text_cot": ("text_cot", {}),
    "markers": ("markers", {}),
    "pause": ("pause", FIVE),
    "teacher_parallel": ("latent_omni", {**FIVE, "engine": "teacher_parallel", "bottleneck": "answer"}),
    "recurrent": ("latent_omni", {**FIVE, "bottleneck": "strict", "latent_loss": "infonce", "norm_match": True}),
}
SHORT = TrialConfig(steps=3, clips_per_step=2, warmup_steps=1, learning_rate=1e-2)


@pytest.fixture(scope="module")
def encoded(backbone, raw_clips) -> list[EncodedQuestions]:
    return encode_clips(backbone, raw_clips)


@pytest.fixture
def loaded(new_backbone, tokenizer, vocabulary) -> Loaded:
    return Loaded(backbone=new_backbone(), tokenizer=tokenizer, vocabulary=vocabulary)


@pytest.fixture(scope="module")
def base(backbone, tokenizer, tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("base")
    backbone.thinker.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("name", METHODS)
def test_a_batch_has_the_loss_of_the_training_job(loaded, base, raw_clips, encoded, tmp_path, name):
    """The task runs the towers on every row's own clip; the trial takes half-precision features, each clip once."""
    kind, options = METHODS[name]
    torch.manual_seed(0)
    task = ReasoningTask(TaskConfig(model_name_or_path=base, method=kind, options=options, freeze=("vision", "audio")))
    method = make_method(kind, options)
    rows = []
    for raw, clip in zip(raw_clips, encoded, strict=True):
        by_span = clip.segments.anchors(num_visual=method.num_visual, num_audio=method.num_audio)
        for sample in raw.samples:
            anchors = np.stack([by_span[look.start_s, look.end_s].numpy() for look in sample.looks])
            segments = stored(anchors, method.num_visual), ()
            of_row = {"sample": sample, "read_segments": lambda segments=segments: segments}
            of_clip = {"frames": raw.frames, "waveform": raw.waveform, "sample_fps": raw.sample_fps}
            rows.append(TrainingRow(clip_id=raw.clip_id, **of_row, **of_clip))
    learner = task.module.train()
    assert isinstance(learner, Learner)
    wanted = learner(task.collate(rows))

    save_encoded(tmp_path / "clips.pt", encoded)
    lessons = Lessons(loaded, method, load_encoded(tmp_path / "clips.pt"))
    batch = lessons.batch(range(len(lessons)))
    assert batch.shared is not None and len(batch.shared.first_C) == 4 and len(batch.labels_BL) == 7
    found = learner(batch)
    assert found.keys() == wanted.keys()
    for term, value in wanted.items():
        torch.testing.assert_close(
            found[term].detach(), value.detach(), rtol=5e-3, atol=1e-3, msg=lambda m, t=term: t + m
        )
    found["loss"].backward()


def test_a_layout_is_remembered_and_its_looks_are_the_questions_own(loaded, encoded, latent):
    """Two clips of one shape and one wording, which look at different seconds."""
    first, other = encoded[0], encoded[2]
    assert first.clip.grid_thw == other.clip.grid_thw
    sample = first.samples[0]
    moved = replace(
        sample,
        trajectory=tuple(replace(s, start_s=1.0, end_s=2.0) if hasattr(s, "start_s") else s for s in sample.trajectory),
    )
    layouts = Layouts(loaded, latent())
    ours, theirs = layouts.lesson(first, sample), layouts.lesson(other, moved)
    assert ours.input_ids is theirs.input_ids
    assert [(s.start_s, s.end_s) for s in ours.spans] == [(0, 1)]
    assert [(s.start_s, s.end_s) for s in theirs.spans] == [(1, 2)]
    assert (ours.media, theirs.media) == (first.clip, other.clip)
    prompt = layouts.prompt(first, sample)
    assert prompt.spans == ()
    assert torch.equal(prompt.input_ids, ours.input_ids[: len(prompt)])
    longer = layouts.lesson(encoded[1], sample)
    assert int((longer.kinds == Kind.VISUAL).sum()) == 12


def _trained(
    loaded, clips, config: TrialConfig, method=None, **rest
) -> tuple[Learner, list[tuple[int, dict[str, float]]]]:
    reports = []
    learner = train(
        loaded,
        method or make_method("sft"),
        clips,
        config,
        every=1,
        report=lambda step, _, terms: reports.append((step, terms)),
        **rest,
    )
    return learner, reports


@pytest.mark.parametrize("name", METHODS)
def test_products_can_be_in_bfloat16(new_backbone, tokenizer, vocabulary, encoded, tmp_path, name):
    """The loss differs by rounding, and does differ; what is learned stays in float32. Stored clips are in float16."""
    kind, options = METHODS[name]
    save_encoded(tmp_path / "clips.pt", encoded)
    clips = load_encoded(tmp_path / "clips.pt")

    def run(precision: str) -> tuple[Learner, list[float]]:
        fresh = Loaded(backbone=new_backbone(), tokenizer=tokenizer, vocabulary=vocabulary)
        learner, reports = _trained(fresh, clips, SHORT, make_method(kind, options), precision=precision)
        return learner, [terms["loss"] for _, terms in reports]

    (_, exact), (learner, rounded) = run("float32"), run("bfloat16")
    assert rounded[0] == pytest.approx(exact[0], rel=5e-3)
    assert rounded[0] != exact[0]
    assert {parameter.dtype for parameter in learner.parameters()} == {torch.float32}
    assert rounded[-1] < rounded[0]


def test_a_trial_is_a_function_of_its_seed(new_backbone, tokenizer, vocabulary, encoded):
    def run(seed: int) -> list[float]:
        fresh = Loaded(backbone=new_backbone(), tokenizer=tokenizer, vocabulary=vocabulary)
        config = replace(SHORT, seed=seed, questions_per_clip=1)
        return [terms["loss"] for _, terms in _trained(fresh, encoded, config)[1]]

    first = run(0)
    assert first == run(0)
    assert first != run(1)


def test_every_clip_is_seen_once_before_one_is_seen_again(loaded, encoded, monkeypatch):
    asked: list[list[int]] = []
    batch = Lessons.batch

    def noting(self, indices, **rest):
        asked.append(list(indices))
        return batch(self, indices, **rest)

    monkeypatch.setattr(Lessons, "batch", noting)
    _trained(loaded, encoded, replace(SHORT, steps=4))
    assert [len(step) for step in asked] == [2] * 4
    for epoch in (asked[0] + asked[1], asked[2] + asked[3]):
        assert sorted(epoch) == [0, 1, 2, 3]


def test_only_the_clips_and_families_asked_for_are_learned(encoded):
    kept = chosen(encoded, ("tone",))
    assert [clip.clip_id for clip in kept] == ["clip-0", "clip-2"]
    assert {s.question_type for clip in kept for s in clip.samples} == {"tone"}
    assert [c.clip_id for c in chosen(encoded, ("tone", "shape"), num_clips=2)] == ["clip-0"]
    assert [len(c.samples) for c in chosen(encoded, (), num_clips=3)] == [3, 1, 2]
    assert chosen(encoded, ()) == encoded
    with pytest.raises(ValueError, match=r"no clip has a question of the types \['smell'\]"):
        chosen(encoded, ("smell",))


def test_some_questions_of_a_clip_are_drawn_anew_each_step(loaded, encoded, latent):
    lessons = Lessons(loaded, latent(), encoded, questions_per_clip=2)
    batches = [lessons.batch([0, 1], draw=(0, step)) for step in range(6)]
    assert all(len(b.labels_BL) == 3 for b in batches)  # two of three, and the only one
    again = lessons.batch([0, 1], draw=(0, 3))
    assert torch.equal(again.input_ids_BL, batches[3].input_ids_BL)
    assert torch.equal(again.anchors_BPKD, batches[3].anchors_BPKD)
    assert len({tuple((b.labels_BL >= 0).sum(1).tolist()) for b in batches}) > 1
    for found in batches:
        # Anchors belong to the question that was drawn: as many phases as it has triggers.
        assert torch.equal(found.anchors_BPKD.flatten(2).any(-1), found.triggers_BP >= 0)
        # Every segment of both clips is there to be told from, whichever question was drawn.
        assert len(found.others_MKD) == sum(len(clip.segments.spans) for clip in encoded[:2])


def test_the_loss_falls_and_only_the_named_parts_change(loaded, encoded):
    before = {name: value.clone() for name, value in loaded.backbone.state_dict().items()}
    config = TrialConfig(steps=24, clips_per_step=4, warmup_steps=4, learning_rate=3e-3)
    learner, reports = _trained(loaded, encoded, config)
    assert [step for step, _ in reports] == list(range(1, 25))
    assert reports[-1][1]["text"] < reports[0][1]["text"] / 3
    groups = loaded.backbone.modules_by_group()
    towers = {id(p) for group in ("vision", "audio") for p in groups[group].parameters()}
    for name, weight in learner.backbone.named_parameters():
        assert not (id(weight) in towers and not torch.equal(weight, before[name])), name
    assert not torch.equal(loaded.backbone.thinker.lm_head.weight, before["thinker.lm_head.weight"])


def test_heads_alone_can_learn(loaded, encoded):
    before = {name: value.clone() for name, value in loaded.backbone.state_dict().items()}
    torch.manual_seed(SHORT.seed)
    start = make_method("pause", FIVE).build_heads(64).feedback.constant.detach()
    config = replace(SHORT, train_parts=("heads",))
    learner, _ = _trained(loaded, encoded, config, make_method("pause", FIVE))
    assert not torch.equal(learner.heads.feedback.constant, start)
    assert all(torch.equal(value, before[name]) for name, value in learner.backbone.state_dict().items())


@pytest.mark.parametrize("text", [None, ":"])
def test_markers_begin_as_the_config_says(loaded, encoded, text):
    """Where nothing but the heads learns, what they began as is what they are."""
    table = loaded.backbone.thinker.get_input_embeddings().weight
    before, markers = table.detach().clone(), [loaded.vocabulary.trigger, loaded.vocabulary.stop]
    (colon,) = loaded.tokenizer(":", add_special_tokens=False)["input_ids"]
    config = replace(SHORT, steps=1, train_parts=("heads",), markers_like=text)
    _trained(loaded, encoded, config, make_method("pause", FIVE))
    assert torch.equal(table[markers], before[markers] if text is None else before[[colon, colon]])


def test_reports_are_means_since_the_last_one(loaded, new_backbone, encoded):
    single = [terms for _, terms in _trained(loaded, encoded, replace(SHORT, steps=5))[1]]
    again, reports = replace(loaded, backbone=new_backbone()), []
    train(
        again,
        make_method("sft"),
        encoded,
        replace(SHORT, steps=5),
        every=2,
        report=lambda step, _, terms: reports.append((step, terms["text"])),
    )
    texts = [terms["text"] for terms in single]
    means = [(2, sum(texts[:2]) / 2), (4, sum(texts[2:4]) / 2), (5, texts[4])]
    assert reports == [(step, pytest.approx(mean, rel=1e-5)) for step, mean in means]
