"""A model on disk: a Hugging Face folder, and beside the weights what the method adds.

config.json, model*.safetensors, tokenizer*   what stock `from_pretrained` loads
method.json                                    the method, its options, how clips are prepared and questions put
method.safetensors                             the method's own weights (feedback, sync heads)
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoTokenizer,
    PreTrainedTokenizerBase,
    Qwen2_5OmniThinkerForConditionalGeneration,
)
from transformers.utils import logging as transformers_logging

from omni_model.heads import Heads
from omni_model.methods import make_method
from omni_model.methods.base import Method
from omni_model.options import read_options
from omni_model.prompt import PROMPTS, PromptTemplate
from omni_model.qwen_omni import QwenOmniBackbone
from omni_model.vocabulary import LATENT_TOKENS, Vocabulary, read_vocabulary, text_ids

TINY_BASE = Path(__file__).parent / "tiny_base"
"""The toy base that ships with the package; `model_name_or_path: tiny` means this folder."""
_FORMAT = 2
_OPEN_FORMAT = 1
"""Before templates: every question was put as `open` puts it, with the system prompt beside the other preparations."""
_WORTH_A_BAR = 100e6
"""Bytes of weights that take a while to load."""


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """How clips are made ready and questions put; training, evaluation and serving must agree on it."""

    fps: float = 2.0
    """Frames sampled a second."""
    fps_max_frames: int = 256
    """At most so many frames; longer clips are sampled more thinly, with their true rate told to the model."""
    video_min_pixels: int = 56 * 56
    video_max_pixels: int = 56 * 56
    """Area of a prepared frame."""
    use_audio_in_video: bool = True
    prompt: PromptTemplate = PROMPTS["open"]
    """How questions are put and answers written."""


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A model ready to train or answer."""

    backbone: QwenOmniBackbone
    tokenizer: PreTrainedTokenizerBase
    vocabulary: Vocabulary


Whole = Callable[[Sequence[torch.Tensor]], AbstractContextManager[None]]
"""A context in which the given weights are whole, and after which what worker 0 wrote into them is kept."""


def already_whole(parameters: Sequence[torch.Tensor]) -> AbstractContextManager[None]:
    """For weights that nobody has divided among workers."""
    return nullcontext()


def load_backbone(
    model_name_or_path: str, *, dtype: torch.dtype = torch.float32, whole: Whole = already_whole
) -> Loaded:
    """Load a Thinker by folder or hub name: Thinker-only, or the full Omni class (its talker is left out).

    `tiny` is the toy base that ships with the package; `whole` is for loading under ZeRO-3. Raises `ValueError` naming
    the folder where nothing can be loaded from it.
    """
    name = str(TINY_BASE) if model_name_or_path == "tiny" else model_name_or_path
    if (Path(name).exists() or name.startswith((".", "/"))) and not (Path(name) / "config.json").is_file():
        raise ValueError(f"no config.json in {name}: give model_name_or_path a Hugging Face folder, a hub name or tiny")
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
    except OSError as error:
        raise ValueError(
            f"model_name_or_path={name} is no folder here, and the hub has no such model or cannot be reached: give it "
            "a Hugging Face folder, a hub name or tiny"
        ) from error
    thinker, info = _from_pretrained(name, dtype=dtype)
    if info["missing_keys"]:
        raise ValueError(f"{name} lacks weights of the Thinker: {sorted(info['missing_keys'])[:5]} …")
    _forget_unused_renamings(thinker)
    known = set(tokenizer.get_vocab())
    vocabulary = read_vocabulary(tokenizer)
    if new := [t for t in LATENT_TOKENS if t not in known]:
        init_new_rows(thinker, tokenizer.convert_tokens_to_ids(new), whole=whole)
    return Loaded(backbone=QwenOmniBackbone(thinker), tokenizer=tokenizer, vocabulary=vocabulary)


def _from_pretrained(
    name: str | Path, **options: Any
) -> tuple[Qwen2_5OmniThinkerForConditionalGeneration, dict[str, Any]]:
    """What the stock class loads, and its own account of it (missing and unexpected keys)."""
    weights = [file.stat().st_size for file in Path(name).glob("*.safetensors")]
    # The toy is there at once: a bar for every worker and every cell would bury what their logs have to say.
    silent = weights and sum(weights) < _WORTH_A_BAR and transformers_logging.is_progress_bar_enabled()
    if silent:
        transformers_logging.disable_progress_bar()
    try:
        loaded = Qwen2_5OmniThinkerForConditionalGeneration.from_pretrained(name, output_loading_info=True, **options)
    finally:
        if silent:
            transformers_logging.enable_progress_bar()
    return cast(tuple[Qwen2_5OmniThinkerForConditionalGeneration, dict[str, Any]], loaded)


def _forget_unused_renamings(thinker: Qwen2_5OmniThinkerForConditionalGeneration) -> None:
    """Keep the names of the checkpoint that was read, for saving.

    transformers notes which of its renamings a checkpoint needed, and undoes them on saving. Under ZeRO-3 it notes all
    that it knows, needed or not, and would save names that no class reads.
    """
    noted = getattr(thinker, "_weight_conversions", None) or []
    cast(Any, thinker)._weight_conversions = [renaming for renaming in noted if renaming.was_used()]


def init_new_rows(
    thinker: Qwen2_5OmniThinkerForConditionalGeneration, ids: list[int], *, whole: Whole = already_whole
) -> None:
    """Give new tokens the mean of the rows in use, on the input and the output side.

    The real embedding has unused rows at its end, so usually nothing is resized; untrained rows would start as noise.
    """
    embedding = cast(nn.Embedding, thinker.get_input_embeddings())
    if max(ids) >= embedding.num_embeddings:
        thinker.resize_token_embeddings(max(ids) + 1, mean_resizing=False)
        embedding = cast(nn.Embedding, thinker.get_input_embeddings())
    for table in (embedding.weight, thinker.lm_head.weight):
        with whole([table]), torch.no_grad():
            table[ids] = table[: min(ids)].float().mean(0).to(table.dtype)


def start_markers_like(loaded: Loaded, text: str, *, whole: Whole = already_whole) -> None:
    """Let the trigger and the stop begin as copies of a token after which the model already answers, such as `:`.

    A marker that has never been read makes the model learn anew to look things up from where it stands; one that is
    read as a token it knows does so from the first step. Raises `ValueError` where the text is not one token.
    """
    ids = text_ids(loaded.tokenizer, text)
    if len(ids) != 1:
        raise ValueError(f"markers can begin as one token only, and {text!r} is {len(ids)}; take another text")
    table = cast(nn.Embedding, loaded.backbone.thinker.get_input_embeddings()).weight
    with whole([table]), torch.no_grad():
        table[[loaded.vocabulary.trigger, loaded.vocabulary.stop]] = table[ids[0]].clone()


def save_folder(
    folder: Path,
    *,
    backbone: QwenOmniBackbone,
    tokenizer: PreTrainedTokenizerBase,
    method: Method,
    heads: Heads,
    preparation: Preparation,
    state: Mapping[str, torch.Tensor] | None = None,
) -> None:
    """Write a folder that stock `from_pretrained` loads, with the method beside the weights.

    `state` replaces the backbone's own weights, for callers who gathered them from shards.
    """
    folder.mkdir(parents=True, exist_ok=True)
    backbone.thinker.save_pretrained(folder, state_dict=dict(state) if state is not None else None)
    tokenizer.save_pretrained(folder)
    weights = {name: value.contiguous() for name, value in heads.state_dict().items()}
    if weights:
        save_file(weights, folder / "method.safetensors")
    description = {
        "format": _FORMAT,
        "method": method.name,
        "options": asdict(method),  # type: ignore[call-overload]
        "preparation": asdict(preparation),
    }
    (folder / "method.json").write_text(json.dumps(description, indent=2, sort_keys=True) + "\n")


@dataclass(frozen=True, kw_only=True)
class Exported:
    """An exported folder, loaded."""

    loaded: Loaded
    method: Method
    heads: Heads
    preparation: Preparation


def load_folder(folder: str | Path, *, dtype: torch.dtype = torch.float32) -> Exported:
    """Load what `save_folder` wrote. Raises `ValueError` for a folder without a method.json or the method's weights."""
    path = TINY_BASE if str(folder) == "tiny" else Path(folder)
    description = _read_description(path)
    loaded = load_backbone(str(path), dtype=dtype)
    method = make_method(description["method"], description["options"])
    heads = method.build_heads(loaded.backbone.width)
    if heads.state_dict():
        heads.load_state_dict(_read_heads(path / "method.safetensors"))
    return Exported(
        loaded=loaded,
        method=method,
        heads=heads.to(dtype),
        preparation=_read_preparation(description),
    )


def _read_preparation(description: Mapping[str, Any]) -> Preparation:
    values = dict(description["preparation"])
    prompt = values.pop("prompt", {})
    if description["format"] == _OPEN_FORMAT:
        prompt = {"system_prompt": values.pop("system_prompt", "")}
    template = read_options(PromptTemplate, prompt, owner="the prompt of method.json", noun="field")
    return Preparation(**values, prompt=template)


def _read_heads(file: Path) -> dict[str, torch.Tensor]:
    if not file.is_file():
        raise ValueError(f"{file} is missing: the method's own weights would be random. Export the model again")
    return load_file(file)


def _read_description(path: Path) -> dict[str, Any]:
    file = path / "method.json"
    if not file.is_file():
        raise ValueError(f"{path} has no method.json: it is not an exported model. Export one with jobs/export.py")
    description = json.loads(file.read_text())
    if description.get("format") not in (_OPEN_FORMAT, _FORMAT):
        raise ValueError(
            f"{file} has format {description.get('format')}; this version reads formats {_OPEN_FORMAT} and {_FORMAT}"
        )
    return description


def check_stock_load(folder: Path) -> int:
    """Load a folder with the stock class alone; returns its number of weights.

    Raises `ValueError` where weights are missing, left over, or differ from what `load_folder` gives.
    """
    stock, info = _from_pretrained(folder)
    if info["missing_keys"] or info["unexpected_keys"]:
        raise ValueError(
            f"{folder} does not fit the stock class: it lacks {info['missing_keys']} and has too many "
            f"{info['unexpected_keys']}"
        )
    ours = load_folder(folder).loaded.backbone.thinker.state_dict()
    for name, value in stock.state_dict().items():
        if not torch.equal(value.float(), ours[name].float()):
            raise ValueError(f"weight {name} of {folder} differs between the stock class and load_folder")
    return sum(value.numel() for value in stock.parameters())
