"""Every error StreamSplit raises on purpose; each says what was got, what was expected and what to do."""

from __future__ import annotations


class StreamSplitError(Exception):
    """Root of the tree; the command line prints its text as one line and exits with `exit_code`."""

    exit_code = 1


class ConfigError(StreamSplitError):
    """A setting is unknown, of the wrong type or out of range."""

    exit_code = 2


class MissingExtraError(StreamSplitError):
    """An optional dependency is not installed; the text names the extra to install."""

    exit_code = 3

    def __init__(self, feature: str, extra: str, cause: str = "") -> None:
        tail = f" ({cause})" if cause else ""
        super().__init__(f"{feature} needs the extra '{extra}': pip install -e '.[{extra}]' in the checkout{tail}")
        self.extra = extra


class AudioError(StreamSplitError):
    """Audio could not be opened, read or decoded, or has the wrong shape or rate."""


class DriverError(StreamSplitError):
    """A sound driver holds on to the streams of devices that are gone; only a new process helps."""


class EncoderError(StreamSplitError):
    """An encoder was given an input, block index or state that it cannot take."""


class CutError(StreamSplitError):
    """A cut does not exist for this encoder, or its payload does not decode."""


class RevisionError(StreamSplitError):
    """Features or weights of an unknown encoder revision; never mixed, always refused."""


class CheckpointError(StreamSplitError):
    """A checkpoint could not be written or read; what was there before is untouched."""


class CollapseError(StreamSplitError):
    """A training was stopped because what it learns no longer tells anything apart."""


class StoreError(StreamSplitError):
    """The server's database or the device's offline queue failed."""


class ProtocolError(StreamSplitError):
    """The peer broke the wire protocol; `code` is the name that travels in an ERROR message."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(f"{code}: {detail}")
        self.code = code
        self.detail = detail


class ConnectionRefused(StreamSplitError):
    """The server turned this device away for good (token, version, settings); retrying will not help."""

    exit_code = 4


class PortInUseError(StreamSplitError):
    """The address to listen on is taken."""


class ManifestError(StreamSplitError):
    """A streamed model's manifest or chunk is missing, damaged, of another version or not signed as asked."""


class ClosedError(StreamSplitError):
    """A streamed model was closed, before or while it was used; open another one."""

    def __init__(self, what: str) -> None:
        super().__init__(f"{what} is closed; open another one")


class LayerUnavailable(StreamSplitError):
    """A layer's weights could not be had; `layer` names it. Nothing takes their place."""

    def __init__(self, layer: str, detail: str) -> None:
        super().__init__(f"layer '{layer}' is not available: {detail}")
        self.layer = layer
