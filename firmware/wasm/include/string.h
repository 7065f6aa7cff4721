/* What the runtime uses of the C library, for builds without one: glue.c has the first three, which are all that the
 * codec needs; the device uses the others too. */
#ifndef TS_WASM_STRING_H
#define TS_WASM_STRING_H

#include <stddef.h>

void *memcpy(void *restrict to, const void *restrict from, size_t size);
void *memset(void *to, int value, size_t size);
int memcmp(const void *one, const void *other, size_t size);
void *memmove(void *to, const void *from, size_t size);
size_t strlen(const char *text);

#endif
