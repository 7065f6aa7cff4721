"""StreamSplit: audio devices that listen, learn and stream continuously together with a server."""

__version__ = "0.1.0"
