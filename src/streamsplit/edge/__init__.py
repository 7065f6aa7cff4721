"""The device end: sources, runtime, monitor, queue, client."""
