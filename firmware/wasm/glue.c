/* What JavaScript calls: one encoder, its buffers at addresses that the module gives. Built without a C library. */
#include "tinystream.h"

#define EXPORT(name) __attribute__((export_name(name)))
#define MOST_FRAMES 500

static ts_encoder encoder;
static int16_t samples[TS_HOP];
static uint16_t indices[MOST_FRAMES * TS_QUANTIZERS];
static uint8_t packet[TS_PACKET_BYTES(MOST_FRAMES)];

void *memcpy(void *restrict to, const void *restrict from, size_t size)
{
    unsigned char *out = to;
    const unsigned char *in = from;
    while (size--)
        *out++ = *in++;
    return to;
}

void *memset(void *to, int value, size_t size)
{
    unsigned char *out = to;
    while (size--)
        *out++ = (unsigned char)value;
    return to;
}

int memcmp(const void *one, const void *other, size_t size)
{
    const unsigned char *a = one, *b = other;
    for (; size--; a++, b++)
        if (*a != *b)
            return *a - *b;
    return 0;
}

EXPORT("hop") int hop(void) { return TS_HOP; }
EXPORT("quantizers") int quantizers(void) { return TS_QUANTIZERS; }
EXPORT("most_frames") int most_frames(void) { return MOST_FRAMES; }
EXPORT("samples") int16_t *samples_at(void) { return samples; }
EXPORT("indices") uint16_t *indices_at(void) { return indices; }
EXPORT("packet") uint8_t *packet_at(void) { return packet; }
EXPORT("start") void start(void) { ts_init(&encoder); }
EXPORT("encode") void encode(int frame) { ts_encode(&encoder, samples, indices + frame * TS_QUANTIZERS); }
EXPORT("pack") size_t pack(int frames, unsigned count)
{
    return ts_pack(packet, sizeof packet, indices, (size_t)frames, count);
}
