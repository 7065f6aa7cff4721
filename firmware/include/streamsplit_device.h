/* A whole device for microcontrollers: sound in, WebSocket messages out and in; no sockets, clock, threads or malloc.
 *
 * It codes what it hears with TinyStream, cuts the codes into windows as the server expects them, keeps each window
 * until the server has it, and speaks the wire protocol (docs/protocol.md). Whoever owns it brings samples, the time in
 * milliseconds, and a WebSocket to wss://HOST/v1/stream:
 *
 *     ss_start(&device, &config);
 *     ss_hear(&device, samples, count, now);            as sound arrives, connected or not
 *     ss_connected(&device, now);                       the WebSocket is open
 *     ss_receive(&device, data, size, offset, total, now);  a message came, or a part of one
 *     while ((size = ss_send(&device, buffer, sizeof buffer, now)) > 0) ...   messages to send now
 *     ss_disconnected(&device);                         it is gone; connect again unless device.refused
 *
 * Calls must not overlap: one thread, or a lock around them.
 */
#ifndef STREAMSPLIT_DEVICE_H
#define STREAMSPLIT_DEVICE_H

#include <stddef.h>
#include <stdint.h>

#include "tinystream.h"

#ifndef SS_WINDOWS
#define SS_WINDOWS 32 /* kept until the server has them: 16 s of sound */
#endif
#ifndef SS_RECEIVE_BYTES
#define SS_RECEIVE_BYTES 1024 /* longest message that is read; longer ones are skipped */
#endif

#define SS_FRAME_HEADER 16
#define SS_MEDIA_HEADER 20
#define SS_WINDOW_SAMPLES 16240 /* 100 frames of 10 ms, and what the last one's analysis reaches beyond */
#define SS_STRIDE_SAMPLES 8000
#define SS_WHOLE ((SS_WINDOW_SAMPLES + TS_HOP - 1) / TS_HOP) /* codec frames of a whole window */
#define SS_NEW (SS_STRIDE_SAMPLES / TS_HOP)                  /* of one that builds on the window before */
#define SS_WINDOW_BYTES (SS_MEDIA_HEADER + TS_PACKET_BYTES(SS_WHOLE))
#define SS_SEND_BYTES (SS_FRAME_HEADER + (SS_WINDOW_BYTES > 512 ? SS_WINDOW_BYTES : 512)) /* longest message sent */

#if SS_STRIDE_SAMPLES % TS_HOP != 0
#error "half a second must be whole codec frames: export a codec whose hop divides 8000 samples"
#endif

/* What the server found in a window. */
typedef struct {
    uint32_t window, captured_ms; /* of the window's end */
    float uncertainty;            /* nats */
    int32_t cluster;              /* -1: none yet */
    char label[33];               /* "" where the server knows none; cut short */
    float confidence;             /* of the label */
} ss_result;

typedef struct {
    const char *device_id; /* letters, digits, '.', '_', '-', at most 64; kept by the owner */
    const char *token;     /* at most 128 characters; kept by the owner */
    const char *device_class;
    uint64_t epoch;        /* random, below 2^63, another one at every start: windows live in RAM */
    unsigned quantizers;   /* 1..TS_QUANTIZERS; 0: all */
    void (*on_result)(void *user, const ss_result *result); /* may be NULL */
    void *user;
} ss_config;

typedef enum { SS_OFFLINE, SS_GREETING, SS_OPEN, SS_ENDED } ss_state;

typedef struct {
    uint32_t captured_ms;
    uint16_t size;
    uint8_t sent; /* on this or an earlier connection */
    uint8_t data[SS_WINDOW_BYTES];
} ss_window;

typedef struct {
    ss_config config;
    ss_state state;
    int refused;       /* the server will not have this device as it is: see `problem` */
    char problem[161]; /* the newest error, from either end */

    /* sound */
    ts_encoder encoder;
    int16_t samples[TS_HOP];
    unsigned filled;
    uint16_t codes[SS_WHOLE][TS_QUANTIZERS]; /* newest last */
    unsigned coded, missing; /* frames held; frames until the next window is complete */
    int whole, starts;       /* the next window goes up whole; it is the first of a new stretch of sound */
    uint32_t window;         /* index of the next one */

    /* windows from sequence `oldest` to `next` - 1, at sequence % SS_WINDOWS */
    ss_window windows[SS_WINDOWS];
    uint32_t oldest, next, unsent; /* `unsent`: the first that has not gone out on this connection */
    uint32_t heard, dropped, answered, rejected; /* windows: completed, dropped, with a result, refused */
    uint32_t skipped;                            /* dropped since the last one that was kept */

    /* the session */
    uint8_t resume[64];
    unsigned resume_size;
    uint32_t received; /* highest RESULT */
    uint32_t acked;    /* that the server knows of */
    uint32_t acked_ms, heard_ms, pinged_ms, reported_ms, window_ms;
    uint32_t in_flight, interval_ms; /* granted */
    uint32_t nonce;
    uint64_t ping_ms, uplink_bytes;
    uint8_t greet, pong, unsupported, finish; /* messages that are due */
    uint32_t pong_nonce;

    uint8_t received_data[SS_RECEIVE_BYTES];
    size_t received_size;
} ss_device;

/* Everything from the beginning; gives 0, -1 where the config cannot be used. */
int ss_start(ss_device *device, const ss_config *config);

/* Samples as they come, 16 kHz mono; `now_ms` is when the last of them was heard. */
void ss_hear(ss_device *device, const int16_t *samples, size_t count, uint32_t now_ms);

/* Sound was lost: what comes next is a new stretch. */
void ss_gap(ss_device *device);

void ss_connected(ss_device *device, uint32_t now_ms);
void ss_disconnected(ss_device *device);

/* `size` bytes at `offset` of a message of `total` bytes; parts come in order. */
void ss_receive(ss_device *device, const uint8_t *data, size_t size, size_t offset, size_t total, uint32_t now_ms);

/* The next message to send, SS_SEND_BYTES at most; 0: nothing now. Ask again after events and at least once a second. */
size_t ss_send(ss_device *device, uint8_t *out, size_t room, uint32_t now_ms);

/* Nothing has come for 30 s, or the session is over: close the WebSocket. */
int ss_should_close(const ss_device *device, uint32_t now_ms);

/* No more sound will come: when the server has every window, ss_send says goodbye. */
void ss_finish(ss_device *device);

/* Windows that the server does not have yet. */
uint32_t ss_pending(const ss_device *device);

#endif
