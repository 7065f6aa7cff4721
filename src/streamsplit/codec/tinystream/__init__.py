"""TinyStream: a neural codec whose encoder a microcontroller runs and whose decoder lives on the server (pure)."""
