"""The cut table that a device starts with: its own profile, or the packaged one scaled to it."""

from __future__ import annotations

import logging

import numpy as np

from streamsplit.codec.opus import encode_segment
from streamsplit.edge.settings import EdgeSettings
from streamsplit.errors import AudioError, CutError
from streamsplit.splitting.table import CutTable, load_table, packaged_table
from streamsplit.wire.media import Encoding

log = logging.getLogger(__name__)


def device_table(settings: EdgeSettings) -> CutTable:
    """The table that `splitting.table` names, else the packaged one; without a codec's cuts where it is missing.

    Raises CutError for a named table of another encoder. The packaged one stands in for an encoder of another width,
    which the log says, without the bottlenecks that this one does not have.
    """
    path = settings.splitting.table
    profile = settings.device.profile
    table = load_table(path) if path else packaged_table(settings.encoder.name, profile)
    if path:
        if settings.encoder.enabled:
            try:
                table.check_encoder(settings.encoder)
            except CutError as error:
                raise CutError(f"{path}: {error}") from None
    else:
        table = table.supported(settings.encoder.bottleneck_blocks)
        try:
            table.check_encoder(settings.encoder)
        except CutError as error:
            log.warning("costs are those of another encoder: %s", error)
    if any(cut.encoding is Encoding.OPUS24 for cut in table.cuts):
        try:
            encode_segment(np.zeros(1600, np.float32))
        except AudioError as error:
            log.warning("no Opus cuts: %s", error)
            table = table.only([cut for cut in table.cuts if cut.encoding is not Encoding.OPUS24])
    if not settings.codec.name:
        table = table.only([cut for cut in table.cuts if cut.encoding is not Encoding.TINYSTREAM])
    return table
