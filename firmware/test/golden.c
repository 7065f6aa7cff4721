/* The runtime against the Python reference: the same codes, the same bytes, and packets that are none refused. */
#include <stdio.h>
#include <string.h>

#include "tinystream.h"
#include "tinystream_golden.h"

static ts_encoder encoder;
static uint16_t indices[GOLDEN_FRAMES * TS_QUANTIZERS], unpacked[GOLDEN_FRAMES * TS_QUANTIZERS];
static uint8_t packet[TS_PACKET_BYTES(GOLDEN_FRAMES)], broken[TS_PACKET_BYTES(GOLDEN_FRAMES)];

static int fails(const char *what)
{
    printf("failed: %s\n", what);
    return 1;
}

int main(void)
{
    ts_init(&encoder);
    for (int frame = 0; frame < GOLDEN_FRAMES; frame++)
        ts_encode(&encoder, golden_samples + frame * TS_HOP, indices + frame * TS_QUANTIZERS);
    for (size_t i = 0; i < GOLDEN_FRAMES * TS_QUANTIZERS; i++)
        if (indices[i] != golden_indices[i]) {
            printf("frame %d, quantizer %d: got %d, expected %d\n", (int)(i / TS_QUANTIZERS),
                   (int)(i % TS_QUANTIZERS), indices[i], golden_indices[i]);
            return fails("codes");
        }
    size_t size = ts_pack(packet, sizeof packet, indices, GOLDEN_FRAMES, TS_QUANTIZERS);
    if (size != sizeof golden_packet || memcmp(packet, golden_packet, size) != 0)
        return fails("packet");
    unsigned quantizers = 0;
    if (ts_unpack(packet, size, unpacked, sizeof unpacked / sizeof *unpacked, &quantizers) != GOLDEN_FRAMES ||
        quantizers != TS_QUANTIZERS || memcmp(unpacked, indices, sizeof indices) != 0)
        return fails("unpacking");
    for (size_t cut = 0; cut < size; cut++)
        if (ts_unpack(packet, cut, unpacked, sizeof unpacked / sizeof *unpacked, &quantizers) != -1)
            return fails("a packet cut short was taken");
    if (ts_pack(packet, size - 1, indices, GOLDEN_FRAMES, TS_QUANTIZERS) != 0)
        return fails("a packet was written beyond its room");
    uint32_t random = 1;
    for (int round = 0; round < 2000; round++) { /* any damage is refused or gives indices within the codebooks */
        memcpy(broken, packet, size);
        for (int change = 0; change < 4; change++) {
            random = random * 1664525u + 1013904223u;
            broken[(random >> 8) % size] = (uint8_t)random;
        }
        long frames = ts_unpack(broken, size, unpacked, sizeof unpacked / sizeof *unpacked, &quantizers);
        for (long i = 0; i < frames * (long)quantizers; i++)
            if (unpacked[i] >= TS_ENTRIES)
                return fails("an index outside the codebook");
    }
    printf("ok: %d frames\n", GOLDEN_FRAMES);
    return 0;
}
