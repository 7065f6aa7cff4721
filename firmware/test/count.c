/* Instructions a frame on a bare Cortex-M in qemu: with -icount shift=0 an instruction takes a nanosecond of the board's
 * time, and SysTick counts that time at 25 MHz. */
#include <stdio.h>

#include "tinystream.h"
#include "tinystream_golden.h"

#define SYSTICK ((volatile uint32_t *)0xE000E010) /* control, reload, value */
#define NS_A_TICK 40u

static ts_encoder encoder;
static uint16_t indices[TS_QUANTIZERS];

int main(void)
{
    uint64_t ticks = 0;
    uint32_t most = 0;
    SYSTICK[1] = 0xffffff;
    SYSTICK[2] = 0;
    SYSTICK[0] = 5; /* on, with the processor's clock */
    ts_init(&encoder);
    for (int frame = 0; frame < GOLDEN_FRAMES; frame++) {
        uint32_t before = SYSTICK[2];
        ts_encode(&encoder, golden_samples + frame * TS_HOP, indices);
        uint32_t passed = (before - SYSTICK[2]) & 0xffffff;
        ticks += passed;
        most = passed > most ? passed : most;
    }
    printf("instructions a frame: mean %lu, most %lu\n", (unsigned long)(ticks * NS_A_TICK / GOLDEN_FRAMES),
           (unsigned long)(most * NS_A_TICK));
    return 0;
}
