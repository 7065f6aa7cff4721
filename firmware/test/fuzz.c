/* Hostile bytes into everything that reads: packets, and messages to a device in every state. Run with sanitizers.
 *   fuzz [ROUNDS]
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "message.h"
#include "streamsplit_device.h"

static ss_device device;
static uint32_t state = 1;

static uint32_t draw(uint32_t below)
{
    state ^= state << 13;
    state ^= state >> 17;
    state ^= state << 5;
    return state % below;
}

static size_t header(uint8_t *out, uint8_t type, uint32_t sequence, size_t size)
{
    memset(out, 0, SS_FRAME_HEADER);
    out[0] = 1;
    out[1] = type;
    out[4] = (uint8_t)sequence;
    out[5] = (uint8_t)(sequence >> 8);
    out[12] = (uint8_t)size;
    out[13] = (uint8_t)(size >> 8);
    return SS_FRAME_HEADER + size;
}

/* A message of the protocol, as it should be. */
static size_t compose(uint8_t *out, size_t room)
{
    static const uint8_t types[] = {2, 3, 4, 5, 6, 32, 39, 33, 48, 34};
    mp_writer writer = {out + SS_FRAME_HEADER, out + room, 0};
    uint8_t type = types[draw(sizeof types)];
    static const uint8_t token[16] = {1, 2, 3};
    static const char *const names[] = {"through", "max_in_flight", "nonce", "min_interval_ms", "window", "cluster",
                                        "received_through", "protocol", "sequence", "capture_ms"};
    unsigned fields = draw(8);
    mp_map(&writer, fields + 4);
    for (unsigned i = 0; i < fields; i++) {
        mp_text(&writer, names[draw(10)]);
        mp_uint(&writer, draw(3) ? draw(40) : ((uint64_t)draw(UINT32_MAX) << 32 | draw(UINT32_MAX)));
    }
    mp_text(&writer, "protocol");
    mp_uint(&writer, 1);
    mp_text(&writer, "resume_token");
    mp_bytes(&writer, token, draw(17));
    mp_text(&writer, "detail");
    mp_text(&writer, "a detail that is long enough to be copied in part, or not at all, as the room for it is");
    mp_text(&writer, draw(2) ? "fatal" : "resumed");
    mp_bool(&writer, (int)draw(2));
    return header(out, type, draw(60), (size_t)(writer.at - out) - SS_FRAME_HEADER);
}

static int valid(void)
{
    uint32_t pending = ss_pending(&device);
    return pending <= SS_WINDOWS && device.unsent - device.oldest <= pending && strlen(device.problem) < 161 &&
           device.resume_size <= sizeof device.resume && device.received_size <= SS_RECEIVE_BYTES;
}

int main(int count, char **words)
{
    unsigned long rounds = count > 1 ? strtoul(words[1], NULL, 10) : 20000;
    ss_config config = {"fuzz", "token", NULL, 1, 0, NULL, NULL};
    static uint8_t message[2 * SS_RECEIVE_BYTES], out[SS_SEND_BYTES];
    static uint16_t indices[64 * TS_QUANTIZERS];
    static int16_t samples[SS_STRIDE_SAMPLES];
    uint32_t now = 0;
    unsigned quantizers;
    unsigned long opened = 0, sent = 0;
    for (unsigned long round = 0; round < rounds; round++) {
        if (round % 64 == 0) {
            ss_start(&device, &config);
            for (int i = 0; i < SS_STRIDE_SAMPLES; i++)
                samples[i] = (int16_t)draw(65536);
            if (round % 512 == 0)
                for (int i = 0; i < 4; i++)
                    ss_hear(&device, samples, SS_STRIDE_SAMPLES, now);
        }
        if (device.state == SS_OFFLINE || device.state == SS_ENDED || draw(50) == 0) {
            ss_disconnected(&device);
            ss_connected(&device, now);
        }
        size_t size = compose(message, sizeof message);
        if (draw(2))
            for (unsigned change = draw(5); change > 0; change--)
                message[draw((uint32_t)size)] = (uint8_t)draw(256);
        if (draw(8) == 0)
            size = draw((uint32_t)size + 1);
        size_t cut = draw((uint32_t)size + 1), total = draw(20) ? size : draw(3 * SS_RECEIVE_BYTES);
        ss_receive(&device, message, cut, 0, total, now);
        ss_receive(&device, message + cut, size - cut, cut, total, now);
        opened += device.state == SS_OPEN;
        now += draw(3000);
        for (int i = 0; i < 100; i++) {
            size_t length = ss_send(&device, out, sizeof out, now);
            if (length == 0)
                break;
            sent++;
            if (length > sizeof out) {
                printf("failed: a message of %u bytes\n", (unsigned)length);
                return 1;
            }
        }
        if (!valid()) {
            printf("failed: the device's numbers do not fit each other in round %lu\n", round);
            return 1;
        }
        long frames = ts_unpack(message, size, indices, sizeof indices / sizeof *indices, &quantizers);
        message[0] = 1;
        memcpy(message + 4, ts_model_id, 4);
        message[1] = (uint8_t)draw(256);
        message[2] = (uint8_t)draw(70);
        message[3] = draw(9) ? 0 : (uint8_t)draw(256);
        frames = ts_unpack(message, draw(300), indices, sizeof indices / sizeof *indices, &quantizers);
        for (long i = 0; i < frames * (long)quantizers; i++)
            if (indices[i] >= TS_ENTRIES) {
                printf("failed: an index outside the codebook\n");
                return 1;
            }
    }
    if (opened < rounds / 50 || sent < rounds / 50) {
        printf("failed: the fuzz does not get in (%lu rounds open, %lu messages sent)\n", opened, sent);
        return 1;
    }
    printf("ok: %lu rounds, %lu open, %lu messages sent\n", rounds, opened, sent);
    return 0;
}
