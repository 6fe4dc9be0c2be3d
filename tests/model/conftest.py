"""A toy model with lively random weights, short clips of the film, and sequences about them.

Weights are drawn three times wider than for training, so that a wrong mask, position or vector moves the output by
far more than rounding does.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast, Qwen2_5OmniConfig, Qwen2_5OmniForConditionalGeneration

from omni_model.attention import Gaze, gazes, watch
from omni_model.encoded import RawClip
from omni_model.events import Rollout
from omni_model.methods import make_method
from omni_model.methods.base import Method
from omni_model.qwen_omni import QwenOmniBackbone
from omni_model.replay import lay_track, run_track
from omni_model.sequence import Media, Plan, PlanBuilder, prepare_media
from omni_model.tiny import TinyConfig, build_tiny, train_tokenizer
from omni_model.vocabulary import LATENT_TOKENS, Vocabulary, read_vocabulary
from omni_platform.media.film import corpus
from omni_platform.media.scene import make_scene
from omni_platform.media.synth import render_frames, render_waveform
from omni_platform.schema import LookStep, Sample, Step, TextStep

sys.path.insert(0, str(Path(__file__).parent))  # for what test files share with the workers that they start

SIZES = TinyConfig(
    hidden_size=64,
    num_layers=2,
    num_heads=2,
    intermediate_size=128,
    vision_size=64,
    audio_size=64,
    initializer_range=0.15,
)


TALKER = {
    "vocab_size": 64,
    "embedding_size": 64,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [4, 6, 6]},
    "tts_codec_start_token_id": 1,
    "tts_codec_end_token_id": 2,
    "tts_codec_pad_token_id": 3,
    "tts_codec_mask_token_id": 4,
}
VOICE = {
    "dit_config": {
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "head_dim": 32,
        "emb_dim": 16,
        "num_embeds": 16,
        "mel_dim": 8,
        "enc_dim": 8,
        "enc_emb_dim": 8,
        "enc_channels": [8, 8, 8, 8, 24],
        "enc_attention_channels": 4,
        "enc_se_channels": 4,
        "look_ahead_layers": [0],
        "look_backward_layers": [0],
    },
    "bigvgan_config": {
        "mel_dim": 8,
        "upsample_initial_channel": 16,
        "upsample_rates": [2],
        "upsample_kernel_sizes": [4],
        "resblock_kernel_sizes": [3],
        "resblock_dilation_sizes": [[1, 3, 5]],
    },
}


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """The toy tokenizer; nobody adds tokens to it."""
    return train_tokenizer(corpus())


@pytest.fixture(scope="session")
def vocabulary(tokenizer: PreTrainedTokenizerFast) -> Vocabulary:
    return read_vocabulary(tokenizer)


@pytest.fixture(scope="session")
def new_backbone(vocabulary: Vocabulary) -> Callable[..., QwenOmniBackbone]:
    """Make a toy backbone that a test may change."""

    def make(seed: int = 0) -> QwenOmniBackbone:
        return QwenOmniBackbone(build_tiny(SIZES, vocabulary, seed=seed)).eval()

    return make


@pytest.fixture(scope="module")
def backbone(new_backbone: Callable[..., QwenOmniBackbone]) -> QwenOmniBackbone:
    """A toy backbone that tests only read."""
    return new_backbone()


@pytest.fixture(scope="module")
def talker(new_backbone: Callable[..., QwenOmniBackbone], vocabulary: Vocabulary) -> QwenOmniBackbone:
    """A toy model that looks now and then and sometimes ends its turn."""
    backbone = new_backbone(seed=9)
    with torch.no_grad():
        backbone.thinker.lm_head.weight[vocabulary.trigger] *= 3.5
        backbone.thinker.lm_head.weight[vocabulary.chat_end] *= 2
    return backbone


@pytest.fixture(scope="session")
def film() -> Callable[..., Media]:
    """`film(index, shots)`: a clip of the film, one second a shot, with sound unless told."""

    @lru_cache(maxsize=32)
    def render(index: int = 0, shots: int = 2, sound: bool = True) -> Media:
        scene = make_scene(seed=3, index=index, num_shots=shots)
        frames = render_frames(scene, times_s=np.arange(2 * shots) / 2, side_px=56)
        return prepare_media(frames, sample_fps=2.0, waveform=render_waveform(scene) if sound else None)

    return render


@pytest.fixture(scope="session")
def raw_clips(sample_with) -> list[RawClip]:
    """Clips of the film with 2, 3, 2 and 2 shots and 3, 1, 2 and 1 questions, which look once or twice."""
    clips = []
    for index, (shots, looks) in enumerate(((2, (1, 2, 1)), (3, (2,)), (2, (1, 1)), (2, (2,)))):
        scene = make_scene(seed=3, index=index, num_shots=shots)
        clips.append(
            RawClip(
                clip_id=f"clip-{index}",
                frames=render_frames(scene, times_s=np.arange(2 * shots) / 2, side_px=56),
                sample_fps=2.0,
                waveform=render_waveform(scene),
                samples=tuple(_asked(sample_with(n, f"{index}-{i}"), i) for i, n in enumerate(looks)),
                segments=((0.0, 2.0),),
            )
        )
    return clips


def _asked(sample: Sample, number: int) -> Sample:
    """Three families, and words that differ in length."""
    family, question = (("colour", sample.question), ("tone", "Which tone sounds?"), ("shape", "Which?"))[number]
    return replace(sample, question_type=family, question=question)


@pytest.fixture(scope="session")
def sample_with() -> Callable[..., Sample]:
    """`sample_with(looks)`: a question whose trajectory looks so often, at second 0, 1, 0, …"""

    def make(looks: int = 1, sample_id: str = "s") -> Sample:
        steps: list[Step] = [TextStep(text="The low tone:")]
        for i in range(looks):
            steps += [LookStep(start_s=i % 2, end_s=i % 2 + 1), TextStep(text=(" red.", " blue. Then:")[i % 2])]
        steps.append(TextStep(text=" green. Answer: green"))
        return Sample(
            sample_id=sample_id,
            clip_uri="clip.mp4",
            question="Which colour is on screen when the low tone sounds?",
            answer="green",
            options=("red", "green", "blue"),
            trajectory=tuple(steps),
        )

    return make


@pytest.fixture(scope="session")
def prompt(tokenizer: PreTrainedTokenizerFast, vocabulary: Vocabulary) -> Callable[..., PlanBuilder]:
    """`prompt(media, question)`: a builder that stands where the answer begins."""

    def begin(media: Media, question: str = "Which colour is on screen?") -> PlanBuilder:
        return PlanBuilder(tokenizer, vocabulary, media).chat_prompt(question)

    return begin


@pytest.fixture(scope="session")
def lay_out(prompt: Callable[..., PlanBuilder]) -> Callable[..., Plan]:
    """`lay_out(method, media, sample)`: the whole sequence that training sees."""

    def write(method: Method, media: Media, sample: Sample) -> Plan:
        builder = prompt(media, sample.question)
        method.write(builder, sample)
        return builder.build()

    return write


@pytest.fixture(scope="session")
def latent() -> Callable[..., Method]:
    """`latent(**options)`: LatentOmni with three visual and two audio slots and no bottleneck, unless told."""

    def make(**options) -> Method:
        return make_method("latent_omni", {"num_visual": 3, "num_audio": 2, "bottleneck": "none", **options})

    return make


@pytest.fixture(scope="session")
def random_anchors() -> Callable[..., list[torch.Tensor]]:
    """`random_anchors(plans)`: for every plan float32 (phases, K, D)."""

    def draw(plans: Sequence[Plan], slots: int = 5, width: int = SIZES.hidden_size) -> list[torch.Tensor]:
        generator = torch.Generator().manual_seed(1)
        return [torch.randn(len(p.spans), slots, width, generator=generator) for p in plans]

    return draw


@pytest.fixture(scope="session")
def mixed_plans(lay_out, film, sample_with, latent) -> Callable[..., list[Plan]]:
    """`mixed_plans(method)`: rows that differ in clip length, prompt length and number of phases (1, 3 and 2)."""

    def make(method: Method | None = None) -> list[Plan]:
        rows = ((0, 2, 1), (1, 3, 3), (2, 2, 2))
        return [lay_out(method or latent(), film(index, shots), sample_with(looks)) for index, shots, looks in rows]

    return make


@pytest.fixture(scope="session")
def assert_same_rollout() -> Callable[..., None]:
    """`assert_same_rollout(ours, theirs)`: the same tokens, places and phases; vectors and log-probabilities close."""

    def check(ours: Rollout, theirs: Rollout, within: float = 1e-4) -> None:
        assert ours.finish_reason == theirs.finish_reason
        assert len(ours.events) == len(theirs.events)
        for mine, other in zip(ours.events, theirs.events, strict=True):
            assert (mine.type, mine.token, mine.phase) == (other.type, other.token, other.phase)
            assert mine.position_ids == other.position_ids
            assert mine.logp == pytest.approx(other.logp, abs=within)
            if mine.vector is not None:
                torch.testing.assert_close(mine.vector, other.vector, atol=within, rtol=0)

    return check


@pytest.fixture(scope="module")
def full_folder(backbone, tokenizer, tmp_path_factory) -> Path:
    """The full Omni class around the toy Thinker: talker and voice too, in several shards."""
    folder = tmp_path_factory.mktemp("omni")
    config = Qwen2_5OmniConfig(
        thinker_config=backbone.thinker.config.to_dict(), talker_config=TALKER, token2wav_config=VOICE
    )
    omni = Qwen2_5OmniForConditionalGeneration(config)
    omni.thinker.load_state_dict(backbone.thinker.state_dict())
    omni.save_pretrained(folder, max_shard_size="300KB")
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def attention_along() -> Callable[..., list[Gaze]]:
    """`attention_along(backbone, method, plans, rollouts)`: the attention of everything that was generated, by row."""

    @torch.no_grad()
    def along(
        backbone: QwenOmniBackbone,
        method: Method,
        plans: Sequence[Plan],
        rollouts: Sequence[Rollout],
        *,
        hide_latents: bool = False,
    ) -> list[Gaze]:
        track = lay_track(backbone, method, plans, rollouts, device="cpu")
        with watch(backbone, track) as shares:
            run_track(backbone, method, track, hide_latents=hide_latents)
        return gazes(track, shares)

    return along


@pytest.fixture(scope="session")
def forget_latent_tokens() -> Callable[[Path], None]:
    """Make a saved tokenizer forget the three tokens, as the real one does not know them."""

    def forget(folder: Path) -> None:
        file = folder / "tokenizer.json"
        state = json.loads(file.read_text())
        state["added_tokens"] = [t for t in state["added_tokens"] if t["content"] not in LATENT_TOKENS]
        vocabulary = state["model"]["vocab"]
        for token in LATENT_TOKENS:
            del vocabulary[token]
        state["model"]["vocab"] = {token: i for i, token in enumerate(sorted(vocabulary, key=vocabulary.get))}
        file.write_text(json.dumps(state))
        file = folder / "tokenizer_config.json"
        state = json.loads(file.read_text())
        for key in ("additional_special_tokens", "extra_special_tokens"):
            if key in state:
                state[key] = [t for t in state[key] if t not in LATENT_TOKENS]
        state.pop("added_tokens_decoder", None)
        file.write_text(json.dumps(state))

    return forget
