"""A codec's encoder as C: constants for firmware/, and golden vectors that its build is checked against."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from streamsplit.audio.synth import render_scene
from streamsplit.codec.tinystream import integer_front
from streamsplit.codec.tinystream.bitstream import MODEL_ID_BYTES, pack
from streamsplit.codec.tinystream.integer import IntegerEncoder, Kind, Operation

_LINE = 20  # numbers
_GOLDEN_FRAMES = 50


class Sizes(NamedTuple):
    """What the runtime needs of static memory, in numbers of 16 bits unless said."""

    contexts: int  # of all convolutions
    activations: int  # the largest between two operations
    held: int  # the largest that a residual unit holds
    joined: int  # the largest context and input of a convolution
    macs: int  # multiply-accumulates of the program for a frame
    search_macs: int  # of the codebooks' search for a frame

    def ram_bytes(self, encoder: IntegerEncoder) -> int:
        """Static memory of the runtime: state, scratch, the front's transform and the codebooks' squares."""
        halves = self.contexts + 2 * self.activations + self.held + self.joined
        squares = 4 * int(encoder.codebooks.shape[0]) * int(encoder.codebooks.shape[1])
        if encoder.front is None:
            return 2 * (halves + 1) + squares
        context = encoder.front.context
        return 2 * (halves + 2 * context + 1 + encoder.hop) + squares + 2 * 4 * integer_front.FFT


def sizes(encoder: IntegerEncoder) -> Sizes:
    """Walks the program once, with a frame."""
    front = encoder.front
    steps, channels = (encoder.hop, 1) if front is None else (encoder.hop // front.hop, front.bands)
    contexts = held = joined = macs = 0
    activations = steps * channels
    for operation in encoder.program:
        if operation.kind is Kind.KEEP:
            held = max(held, steps * channels)
        elif operation.weight is not None:
            context = max(0, operation.kernel - operation.stride) * operation.inputs
            contexts += context
            joined = max(joined, context + steps * operation.inputs)
            steps, channels = steps // operation.stride, len(operation.weight)
            macs += steps * operation.weight.size
            activations = max(activations, steps * channels)
    search_macs = int(np.prod(encoder.codebooks.shape))
    return Sizes(contexts, activations, max(1, held), joined, macs, search_macs)


def score_bits(encoder: IntegerEncoder) -> int:
    """Bits that every score of the codebooks' search fits: 32 where the largest residual allows, else 64."""
    largest = [1 << shift for shift in encoder.codebook_shifts]
    residual = (1 << 15) + 128 * sum(largest)
    latent = encoder.codebooks.shape[2]
    score = 2 * residual * 128 * latent + latent * 128**2 * max(largest)
    return 32 if score < 1 << 31 else 64


def c_files(encoder: IntegerEncoder) -> dict[str, str]:
    """File name -> text: the model's header and source, and golden vectors for C and JavaScript."""
    golden = golden_vectors(encoder)
    return {
        "tinystream_model.h": _header(encoder),
        "tinystream_model.c": _source(encoder),
        "tinystream_golden.h": _golden_header(golden),
        "tinystream_golden.json": json.dumps(
            {
                "samples": golden.samples.tolist(), "indices": golden.indices.T.ravel().tolist(),
                "packet": golden.packet.hex(),
            }
        ) + "\n",
    }  # fmt: skip


def _header(encoder: IntegerEncoder) -> str:
    front, size = encoder.front, sizes(encoder)
    quantizers, entries, latent = encoder.codebooks.shape
    macros = {
        "HOP": encoder.hop, "QUANTIZERS": quantizers, "ENTRIES": entries, "INDEX_BITS": entries.bit_length() - 1,
        "LATENT": latent, "OPERATIONS": len(encoder.program), "CONTEXTS": max(1, size.contexts),
        "ACTIVATIONS": size.activations, "HELD": size.held, "JOINED": size.joined,
        "SCORE_BITS": score_bits(encoder),
        "BANDS": 0 if front is None else front.bands, "FRONT_CONTEXT": 0 if front is None else front.context,
    }  # fmt: skip
    if front is not None:
        macros |= {
            "FFT": integer_front.FFT, "FRONT_HOP": front.hop, "FLOOR": front.floor, "LEVEL_SLOPE": front.slope,
            "LEVEL_OFFSET": front.offset,
        }  # fmt: skip
    lines = [f"#define TS_{name} {value}" for name, value in macros.items()]
    tables = [] if front is None else [
        "extern const int16_t ts_window[TS_FFT], ts_cosines[TS_FFT / 2], ts_sines[TS_FFT / 2];",
        f"extern const uint16_t ts_log_table[{(1 << integer_front.LOG_TABLE_BITS) + 1}];",
        "extern const uint16_t ts_filter_starts[TS_BANDS], ts_filter_lengths[TS_BANDS], ts_filter_shares[];",
    ]  # fmt: skip
    return "\n".join(
        [
            "/* Written by `streamsplit codec export`: do not edit. */", "#ifndef TINYSTREAM_MODEL_H",
            "#define TINYSTREAM_MODEL_H", "", "#include <stdint.h>", "", *lines, "",
            "enum { TS_DENSE = 0, TS_DEPTHWISE = 1, TS_KEEP = 2, TS_ADD = 3 };", "",
            "typedef struct {", "    uint8_t kind, kernel, stride, relu;", "    uint16_t inputs, outputs;",
            "    const int8_t *weight;       /* [outputs][kernel][inputs], depthwise [outputs][kernel] */",
            "    const int32_t *bias;", "    const uint16_t *multiplier;", "    const uint8_t *shift;",
            "} ts_operation;", "", "extern const ts_operation ts_program[TS_OPERATIONS];",
            "extern const int8_t ts_codebooks[TS_QUANTIZERS * TS_ENTRIES * TS_LATENT];",
            "extern const uint8_t ts_codebook_shifts[TS_QUANTIZERS], ts_model_id[4];", *tables, "", "#endif", "",
        ]
    )  # fmt: skip


def _source(encoder: IntegerEncoder) -> str:
    parts = ["/* Written by `streamsplit codec export`: do not edit. */", '#include "tinystream_model.h"', ""]
    rows = []
    for number, operation in enumerate(encoder.program):
        if operation.weight is None:
            rows.append(f"    {{{int(operation.kind)}, 0, 1, 0, 0, 0, 0, 0, 0, 0}},")
            continue
        parts += _operation_arrays(number, operation)
        outputs = len(operation.weight)
        rows.append(
            f"    {{{int(operation.kind)}, {operation.kernel}, {operation.stride}, {int(operation.relu)}, "
            f"{operation.inputs}, {outputs}, weight{number}, bias{number}, multiplier{number}, shift{number}}},"
        )
    parts += ["const ts_operation ts_program[TS_OPERATIONS] = {", *rows, "};", ""]
    parts += _array("const int8_t ts_codebooks[TS_QUANTIZERS * TS_ENTRIES * TS_LATENT]", encoder.codebooks)
    parts += _array("const uint8_t ts_codebook_shifts[TS_QUANTIZERS]", encoder.codebook_shifts)
    parts += _array("const uint8_t ts_model_id[4]", encoder.model_id[:MODEL_ID_BYTES])
    front = encoder.front
    if front is not None:
        cosines, sines = integer_front.twiddles()
        parts += _array("const int16_t ts_window[TS_FFT]", integer_front.window())
        parts += _array("const int16_t ts_cosines[TS_FFT / 2]", cosines)
        parts += _array("const int16_t ts_sines[TS_FFT / 2]", sines)
        parts += _array("const uint16_t ts_log_table[]", integer_front.log_table())
        spans = [(int(np.flatnonzero(row)[0]), int(np.flatnonzero(row)[-1]) + 1) for row in front.filters]
        parts += _array("const uint16_t ts_filter_starts[TS_BANDS]", [start for start, _ in spans])
        parts += _array("const uint16_t ts_filter_lengths[TS_BANDS]", [end - start for start, end in spans])
        shares = np.concatenate([row[start:end] for row, (start, end) in zip(front.filters, spans, strict=True)])
        parts += _array("const uint16_t ts_filter_shares[]", shares)
    return "\n".join(parts)


def _operation_arrays(number: int, operation: Operation) -> Iterator[str]:
    for name, kind, values in (
        ("weight", "int8_t", operation.weight), ("bias", "int32_t", operation.bias),
        ("multiplier", "uint16_t", operation.multiplier), ("shift", "uint8_t", operation.shift),
    ):  # fmt: skip
        assert values is not None
        yield from _array(f"static const {kind} {name}{number}[]", values)


def golden_samples(hop: int, seed: int = 0) -> NDArray[np.int16]:
    """Whole frames of synthetic sound, digital silence, and samples that clip."""
    rng = np.random.default_rng(seed)
    half = _GOLDEN_FRAMES // 2 * hop
    scene = np.concatenate([render_scene(label, half / 16_000, rng) for label in ("conversation", "alarm")])
    audio = np.concatenate([scene[: 2 * half], np.zeros(4 * hop), 3.0 * rng.standard_normal(4 * hop)])
    whole = len(audio) // hop * hop
    return np.asarray(np.rint(np.clip(audio[:whole], -1, 1) * 32_767), np.int16)


class Golden(NamedTuple):
    """Samples, and what the reference makes of them."""

    samples: NDArray[np.int16]
    indices: NDArray[np.int64]  # [quantizers, frames]
    packet: bytes


def golden_vectors(encoder: IntegerEncoder) -> Golden:
    """What every build of the runtime must give."""
    samples = golden_samples(encoder.hop)
    indices, _ = encoder.step(samples, encoder.initial())
    bits = encoder.codebooks.shape[1].bit_length() - 1
    return Golden(samples, indices, pack(indices, bits, encoder.model_id[:MODEL_ID_BYTES]))


def _golden_header(golden: Golden) -> str:
    return "\n".join(
        [
            "/* Written by `streamsplit codec export`: samples, and what the Python reference makes of them. */",
            "#include <stdint.h>", "", f"#define GOLDEN_FRAMES {golden.indices.shape[1]}",
            *_array("static const int16_t golden_samples[]", golden.samples),
            *_array("static const uint16_t golden_indices[]", golden.indices.T),
            *_array("static const uint8_t golden_packet[]", golden.packet),
        ]
    )  # fmt: skip


def _array(declaration: str, values: Iterable[int] | NDArray[np.integer]) -> Iterator[str]:
    """A C array's lines."""
    numbers = [str(int(value)) for value in (values.ravel() if isinstance(values, np.ndarray) else values)]
    yield f"{declaration} = {{"
    for at in range(0, len(numbers), _LINE):
        yield "    " + ", ".join(numbers[at : at + _LINE]) + ","
    yield "};"
    yield ""
