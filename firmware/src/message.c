/* MessagePack: a writer that stops at the end of its room, and a reader that believes no length. */
#include "message.h"

#include <string.h>

static void put(mp_writer *out, const void *bytes, size_t size)
{
    if (out->full || (size_t)(out->end - out->at) < size) {
        out->full = 1;
        return;
    }
    memcpy(out->at, bytes, size);
    out->at += size;
}

/* A byte, then `size` bytes of a big-endian number. */
static void put_number(mp_writer *out, uint8_t tag, uint64_t value, unsigned size)
{
    uint8_t bytes[9] = {tag};
    for (unsigned i = 0; i < size; i++)
        bytes[1 + i] = (uint8_t)(value >> (8 * (size - 1 - i)));
    put(out, bytes, 1 + size);
}

void mp_map(mp_writer *out, unsigned fields)
{
    if (fields < 16)
        put_number(out, (uint8_t)(0x80 | fields), 0, 0);
    else
        put_number(out, 0xde, fields, 2);
}

void mp_text(mp_writer *out, const char *text)
{
    size_t size = strlen(text);
    if (size < 32)
        put_number(out, (uint8_t)(0xa0 | size), 0, 0);
    else if (size < 256)
        put_number(out, 0xd9, size, 1);
    else
        put_number(out, 0xda, size, 2);
    put(out, text, size);
}

void mp_bytes(mp_writer *out, const uint8_t *bytes, size_t size)
{
    put_number(out, 0xc4, size, 1);
    put(out, bytes, size);
}

void mp_uint(mp_writer *out, uint64_t value)
{
    if (value < 128)
        put_number(out, (uint8_t)value, 0, 0);
    else if (value < 256)
        put_number(out, 0xcc, value, 1);
    else if (value < 65536)
        put_number(out, 0xcd, value, 2);
    else if (value >> 32 == 0)
        put_number(out, 0xce, value, 4);
    else
        put_number(out, 0xcf, value, 8);
}

void mp_bool(mp_writer *out, int value)
{
    put_number(out, value ? 0xc3 : 0xc2, 0, 0);
}

static int take_number(mp_reader *in, unsigned size, uint64_t *value)
{
    if ((size_t)(in->end - in->at) < size)
        return -1;
    *value = 0;
    for (unsigned i = 0; i < size; i++)
        *value = *value << 8 | *in->at++;
    return 0;
}

static int take_bytes(mp_reader *in, uint64_t size, mp_value *value, mp_kind kind)
{
    if ((uint64_t)(in->end - in->at) < size)
        return -1;
    value->kind = kind;
    value->data = in->at;
    value->size = (size_t)size;
    in->at += size;
    return 0;
}

static int whole(mp_value *value, int64_t number)
{
    value->kind = MP_INT;
    value->whole = number;
    value->real = (double)number;
    if (number >= 0) {
        value->kind = MP_UINT;
        value->number = (uint64_t)number;
    }
    return 0;
}

static int take(mp_reader *in, mp_value *value)
{
    uint64_t number;
    if (in->at == in->end)
        return -1;
    uint8_t tag = *in->at++;
    memset(value, 0, sizeof *value);
    value->kind = MP_OTHER;
    if (tag < 0x80)
        return whole(value, tag);
    if (tag >= 0xe0)
        return whole(value, (int64_t)tag - 256);
    if (tag >= 0xa0 && tag < 0xc0)
        return take_bytes(in, tag & 31u, value, MP_TEXT);
    switch (tag) {
    case 0xc0:
        return 0;
    case 0xc2:
    case 0xc3:
        value->kind = MP_BOOL;
        value->number = tag & 1u;
        return 0;
    case 0xc4:
    case 0xc5:
    case 0xc6:
        return take_number(in, 1u << (tag - 0xc4), &number) ? -1 : take_bytes(in, number, value, MP_BYTES);
    case 0xd9:
    case 0xda:
    case 0xdb:
        return take_number(in, 1u << (tag - 0xd9), &number) ? -1 : take_bytes(in, number, value, MP_TEXT);
    case 0xcc:
    case 0xcd:
    case 0xce:
    case 0xcf:
        if (take_number(in, 1u << (tag - 0xcc), &number))
            return -1;
        value->kind = MP_UINT;
        value->number = number;
        value->real = (double)number;
        return 0;
    case 0xd0:
        return take_number(in, 1, &number) ? -1 : whole(value, (int64_t)number - (number >> 7 ? 1 << 8 : 0));
    case 0xd1:
        return take_number(in, 2, &number) ? -1 : whole(value, (int64_t)number - (number >> 15 ? 1 << 16 : 0));
    case 0xd2:
        return take_number(in, 4, &number) ? -1 : whole(value, (int64_t)number - (number >> 31 ? (int64_t)1 << 32 : 0));
    case 0xd3:
        if (take_number(in, 8, &number))
            return -1;
        return whole(value, number >> 63 ? -(int64_t)(~number) - 1 : (int64_t)number);
    case 0xca: {
        float real;
        uint32_t bits;
        if (take_number(in, 4, &number))
            return -1;
        bits = (uint32_t)number;
        memcpy(&real, &bits, sizeof real);
        value->kind = MP_FLOAT;
        value->real = (double)real;
        return 0;
    }
    case 0xcb:
        if (take_number(in, 8, &number))
            return -1;
        value->kind = MP_FLOAT;
        memcpy(&value->real, &number, sizeof value->real);
        return 0;
    default:
        return -1; /* arrays, maps and extensions are in no message of the protocol */
    }
}

int mp_open(mp_reader *in, const uint8_t *data, size_t size)
{
    uint64_t pairs;
    in->at = data;
    in->end = data + size;
    if (size == 0)
        return -1;
    uint8_t tag = *in->at++;
    if (tag >= 0x80 && tag < 0x90)
        pairs = tag & 15u;
    else if (tag != 0xde || take_number(in, 2, &pairs))
        return -1;
    in->left = (uint32_t)pairs;
    return 0;
}

int mp_next(mp_reader *in, const char **key, size_t *key_size, mp_value *value)
{
    mp_value name;
    if (in->left == 0)
        return in->at == in->end ? 0 : -1;
    in->left--;
    if (take(in, &name) || name.kind != MP_TEXT || take(in, value))
        return -1;
    *key = (const char *)name.data;
    *key_size = name.size;
    return 1;
}

int mp_is(const char *key, size_t size, const char *name)
{
    return strlen(name) == size && memcmp(key, name, size) == 0;
}
