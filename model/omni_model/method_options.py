"""The options of every method, apart from what they do: reading and checking a config needs neither torch nor a model.

`omni_model.methods` derives each method from its options here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from annotated_types import Ge, Gt, Interval

Natural = Annotated[int, Ge(0)]
Count = Annotated[int, Ge(1)]
Positive = Annotated[float, Gt(0)]
NotNegative = Annotated[float, Ge(0)]
Share = Annotated[float, Interval(ge=0, le=1)]

Words = Literal["trajectory", "evidence", "opening", "answer"]
"""What is said around the looks.

* `trajectory`: the trajectory's own words.
* `evidence`: the first sentence after each look (what was found there) and the answer, and nothing that leads to the
  next look: as few words as can carry a chain.
* `opening`: its words before the first look, and the answer after the last: what is seen and heard is not put into
  words, as in data that says where to look and not what is there.
* `answer`: nothing but the answer after the last look.
"""
Ospe = Literal["none", "slot", "tmrope", "code_compat"]
Bottleneck = Literal["none", "published", "answer", "strict"]
"""How text after a look is kept from reading the clip directly.

* `none`: it is not.
* `published`: in training only, positions after the first trigger that are neither trigger nor latent do not see the
  clip's tokens (LatentOmni's controlled attention flow).
* `answer`: the same, at inference too, so that train and serve agree.
* `strict`: in addition the question and the template do not read the clip, and text after a look does not see
  triggers, so that nothing but latent slots can carry what was seen and heard.
"""
FeedbackKind = Literal["raw", "linear", "constant"]
Reduction = Literal["mean", "sum"]
TextReduction = Literal["token_mean", "sample_mean"]
Gradient = Literal["full", "kv_only", "detached"]
Engine = Literal["teacher_parallel", "recurrent", "two_pass", "jacobi"]
JacobiStart = Literal["trigger", "anchors"]


@dataclass(frozen=True, kw_only=True)
class AnswerOnlyOptions:
    """Of sft: none."""

    loss_names: ClassVar[tuple[str, ...]] = ()


@dataclass(frozen=True, kw_only=True)
class TextCotOptions:
    """Of text_cot."""

    loss_names: ClassVar[tuple[str, ...]] = ()

    words: Words = "trajectory"
    """How much of the trajectory's words is said, as in latent_omni."""
    times: bool = False
    """Say in words when every look begins: as much of the annotation as latents are told by their anchors' moments."""


@dataclass(frozen=True, kw_only=True)
class PauseOptions:
    """Of pause."""

    loss_names: ClassVar[tuple[str, ...]] = ()

    num_visual: Natural = 32
    """Slots of a phase that carry the positions of visual ones."""
    num_audio: Natural = 8
    """Slots of a phase that carry the positions of audio ones."""
    max_train_phases: Count = 3
    """Samples with more looks than this are refused."""
    words: Words = "trajectory"
    """What is said around the slots, as in latent_omni."""
    ospe: Ospe = "slot"
    """Position ids of slots, as in latent_omni."""
    segment_s: Positive = 5.0
    """Nominal length of a segment, for `ospe: tmrope` alone."""
    bottleneck: Bottleneck = "none"
    """Whether words after a phase see the clip, as in latent_omni."""
    norm_match: bool = False
    """Scale the learned vector to the size of the row's clip features."""

    def __post_init__(self) -> None:
        if min(self.num_visual, self.num_audio) < 0 or self.num_visual + self.num_audio == 0:
            raise ValueError("pause tokens need at least one slot (num_visual + num_audio); method markers has none")


@dataclass(frozen=True, kw_only=True)
class MarkerOptions:
    """Of markers."""

    loss_names: ClassVar[tuple[str, ...]] = ()

    max_train_phases: Count = 3
    """Samples with more looks than this are refused."""
    words: Words = "trajectory"
    """What is said around the markers, as in latent_omni."""
    bottleneck: Bottleneck = "none"
    """Whether words after a marker see the clip, as in latent_omni."""


@dataclass(frozen=True, kw_only=True)
class LatentOmniOptions:
    """Of latent_omni. The defaults are the paper's, except that slots are fed the model's own latents."""

    loss_names: ClassVar[tuple[str, ...]] = ("latent", "sync")
    """Raw losses beside the text loss."""

    num_visual: Natural = 32
    """Visual slots of a phase (K_v)."""
    num_audio: Natural = 8
    """Audio slots of a phase (K_a), after the visual ones."""
    max_train_phases: Count = 3
    """Samples with more looks than this are refused."""
    words: Words = "trajectory"
    """What is said around the looks: the trajectory's words, its opening and the answer, or the answer alone."""
    ospe: Ospe = "slot"
    """Position ids of slots, the same in training and decoding: none, slot, tmrope or code_compat."""
    segment_s: Positive = 5.0
    """Nominal length of a segment, for `ospe: tmrope` alone."""
    engine: Engine = "recurrent"
    """teacher_parallel (the authors' released training), or own latents: recurrent (the paper's words, and free of the
    leak of the former), two_pass, jacobi. See `UnrollConfig` for these and the options that follow."""
    gradient: Gradient = "full"
    """How far the gradient runs through own latents: full, kv_only, detached."""
    teacher_share: Share = 0.0
    """Share of slots fed the anchor among own latents."""
    teacher_share_end: Share | None = None
    """The share at the last step, reached in a straight line; None keeps it."""
    jacobi_sweeps: Annotated[int, Ge(2)] = 8
    """Passes over a phase's slots at most, in training and decoding; as many as slots are exact."""
    jacobi_tolerance: NotNegative = 1e-3
    """Relative movement at which a row's sweeps stop; 0 for never."""
    jacobi_start: JacobiStart = "trigger"
    """First guess in training: trigger (as in decoding) or anchors."""
    jacobi_carry: bool = True
    """Hand on within a sweep what the slots before have moved."""
    latent_loss: Literal["mse", "cosine", "infonce"] = "mse"
    """What ties latents to anchors. `infonce` tells segments apart, see `latent_negatives`."""
    latent_negatives: Literal["batch", "clip"] = "batch"
    """Of `latent_loss: infonce`, what the right segment is told apart from: the segments that the micro-batch looks at,
    or those and the other segments of its clips (preprocessing's `other_segments` gives every clip some). With `batch`
    a micro-batch of one phase has nothing to tell apart: the loss is 0 and teaches nothing."""
    latent_reduction: Reduction = "sum"
    """Over the width: the paper's Eq. 5 sums, its code takes the mean."""
    normalise_anchors: bool = False
    """Compare squared errors with anchors scaled to root mean square 1: hidden states after the final norm are near 1,
    while a small model's towers may make features fifty times larger."""
    latent_weight: NotNegative = 0.005
    """lambda 1 of Eq. 7."""
    latent_temperature: Positive = 0.1
    """Of `latent_loss: infonce`."""
    sync_weight: NotNegative = 1.0
    """lambda 2 of Eq. 7; 0 leaves the sync heads out."""
    detach_sync_inputs: bool = False
    """True keeps the sync loss from changing anything but its own heads, as the authors' code does."""
    bottleneck: Bottleneck = "published"
    """Controlled attention flow: none, published (training only), answer, strict."""
    bottleneck_until: Annotated[float, Interval(gt=0, le=1)] = 1.0
    """Share of training with the bottleneck. Below 1 it is then lifted, and stays so when answering (LIVR's second
    stage, arXiv 2512.21218)."""
    feedback: Literal["raw", "linear"] = "raw"
    """How a hidden state becomes a slot's input: raw or linear."""
    norm_match: bool = False
    """Scale fed latents to the size of the row's clip features."""

    def __post_init__(self) -> None:
        if min(self.num_visual, self.num_audio) < 0 or self.num_visual + self.num_audio == 0:
            raise ValueError(
                f"a phase needs at least one slot, got num_visual={self.num_visual}, num_audio={self.num_audio}; "
                "for a run without latents use method sft or text_cot"
            )


MethodOptions = AnswerOnlyOptions | TextCotOptions | PauseOptions | MarkerOptions | LatentOmniOptions
METHOD_OPTIONS: dict[str, type] = {
    "latent_omni": LatentOmniOptions,
    "pause": PauseOptions,
    "markers": MarkerOptions,
    "text_cot": TextCotOptions,
    "sft": AnswerOnlyOptions,
}
"""By the name of the method."""
