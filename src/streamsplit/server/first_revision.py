"""The revision of the encoder that a server starts with."""

from __future__ import annotations

from streamsplit.server.models import RevisionFiles, weights_file
from streamsplit.server.refiner_loop import current_revision
from streamsplit.server.settings import ServerSettings
from streamsplit.weights.delta import pack_full
from streamsplit.weights.pretrained import start_encoder
from streamsplit.weights.revision import Weights, encoder_weights, revision_of


def first_revision(settings: ServerSettings, files: RevisionFiles) -> tuple[str, int, Weights]:
    """(revision, space, weights): what the last checkpoint names, else the encoder as devices make it.

    The latter comes from the seed or a published file, and is written to `files` so that devices can fetch it.
    Raises RevisionError or CheckpointError if the checkpoint's weights cannot be read.
    """
    named = current_revision(settings.data_path)
    if named is not None:
        revision, space = named
        return revision, space, files.weights(revision)
    weights = encoder_weights(start_encoder(settings.encoder))
    revision = revision_of(weights)
    if revision not in files:
        full, exact = pack_full(weights, "fp32")
        files.write(revision, weights_file(exact), full, None, "")
    return revision, settings.encoder.first_space, weights
