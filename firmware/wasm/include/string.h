/* The three functions of the C library that the runtime uses; glue.c has them. */
#ifndef TS_WASM_STRING_H
#define TS_WASM_STRING_H

#include <stddef.h>

void *memcpy(void *restrict to, const void *restrict from, size_t size);
void *memset(void *to, int value, size_t size);
int memcmp(const void *one, const void *other, size_t size);

#endif
