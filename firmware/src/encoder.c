/* The program of convolutions, and the search through the codebooks. */
#include <string.h>

#include "internal.h"

#if TS_SCORE_BITS == 32
typedef int32_t score_t;
#define LEAST_SCORE INT32_MIN
#else
typedef int64_t score_t;
#define LEAST_SCORE INT64_MIN
#endif

static int16_t first[TS_ACTIVATIONS], second[TS_ACTIVATIONS], held[TS_HELD], joined[TS_JOINED];

void ts_init(ts_encoder *encoder)
{
    memset(encoder, 0, sizeof *encoder);
    for (int book = 0; book < TS_QUANTIZERS; book++)
        for (int entry = 0; entry < TS_ENTRIES; entry++) {
            const int8_t *numbers = ts_codebooks + ((size_t)book * TS_ENTRIES + (size_t)entry) * TS_LATENT;
            int32_t sum = 0;
            for (int i = 0; i < TS_LATENT; i++)
                sum += (int32_t)numbers[i] * numbers[i];
            encoder->squares[book][entry] = sum * (1 << ts_codebook_shifts[book]);
        }
}

/* `steps` activations of op->inputs become steps / stride of op->outputs; gives their number. */
static int convolve(const ts_operation *op, const int16_t *x, int steps, int16_t *context, int16_t *y)
{
    int inputs = op->inputs, kept = op->kernel > op->stride ? (op->kernel - op->stride) * inputs : 0;
    int fresh = steps * inputs;
    memcpy(joined, context, (size_t)kept * sizeof *joined);
    for (int i = 0; i < fresh; i++)
        joined[kept + i] = op->relu && x[i] < 0 ? 0 : x[i];
    memcpy(context, joined + fresh, (size_t)kept * sizeof *joined);
    int results = steps / op->stride;
    for (int t = 0; t < results; t++) {
        const int16_t *taps = joined + t * op->stride * inputs;
        const int8_t *weight = op->weight;
        for (int o = 0; o < op->outputs; o++) {
            int32_t sum;
            if (op->kind == TS_DENSE) {
                int count = op->kernel * inputs;
                sum = TS_DOT(weight, taps, count);
                weight += count;
            } else {
                sum = 0;
                for (int k = 0; k < op->kernel; k++)
                    sum += (int32_t)weight[k] * taps[k * inputs + o];
                weight += op->kernel;
            }
            int64_t scaled = ((int64_t)sum + op->bias[o]) * op->multiplier[o];
            unsigned shift = op->shift[o];
            *y++ = ts_saturate(ts_floor_shift(scaled + ((int64_t)1 << (shift - 1)), shift));
        }
    }
    return results;
}

/* Residual search; of equally near entries the first. */
static void search(const ts_encoder *encoder, const int16_t *latent, uint16_t *indices)
{
    int32_t residual[TS_LATENT];
    for (int i = 0; i < TS_LATENT; i++)
        residual[i] = latent[i];
    for (int book = 0; book < TS_QUANTIZERS; book++) {
        const int8_t *entries = ts_codebooks + (size_t)book * TS_ENTRIES * TS_LATENT, *chosen = entries;
        score_t best = LEAST_SCORE;
        for (int entry = 0; entry < TS_ENTRIES; entry++) {
            const int8_t *numbers = entries + entry * TS_LATENT;
            score_t score = 0;
            for (int i = 0; i < TS_LATENT; i++)
                score += (score_t)residual[i] * numbers[i];
            score = 2 * score - encoder->squares[book][entry];
            if (score > best) {
                best = score;
                chosen = numbers;
                indices[book] = (uint16_t)entry;
            }
        }
        for (int i = 0; i < TS_LATENT; i++)
            residual[i] -= (int32_t)chosen[i] * (1 << ts_codebook_shifts[book]);
    }
}

void ts_encode(ts_encoder *encoder, const int16_t *samples, uint16_t *indices)
{
    int16_t *x = first, *y = second;
    int steps, channels = TS_BANDS > 0 ? TS_BANDS : 1;
#if TS_BANDS > 0
    static int16_t window[TS_FRONT_CONTEXT + TS_HOP];
    memcpy(window, encoder->samples, TS_FRONT_CONTEXT * sizeof *window);
    memcpy(window + TS_FRONT_CONTEXT, samples, TS_HOP * sizeof *window);
    memcpy(encoder->samples, window + TS_HOP, TS_FRONT_CONTEXT * sizeof *window);
    steps = TS_HOP / TS_FRONT_HOP;
    for (int t = 0; t < steps; t++)
        ts_levels(window + t * TS_FRONT_HOP, x + t * TS_BANDS);
#else
    steps = TS_HOP;
    memcpy(x, samples, TS_HOP * sizeof *x);
#endif
    int16_t *context = encoder->contexts;
    for (int number = 0; number < TS_OPERATIONS; number++) {
        const ts_operation *op = &ts_program[number];
        if (op->kind == TS_KEEP) {
            memcpy(held, x, (size_t)(steps * channels) * sizeof *x);
        } else if (op->kind == TS_ADD) {
            for (int i = 0; i < steps * channels; i++)
                x[i] = ts_saturate((int32_t)x[i] + held[i]);
        } else {
            steps = convolve(op, x, steps, context, y);
            context += op->kernel > op->stride ? (op->kernel - op->stride) * op->inputs : 0;
            channels = op->outputs;
            int16_t *swapped = x;
            x = y;
            y = swapped;
        }
    }
    search(encoder, x, indices);
}
