"""The server end: gateway, compute, refiner, store, page."""
