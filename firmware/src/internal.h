/* What the runtime's files share. */
#ifndef TS_INTERNAL_H
#define TS_INTERNAL_H

#include "tinystream.h"

/* sum of weight[i] * x[i]; TS_DOT may be defined to a faster one with the same result */
#ifndef TS_DOT
#if defined(__ARM_FEATURE_DSP) && !defined(TS_PORTABLE)
#include "dot_dsp.h"
#else
static inline int32_t ts_dot(const int8_t *weight, const int16_t *x, int count)
{
    int32_t sum = 0;
    for (int i = 0; i < count; i++)
        sum += (int32_t)weight[i] * x[i];
    return sum;
}
#define TS_DOT ts_dot
#endif
#endif

static inline int16_t ts_saturate(int64_t x)
{
    return (int16_t)(x > INT16_MAX ? INT16_MAX : x < INT16_MIN ? INT16_MIN : x);
}

/* x / 2^shift, down: C99 leaves >> of negative numbers to the compiler; all that are known here shift in the sign */
#if (-1 >> 1) == -1
#define ts_floor_shift(x, shift) ((int64_t)(x) >> (shift))
#else
static inline int64_t ts_floor_shift(int64_t x, unsigned shift)
{
    return x >= 0 ? (int64_t)((uint64_t)x >> shift) : -1 - (int64_t)((uint64_t)(-1 - x) >> shift);
}
#endif

/* Levels [TS_BANDS] of a window of TS_FFT samples. */
void ts_levels(const int16_t *window, int16_t *levels);

#endif
