/* What a test in another language needs to hold a device: its size, and its numbers. */
#include <stdlib.h>

#include "streamsplit_device.h"

ss_device *shim_make(const char *id, const char *token, uint64_t epoch, unsigned quantizers);
void shim_free(ss_device *device);
void shim_numbers(const ss_device *device, uint32_t *out);
const char *shim_problem(const ss_device *device);
size_t shim_size(void);
unsigned shim_results(const ss_device *device, ss_result *out, unsigned most);

static ss_result results[4096];
static unsigned result_count;

static void keep(void *user, const ss_result *result)
{
    (void)user;
    if (result_count < sizeof results / sizeof *results)
        results[result_count++] = *result;
}

ss_device *shim_make(const char *id, const char *token, uint64_t epoch, unsigned quantizers)
{
    ss_config config = {id, token, "firmware", epoch, quantizers, keep, NULL};
    ss_device *device = malloc(sizeof *device);
    result_count = 0;
    if (device && ss_start(device, &config)) {
        free(device);
        return NULL;
    }
    return device;
}

void shim_free(ss_device *device)
{
    free(device);
}

void shim_numbers(const ss_device *device, uint32_t *out)
{
    uint32_t all[] = {(uint32_t)device->state, (uint32_t)device->refused, device->oldest,   device->next,
                      device->heard,           device->dropped,           device->answered, device->rejected};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        out[i] = all[i];
}

const char *shim_problem(const ss_device *device)
{
    return device->problem;
}

size_t shim_size(void)
{
    return sizeof(ss_device);
}

unsigned shim_results(const ss_device *device, ss_result *out, unsigned most)
{
    unsigned count = result_count < most ? result_count : most;
    (void)device;
    for (unsigned i = 0; i < count; i++)
        out[i] = results[i];
    return result_count;
}
