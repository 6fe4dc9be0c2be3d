"""Train the toy base from random weights: staged skills, gated on accuracy, many questions behind one clip.

From answers alone a model this small learns nothing. Captions of short clips, then of full ones, then keyed captions,
then single questions teach it to look things up across the senses. A stage ends when its skills are learned, never by
the clock; one that does not get there ends the attempt.
"""

# B = clips, L = positions, D = model width.

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from omni_model.batch import Batch, Encoded, collate
from omni_model.device import Precision, multiplying_in
from omni_model.embedding import embed_batch
from omni_model.losses import learned_positions, text_loss
from omni_model.masks import allowed, look_at, with_self
from omni_model.method_options import Count, Natural, NotNegative, Positive
from omni_model.perception import Perception, Shown, Words
from omni_model.qwen_omni import QwenOmniBackbone
from omni_model.sequence import IGNORE, Kind, Media, Plan, PlanBuilder
from omni_model.vocabulary import Vocabulary

_PREFIX = "Answer:"


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One step of the curriculum."""

    name: str
    mix: dict[str, int]
    """How many questions of each family stand behind every clip."""
    until: dict[str, float]
    """Held-out accuracy at which the stage is done; all must be reached."""
    max_clips: int
    """Where the stage gives up."""
    num_shots: Count = 6
    """Length of the clips: short ones first make captions click several times sooner."""
    prefixed: bool = False
    """Every second answer stands after the word that begins it in post-training, so that it can be given there too."""
    perception_weight: NotNegative = 0.0
    """Weight of naming each moment straight from the towers (`perception.py`)."""


@dataclass(frozen=True, kw_only=True)
class CourseConfig:
    """The whole course."""

    stages: tuple[Stage, ...]
    clips_per_step: Count = 16
    learning_rate: Positive = 2e-3
    warmup_steps: Natural = 100
    """Of every stage; the optimizer starts anew with each."""
    weight_decay: NotNegative = 0.05
    max_grad_norm: Positive = 1.0
    eval_every_clips: Count = 800
    eval_clips: Count = 128
    precision: Precision = "float32"


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """A clip and the questions packed behind it."""

    media: Media
    questions: tuple[tuple[str, str, str], ...]
    """(family, question, answer)"""
    shown: tuple[Shown, ...] = ()
    """What its moments hold, for stages with `perception_weight`."""


@dataclass(frozen=True, kw_only=True)
class Packed:
    """A lesson as one sequence."""

    plan: Plan
    families: tuple[str, ...]
    """Family of block 1, 2, …"""
    shown: tuple[Shown, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Step:
    """What one optimizer step learns from."""

    batch: Batch
    shown: tuple[tuple[Shown, ...], ...]
    """Moments of every row."""


class StageError(RuntimeError):
    """A stage did not reach its gate within its clips."""


Teach = Callable[[int, Stage], Lesson]
"""Lesson number i of a stage; negative numbers are held out."""
Load = Callable[[Callable[[int], Step], Iterable[int]], Iterator[Step]]
"""Maps step numbers to what they learn from, perhaps in worker processes."""
Report = Callable[[str, int, dict[str, float]], None]
"""(stage, clips seen in it, figures), called at every evaluation."""


@dataclass(frozen=True)
class Packer:
    """Lesson number to packed lesson; a class so that worker processes can receive it."""

    tokenizer: PreTrainedTokenizerBase
    vocabulary: Vocabulary
    teach: Teach
    stage: Stage

    def __call__(self, number: int) -> Packed:
        lesson = self.teach(number, self.stage)
        builder = PlanBuilder(self.tokenizer, self.vocabulary, lesson.media).clip_turn()
        for place, (_, question, answer) in enumerate(lesson.questions):
            builder.new_block().question_turn(question)
            if self.stage.prefixed and (number + place) % 2:
                builder.text(_PREFIX, Kind.TEMPLATE)
            builder.text(f" {answer}", Kind.TEXT, learn=True).end_turn()
        families = tuple(family for family, _, _ in lesson.questions)
        return Packed(plan=builder.build(), families=families, shown=lesson.shown)


@dataclass(frozen=True)
class BatchMaker:
    """Step number to a batch of lessons. Whole batches travel between processes: single lessons cost more to send."""

    packer: Packer
    clips_per_step: int
    first: int
    """Number of the stage's first lesson."""

    def __call__(self, step: int) -> Step:
        start = self.first + step * self.clips_per_step
        packed = [self.packer(number) for number in range(start, start + self.clips_per_step)]
        return Step(batch=collate([lesson.plan for lesson in packed]), shown=tuple(lesson.shown for lesson in packed))


def run_course(
    backbone: QwenOmniBackbone,
    tokenizer: PreTrainedTokenizerBase,
    vocabulary: Vocabulary,
    config: CourseConfig,
    *,
    teach: Teach,
    report: Report,
    load: Load = map,
    words: Words | None = None,
    first_stage: str | None = None,
    last_stage: str | None = None,
    device: str = "cpu",
) -> dict[str, float]:
    """Take the model through all stages, or from `first_stage` to `last_stage`; returns the last held-out accuracies by
    family.

    A stage begins with a new optimizer and clips of its own, so that going on from what the stage before left is as
    good as one run. `words` are needed where a stage has a `perception_weight`. The backbone stays on `device`. Raises
    `StageError` where a gate is not reached, `ValueError` for a stage that is not in the course.
    """
    names = [stage.name for stage in config.stages]
    for name in (first_stage, last_stage):
        if name is not None and name not in names:
            raise ValueError(f"the course has no stage {name!r}; it has {', '.join(names)}")
    backbone.to(device)
    perception = None if words is None else Perception(backbone.width, words).to(device)
    figures: dict[str, float] = {}
    first, begun = 0, first_stage is None
    for stage in config.stages:
        begun = begun or stage.name == first_stage
        if not begun:
            first += stage.max_clips
            continue
        packer = Packer(tokenizer, vocabulary, teach, stage)
        maker = BatchMaker(packer, config.clips_per_step, first)
        steps = load(maker, range(stage.max_clips // config.clips_per_step))
        held_out = [packer(-1 - i) for i in range(config.eval_clips)]
        figures = _run_stage(backbone, perception, stage, config, steps, held_out, report, device)
        first += stage.max_clips
        if stage.name == last_stage:
            break
    return figures


def _run_stage(
    backbone: QwenOmniBackbone,
    perception: Perception | None,
    stage: Stage,
    config: CourseConfig,
    steps: Iterator[Step],
    held_out: Sequence[Packed],
    report: Report,
    device: str,
) -> dict[str, float]:
    if perception is None and stage.perception_weight:
        raise ValueError(f"stage {stage.name} has a perception_weight, and nobody told the words that it needs")
    learned = [*backbone.parameters(), *(perception.parameters() if perception is not None else ())]
    optimizer = torch.optim.AdamW(learned, lr=config.learning_rate, betas=(0.9, 0.98), weight_decay=config.weight_decay)
    started, figures = time.monotonic(), {}
    losses: list[torch.Tensor] = []
    for number, step in enumerate(steps, start=1):
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * min(1.0, number / config.warmup_steps)
        batch = step.batch.to(device)
        with multiplying_in(config.precision, device):
            loss, _, encoded = packed_loss(backbone, batch)
            if perception is not None and stage.perception_weight:
                loss = loss + stage.perception_weight * perception(encoded, batch, step.shown)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(learned, config.max_grad_norm)
        optimizer.step()
        losses.append(loss.detach())
        clips = number * config.clips_per_step
        if clips % config.eval_every_clips >= config.clips_per_step:
            continue
        figures = accuracy_by_family(backbone, held_out, config.clips_per_step, device=device)
        speed = clips / (time.monotonic() - started)
        report(stage.name, clips, {"loss": torch.stack(losses).mean().item(), "clips_per_s": speed, **figures})
        losses = []
        if all(figures[family] >= gate for family, gate in stage.until.items()):
            return figures
    raise StageError(f"stage {stage.name} did not reach {stage.until} within {stage.max_clips} clips: {figures}")


def packed_loss(backbone: QwenOmniBackbone, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, Encoded]:
    """Mean cross-entropy over learned tokens; bool (B, L), the token there was predicted right; the clips' features."""
    hidden_BLD, encoded = run_packed(backbone, batch)
    learned, wanted = learned_positions(batch.labels_BL)
    logits = backbone.logits(hidden_BLD[:, :-1][learned])
    right = torch.zeros_like(batch.labels_BL, dtype=torch.bool)
    right[:, 1:][learned] = logits.argmax(-1) == wanted
    return text_loss(logits, wanted).mean, right, encoded


def run_packed(backbone: QwenOmniBackbone, batch: Batch) -> tuple[torch.Tensor, Encoded]:
    """One forward over packed sequences without latents: hidden states (B, L, D), and what the towers made."""
    seen = look_at(batch.kinds_BL, batch.blocks_BL)
    mask = with_self(allowed(seen, seen, bottleneck="none", training=True))
    embedded = embed_batch(backbone, batch)
    hidden_BLD = backbone.run(embedded.inputs_BLD, position_ids_3BQ=batch.position_ids_3BL, mask_BQK=mask)
    return hidden_BLD, embedded.encoded


@torch.no_grad()
def accuracy_by_family(
    backbone: QwenOmniBackbone, lessons: Sequence[Packed], rows: int, *, device: str = "cpu"
) -> dict[str, float]:
    """Share of answer tokens predicted right, the earlier ones given; the end of turn does not count."""
    hits: dict[str, list[float]] = defaultdict(list)
    for start in range(0, len(lessons), rows):
        part = lessons[start : start + rows]
        _, right_BL, _ = packed_loss(backbone, collate([lesson.plan for lesson in part]).to(device))
        for lesson, right_L in zip(part, right_BL.cpu(), strict=True):
            plan = lesson.plan
            counts = (plan.labels != IGNORE) & (plan.labels.roll(-1) != IGNORE)
            for block, family in enumerate(lesson.families, start=1):
                hits[family].append(right_L[: len(plan)][counts & (plan.blocks == block)].float().mean().item())
    return {family: sum(values) / len(values) for family, values in hits.items()}
