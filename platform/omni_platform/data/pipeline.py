"""Preprocessing: manifest -> decoded clips -> anchors -> Parquet, as one streaming Ray Data job.

Clips are decoded in tasks (each with a child process under a deadline) and encoded in an actor pool that also
writes the parts; the driver sees counts only. Nothing is lost: rows in = rows out + rows quarantined.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

import ray
import ray.data
from annotated_types import Ge
from ray.data import ActorPoolStrategy

from omni_platform import storage
from omni_platform.artifacts import CARD_NAME, Card, card_bytes, differences, find_card
from omni_platform.bounds import Count, Natural, NotNegative, Positive, Share, check_fields
from omni_platform.config import fingerprint, to_dict
from omni_platform.data.account import AccountError, account
from omni_platform.data.anchors import BuildEncoder
from omni_platform.data.manifest import ManifestRead, read_manifest
from omni_platform.data.parts import KINDS, keep_whole_parts, read_column, write_table
from omni_platform.data.quarantine import read_quarantine, refuse_share, to_table
from omni_platform.data.stages import ENCODER_NOTE, EncodeClips, decode_rows, input_tables
from omni_platform.media.decode import DECODE_VERSION, MAX_PIXELS, Decoder
from omni_platform.schema import SCHEMA_VERSION
from omni_platform.staging import staged_output

logger = logging.getLogger(__name__)
_SAME_CONTENT = ("overwrite_output_dir", "output_dir", "manifest", "clips_per_part", "memory_mb_per_decode")
"""Fields that do not change what is written (and the manifest, whose content is fingerprinted instead)."""


@dataclass(frozen=True, kw_only=True)
class PreprocessConfig:
    """What is read, how it is decoded, and on how much of the cluster."""

    manifest: str
    """A manifest file, or a folder with manifest.jsonl or manifest.parquet in it; local or s3://."""
    output_dir: str
    """The folder of the result; local (shared by all nodes of the cluster) or s3://."""
    overwrite_output_dir: bool = False
    """Make the output again even where the same inputs, config and encoder made it before."""
    fps: Positive = 2.0
    """Frames sampled per second of clip."""
    fps_max_frames: Annotated[int, Ge(2)] = 256
    """At most so many frames per clip; longer clips are sampled more slowly."""
    decode_max_pixels: int = MAX_PIXELS
    """Pictures with more pixels are scaled down by the decoder; the encoder then brings them to its own size."""
    decoder: Decoder = "pyav"
    """What decodes the pictures. "pyav": PyAV, the reference and right for clips from strangers. "auto": decord for
    files on which it gives the same frames (but for damage that both conceal, each in its way), PyAV for the others.
    "decord": the others are refused."""
    use_audio_in_video: bool = True
    """Decode the sound of the clips. Off, every clip is mute: only rows with needs_audio false are used."""
    max_length: Count = 32768
    """Samples whose clip and words alone have more positions are quarantined, never cut. The slots and markers of a
    method come on top: training measures whole sequences against its own max_length."""
    other_segments: Natural = 0
    """Segments per clip that are encoded beside those its samples look at, spread evenly over the clip, so that a
    contrastive loss has other moments of the clip to tell the right one from."""
    max_clip_duration_s: Positive | None = None
    """Longer clips are quarantined."""
    decode_deadline_s: Positive = 60.0
    """A clip that takes longer to read and decode is cut off and quarantined."""
    fail_above_quarantined_share: Share = 1.0
    """Fail when a larger share of the rows is quarantined (1 = never; all rows are an error in any case)."""
    clips_per_part: Count = 8
    """Clips that an encoder takes at a time, and writes into one part."""
    num_encoders: Count = 1
    """Encoder actors."""
    num_cpus_per_encoder: NotNegative = 1.0
    num_gpus_per_encoder: NotNegative = 0.0
    num_cpus_per_decode: Positive = 1.0
    """CPUs that one decoding task takes; the free CPUs divided by it are the clips decoded at a time."""
    memory_mb_per_decode: Count = 512
    """Memory that Ray sets aside for a decoding task; raise it for long clips in large pictures."""

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True, kw_only=True)
class PreprocessResult:
    """What a run made, or found already made."""

    folder: str
    card: Card
    reused: bool
    seconds: float

    @property
    def summary(self) -> str:
        """One line for the log."""
        counts = self.card.counts
        reasons = [f"{n} {k.partition('.')[2]}" for k, n in counts.items() if k.startswith("quarantined.")]
        told = f" ({', '.join(reasons)})" if reasons else ""
        others = f" and {counts['other_segments']} others" if "other_segments" in counts else ""
        made = "reused (same inputs, config and encoder)" if self.reused else f"made in {self.seconds:.1f} s"
        return (
            f"preprocess: {counts['clips']} clips, {counts['samples']} samples, "
            f"{counts['segments']} segments{others}, {counts['quarantined']} quarantined{told}; {made}: {self.folder}"
        )


def preprocess(config: PreprocessConfig, build_encoder: BuildEncoder) -> PreprocessResult:
    """Run the whole pipeline on the connected Ray, or reuse an output of the same inputs, config and encoder.

    An interrupted run resumes where it stopped. Raises `ManifestError`, `QuarantineError` and `AccountError`, and,
    before any work is done, `LeaseHeldError` (another run writes there) and `ForeignFilesError` (see `staging`).
    """
    started = time.monotonic()
    manifest = read_manifest(config.manifest)
    expected = {
        "name": "anchors",
        "inputs": _input_fingerprints(manifest),
        "config_fingerprint": content_fingerprint(config),
        "schema_version": SCHEMA_VERSION,
    }
    folder = storage.absolute(config.output_dir)
    card = find_card(folder)
    if card is not None and not config.overwrite_output_dir:
        changed = differences(card, **expected)
        changed = changed or differences(card, encoder_fingerprint=_ask_encoder(config, build_encoder))
        if not changed:
            return PreprocessResult(folder=folder, card=card, reused=True, seconds=time.monotonic() - started)
        logger.warning("%s is made again: %s", folder, "; ".join(changed))

    with staged_output(folder, key=fingerprint(expected), owner="preprocess") as staged:
        staging = staged.folder
        encoder = _run(manifest, staging, config, build_encoder)
        counts = account(manifest, staging, encoder=encoder)
        refuse_share(read_quarantine(staging), manifest.num_rows, config.fail_above_quarantined_share, where=staging)
        storage.remove(storage.join(staging, ENCODER_NOTE))
        card = Card(**expected, config=to_dict(config), encoder_fingerprint=encoder, counts=counts)
        staged.commit(marker=CARD_NAME, data=card_bytes(card))
    return PreprocessResult(folder=folder, card=card, reused=False, seconds=time.monotonic() - started)


def _run(manifest: ManifestRead, staging: str, config: PreprocessConfig, build_encoder: BuildEncoder) -> str:
    """Fill the staging folder; returns the fingerprint of the encoder that did it."""
    done = _done_before(staging, config, build_encoder)
    if manifest.quarantined:
        uri = storage.join(staging, "quarantine", "part-manifest.parquet")
        write_table(uri, to_table(manifest.quarantined))
    todo = [sample for sample in manifest.samples if sample.sample_id not in done]
    if not todo:
        return _ask_encoder(config, build_encoder)
    _warn_if_it_cannot_fit(config)
    tables = input_tables(todo, base=storage.parent(manifest.uri), clips_per_block=config.clips_per_part)
    parts = (
        ray.data.from_arrow(tables)
        .map_batches(
            partial(decode_rows, options=_decode_options(config), deadline_s=config.decode_deadline_s),
            batch_size=None,
            batch_format="pyarrow",
            num_cpus=config.num_cpus_per_decode,
            # Also what keeps Ray from fusing both stages into the actors, one after the other.
            memory=config.memory_mb_per_decode * 2**20,
        )
        .map_batches(
            EncodeClips,
            fn_constructor_kwargs={
                "folder": staging,
                "build_encoder": build_encoder,
                "max_length": config.max_length,
                "other_segments": config.other_segments,
            },
            batch_size=config.clips_per_part,
            batch_format="pyarrow",
            compute=ActorPoolStrategy(size=config.num_encoders),
            num_cpus=config.num_cpus_per_encoder,
            num_gpus=config.num_gpus_per_encoder,
        )
    )
    encoders = {row["encoder"] for row in parts.iter_rows()}
    if len(encoders) != 1:
        raise AccountError(f"the actors hold different encoders ({sorted(encoders)}); give them one that is fixed")
    return encoders.pop()


def _done_before(staging: str, config: PreprocessConfig, build_encoder: BuildEncoder) -> set[str]:
    """Ids of the samples that an interrupted run has finished, with this encoder."""
    done = keep_whole_parts(staging)
    if not done:
        return set()
    if _encoders_of(staging) != {_ask_encoder(config, build_encoder)}:
        for kind in KINDS:
            storage.remove(storage.join(staging, kind))
        return set()
    logger.warning("going on with an interrupted run: %d samples are done", len(done))
    return done


def _encoders_of(staging: str) -> set[str]:
    """Fingerprints of the encoders that what is staged was made with; empty where nothing records it."""
    note = storage.join(staging, ENCODER_NOTE)
    noted = {storage.read_bytes(note).decode()} if storage.exists(note) else set()
    return noted | set(read_column(staging, "anchors", "encoder_fingerprint"))


def content_fingerprint(config: PreprocessConfig) -> str:
    """Changes with every field that changes what is written, and with the decoder's version."""
    fields = to_dict(config).items()
    decides = {k: v for k, v in fields if k not in _SAME_CONTENT and not k.startswith("num_")}
    if not config.other_segments:  # what was written before there were any is the same
        del decides["other_segments"]
    return fingerprint({**decides, "decode_version": DECODE_VERSION})


def _input_fingerprints(manifest: ManifestRead) -> dict[str, str]:
    """The manifest by content; the clips by name, size and time stamp, which one listing per folder tells."""
    clips = sorted({sample.clip_uri for sample in manifest.samples})
    listings = {folder: storage.signatures(folder) for folder in {storage.parent(clip) for clip in clips}}
    told = {clip: listings[storage.parent(clip)].get(clip.rpartition("/")[2], "missing") for clip in clips}
    return {manifest.uri: manifest.fingerprint, "clips": fingerprint(told)}


def _ask_encoder(config: PreprocessConfig, build_encoder: BuildEncoder) -> str:
    """The encoder's fingerprint, asked where one can run: the driver may have no GPU."""

    @ray.remote(num_cpus=config.num_cpus_per_encoder, num_gpus=config.num_gpus_per_encoder, max_calls=1)
    def ask() -> str:
        return build_encoder().fingerprint

    return ray.get(ask.remote())


def _decode_options(config: PreprocessConfig) -> dict[str, Any]:
    return {
        "fps": config.fps,
        "max_frames": config.fps_max_frames,
        "max_pixels": config.decode_max_pixels,
        "max_duration_s": config.max_clip_duration_s,
        "use_audio": config.use_audio_in_video,
        "decoder": config.decoder,
    }


def _warn_if_it_cannot_fit(config: PreprocessConfig) -> None:
    """Ray waits without a word for CPUs that never come; say so beforehand (an autoscaler may bring them)."""
    needed = config.num_encoders * config.num_cpus_per_encoder + config.num_cpus_per_decode
    found = ray.cluster_resources().get("CPU", 0.0)
    gpus = config.num_encoders * config.num_gpus_per_encoder
    if needed > found or gpus > ray.cluster_resources().get("GPU", 0.0):
        logger.warning(
            "%d encoders and one decoder need %g CPUs and %g GPUs, the cluster has %g CPUs: the job waits; "
            "lower num_encoders, num_cpus_per_encoder or num_cpus_per_decode",
            *(config.num_encoders, needed, gpus, found),
        )
