"""A refiner's whole state as safetensors bytes with a JSON description, for checkpoints that continue exactly."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from streamsplit.errors import CheckpointError, RevisionError, StreamSplitError
from streamsplit.refinement.lineage import Known, Lineage, Weights
from streamsplit.refinement.reservoir import Reservoir, StoredWindow
from streamsplit.weights.revision import encoder_weights, load_weights, revision_of

if TYPE_CHECKING:
    from streamsplit.refinement.refiner import Refiner

FORMAT = "streamsplit-refiner-3"
_COUNTERS = (
    "space",
    "warm_started",
    "breaks_space",
    "steps",
    "steps_since_publish",
    "samples_since_publish",
    "bad_batches",
    "windows_taken",
    "windows_drawn",
)


def pack_refiner(refiner: Refiner) -> bytes:
    """Weights, optimiser, frozen teacher, revisions, collected windows, statistics and random states."""
    from safetensors.numpy import save

    arrays: dict[str, np.ndarray] = {}
    _put(arrays, "master", encoder_weights(refiner.encoder))
    _put(arrays, "teacher", encoder_weights(refiner.teacher))
    for number, known in enumerate(refiner.lineage):
        _put(arrays, f"revision.{number}", known.weights)
    for name, state in _optimiser_state(refiner).items():
        _put(arrays, f"optimiser.{name}", state)
    _put(arrays, "mixture", refiner.mixture.state())
    _put(arrays, "prototypes", refiner.prototypes.state())
    _put(arrays, "local", refiner.local.sums)
    arrays["generator"] = refiner.generator.get_state().numpy()
    description: dict[str, Any] = {
        "format": FORMAT,
        "encoder": refiner.encoder.name,
        "counters": {name: getattr(refiner, name) for name in _COUNTERS},
        "revisions": [[known.revision, known.space] for known in refiner.lineage],
        "random": refiner.random.bit_generator.state,
        "mixture_random": refiner.mixture.rng.bit_generator.state,
        "prototypes_random": refiner.prototypes.rng.bit_generator.state,
        "local": {"samples": refiner.local.samples, "devices": sorted(refiner.local.devices)},
        "refused_below": str(refiner.reservoir.refused_below),
        "windows": _put_windows(arrays, refiner.reservoir.items()),
        "buffer": _put_buffer(arrays, refiner),
    }
    packed: bytes = save(
        {name: np.asarray(array, order="C") for name, array in arrays.items()}, {"streamsplit": json.dumps(description)}
    )
    return packed


def unpack_refiner(refiner: Refiner, data: bytes) -> None:
    """Puts a snapshot into a refiner of the same encoder; raises CheckpointError, changing nothing, where it is bad."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        arrays = load(data)
        description = _description(data)
        if description.get("format") != FORMAT:
            raise CheckpointError(f"got a checkpoint of format {description.get('format')!r}, expected {FORMAT}")
        if description["encoder"] != refiner.encoder.name:
            raise CheckpointError(f"got a checkpoint of {description['encoder']}, expected {refiner.encoder.name}")
        lineage = Lineage(refiner.settings.keep_revisions)
        for number, (revision, space) in enumerate(description["revisions"]):
            weights = _get(arrays, f"revision.{number}")
            if revision_of(weights) != revision:
                raise CheckpointError(
                    f"got weights that do not hash to their revision {revision[:8]}: the file is damaged"
                )
            lineage.add(Known(revision, weights, int(space)))
        reservoir = _get_windows(arrays, description, refiner)
        master, teacher = _get(arrays, "master"), _get(arrays, "teacher")
        expected = encoder_weights(refiner.encoder)
        for name, array in expected.items():
            if name not in master or name not in teacher or master[name].shape != array.shape:
                raise CheckpointError(f"got a checkpoint without a fitting '{name}', expected shape {array.shape}")
        # From here on everything has been read and fits; only assignments follow.
        load_weights(refiner.encoder, master)
        load_weights(refiner.teacher, teacher)
    except (SafetensorError, KeyError, ValueError, TypeError, RevisionError) as error:
        raise CheckpointError(f"the refiner's checkpoint cannot be read ({error}); delete it to start anew") from error
    refiner.lineage, refiner.reservoir = lineage, reservoir
    refiner.optimiser = refiner._new_optimiser()
    _restore_optimiser(refiner, arrays)
    refiner.mixture.load_state(_get(arrays, "mixture"))
    refiner.mixture.rng.bit_generator.state = description["mixture_random"]
    refiner.prototypes.restore(_get(arrays, "prototypes"))
    refiner.prototypes.rng.bit_generator.state = description["prototypes_random"]
    refiner.local.clear()
    refiner.local.sums = _get(arrays, "local")
    refiner.local.samples = int(description["local"]["samples"])
    refiner.local.devices = set(description["local"]["devices"])
    refiner.buffer.clear()
    for device, number in description["buffer"].items():
        for frame, z in zip(arrays[f"buffer.{number}.frames"], arrays[f"buffer.{number}.z"], strict=True):
            refiner.buffer.add(device, int(frame), z)
    refiner.random.bit_generator.state = description["random"]
    refiner.generator.set_state(torch.from_numpy(arrays["generator"].copy()))
    for name in _COUNTERS:
        setattr(refiner, name, description["counters"][name])
    refiner._ready.clear()


def _put(arrays: dict[str, np.ndarray], prefix: str, weights: dict[str, np.ndarray]) -> None:
    for name, array in weights.items():
        arrays[f"{prefix}/{name}"] = array


def _get(arrays: dict[str, np.ndarray], prefix: str) -> Weights:
    start = f"{prefix}/"
    return {name[len(start) :]: array for name, array in arrays.items() if name.startswith(start)}


def _description(data: bytes) -> dict[str, Any]:
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    described = json.loads(header["__metadata__"]["streamsplit"])
    if not isinstance(described, dict):
        raise CheckpointError(f"got a description of type {type(described).__name__}, expected a mapping")
    return described


def _optimiser_state(refiner: Refiner) -> dict[str, dict[str, np.ndarray]]:
    names = {id(parameter): name for name, parameter in refiner.encoder.named_parameters()}
    return {
        names[id(parameter)]: {key: torch.as_tensor(value).cpu().numpy().copy() for key, value in state.items()}
        for parameter, state in refiner.optimiser.state.items()
    }


def _restore_optimiser(refiner: Refiner, arrays: dict[str, np.ndarray]) -> None:
    for name, parameter in refiner.encoder.named_parameters():
        state = _get(arrays, f"optimiser.{name}")
        if not state:
            continue
        refiner.optimiser.state[parameter] = {
            key: torch.from_numpy(value.copy())
            if key == "step"
            else torch.empty_like(parameter).copy_(torch.from_numpy(value))
            for key, value in state.items()
        }


def _put_windows(arrays: dict[str, np.ndarray], items: Iterable[StoredWindow]) -> list[list[Any]]:
    """Stacks windows of one block and shape; the description says which group and row each is."""
    groups: dict[tuple[int, tuple[int, ...]], list[StoredWindow]] = {}
    for item in items:
        groups.setdefault((item.block, item.h.shape), []).append(item)
    described: list[list[Any]] = []
    for number, ((block, _), held) in enumerate(groups.items()):
        arrays[f"windows.{number}.h"] = np.stack([item.h for item in held])
        if block:
            arrays[f"windows.{number}.partial"] = np.stack([_or_zeros(item.partial) for item in held])
        targeted = [item.target for item in held if item.target is not None]
        if targeted:
            arrays[f"windows.{number}.targets"] = np.stack(targeted)
        described += [
            [
                number,
                block,
                item.device,
                item.window,
                item.revision,
                item.label,
                item.starts,
                item.target is not None,
                item.at_ms,
            ]
            for item in held
        ]
    return described


def _get_windows(arrays: dict[str, np.ndarray], description: dict[str, Any], refiner: Refiner) -> Reservoir:
    old = refiner.reservoir
    reservoir = Reservoir(old.budget_bytes, old.seed, old.stretch)
    rows: dict[int, int] = {}
    targets: dict[int, int] = {}
    for number, block, device, window, revision, label, starts, has_target, at_ms in description["windows"]:
        row = rows.get(number, 0)
        rows[number] = row + 1
        partial = arrays[f"windows.{number}.partial"][row].copy() if block else None
        target = None
        if has_target:
            at = targets.get(number, 0)
            targets[number] = at + 1
            target = arrays[f"windows.{number}.targets"][at].copy()
        h = arrays[f"windows.{number}.h"][row].copy()
        reservoir.add(StoredWindow(device, int(window), int(block), h, partial, revision, label, starts, target, at_ms))
    reservoir.refused_below = max(reservoir.refused_below, int(description["refused_below"]))
    return reservoir


def _put_buffer(arrays: dict[str, np.ndarray], refiner: Refiner) -> dict[str, int]:
    numbers: dict[str, int] = {}
    for number, device in enumerate(refiner.buffer.devices()):
        window = refiner.buffer.window(device)
        if len(window.frames):
            numbers[device] = number
            arrays[f"buffer.{number}.frames"], arrays[f"buffer.{number}.z"] = window
    return numbers


def _or_zeros(partial: np.ndarray | None) -> np.ndarray:
    if partial is None:
        raise StreamSplitError("got a crossing without its sum")
    return partial
