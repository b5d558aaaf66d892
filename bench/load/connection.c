#define _GNU_SOURCE /* memmem */

#include "connection.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define READ_AT_ONCE (256 * 1024)
#define LARGEST_FRAME (2 * 1024 * 1024 + 64)
#define EVENTS_AT_ONCE 512

/* The key and answer of RFC 6455, section 1.3: a fixed key makes the proof a constant. */
#define HANDSHAKE_KEY "dGhlIHNhbXBsZSBub25jZQ=="
#define HANDSHAKE_PROOF "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="

enum opcode { TEXT = 1, CLOSE = 8, PING = 9, PONG = 10 };

static int poller;
static struct sockaddr_in gateway;
static char upgrade[1024];
static message_handler handle_message;
static char scratch[LARGEST_FRAME + READ_AT_ONCE];
static uint64_t mask_state = 0x9E3779B97F4A7C15u;

void fail(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    fputs("load: ", stderr);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    exit(1);
}

uint64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static char *buffer_reserve(struct buffer *b, size_t more) {
    if (b->length + more > b->capacity) {
        b->capacity = (b->length + more) * 2;
        b->data = realloc(b->data, b->capacity);
        if (!b->data) fail("out of memory");
    }
    return b->data + b->length;
}

static void buffer_append(struct buffer *b, const void *data, size_t length) {
    memcpy(buffer_reserve(b, length), data, length);
    b->length += length;
}

static void watch(struct connection *c, int operation) {
    struct epoll_event event = {.events = EPOLLIN | (c->awaits_write ? EPOLLOUT : 0),
                                .data.ptr = c};
    if (epoll_ctl(poller, operation, c->fd, &event) < 0) fail("epoll_ctl: %m");
}

void network_start(int port, const char *token, message_handler handler) {
    poller = epoll_create1(0);
    gateway = (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    gateway.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    handle_message = handler;
    snprintf(upgrade, sizeof upgrade,
             "GET /ws HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nUpgrade: websocket\r\n"
             "Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: %s\r\n"
             "Authorization: Bearer %s\r\n\r\n",
             port, HANDSHAKE_KEY, token);
}

void connection_open(struct connection *c) {
    int on = 1;
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (c->fd < 0) fail("socket: %m");
    /* Blocking on purpose: on loopback this returns at once while the backlog has room. */
    if (connect(c->fd, (struct sockaddr *)&gateway, sizeof gateway) < 0) fail("connect: %m");
    fcntl(c->fd, F_SETFL, O_NONBLOCK);
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    c->stage = UPGRADING;
    watch(c, EPOLL_CTL_ADD);
    buffer_append(&c->out, upgrade, strlen(upgrade));
    connection_flush(c);
}

void connection_drop(struct connection *c) {
    close(c->fd);
    c->stage = CLOSED;
    c->awaits_write = false;
    c->rest.length = c->out.length = 0;
    c->in_flight = 0;
}

static uint32_t next_mask(void) {
    mask_state ^= mask_state << 13;
    mask_state ^= mask_state >> 7;
    mask_state ^= mask_state << 17;
    return (uint32_t)mask_state;
}

static void mask_into(char *to, const char *from, size_t length, uint32_t key) {
    uint64_t wide = (uint64_t)key << 32 | key;
    size_t i = 0;
    for (; i + 8 <= length; i += 8) {
        uint64_t word;
        memcpy(&word, from + i, 8);
        word ^= wide;
        memcpy(to + i, &word, 8);
    }
    for (; i < length; i++) to[i] = from[i] ^ (char)(key >> 8 * (i % 4));
}

static void queue_frame(struct connection *c, enum opcode opcode, const char *data, size_t length) {
    unsigned char *head = (unsigned char *)buffer_reserve(&c->out, length + 14);
    uint32_t key = next_mask();
    size_t used = 2;
    head[0] = (unsigned char)(0x80 | opcode);
    if (length < 126) {
        head[1] = (unsigned char)(0x80 | length);
    } else if (length < 65536) {
        head[1] = 0x80 | 126;
        head[2] = (unsigned char)(length >> 8);
        head[3] = (unsigned char)length;
        used = 4;
    } else {
        fail("a client frame of %zu bytes is not needed here", length);
    }
    memcpy(head + used, &key, 4);
    mask_into((char *)head + used + 4, data, length, key);
    c->out.length += used + 4 + length;
}

void connection_send(struct connection *c, const char *text, size_t length) {
    queue_frame(c, TEXT, text, length);
}

void connection_flush(struct connection *c) {
    size_t done = 0;
    while (done < c->out.length) {
        ssize_t n = send(c->fd, c->out.data + done, c->out.length - done, MSG_NOSIGNAL);
        if (n < 0 && errno == EAGAIN) break;
        if (n < 0) fail("connection %u: send: %m", c->index);
        done += (size_t)n;
    }
    c->out.length -= done;
    if (c->out.length && done) memmove(c->out.data, c->out.data + done, c->out.length);
    if ((c->out.length > 0) != c->awaits_write) {
        c->awaits_write = c->out.length > 0;
        watch(c, EPOLL_CTL_MOD);
    }
}

/* Bytes of the upgrade's answer, or 0 while its end has not arrived. */
static size_t read_handshake(struct connection *c, const char *data, size_t length) {
    const char *end = memmem(data, length, "\r\n\r\n", 4);
    if (!end) return 0;
    size_t used = (size_t)(end - data) + 4;
    if (memcmp(data, "HTTP/1.1 101", 12) || !memmem(data, used, HANDSHAKE_PROOF, 28))
        fail("connection %u was not upgraded: %.*s", c->index, (int)used, data);
    c->stage = GREETING;
    return used;
}

static void handle_frame(struct connection *c, unsigned opcode, const char *data, size_t length) {
    if (opcode == TEXT) {
        handle_message(c, data, length);
    } else if (opcode == PING) {
        queue_frame(c, PONG, data, length);
    } else if (opcode == CLOSE) {
        const unsigned char *code = (const unsigned char *)data;
        fail("connection %u was closed: %d %.*s", c->index,
             length >= 2 ? code[0] << 8 | code[1] : 1005, length > 2 ? (int)length - 2 : 0,
             data + 2);
    } else if (opcode != PONG) {
        fail("connection %u: unexpected opcode %u", c->index, opcode);
    }
}

/* Bytes of one frame, handled; or 0 while its end has not arrived. */
static size_t read_frame(struct connection *c, const char *data, size_t available) {
    const unsigned char *head = (const unsigned char *)data;
    size_t used = 2, length;
    if (available < 2) return 0;
    if (!(head[0] & 0x80) || head[0] & 0x70 || head[1] & 0x80)
        fail("connection %u: a fragmented, masked or reserved frame", c->index);
    length = head[1];
    if (length == 126) {
        if (available < 4) return 0;
        length = (size_t)head[2] << 8 | head[3];
        used = 4;
    } else if (length == 127) {
        if (available < 10) return 0;
        length = 0;
        for (int i = 2; i < 10; i++) length = length << 8 | head[i];
        used = 10;
    }
    if (length > LARGEST_FRAME) fail("connection %u: a frame of %zu bytes", c->index, length);
    if (available < used + length) return 0;
    handle_frame(c, head[0] & 0x0F, data + used, length);
    return used + length;
}

static void connection_read(struct connection *c) {
    size_t length = c->rest.length, used = 0, step;
    if (length) memcpy(scratch, c->rest.data, length);
    ssize_t n = recv(c->fd, scratch + length, READ_AT_ONCE, 0);
    if (n < 0 && errno == EAGAIN) return;
    if (n <= 0) fail("connection %u was lost: %s", c->index, n ? strerror(errno) : "end of stream");
    length += (size_t)n;
    do {
        step = c->stage == UPGRADING ? read_handshake(c, scratch + used, length - used)
                                     : read_frame(c, scratch + used, length - used);
        used += step;
    } while (step);
    c->rest.length = 0;
    if (used < length) buffer_append(&c->rest, scratch + used, length - used);
    if (c->out.length && !c->awaits_write) connection_flush(c);
}

int network_poll(int timeout_ms) {
    struct epoll_event events[EVENTS_AT_ONCE];
    int count = epoll_wait(poller, events, EVENTS_AT_ONCE, timeout_ms);
    if (count < 0) fail("epoll_wait: %m");
    for (int i = 0; i < count; i++) {
        struct connection *c = events[i].data.ptr;
        if (events[i].events & EPOLLOUT) connection_flush(c);
        if (events[i].events & ~(uint32_t)EPOLLOUT) connection_read(c);
    }
    return count;
}
