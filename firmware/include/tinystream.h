/* TinyStream's encoder for microcontrollers: samples in, codes out, all state in one struct, no malloc, no floats.
 *
 * The model is compiled in: `streamsplit codec export --format c` writes tinystream_model.h and tinystream_model.c.
 * The numbers are those of the Python reference (codec/tinystream/integer.py), bit for bit.
 */
#ifndef TINYSTREAM_H
#define TINYSTREAM_H

#include <stddef.h>
#include <stdint.h>

#include "tinystream_model.h"

#define TS_HEADER_BYTES 8
#define TS_FRAME_BITS (TS_QUANTIZERS * TS_INDEX_BITS)
#define TS_PACKET_BYTES(frames) (TS_HEADER_BYTES + ((size_t)(frames) * TS_FRAME_BITS + 7) / 8)

typedef struct {
    int16_t samples[TS_FRONT_CONTEXT + 1];      /* that the front still needs */
    int16_t contexts[TS_CONTEXTS];              /* of all convolutions */
    int32_t squares[TS_QUANTIZERS][TS_ENTRIES]; /* of the codebooks' entries, computed once */
} ts_encoder;

/* Silence before the first sample. */
void ts_init(ts_encoder *encoder);

/* One frame: TS_HOP samples become TS_QUANTIZERS indices. */
void ts_encode(ts_encoder *encoder, const int16_t *samples, uint16_t *indices);

/* Packs `frames` frames of `quantizers` indices each, frame by frame, behind the 8-byte header.
 * Gives the packet's bytes, 0 where they do not fit `room` or the numbers are out of range. */
size_t ts_pack(uint8_t *out, size_t room, const uint16_t *indices, size_t frames, unsigned quantizers);

/* Unpacks a packet of this model into at most `room` indices; gives the frames, -1 for anything that is no such packet. */
long ts_unpack(const uint8_t *data, size_t size, uint16_t *indices, size_t room, unsigned *quantizers);

#endif
