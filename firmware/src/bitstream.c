/* Packets: an 8-byte header, then the indices' bits, most significant first. */
#include <string.h>

#include "tinystream.h"

#define VERSION 1
#define MOST_FRAMES 65535u

size_t ts_pack(uint8_t *out, size_t room, const uint16_t *indices, size_t frames, unsigned quantizers)
{
    if (quantizers < 1 || quantizers > TS_QUANTIZERS || frames > MOST_FRAMES)
        return 0;
    size_t count = frames * quantizers, bytes = TS_HEADER_BYTES + (count * TS_INDEX_BITS + 7) / 8;
    if (bytes > room)
        return 0;
    out[0] = VERSION;
    out[1] = (uint8_t)((quantizers - 1) << 4 | (TS_INDEX_BITS - 1));
    out[2] = (uint8_t)(frames & 255);
    out[3] = (uint8_t)(frames >> 8);
    memcpy(out + 4, ts_model_id, 4);
    memset(out + TS_HEADER_BYTES, 0, bytes - TS_HEADER_BYTES);
    size_t place = 8 * TS_HEADER_BYTES;
    for (size_t i = 0; i < count; i++) {
        if (indices[i] >> TS_INDEX_BITS)
            return 0;
        for (int bit = TS_INDEX_BITS - 1; bit >= 0; bit--, place++)
            out[place / 8] |= (uint8_t)((indices[i] >> bit & 1) << (7 - place % 8));
    }
    return bytes;
}

long ts_unpack(const uint8_t *data, size_t size, uint16_t *indices, size_t room, unsigned *quantizers)
{
    if (size < TS_HEADER_BYTES || data[0] != VERSION || memcmp(data + 4, ts_model_id, 4) != 0)
        return -1;
    unsigned books = (data[1] >> 4) + 1u, bits = (data[1] & 15) + 1u;
    size_t frames = data[2] | (size_t)data[3] << 8, count = frames * books;
    size_t bytes = TS_HEADER_BYTES + (count * TS_INDEX_BITS + 7) / 8;
    if (books > TS_QUANTIZERS || bits != TS_INDEX_BITS || size != bytes || count > room)
        return -1;
    size_t place = 8 * TS_HEADER_BYTES;
    for (size_t i = 0; i < count; i++) {
        unsigned index = 0;
        for (int bit = 0; bit < TS_INDEX_BITS; bit++, place++)
            index = index << 1 | (data[place / 8] >> (7 - place % 8) & 1u);
        indices[i] = (uint16_t)index;
    }
    for (; place < 8 * bytes; place++)
        if (data[place / 8] >> (7 - place % 8) & 1)
            return -1;
    *quantizers = books;
    return (long)frames;
}
