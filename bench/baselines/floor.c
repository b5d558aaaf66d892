#define _GNU_SOURCE /* memmem, strcasestr */

/*
 * The floor: what the benchmark's work costs in C on one epoll loop.
 *
 *     floor --token TOKEN --mode send|joined
 *
 * It speaks enough of Trunkline's protocol for the load generator and has none
 * of a gateway's duties: no log, no duplicate check, no limits, no validation.
 * With `send` each frame is its own system call; with `joined` a connection's
 * frames of one turn of the loop leave in one.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define READ_AT_ONCE (256 * 1024)
#define LARGEST_FRAME (1024 * 1024)
#define EVENTS_AT_ONCE 512
#define OPEN_REQUESTS 4096 /* the largest number of requests on their way */
#define ID_ROOM 132
#define FROM_ROOM 256

enum opcode { TEXT = 1, CLOSE = 8, PING = 9, PONG = 10 };

struct buffer {
    char *data;
    size_t length, capacity;
};

struct room {
    char *name;
    struct client **members;
    size_t count, capacity;
    uint64_t seq;
};

struct client {
    int fd;
    uint64_t number;
    bool upgraded, awaits_write, is_dirty, is_closing;
    struct buffer rest, out;
    struct room *room;
    char *from; /* the `from` object of what this client sends, as JSON */
};

struct slice {
    const char *data;
    size_t length;
};

struct envelope {
    struct slice type, id, session_id, payload;
};

struct request {
    struct client *asker;
    uint64_t number;
    char id[ID_ROOM];
};

static int poller;
static const char *token;
static bool is_joined;
static char scratch[LARGEST_FRAME + READ_AT_ONCE];
static uint64_t clients_so_far, frames_so_far, requests_so_far;
static struct room **rooms;
static size_t room_count, room_capacity;
static struct client *agent;
static struct request requests[OPEN_REQUESTS];
static struct client **dirty;
static size_t dirty_count, dirty_capacity;

_Noreturn static void die(const char *what) {
    fprintf(stderr, "floor: %s: %m\n", what);
    exit(1);
}

static void *grow(void *data, size_t *capacity, size_t needed, size_t size) {
    if (needed <= *capacity) return data;
    *capacity = needed * 2;
    data = realloc(data, *capacity * size);
    if (!data) die("realloc");
    return data;
}

static void buffer_append(struct buffer *b, const void *data, size_t length) {
    b->data = grow(b->data, &b->capacity, b->length + length, 1);
    memcpy(b->data + b->length, data, length);
    b->length += length;
}

static uint64_t now_ms(void) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

/* -- SHA-1 and base64, for the proof of the handshake (RFC 3174, RFC 4648) ---- */

static uint32_t rotate(uint32_t word, int by) { return word << by | word >> (32 - by); }

static void sha1_block(uint32_t h[5], const unsigned char block[64]) {
    uint32_t w[80], a = h[0], b = h[1], c = h[2], d = h[3], e = h[4];
    for (int t = 0; t < 16; t++) {
        const unsigned char *p = block + 4 * t;
        w[t] = (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
    }
    for (int t = 16; t < 80; t++) w[t] = rotate(w[t - 3] ^ w[t - 8] ^ w[t - 14] ^ w[t - 16], 1);
    for (int t = 0; t < 80; t++) {
        uint32_t f = t < 20   ? ((b & c) | (~b & d)) + 0x5A827999
                     : t < 40 ? (b ^ c ^ d) + 0x6ED9EBA1
                     : t < 60 ? ((b & c) | (b & d) | (c & d)) + 0x8F1BBCDC
                              : (b ^ c ^ d) + 0xCA62C1D6;
        uint32_t next = rotate(a, 5) + f + e + w[t];
        e = d, d = c, c = rotate(b, 30), b = a, a = next;
    }
    h[0] += a, h[1] += b, h[2] += c, h[3] += d, h[4] += e;
}

/* At most 119 bytes, which two blocks hold: a key and the standard's GUID are 60. */
static void sha1(const char *text, size_t length, unsigned char digest[20]) {
    uint32_t h[5] = {0x67452301, 0xEFCDAB89, 0x98BADCFE, 0x10325476, 0xC3D2E1F0};
    unsigned char blocks[128] = {0};
    size_t total = length + 9 <= 64 ? 64 : 128;
    memcpy(blocks, text, length);
    blocks[length] = 0x80;
    for (int i = 0; i < 8; i++) blocks[total - 1 - i] = (unsigned char)((length * 8) >> 8 * i);
    for (size_t at = 0; at < total; at += 64) sha1_block(h, blocks + at);
    for (int i = 0; i < 20; i++) digest[i] = (unsigned char)(h[i / 4] >> (24 - 8 * (i % 4)));
}

static void base64(const unsigned char *data, size_t length, char *to) {
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    for (size_t i = 0; i < length; i += 3) {
        uint32_t three = (uint32_t)data[i] << 16;
        if (i + 1 < length) three |= (uint32_t)data[i + 1] << 8;
        if (i + 2 < length) three |= data[i + 2];
        *to++ = digits[three >> 18];
        *to++ = digits[three >> 12 & 63];
        *to++ = i + 1 < length ? digits[three >> 6 & 63] : '=';
        *to++ = i + 2 < length ? digits[three & 63] : '=';
    }
    *to = 0;
}

/* -- Sending -------------------------------------------------------------------- */

static void client_watch(struct client *c) {
    struct epoll_event event = {.events = EPOLLIN | (c->awaits_write ? EPOLLOUT : 0),
                                .data.ptr = c};
    epoll_ctl(poller, EPOLL_CTL_MOD, c->fd, &event);
}

static void client_flush(struct client *c) {
    size_t done = 0;
    while (done < c->out.length) {
        ssize_t n = send(c->fd, c->out.data + done, c->out.length - done, MSG_NOSIGNAL);
        if (n < 0 && errno != EAGAIN) c->out.length = 0, c->is_closing = true;
        if (n < 0) break;
        done += (size_t)n;
    }
    c->out.length -= done < c->out.length ? done : c->out.length;
    if (c->out.length && done) memmove(c->out.data, c->out.data + done, c->out.length);
    if ((c->out.length > 0) != c->awaits_write) {
        c->awaits_write = c->out.length > 0;
        client_watch(c);
    }
}

static void client_wrote(struct client *c) {
    if (c->awaits_write) return;
    if (!is_joined) {
        client_flush(c);
    } else if (!c->is_dirty) {
        c->is_dirty = true;
        dirty = grow(dirty, &dirty_capacity, dirty_count + 1, sizeof *dirty);
        dirty[dirty_count++] = c;
    }
}

static void flush_dirty(void) {
    for (size_t i = 0; i < dirty_count; i++) {
        dirty[i]->is_dirty = false;
        if (!dirty[i]->awaits_write) client_flush(dirty[i]);
    }
    dirty_count = 0;
}

static size_t frame_head(unsigned char head[4], enum opcode opcode, size_t length) {
    head[0] = (unsigned char)(0x80 | opcode);
    if (length < 126) {
        head[1] = (unsigned char)length;
        return 2;
    }
    head[1] = 126;
    head[2] = (unsigned char)(length >> 8);
    head[3] = (unsigned char)length;
    return 4;
}

static void send_frame(struct client *c, enum opcode opcode, const char *data, size_t length) {
    unsigned char head[4];
    buffer_append(&c->out, head, frame_head(head, opcode, length));
    buffer_append(&c->out, data, length);
    client_wrote(c);
}

__attribute__((format(printf, 2, 3))) static void send_text(struct client *c, const char *format,
                                                            ...) {
    char text[65536];
    va_list arguments;
    va_start(arguments, format);
    int length = vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    if (length >= 0 && (size_t)length < sizeof text) send_frame(c, TEXT, text, (size_t)length);
}

/* -- Reading JSON: the envelope's members, as slices of the frame ------------------ */

static const char *skip_string(const char *at, const char *end) {
    for (at++; at < end && *at != '"'; at++)
        if (*at == '\\') at++;
    return at + 1;
}

static const char *skip_value(const char *at, const char *end) {
    int depth = 0;
    while (at < end) {
        if (*at == '"') {
            at = skip_string(at, end);
            if (!depth) return at;
            continue;
        }
        if (!depth && (*at == ',' || *at == '}')) return at;
        depth += (*at == '{' || *at == '[') - (*at == '}' || *at == ']');
        at++;
        if (!depth && (at[-1] == '}' || at[-1] == ']')) return at;
    }
    return end;
}

static struct slice *slot_of(struct envelope *e, const char *key, size_t length) {
    if (length == 4 && !memcmp(key, "type", 4)) return &e->type;
    if (length == 2 && !memcmp(key, "id", 2)) return &e->id;
    if (length == 9 && !memcmp(key, "sessionId", 9)) return &e->session_id;
    if (length == 7 && !memcmp(key, "payload", 7)) return &e->payload;
    return NULL;
}

static void read_envelope(struct envelope *e, const char *at, const char *end) {
    *e = (struct envelope){.payload = {"{}", 2}};
    while (at < end && (at = memchr(at, '"', (size_t)(end - at)))) {
        const char *key = at + 1, *after_key = skip_string(at, end);
        const char *value = memchr(after_key, ':', (size_t)(end - after_key));
        if (!value) return;
        at = skip_value(++value, end);
        struct slice *slot = slot_of(e, key, (size_t)(after_key - 1 - key));
        if (!slot) continue;
        bool is_string = *value == '"';
        *slot = (struct slice){value + is_string, (size_t)(at - value) - 2 * is_string};
    }
}

static bool is_word(struct slice s, const char *word) {
    return s.length == strlen(word) && !memcmp(s.data, word, s.length);
}

/* The string that follows `"name":` anywhere in the payload. */
static struct slice string_in(struct slice payload, const char *name) {
    char quoted[32];
    int length = snprintf(quoted, sizeof quoted, "\"%s\":\"", name);
    const char *found = memmem(payload.data, payload.length, quoted, (size_t)length);
    if (!found) return (struct slice){"", 0};
    const char *value = found + length;
    const char *end = memchr(value, '"', (size_t)(payload.data + payload.length - value));
    return (struct slice){value, end ? (size_t)(end - value) : 0};
}

#define SLICE(s) (int)(s).length, (s).data

/* -- The protocol ------------------------------------------------------------------ */

static void greet(struct client *c) {
    send_text(c,
              "{\"type\":\"session_info\",\"id\":\"g%lu\",\"payload\":{\"sessionId\":\"c%lu\","
              "\"status\":\"connected\",\"authRequired\":false,\"protocolVersion\":1,"
              "\"challengeNonce\":\"0123456789abcdef0123456789abcdef\","
              "\"limits\":{\"maxMessageSize\":1048576,\"maxFrameFromGateway\":2097152}},"
              "\"timestamp\":%lu}",
              ++frames_so_far, c->number, now_ms());
}

static void handle_ping(struct client *c, const struct envelope *e) {
    send_text(c,
              "{\"type\":\"pong\",\"id\":\"g%lu\",\"payload\":{\"clientId\":\"c%lu\"},"
              "\"timestamp\":%lu,\"replyTo\":\"%.*s\"}",
              ++frames_so_far, c->number, now_ms(), SLICE(e->id));
}

static void handle_connect(struct client *c, const struct envelope *e) {
    struct slice device = string_in(e->payload, "deviceId"), role = string_in(e->payload, "role");
    free(c->from);
    c->from = malloc(FROM_ROOM);
    if (!c->from) die("malloc");
    snprintf(c->from, FROM_ROOM,
             "{\"clientId\":\"c%lu\",\"userId\":\"owner\",\"role\":\"%.*s\",\"kind\":\"user\","
             "\"deviceId\":\"%.*s\"}",
             c->number, SLICE(role), SLICE(device));
    send_text(c,
              "{\"type\":\"hello_ok\",\"id\":\"g%lu\",\"payload\":{\"paired\":false,"
              "\"authRequired\":false,\"protocolVersion\":1,\"clientId\":\"c%lu\"},"
              "\"timestamp\":%lu,\"replyTo\":\"%.*s\"}",
              ++frames_so_far, c->number, now_ms(), SLICE(e->id));
}

static struct room *find_room(struct slice name) {
    for (size_t i = 0; i < room_count; i++)
        if (is_word(name, rooms[i]->name)) return rooms[i];
    rooms = grow(rooms, &room_capacity, room_count + 1, sizeof *rooms);
    struct room *room = rooms[room_count++] = calloc(1, sizeof *room);
    if (!room || !(room->name = strndup(name.data, name.length))) die("calloc");
    return room;
}

static void handle_session_create(struct client *c, const struct envelope *e) {
    struct slice name = string_in(e->payload, "sessionId");
    struct room *room = c->room = find_room(name);
    room->members = grow(room->members, &room->capacity, room->count + 1, sizeof *room->members);
    room->members[room->count++] = c;
    send_text(c,
              "{\"type\":\"session_info\",\"id\":\"g%lu\",\"sessionId\":\"%.*s\",\"payload\":"
              "{\"sessionId\":\"%.*s\",\"status\":\"joined\",\"memberCount\":%zu},"
              "\"timestamp\":%lu,\"replyTo\":\"%.*s\"}",
              ++frames_so_far, SLICE(name), SLICE(name), room->count, now_ms(), SLICE(e->id));
}

static void send_to_others(struct client *c, const char *text, size_t length) {
    struct room *room = c->room;
    for (size_t i = 0; i < room->count; i++)
        if (room->members[i] != c) send_frame(room->members[i], TEXT, text, length);
}

static void handle_chat(struct client *c, const struct envelope *e) {
    char text[65536];
    if (!c->room) return;
    uint64_t seq = ++c->room->seq;
    int length = snprintf(text, sizeof text,
                          "{\"type\":\"chat\",\"id\":\"%.*s\",\"sessionId\":\"%.*s\","
                          "\"payload\":%.*s,\"timestamp\":%lu,\"from\":%s,\"seq\":%lu,"
                          "\"addressed\":[]}",
                          SLICE(e->id), SLICE(e->session_id), SLICE(e->payload), now_ms(),
                          c->from, seq);
    if (length > 0 && (size_t)length < sizeof text) send_to_others(c, text, (size_t)length);
    send_text(c,
              "{\"type\":\"ack\",\"id\":\"g%lu\",\"sessionId\":\"%.*s\",\"payload\":"
              "{\"sessionId\":\"%.*s\",\"seq\":%lu,\"epoch\":\"e1\",\"durability\":\"memory\","
              "\"runs\":[]},\"timestamp\":%lu,\"replyTo\":\"%.*s\"}",
              ++frames_so_far, SLICE(e->session_id), SLICE(e->session_id), seq, now_ms(),
              SLICE(e->id));
}

static void handle_agent_register(struct client *c, const struct envelope *e) {
    agent = c;
    send_text(c,
              "{\"type\":\"agent_registered\",\"id\":\"g%lu\",\"payload\":{\"agentId\":\"a1\","
              "\"generation\":1,\"leaseMs\":60000,\"runs\":[],\"requests\":[]},"
              "\"timestamp\":%lu,\"replyTo\":\"%.*s\"}",
              ++frames_so_far, now_ms(), SLICE(e->id));
}

static struct slice params_of(struct slice payload) {
    const char *found = memmem(payload.data, payload.length, "\"params\":", 9);
    if (!found) return (struct slice){"{}", 2};
    const char *end = payload.data + payload.length;
    return (struct slice){found + 9, (size_t)(skip_value(found + 9, end) - found - 9)};
}

static void handle_route_request(struct client *c, const struct envelope *e) {
    struct request *r = &requests[++requests_so_far % OPEN_REQUESTS];
    if (!agent || !c->from || e->id.length >= ID_ROOM) return;
    r->asker = c;
    r->number = requests_so_far;
    memcpy(r->id, e->id.data, e->id.length);
    r->id[e->id.length] = 0;
    struct slice params = params_of(e->payload);
    send_text(agent,
              "{\"type\":\"route_request\",\"id\":\"g%lu\",\"payload\":{\"requestId\":\"%032lx\","
              "\"capability\":\"bench\",\"method\":null,\"params\":%.*s,\"stream\":false,"
              "\"deadline\":%lu,\"chain\":[]},\"timestamp\":%lu,\"from\":%s}",
              ++frames_so_far, r->number, SLICE(params), now_ms() + 60000, now_ms(), c->from);
}

static void handle_route_response(struct client *c, const struct envelope *e) {
    struct slice id = string_in(e->payload, "requestId");
    if (id.length != 32 || !c->from) return;
    uint64_t number = strtoull(id.data, NULL, 16);
    struct request *r = &requests[number % OPEN_REQUESTS];
    if (!r->asker || r->number != number) return;
    send_text(r->asker,
              "{\"type\":\"route_response\",\"id\":\"g%lu\",\"payload\":%.*s,"
              "\"timestamp\":%lu,\"replyTo\":\"%s\",\"from\":%s}",
              ++frames_so_far, SLICE(e->payload), now_ms(), r->id, c->from);
    if (memmem(e->payload.data, e->payload.length, "\"done\":true", 11)) r->asker = NULL;
}

static void handle_text(struct client *c, const char *text, size_t length) {
    struct envelope e;
    read_envelope(&e, text, text + length);
    if (is_word(e.type, "chat")) handle_chat(c, &e);
    else if (is_word(e.type, "ping")) handle_ping(c, &e);
    else if (is_word(e.type, "route_request")) handle_route_request(c, &e);
    else if (is_word(e.type, "route_response")) handle_route_response(c, &e);
    else if (is_word(e.type, "connect")) handle_connect(c, &e);
    else if (is_word(e.type, "session_create")) handle_session_create(c, &e);
    else if (is_word(e.type, "agent_register")) handle_agent_register(c, &e);
    else send_text(c, "{\"type\":\"error\",\"payload\":{\"code\":\"UNKNOWN_TYPE\"}}");
}

/* -- Receiving ------------------------------------------------------------------- */

static struct slice header(const char *head, const char *name) {
    const char *found = strcasestr(head, name);
    if (!found) return (struct slice){"", 0};
    const char *value = found + strlen(name);
    while (*value == ' ') value++;
    return (struct slice){value, strcspn(value, "\r\n")};
}

/* Bytes of the upgrade request, answered; or 0 while its end has not arrived. */
static size_t read_upgrade(struct client *c, char *data, size_t length) {
    char *end = memmem(data, length, "\r\n\r\n", 4);
    if (!end) return 0;
    size_t used = (size_t)(end - data) + 4;
    end[2] = 0;
    struct slice key = header(data, "\r\nSec-WebSocket-Key:");
    struct slice bearer = header(data, "\r\nAuthorization: Bearer");
    if (memcmp(data, "GET /ws ", 8) || key.length != 24 || !is_word(bearer, token)) {
        c->is_closing = true;
        return 0;
    }
    char proof[64], answer[256];
    unsigned char digest[20];
    snprintf(proof, sizeof proof, "%.24s258EAFA5-E914-47DA-95CA-C5AB0DC85B11", key.data);
    sha1(proof, 60, digest);
    base64(digest, sizeof digest, proof);
    int size = snprintf(answer, sizeof answer,
                        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n"
                        "Connection: Upgrade\r\nSec-WebSocket-Accept: %s\r\n\r\n",
                        proof);
    buffer_append(&c->out, answer, (size_t)size);
    c->upgraded = true;
    client_wrote(c);
    greet(c);
    return used;
}

static void unmask(char *data, size_t length, const char *key) {
    uint32_t four;
    uint64_t word, wide;
    size_t i = 0;
    memcpy(&four, key, 4);
    wide = (uint64_t)four << 32 | four;
    for (; i + 8 <= length; i += 8) {
        memcpy(&word, data + i, 8);
        word ^= wide;
        memcpy(data + i, &word, 8);
    }
    for (; i < length; i++) data[i] ^= key[i % 4];
}

static void handle_frame(struct client *c, unsigned opcode, const char *data, size_t length) {
    if (opcode == TEXT) handle_text(c, data, length);
    else if (opcode == PING) send_frame(c, PONG, data, length);
    else if (opcode == CLOSE) send_frame(c, CLOSE, data, length), c->is_closing = true;
}

/* Bytes of one frame, handled; or 0 while its end has not arrived. */
static size_t read_frame(struct client *c, char *data, size_t available) {
    unsigned char *head = (unsigned char *)data;
    size_t used = 2, length;
    if (available < 4) return 0;
    length = head[1] & 0x7F;
    if (!(head[1] & 0x80) || length == 127) {
        c->is_closing = true; /* unmasked, or larger than anything in the benchmark */
        return 0;
    }
    if (length == 126) {
        length = (size_t)head[2] << 8 | head[3];
        used = 4;
    }
    if (available < used + 4 + length) return 0;
    unmask(data + used + 4, length, data + used);
    handle_frame(c, head[0] & 0x0F, data + used + 4, length);
    return used + 4 + length;
}

static void forget(struct client *c) {
    for (size_t i = 0; c->room && i < c->room->count; i++)
        if (c->room->members[i] == c) c->room->members[i] = c->room->members[--c->room->count];
    for (size_t i = 0; i < OPEN_REQUESTS; i++)
        if (requests[i].asker == c) requests[i].asker = NULL;
    for (size_t i = 0; i < dirty_count; i++)
        if (dirty[i] == c) dirty[i] = dirty[--dirty_count];
    if (agent == c) agent = NULL;
    close(c->fd);
    free(c->rest.data);
    free(c->out.data);
    free(c->from);
    free(c);
}

static void client_read(struct client *c) {
    size_t length = c->rest.length, used = 0, step;
    if (length) memcpy(scratch, c->rest.data, length);
    ssize_t n = recv(c->fd, scratch + length, READ_AT_ONCE, 0);
    if (n < 0 && errno == EAGAIN) return;
    if (n <= 0) {
        forget(c);
        return;
    }
    length += (size_t)n;
    do {
        step = c->upgraded ? read_frame(c, scratch + used, length - used)
                           : read_upgrade(c, scratch + used, length - used);
        used += step;
    } while (step && !c->is_closing);
    c->rest.length = 0;
    if (used < length) buffer_append(&c->rest, scratch + used, length - used);
    if (c->is_closing || c->rest.length > LARGEST_FRAME / 2) {
        client_flush(c);
        forget(c);
    }
}

static void accept_all(int listener) {
    for (int fd, on = 1; (fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0;) {
        struct client *c = calloc(1, sizeof *c);
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = c};
        if (!c) die("calloc");
        c->fd = fd;
        c->number = ++clients_so_far;
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        epoll_ctl(poller, EPOLL_CTL_ADD, fd, &event);
    }
}

static int listen_on_loopback(void) {
    struct sockaddr_in address = {.sin_family = AF_INET};
    socklen_t size = sizeof address;
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = NULL};
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (bind(listener, (struct sockaddr *)&address, size) < 0) die("bind");
    if (listen(listener, 4096) < 0) die("listen");
    getsockname(listener, (struct sockaddr *)&address, &size);
    epoll_ctl(poller, EPOLL_CTL_ADD, listener, &event);
    printf("floor listening on http://127.0.0.1:%d\n", ntohs(address.sin_port));
    fflush(stdout);
    return listener;
}

static void serve(int listener) {
    struct epoll_event events[EVENTS_AT_ONCE];
    for (;;) {
        int count = epoll_wait(poller, events, EVENTS_AT_ONCE, -1);
        for (int i = 0; i < count; i++) {
            struct client *c = events[i].data.ptr;
            if (c && events[i].events & EPOLLOUT) client_flush(c);
            if (!c) accept_all(listener);
            else if (events[i].events & ~(uint32_t)EPOLLOUT) client_read(c);
        }
        flush_dirty();
    }
}

int main(int argc, char **argv) {
    if (argc != 5 || strcmp(argv[1], "--token") || strcmp(argv[3], "--mode")) {
        fputs("usage: floor --token TOKEN --mode send|joined\n", stderr);
        return 2;
    }
    token = argv[2];
    is_joined = !strcmp(argv[4], "joined");
    signal(SIGPIPE, SIG_IGN);
    poller = epoll_create1(0);
    serve(listen_on_loopback());
}
