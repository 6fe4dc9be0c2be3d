"""Token and tower vectors of a batch, each in its place."""

# B = rows, L = positions, D = model width.

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from omni_model.backbone import Backbone
from omni_model.batch import Batch, Encoded
from omni_model.sequence import Kind


@dataclass(frozen=True, kw_only=True)
class Embedded:
    """Input vectors of a batch; latent slots still hold their placeholder's embedding."""

    inputs_BLD: torch.Tensor
    encoded: Encoded


def embed_batch(backbone: Backbone, batch: Batch) -> Embedded:
    """Embed tokens and put the clips' features where their tokens stand.

    Raises `ValueError` where the towers made another number of features than the sequence has places for.
    """
    encoded = batch.media if isinstance(batch.media, Encoded) else backbone.encode(batch.media)
    inputs = backbone.embed(batch.input_ids_BL)
    # What was kept may be in half precision, which CPUs under autocast do not take.
    encoded = Encoded(visual_ND=encoded.visual_ND.to(inputs.dtype), audio_ND=encoded.audio_ND.to(inputs.dtype))
    if batch.has_stand_in_sound:
        # Nothing of it is used, yet it stays in the graph: the backward pass must visit the audio tower too.
        inputs = inputs + encoded.audio_ND.sum() * 0.0
        encoded = replace(encoded, audio_ND=encoded.audio_ND[:0])
    for kind, features in ((Kind.VISUAL, encoded.visual_ND), (Kind.AUDIO, encoded.audio_ND)):
        place_BL = batch.kinds_BL == kind
        places = int((place_BL if batch.shared is None else place_BL[batch.shared.first_C]).sum())
        if places != len(features):
            raise ValueError(
                f"the {kind.name.lower()} tower made {len(features)} features for {places} places; "
                "the plan and the media of this batch do not belong together"
            )
        rows = batch.source_BL[place_BL]
        inputs = inputs.masked_scatter(place_BL[..., None], features[rows])
    return Embedded(inputs_BLD=inputs, encoded=encoded)
