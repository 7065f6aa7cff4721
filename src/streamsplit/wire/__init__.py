"""The sans-IO protocol (pure; standard library and msgspec)."""
