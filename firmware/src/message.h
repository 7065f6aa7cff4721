/* MessagePack, as much as the protocol's control messages need. */
#ifndef SS_MESSAGE_H
#define SS_MESSAGE_H

#include <stddef.h>
#include <stdint.h>

typedef struct {
    uint8_t *at, *end;
    int full; /* something did not fit */
} mp_writer;

void mp_map(mp_writer *out, unsigned fields); /* at most 65535 */
void mp_text(mp_writer *out, const char *text);
void mp_bytes(mp_writer *out, const uint8_t *bytes, size_t size); /* at most 255 */
void mp_uint(mp_writer *out, uint64_t value);
void mp_bool(mp_writer *out, int value);

typedef enum { MP_UINT, MP_INT, MP_FLOAT, MP_BOOL, MP_TEXT, MP_BYTES, MP_OTHER } mp_kind;

typedef struct {
    mp_kind kind;
    uint64_t number; /* MP_UINT, MP_BOOL */
    int64_t whole;   /* MP_INT */
    double real;     /* MP_FLOAT, and of whole numbers */
    const uint8_t *data;
    size_t size; /* MP_TEXT, MP_BYTES */
} mp_value;

typedef struct {
    const uint8_t *at, *end;
    uint32_t left; /* pairs of the map */
} mp_reader;

/* Begins with a map; gives 0, -1 where there is none. */
int mp_open(mp_reader *in, const uint8_t *data, size_t size);

/* The next key and value; 1, 0 at the end of the map, -1 where the data is no MessagePack, or has bytes behind it. */
int mp_next(mp_reader *in, const char **key, size_t *key_size, mp_value *value);

int mp_is(const char *key, size_t size, const char *name);

#endif
