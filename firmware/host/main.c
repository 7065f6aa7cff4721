/* The firmware's device as a Linux program: raw sound from standard input to a StreamSplit server.
 *
 *   arecord -q -t raw -f S16_LE -r 16000 -c 1 | build/device --url ws://HOST:8888/v1/stream --id NAME --live
 */
#define _POSIX_C_SOURCE 200809L
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "streamsplit_device.h"
#include "websocket.h"

#define PIECE 1600 /* samples read at once */
#define DRAIN_MS 10000u

static ss_device device;
static websocket ws = {.socket = -1};

static uint32_t now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return (uint32_t)((uint64_t)now.tv_sec * 1000u + (uint64_t)now.tv_nsec / 1000000u);
}

static void take(void *user, const uint8_t *data, size_t size)
{
    (void)user;
    ss_receive(&device, data, size, 0, size, now_ms());
}

static void show(void *user, const ss_result *result)
{
    (void)user;
    printf("window %u: uncertainty %.2f, cluster %d, label '%s' (%.2f)\n", (unsigned)result->window,
           (double)result->uncertainty, (int)result->cluster, result->label, (double)result->confidence);
    fflush(stdout);
}

static uint64_t random_epoch(void)
{
    uint64_t value = 0;
    FILE *file = fopen("/dev/urandom", "rb");
    if (!file || fread(&value, sizeof value, 1, file) != 1)
        value = (uint64_t)now_ms() << 20 ^ (uint64_t)getpid();
    if (file)
        fclose(file);
    return value >> 1;
}

static void hang_up(void)
{
    ws_close(&ws);
    ss_disconnected(&device);
}

/* Sends what is due and takes what came; hangs up where the connection is over. */
static void exchange(void)
{
    uint8_t message[SS_SEND_BYTES];
    size_t size;
    if (ws_receive(&ws, take, NULL)) {
        hang_up();
        return;
    }
    while ((size = ss_send(&device, message, sizeof message, now_ms())) > 0)
        if (ws_send(&ws, message, size)) {
            hang_up();
            return;
        }
    if (ss_should_close(&device, now_ms()))
        hang_up();
}

int main(int count, char **words)
{
    const char *url = NULL;
    ss_config config = {0};
    int live = 0, ended = 0;
    config.token = getenv("STREAMSPLIT_TOKEN");
    config.device_class = "firmware";
    config.on_result = show;
    config.epoch = random_epoch();
    for (int i = 1; i < count; i++) {
        if (strcmp(words[i], "--live") == 0)
            live = 1;
        else if (i + 1 < count && strcmp(words[i], "--url") == 0)
            url = words[++i];
        else if (i + 1 < count && strcmp(words[i], "--id") == 0)
            config.device_id = words[++i];
        else if (i + 1 < count && strcmp(words[i], "--quantizers") == 0)
            config.quantizers = (unsigned)strtoul(words[++i], NULL, 10);
        else
            url = NULL, config.device_id = NULL, i = count;
    }
    if (url && strncmp(url, "ws://", 5) != 0) {
        fprintf(stderr, "got '%s', expected ws://HOST:PORT/v1/stream\n", url);
        return 2;
    }
    if (!url || ss_start(&device, &config)) {
        fprintf(stderr,
                "usage: %s --url ws://HOST:PORT/v1/stream --id NAME [--quantizers 1..%d] [--live] < sound\n"
                "16-bit little-endian mono samples at 16 kHz; STREAMSPLIT_TOKEN is the device's token; --live: drop\n"
                "sound that the server does not take in time, in place of waiting\n",
                words[0], TS_QUANTIZERS);
        return 2;
    }
    static int16_t samples[PIECE];
    size_t held = 0; /* bytes of `samples` */
    uint32_t backoff_ms = 500, again_ms = now_ms(), ended_ms = 0;
    while (!device.refused) {
        uint32_t now = now_ms();
        if (ws.socket < 0 && (int32_t)(now - again_ms) >= 0) {
            if (ws_connect(&ws, url) == 0)
                ss_connected(&device, now);
            else
                backoff_ms = backoff_ms < 15000 ? 2 * backoff_ms : 30000;
            again_ms = now_ms() + backoff_ms;
        }
        if (ws.socket >= 0) {
            exchange();
            if (device.state == SS_OPEN)
                backoff_ms = 500;
            if (ws.socket < 0)
                again_ms = now_ms() + backoff_ms;
        }
        int done = ws.socket < 0 && ss_pending(&device) == 0;
        if (ended && (done || (uint32_t)(now_ms() - ended_ms) > DRAIN_MS))
            break;
        int room = live || ss_pending(&device) + 4 < SS_WINDOWS;
        struct pollfd ready[2] = {{ended || !room ? -1 : STDIN_FILENO, POLLIN, 0}, {ws.socket, POLLIN, 0}};
        if (poll(ready, 2, 50) < 0 && errno != EINTR)
            break;
        if (ready[0].revents) {
            ssize_t got = read(STDIN_FILENO, (uint8_t *)samples + held, sizeof samples - held);
            if (got <= 0) {
                ended = 1;
                ended_ms = now_ms();
                ss_finish(&device);
                continue;
            }
            held += (size_t)got;
            ss_hear(&device, samples, held / 2, now_ms());
            if (held % 2)
                memmove(samples, (uint8_t *)samples + held - 1, 1);
            held %= 2;
        }
    }
    hang_up();
    fprintf(stderr, "windows: %u heard, %u sent, %u dropped, %u results; %u not delivered%s%s\n", (unsigned)device.heard,
            (unsigned)(device.next - 1), (unsigned)device.dropped, (unsigned)device.answered,
            (unsigned)ss_pending(&device), device.problem[0] ? "; " : "", device.problem);
    return device.refused || ss_pending(&device) ? 1 : 0;
}
