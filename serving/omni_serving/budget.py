"""The budget of a request in positions: prompt, clip, new tokens and latent slots together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from omni_serving.config import ServeConfig
from omni_serving.errors import RequestError
from omni_serving.reading import Limits, Prompt

if TYPE_CHECKING:
    from omni_platform.media.decode import DecodedClip

_MOST_BY_DEFAULT = 32_768
_CHARS_PER_POSITION = 32
"""More characters than that for every position are refused uncounted: tokenising is to be bounded too."""
_WAVEFORM_HZ = 16_000


class Counts(Protocol):
    """What the budget needs to know of a model."""

    @property
    def fps(self) -> float: ...

    @property
    def max_frames(self) -> int: ...

    @property
    def max_positions(self) -> int: ...

    @property
    def num_slots(self) -> int: ...

    def prompt_positions(self, question: str, options: tuple[str, ...]) -> int: ...

    def clip_positions(self, *, num_frames: int, height: int, width: int, num_samples: int) -> int: ...


class Budget:
    """Counts a request in three stages, each before the work that it bounds: text, decoding, model.

    Raises ValueError where the configuration leaves no room for any request.
    """

    def __init__(self, model: Counts, config: ServeConfig) -> None:
        self._model, self._config = model, config
        self.max_model_len = config.max_model_len or min(model.max_positions, _MOST_BY_DEFAULT)
        if self.max_model_len > model.max_positions:
            raise ValueError(
                f"max_model_len is {self.max_model_len}, and the model has {model.max_positions} positions; lower it"
            )
        self._smallest_clip = model.clip_positions(num_frames=1, height=28, width=28, num_samples=0)
        most = self._answer(Limits(max_new_tokens=config.max_new_tokens, max_phases=config.max_phases))
        if most + self._smallest_clip >= self.max_model_len:
            raise ValueError(
                f"max_model_len={self.max_model_len} leaves no room for a question: max_new_tokens and max_phases "
                f"take {most} positions, the smallest clip {self._smallest_clip}; raise it or lower those"
            )

    @property
    def largest_clip(self) -> int:
        """Positions of a clip of `max_duration_s` as the sampler takes it, with sound, at the model's frame size."""
        frames = min(self._model.max_frames, round(self._config.max_duration_s * self._model.fps) + 1)
        samples = int(self._config.max_duration_s * _WAVEFORM_HZ)
        # Frames far above the model's size are brought down to it.
        return self._model.clip_positions(num_frames=frames, height=4096, width=4096, num_samples=samples)

    def check_text(self, prompt: Prompt, limits: Limits) -> int:
        """Positions of the prompt without its clip; `RequestError` where no clip would fit beside it. Takes a moment
        for long texts: not for an event loop.
        """
        chars = len(prompt.question) + sum(len(option) for option in prompt.options)
        if chars > self.max_model_len * _CHARS_PER_POSITION:
            raise _too_long(
                f"the text has {chars:,} characters, more than {self.max_model_len:,} positions can hold; shorten it"
            )
        try:
            positions = self._model.prompt_positions(prompt.question, prompt.options)
        except ValueError as error:
            raise _not_answerable(error) from None
        allowed = self.max_model_len - self._answer(limits) - self._smallest_clip
        if positions > allowed:
            raise _too_long(
                f"the prompt has {positions:,} positions without its clip; with {self._of_answer(limits)} and the "
                f"smallest clip ({self._smallest_clip:,}) this server allows {allowed:,} of {self.max_model_len:,}; "
                "shorten the text"
            )
        return positions

    def check_clip(self, prompt_positions: int, clip: DecodedClip, limits: Limits) -> None:
        """`RequestError` where the decoded clip does not fit beside the text."""
        num_frames, height, width = clip.frames.shape[:3]
        samples = 0 if clip.waveform is None else len(clip.waveform)
        try:
            positions = self._model.clip_positions(
                num_frames=num_frames, height=height, width=width, num_samples=samples
            )
        except ValueError as error:
            raise _not_answerable(error) from None
        allowed = self.max_model_len - self._answer(limits)
        if prompt_positions + positions > allowed:
            raise _too_long(
                f"the prompt has {prompt_positions + positions:,} positions ({positions:,} of them the clip's); with "
                f"{self._of_answer(limits)} this server allows {allowed:,} of {self.max_model_len:,}; cut out a "
                "part of the clip, or ask for fewer new tokens"
            )

    def _answer(self, limits: Limits) -> int:
        """Positions that an answer may take: its tokens, and for each phase the slots and the stop."""
        phase = self._model.num_slots + 1 if self._model.num_slots else 0
        return limits.max_new_tokens + limits.max_phases * phase

    def _of_answer(self, limits: Limits) -> str:
        return f"{limits.max_new_tokens:,} new tokens, {self._answer(limits) - limits.max_new_tokens:,} latent slots"


def _not_answerable(error: ValueError) -> RequestError:
    """What omni_model cannot put to the model; its messages say what to change."""
    return RequestError(str(error), code="not_answerable", param="messages")


def _too_long(message: str) -> RequestError:
    return RequestError(message, code="context_length_exceeded", param="messages")
