#define _POSIX_C_SOURCE 200809L
#include "websocket.h"

#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { BINARY = 2, CLOSE = 8, PING = 9, PONG = 10 };
#define WAIT_MS 10000

static int write_all(int socket, const uint8_t *data, size_t size)
{
    while (size > 0) {
        ssize_t sent = send(socket, data, size, MSG_NOSIGNAL);
        if (sent < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
            struct pollfd ready = {socket, POLLOUT, 0};
            if (poll(&ready, 1, WAIT_MS) <= 0)
                return -1;
            continue;
        }
        if (sent <= 0 && errno != EINTR)
            return -1;
        data += sent > 0 ? sent : 0;
        size -= (size_t)(sent > 0 ? sent : 0);
    }
    return 0;
}

static int send_frame(websocket *ws, uint8_t kind, const uint8_t *data, size_t size)
{
    uint8_t frame[14 + 4096];
    size_t head = 2;
    if (ws->socket < 0 || size > 4096)
        return -1;
    frame[0] = (uint8_t)(0x80 | kind);
    if (size < 126)
        frame[1] = (uint8_t)(0x80 | size);
    else {
        frame[1] = 0x80 | 126;
        frame[2] = (uint8_t)(size >> 8);
        frame[3] = (uint8_t)size;
        head = 4;
    }
    for (int i = 0; i < 4; i++)
        frame[head + (size_t)i] = (uint8_t)(rand() >> 7);
    const uint8_t *mask = frame + head;
    head += 4;
    for (size_t i = 0; i < size; i++)
        frame[head + i] = data[i] ^ mask[i % 4];
    return write_all(ws->socket, frame, head + size);
}

static int dial(const char *host, const char *port)
{
    struct addrinfo hints = {0}, *found, *each;
    hints.ai_socktype = SOCK_STREAM;
    int made = -1, failed = getaddrinfo(host, port, &hints, &found);
    if (failed) {
        fprintf(stderr, "%s: %s\n", host, gai_strerror(failed));
        return -1;
    }
    for (each = found; each && made < 0; each = each->ai_next) {
        made = socket(each->ai_family, each->ai_socktype, each->ai_protocol);
        if (made >= 0 && connect(made, each->ai_addr, each->ai_addrlen) != 0) {
            close(made);
            made = -1;
        }
    }
    freeaddrinfo(found);
    if (made < 0)
        fprintf(stderr, "%s:%s: cannot connect (%s)\n", host, port, strerror(errno));
    return made;
}

int ws_connect(websocket *ws, const char *url)
{
    char host[256], port[6] = "80", path[256] = "/", request[1024];
    ws->socket = -1;
    ws->held = 0;
    ws->skipped = 0;
    if (sscanf(url, "ws://%255[^:/]:%5[0-9]%255s", host, port, path) < 2 &&
        sscanf(url, "ws://%255[^:/]%255s", host, path) < 1) {
        fprintf(stderr, "got '%s', expected ws://HOST:PORT/v1/stream\n", url);
        return -1;
    }
    int made = dial(host, port);
    if (made < 0)
        return -1;
    int length = snprintf(request, sizeof request,
                          "GET %s HTTP/1.1\r\nHost: %s:%s\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                          "Sec-WebSocket-Key: c3RyZWFtc3BsaXQgZGV2aQ==\r\nSec-WebSocket-Version: 13\r\n\r\n",
                          path, host, port);
    if (length < 0 || (size_t)length >= sizeof request || write_all(made, (const uint8_t *)request, (size_t)length)) {
        close(made);
        return -1;
    }
    char answer[2048];
    size_t held = 0;
    for (;;) { /* byte by byte, so that nothing behind the answer is taken */
        struct pollfd ready = {made, POLLIN, 0};
        if (held == sizeof answer - 1 || poll(&ready, 1, WAIT_MS) <= 0 || recv(made, answer + held, 1, 0) != 1) {
            fprintf(stderr, "%s: no answer to the WebSocket's greeting\n", url);
            close(made);
            return -1;
        }
        answer[++held] = 0;
        if (held >= 4 && memcmp(answer + held - 4, "\r\n\r\n", 4) == 0)
            break;
    }
    if (strncmp(answer, "HTTP/1.1 101", 12) != 0) {
        fprintf(stderr, "%s: %.*s\n", url, (int)strcspn(answer, "\r\n"), answer);
        close(made);
        return -1;
    }
    fcntl(made, F_SETFL, fcntl(made, F_GETFL, 0) | O_NONBLOCK);
    ws->socket = made;
    return 0;
}

int ws_send(websocket *ws, const uint8_t *data, size_t size)
{
    return send_frame(ws, BINARY, data, size);
}

static void drop(websocket *ws, size_t size)
{
    memmove(ws->data, ws->data + size, ws->held - size);
    ws->held -= size;
}

/* Takes the frames that are whole; -1 at the end of the connection. */
static int take_frames(websocket *ws, void (*take)(void *, const uint8_t *, size_t), void *user)
{
    for (;;) {
        if (ws->skipped) {
            size_t now = ws->skipped < ws->held ? (size_t)ws->skipped : ws->held;
            ws->skipped -= now;
            drop(ws, now);
        }
        if (ws->held < 2)
            return 0;
        uint8_t kind = ws->data[0] & 15;
        uint64_t size = ws->data[1] & 127;
        size_t head = size < 126 ? 2 : size == 126 ? 4 : 10;
        if (ws->data[1] & 0x80)
            return -1; /* a server does not mask */
        if (ws->held < head)
            return 0;
        if (head > 2) {
            size = 0;
            for (size_t i = 2; i < head; i++)
                size = size << 8 | ws->data[i];
        }
        if (size > WS_MESSAGE_BYTES) {
            ws->skipped = size;
            drop(ws, head);
            continue;
        }
        if (ws->held < head + size)
            return 0;
        if (kind == CLOSE)
            return -1;
        if (kind == PING && (size > 125 || send_frame(ws, PONG, ws->data + head, (size_t)size)))
            return -1;
        if (kind == BINARY && ws->data[0] & 0x80)
            take(user, ws->data + head, (size_t)size);
        drop(ws, head + (size_t)size);
    }
}

int ws_receive(websocket *ws, void (*take)(void *user, const uint8_t *data, size_t size), void *user)
{
    for (;;) {
        ssize_t got = recv(ws->socket, ws->data + ws->held, sizeof ws->data - ws->held, 0);
        if (got == 0)
            return -1;
        if (got < 0)
            return errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR ? 0 : -1;
        ws->held += (size_t)got;
        if (take_frames(ws, take, user))
            return -1;
    }
}

void ws_close(websocket *ws)
{
    if (ws->socket < 0)
        return;
    send_frame(ws, CLOSE, NULL, 0);
    close(ws->socket);
    ws->socket = -1;
}
