/* Two products at a time with the DSP extension of Cortex-M4, M7, M33 and M55. */
#ifndef TS_DOT_DSP_H
#define TS_DOT_DSP_H

#include <arm_acle.h>
#include <string.h>

static inline int32_t ts_dot(const int8_t *weight, const int16_t *x, int count)
{
    int32_t sum = 0;
    int i = 0;
    for (; i + 4 <= count; i += 4) {
        uint32_t bytes, low, high;
        memcpy(&bytes, weight + i, 4);
        memcpy(&low, x + i, 4);
        memcpy(&high, x + i + 2, 4);
        int32_t even = (int32_t)__sxtb16(bytes);                       /* weights 0 and 2 */
        int32_t odd = (int32_t)__sxtb16((bytes >> 8) | (bytes << 24)); /* weights 1 and 3 */
        int32_t x02 = (int32_t)((low & 0xffffu) | (high << 16));
        int32_t x13 = (int32_t)((low >> 16) | (high & 0xffff0000u));
        sum = __smlad(even, x02, sum);
        sum = __smlad(odd, x13, sum);
    }
    for (; i < count; i++)
        sum += (int32_t)weight[i] * x[i];
    return sum;
}
#define TS_DOT ts_dot

#endif
