/* The device of streamsplit_device.h: windows of codes, a ring of them, and the session with the server. */
#include "streamsplit_device.h"

#include <string.h>

#include "message.h"

enum {
    HELLO = 1,
    WELCOME = 2,
    ACK = 3,
    PING = 4,
    ERROR = 5,
    BYE = 6,
    AUDIO = 16,
    STATS = 20,
    RESULT = 32,
    GRAD_BACK = 33,
    THROTTLE = 39,
    DIALOGUE = 48
};
enum { NUMBERED = 1, REPLAYED = 4 };

#define VERSION 1
#define TINYSTREAM 3
#define LENGTH_FRAMES 100u /* of 10 ms */
#define STRIDE_FRAMES 50u
#define STARTS 1
#define NAN_HALF 0x7e00u
#define ACK_EVERY 16u
#define ACK_DELAY_MS 1000u
#define PING_MS 10000u
#define REPORT_MS 5000u
#define SILENCE_MS 30000u

static void put16(uint8_t *out, uint32_t value)
{
    out[0] = (uint8_t)value;
    out[1] = (uint8_t)(value >> 8);
}

static void put32(uint8_t *out, uint32_t value)
{
    put16(out, value);
    put16(out + 2, value >> 16);
}

static uint32_t get32(const uint8_t *in)
{
    return in[0] | (uint32_t)in[1] << 8 | (uint32_t)in[2] << 16 | (uint32_t)in[3] << 24;
}

static int passed(uint32_t now_ms, uint32_t then_ms, uint32_t span_ms)
{
    return (uint32_t)(now_ms - then_ms) >= span_ms;
}

static void copy_text(char *out, size_t room, const uint8_t *text, size_t size)
{
    size = size < room - 1 ? size : room - 1;
    memcpy(out, text, size);
    out[size] = 0;
}

static void problem(ss_device *device, const char *text)
{
    copy_text(device->problem, sizeof device->problem, (const uint8_t *)text, strlen(text));
}

/* -- sound ------------------------------------------------------------------------------------------------------- */

static ss_window *slot(ss_device *device, uint32_t sequence)
{
    return &device->windows[sequence % SS_WINDOWS];
}

void ss_gap(ss_device *device)
{
    ts_init(&device->encoder);
    device->filled = SS_WHOLE * TS_HOP - SS_WINDOW_SAMPLES; /* of silence, so that windows end where frames do */
    memset(device->samples, 0, sizeof device->samples);
    device->coded = 0;
    device->missing = SS_WHOLE;
    device->whole = device->starts = 1;
}

int ss_start(ss_device *device, const ss_config *config)
{
    size_t id = config->device_id ? strlen(config->device_id) : 0;
    if (id < 1 || id > 64 || (config->token && strlen(config->token) > 128) || config->epoch >> 63 ||
        config->quantizers > TS_QUANTIZERS || (config->device_class && strlen(config->device_class) > 32))
        return -1;
    memset(device, 0, sizeof *device);
    device->config = *config;
    if (!device->config.quantizers)
        device->config.quantizers = TS_QUANTIZERS;
    device->oldest = device->next = device->unsent = 1;
    ss_gap(device);
    return 0;
}

/* The codes held are a window, or the new half of one: into the ring, if there is room. */
static void complete(ss_device *device, uint32_t now_ms)
{
    uint32_t index = device->window++;
    device->heard++;
    if (device->next - device->oldest == SS_WINDOWS || device->next == UINT32_MAX) {
        device->dropped++;
        device->skipped++;
        device->whole = 1; /* the server will lack what this one held */
        return;
    }
    unsigned frames = device->whole ? SS_WHOLE : SS_NEW, quantizers = device->config.quantizers;
    uint16_t chosen[SS_WHOLE * TS_QUANTIZERS];
    for (unsigned frame = 0; frame < frames; frame++)
        memcpy(chosen + frame * quantizers, device->codes[SS_WHOLE - frames + frame], quantizers * sizeof *chosen);
    ss_window *window = slot(device, device->next);
    uint8_t *head = window->data;
    put32(head, index);
    put32(head + 4, 0); /* no encoder */
    head[8] = 0;
    head[9] = TINYSTREAM;
    head[10] = 0;
    head[11] = device->starts ? STARTS : 0;
    put16(head + 12, NAN_HALF);
    put16(head + 14, device->whole ? LENGTH_FRAMES : STRIDE_FRAMES);
    put16(head + 16, 0);
    put16(head + 18, device->skipped < 65535 ? device->skipped : 65535);
    size_t size = ts_pack(head + SS_MEDIA_HEADER, SS_WINDOW_BYTES - SS_MEDIA_HEADER, chosen, frames, quantizers);
    window->size = (uint16_t)(SS_MEDIA_HEADER + size);
    window->captured_ms = now_ms;
    window->sent = 0;
    device->next++;
    device->skipped = 0;
    device->whole = device->starts = 0;
}

void ss_hear(ss_device *device, const int16_t *samples, size_t count, uint32_t now_ms)
{
    while (count > 0) {
        size_t taken = TS_HOP - device->filled;
        taken = taken < count ? taken : count;
        memcpy(device->samples + device->filled, samples, taken * sizeof *samples);
        device->filled += (unsigned)taken;
        samples += taken;
        count -= taken;
        if (device->filled < TS_HOP)
            return;
        device->filled = 0;
        memmove(device->codes, device->codes + 1, sizeof device->codes - sizeof *device->codes);
        ts_encode(&device->encoder, device->samples, device->codes[SS_WHOLE - 1]);
        device->coded += device->coded < SS_WHOLE;
        if (--device->missing == 0) {
            device->missing = SS_NEW;
            complete(device, now_ms - (uint32_t)(count / 16));
        }
    }
}

void ss_finish(ss_device *device)
{
    device->finish = 1;
}

uint32_t ss_pending(const ss_device *device)
{
    return device->next - device->oldest;
}

/* -- what is sent ------------------------------------------------------------------------------------------------ */

static size_t frame(uint8_t *out, uint8_t type, uint8_t flags, uint32_t sequence, uint32_t at_ms, size_t size)
{
    out[0] = VERSION;
    out[1] = type;
    out[2] = flags;
    out[3] = 0;
    put32(out + 4, sequence);
    put32(out + 8, at_ms);
    put32(out + 12, (uint32_t)size);
    return SS_FRAME_HEADER + size;
}

static void text_field(mp_writer *out, const char *name, const char *value)
{
    mp_text(out, name);
    mp_text(out, value);
}

static void number_field(mp_writer *out, const char *name, uint64_t value)
{
    mp_text(out, name);
    mp_uint(out, value);
}

static void write_hello(ss_device *device, mp_writer *out)
{
    static const char digits[] = "0123456789abcdef";
    char codec[9] = {0};
    const char *class = device->config.device_class;
    for (int i = 0; i < 4; i++) {
        codec[2 * i] = digits[ts_model_id[i] >> 4];
        codec[2 * i + 1] = digits[ts_model_id[i] & 15];
    }
    mp_map(out, 8u + (device->resume_size ? 2 : 0) + (class ? 1 : 0));
    number_field(out, "protocol", VERSION);
    text_field(out, "device_id", device->config.device_id);
    text_field(out, "token", device->config.token ? device->config.token : "");
    number_field(out, "epoch", device->config.epoch);
    number_field(out, "oldest_sequence", device->oldest);
    number_field(out, "next_sequence", device->next);
    if (device->resume_size) {
        number_field(out, "received_through", device->received);
        mp_text(out, "resume_token");
        mp_bytes(out, device->resume, device->resume_size);
    }
    if (class)
        text_field(out, "device_class", class);
    text_field(out, "software", "streamsplit firmware");
    text_field(out, "codec", codec);
}

static void write_stats(const ss_device *device, mp_writer *out)
{
    mp_map(out, 6);
    number_field(out, "queue_windows", ss_pending(device));
    number_field(out, "windows_seen", device->heard);
    number_field(out, "windows_sent", device->next - 1);
    number_field(out, "windows_dropped", device->dropped);
    number_field(out, "uplink_bytes", device->uplink_bytes);
    text_field(out, "cut", "0:tinystream");
}

static void write_ping(mp_writer *out, uint32_t nonce, uint64_t sent_ms, int reply)
{
    mp_map(out, reply ? 3 : 2);
    number_field(out, "nonce", nonce);
    number_field(out, "sent_ms", sent_ms);
    if (reply) {
        mp_text(out, "reply");
        mp_bool(out, 1);
    }
}

/* The type of the control message that is due, written; 0: none is. */
static uint8_t control(ss_device *device, mp_writer *out, uint32_t now_ms)
{
    if (device->greet) {
        device->greet = 0;
        write_hello(device, out);
        return HELLO;
    }
    if (device->pong) {
        device->pong = 0;
        write_ping(out, device->pong_nonce, device->ping_ms, 1);
        return PING;
    }
    if (device->state != SS_OPEN)
        return 0;
    if (device->unsupported) {
        device->unsupported = 0;
        mp_map(out, 2);
        text_field(out, "code", "unsupported");
        text_field(out, "detail", "this device takes neither dialogue nor gradients");
        return ERROR;
    }
    if (device->received - device->acked >= ACK_EVERY ||
        (device->received != device->acked && passed(now_ms, device->acked_ms, ACK_DELAY_MS))) {
        device->acked = device->received;
        mp_map(out, 1);
        number_field(out, "through", device->received);
        return ACK;
    }
    if (device->finish && ss_pending(device) == 0) {
        device->finish = 0;
        mp_map(out, 1);
        text_field(out, "reason", "done");
        return BYE;
    }
    if (passed(now_ms, device->pinged_ms, PING_MS)) {
        device->pinged_ms = now_ms;
        write_ping(out, ++device->nonce, now_ms, 0);
        return PING;
    }
    if (passed(now_ms, device->reported_ms, REPORT_MS)) {
        device->reported_ms = now_ms;
        write_stats(device, out);
        return STATS;
    }
    return 0;
}

size_t ss_send(ss_device *device, uint8_t *out, size_t room, uint32_t now_ms)
{
    size_t size = 0;
    if (room < SS_SEND_BYTES || device->state == SS_OFFLINE || device->state == SS_ENDED)
        return 0;
    mp_writer writer = {out + SS_FRAME_HEADER, out + room, 0};
    uint8_t type = control(device, &writer, now_ms);
    if (type)
        size = frame(out, type, 0, 0, now_ms, (size_t)(writer.at - out) - SS_FRAME_HEADER);
    else if (device->state == SS_OPEN && device->unsent != device->next &&
             device->unsent - device->oldest < device->in_flight &&
             passed(now_ms, device->window_ms, device->interval_ms)) {
        ss_window *window = slot(device, device->unsent);
        memcpy(out + SS_FRAME_HEADER, window->data, window->size);
        uint8_t flags = NUMBERED | (window->sent ? REPLAYED : 0);
        size = frame(out, AUDIO, flags, device->unsent, window->captured_ms, window->size);
        window->sent = 1;
        device->unsent++;
        device->window_ms = now_ms;
    }
    device->uplink_bytes += size;
    if (type == BYE)
        device->state = SS_ENDED;
    return size;
}

/* -- what comes -------------------------------------------------------------------------------------------------- */

static void end(ss_device *device, const char *why)
{
    device->state = SS_ENDED;
    if (why)
        problem(device, why);
}

/* The server has every window up to `through`. */
static void forget(ss_device *device, uint32_t through)
{
    if (through < device->oldest || through >= device->next)
        return;
    device->oldest = through + 1;
    if (device->unsent < device->oldest)
        device->unsent = device->oldest;
}

static void on_welcome(ss_device *device, mp_reader *in, uint32_t now_ms)
{
    const char *key;
    size_t size;
    mp_value value;
    int more, resumed = 0, known = 0;
    uint64_t through = 0, granted = 0;
    unsigned token = 0;
    while ((more = mp_next(in, &key, &size, &value)) > 0) {
        if (mp_is(key, size, "protocol") && value.kind == MP_UINT)
            known = value.number == VERSION;
        else if (mp_is(key, size, "resumed") && value.kind == MP_BOOL)
            resumed = (int)value.number;
        else if (mp_is(key, size, "received_through") && value.kind == MP_UINT)
            through = value.number;
        else if (mp_is(key, size, "max_in_flight") && value.kind == MP_UINT)
            granted = value.number;
        else if (mp_is(key, size, "resume_token") && value.kind == MP_BYTES && value.size <= sizeof device->resume) {
            memcpy(device->resume, value.data, value.size);
            token = (unsigned)value.size;
        }
    }
    if (more < 0 || !known || device->state != SS_GREETING || through >= device->next || granted > 65535) {
        end(device, "WELCOME does not fit");
        return;
    }
    if (!resumed)
        device->received = device->acked = 0;
    device->resume_size = token;
    device->state = SS_OPEN;
    device->in_flight = (uint32_t)granted;
    device->interval_ms = 0;
    device->acked = device->received; /* HELLO said so */
    device->pinged_ms = device->reported_ms = now_ms;
    forget(device, (uint32_t)through);
    device->unsent = device->oldest;
}

static void on_ack(ss_device *device, mp_reader *in)
{
    const char *key;
    size_t size;
    mp_value value;
    int more;
    uint64_t through = 0, credit = 0;
    while ((more = mp_next(in, &key, &size, &value)) > 0) {
        if (mp_is(key, size, "through") && value.kind == MP_UINT)
            through = value.number;
        else if (mp_is(key, size, "credit") && value.kind == MP_UINT)
            credit = value.number;
    }
    if (more < 0 || through >= device->unsent || credit > 65535) {
        end(device, "ACK of windows that were not sent");
        return;
    }
    forget(device, (uint32_t)through);
    if (credit)
        device->in_flight = (uint32_t)credit;
}

static void on_throttle(ss_device *device, mp_reader *in)
{
    const char *key;
    size_t size;
    mp_value value;
    int more;
    uint64_t in_flight = device->in_flight, interval_ms = 0;
    while ((more = mp_next(in, &key, &size, &value)) > 0) {
        if (mp_is(key, size, "max_in_flight") && value.kind == MP_UINT)
            in_flight = value.number;
        else if (mp_is(key, size, "min_interval_ms") && value.kind == MP_UINT)
            interval_ms = value.number;
    }
    if (more < 0 || in_flight > 65535 || interval_ms > UINT32_MAX) {
        end(device, "THROTTLE does not read");
        return;
    }
    device->in_flight = (uint32_t)in_flight;
    device->interval_ms = (uint32_t)interval_ms;
}

static void on_ping(ss_device *device, mp_reader *in)
{
    const char *key;
    size_t size;
    mp_value value;
    int more, reply = 0;
    uint64_t nonce = 0, sent_ms = 0;
    while ((more = mp_next(in, &key, &size, &value)) > 0) {
        if (mp_is(key, size, "reply") && value.kind == MP_BOOL)
            reply = (int)value.number;
        else if (mp_is(key, size, "nonce") && value.kind == MP_UINT)
            nonce = value.number;
        else if (mp_is(key, size, "sent_ms") && value.kind == MP_UINT)
            sent_ms = value.number;
    }
    if (more < 0) {
        end(device, "PING does not read");
        return;
    }
    if (!reply) {
        device->pong = 1;
        device->pong_nonce = (uint32_t)nonce;
        device->ping_ms = sent_ms;
    }
}

/* Whether connecting again, unchanged, can help after a fatal error with this code. */
static int is_final(const mp_value *code)
{
    static const char *const codes[] = {"bad_version",  "unknown_type",    "bad_flags",      "bad_reserved",
                                        "bad_sequence", "frame_too_large", "trailing_bytes", "bad_message",
                                        "bad_epoch",    "bad_token",       "bad_settings",   "replaced"};
    for (size_t i = 0; i < sizeof codes / sizeof *codes; i++)
        if (mp_is((const char *)code->data, code->size, codes[i]))
            return 1;
    return 0;
}

static void on_error(ss_device *device, mp_reader *in)
{
    const char *key;
    size_t size;
    mp_value value, code = {0};
    int more, fatal = 0;
    static const uint8_t nothing[1] = {0};
    code.data = nothing;
    while ((more = mp_next(in, &key, &size, &value)) > 0) {
        if (mp_is(key, size, "code") && value.kind == MP_TEXT)
            code = value;
        else if (mp_is(key, size, "detail") && value.kind == MP_TEXT)
            copy_text(device->problem, sizeof device->problem, value.data, value.size);
        else if (mp_is(key, size, "fatal") && value.kind == MP_BOOL)
            fatal = (int)value.number;
    }
    if (more < 0) {
        end(device, "ERROR does not read");
        return;
    }
    if (fatal) {
        device->refused = is_final(&code);
        end(device, NULL);
    } else {
        device->rejected++;
        device->whole = 1; /* the server may lack what the next one would build on */
    }
}

static void on_result(ss_device *device, mp_reader *in, uint32_t sequence, uint32_t now_ms)
{
    const char *key;
    size_t size;
    mp_value value;
    int more;
    ss_result result = {0};
    result.cluster = -1;
    if (sequence <= device->received)
        return; /* came before */
    while ((more = mp_next(in, &key, &size, &value)) > 0) {
        if (mp_is(key, size, "window") && value.kind == MP_UINT)
            result.window = (uint32_t)value.number;
        else if (mp_is(key, size, "capture_ms") && value.kind == MP_UINT)
            result.captured_ms = (uint32_t)value.number;
        else if (mp_is(key, size, "uncertainty"))
            result.uncertainty = (float)value.real;
        else if (mp_is(key, size, "confidence"))
            result.confidence = (float)value.real;
        else if (mp_is(key, size, "cluster") && (value.kind == MP_UINT || value.kind == MP_INT))
            result.cluster = value.kind == MP_UINT ? (int32_t)value.number : (int32_t)value.whole;
        else if (mp_is(key, size, "label") && value.kind == MP_TEXT)
            copy_text(result.label, sizeof result.label, value.data, value.size);
    }
    if (more < 0) {
        end(device, "RESULT does not read");
        return;
    }
    if (device->received == device->acked)
        device->acked_ms = now_ms;
    device->received = sequence;
    device->answered++;
    if (device->config.on_result)
        device->config.on_result(device->config.user, &result);
}

static void on_message(ss_device *device, const uint8_t *data, size_t size, uint32_t now_ms)
{
    mp_reader in;
    uint8_t type = data[1];
    uint32_t sequence = get32(data + 4);
    if (data[0] != VERSION || data[3] != 0 || get32(data + 12) != size - SS_FRAME_HEADER) {
        end(device, "not a frame of protocol version 1");
        return;
    }
    if (type == DIALOGUE || type == GRAD_BACK) {
        device->unsupported = 1;
        return;
    }
    if (type != WELCOME && type != ACK && type != PING && type != ERROR && type != BYE && type != RESULT &&
        type != THROTTLE)
        return; /* statistics and weights: of no use here */
    if (mp_open(&in, data + SS_FRAME_HEADER, size - SS_FRAME_HEADER)) {
        end(device, "a message that is no map");
        return;
    }
    if (device->state == SS_GREETING && type != WELCOME && type != PING && type != ERROR && type != BYE) {
        end(device, "a message before WELCOME");
        return;
    }
    if (type == WELCOME)
        on_welcome(device, &in, now_ms);
    else if (type == ACK)
        on_ack(device, &in);
    else if (type == THROTTLE)
        on_throttle(device, &in);
    else if (type == PING)
        on_ping(device, &in);
    else if (type == ERROR)
        on_error(device, &in);
    else if (type == BYE)
        end(device, "the server said goodbye");
    else
        on_result(device, &in, sequence, now_ms);
}

void ss_receive(ss_device *device, const uint8_t *data, size_t size, size_t offset, size_t total, uint32_t now_ms)
{
    if (device->state == SS_OFFLINE || device->state == SS_ENDED)
        return;
    device->heard_ms = now_ms;
    if (offset == 0)
        device->received_size = 0;
    if (total > SS_RECEIVE_BYTES)
        return; /* longer than anything that is of use here */
    if (total < SS_FRAME_HEADER || offset != device->received_size || size > total - offset) {
        end(device, "not a frame");
        return;
    }
    memcpy(device->received_data + offset, data, size);
    device->received_size += size;
    if (device->received_size == total) {
        device->received_size = 0;
        on_message(device, device->received_data, total, now_ms);
    }
}

/* -- the connection ---------------------------------------------------------------------------------------------- */

void ss_connected(ss_device *device, uint32_t now_ms)
{
    device->state = SS_GREETING;
    device->greet = 1;
    device->pong = device->unsupported = 0;
    device->heard_ms = now_ms;
    device->received_size = 0;
}

void ss_disconnected(ss_device *device)
{
    if (device->state == SS_ENDED)
        device->resume_size = 0; /* the session is over: the next HELLO begins another */
    device->state = SS_OFFLINE;
}

int ss_should_close(const ss_device *device, uint32_t now_ms)
{
    return device->state == SS_ENDED || (device->state != SS_OFFLINE && passed(now_ms, device->heard_ms, SILENCE_MS));
}
