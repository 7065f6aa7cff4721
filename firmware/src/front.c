/* The spectral front: window, Fourier transform, mel energies, logarithm. */
#include "internal.h"

#if TS_BANDS > 0

#include <string.h>

#define WINDOW_SHIFT 8
#define TWIDDLE_BITS 15
#define POWER_SHIFT 16
#define FILTER_BITS 15
#define LOG_BITS 10
#define LOG_TABLE_BITS 6

static int32_t real[TS_FFT], imaginary[TS_FFT]; /* one encoder at a time: ts_encode is not reentrant */

static int32_t turned(int64_t x)
{
    return (int32_t)ts_floor_shift(x + (1 << (TWIDDLE_BITS - 1)), TWIDDLE_BITS);
}

/* Radix 2, decimation in time, in place; inputs come in bit-reversed places. */
static void transform(void)
{
    for (int half = 1; half < TS_FFT; half *= 2) {
        int pace = TS_FFT / (2 * half);
        for (int start = 0; start < TS_FFT; start += 2 * half)
            for (int i = 0; i < half; i++) {
                int low = start + i, high = low + half;
                int64_t c = ts_cosines[i * pace], s = ts_sines[i * pace];
                int32_t re = turned(real[high] * c + imaginary[high] * s);
                int32_t im = turned(imaginary[high] * c - real[high] * s);
                real[high] = real[low] - re;
                imaginary[high] = imaginary[low] - im;
                real[low] += re;
                imaginary[low] += im;
            }
    }
}

/* log2 in steps of 2^-LOG_BITS of x >= 1. */
static int32_t log_two(uint64_t x)
{
#ifdef __GNUC__
    int leading = 63 - __builtin_clzll(x);
#else
    int leading = 0;
    for (uint64_t rest = x; rest >>= 1;)
        leading++;
#endif
    uint32_t mantissa = (uint32_t)(leading >= 16 ? x >> (leading - 16) : x << (16 - leading)) - (1u << 16);
    unsigned below = 16 - LOG_TABLE_BITS;
    uint32_t place = mantissa >> below, rest = mantissa & ((1u << below) - 1);
    int32_t step = ts_log_table[place + 1] - ts_log_table[place];
    return ((int32_t)leading << LOG_BITS) + ts_log_table[place] + (int32_t)(((uint32_t)step * rest) >> below);
}

void ts_levels(const int16_t *window, int16_t *levels)
{
    for (int i = 0, place = 0; i < TS_FFT; i++) {
        real[place] = (int32_t)ts_floor_shift((int32_t)window[i] * ts_window[i], WINDOW_SHIFT);
        imaginary[i] = 0;
        int bit = TS_FFT / 2; /* counts in bit-reversed order */
        for (; place & bit; bit /= 2)
            place ^= bit;
        place |= bit;
    }
    transform();
    const uint16_t *share = ts_filter_shares;
    for (int band = 0; band < TS_BANDS; band++) {
        uint64_t energy = TS_FLOOR;
        for (int bin = ts_filter_starts[band]; bin < ts_filter_starts[band] + ts_filter_lengths[band]; bin++) {
            int64_t re = real[bin], im = imaginary[bin];
            energy += (((uint64_t)(re * re + im * im) >> POWER_SHIFT) * *share++) >> FILTER_BITS;
        }
        int64_t scaled = (int64_t)log_two(energy) * TS_LEVEL_SLOPE + TS_LEVEL_OFFSET + (1 << 11);
        levels[band] = ts_saturate(ts_floor_shift(scaled, 12));
    }
}

#endif
