/* A WebSocket client over a plain TCP socket (RFC 6455), for the device on Linux. */
#ifndef SS_WEBSOCKET_H
#define SS_WEBSOCKET_H

#include <stddef.h>
#include <stdint.h>

#define WS_MESSAGE_BYTES 65536 /* of what is received; longer messages are passed over */

typedef struct {
    int socket; /* -1: not connected */
    uint8_t data[WS_MESSAGE_BYTES + 16];
    size_t held;      /* bytes in `data` that have not been taken */
    uint64_t skipped; /* bytes of a long message still to come */
} websocket;

/* ws://HOST[:PORT]/PATH; 0, or -1 with the reason on stderr. */
int ws_connect(websocket *ws, const char *url);

/* Sends a binary message; 0, or -1 where the connection is gone. */
int ws_send(websocket *ws, const uint8_t *data, size_t size);

/* Takes what has arrived, without waiting: `take` gets each whole binary message. 0, or -1 where the connection is gone. */
int ws_receive(websocket *ws, void (*take)(void *user, const uint8_t *data, size_t size), void *user);

void ws_close(websocket *ws);

#endif
