/*
 * WebSocket client connections on one epoll loop (RFC 6455, client side).
 *
 * Frames are masked with a fresh key each, as the standard asks. Everything
 * that goes wrong ends the process with a sentence on stderr: a benchmark that
 * lost a message must not print a number.
 */
#ifndef CONNECTION_H
#define CONNECTION_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum stage {
    CLOSED,     /* not opened yet */
    UPGRADING,  /* the upgrade is sent, the 101 is awaited */
    GREETING,   /* the gateway's session_info is awaited */
    CONNECTING, /* hello_ok is awaited */
    JOINING,    /* the answer to session_create or agent_register is awaited */
    READY,
};

struct buffer {
    char *data;
    size_t length, capacity;
};

struct connection {
    int fd;
    unsigned index;
    enum stage stage;
    bool awaits_write;     /* the kernel's buffer was full; EPOLLOUT is on */
    struct buffer rest;    /* the beginning of a frame whose end has not arrived */
    struct buffer out;     /* frames not yet given to the kernel */
    unsigned in_flight;    /* requests of this connection without an answer */
    uint64_t sent;         /* requests so far, for their ids */
    uint64_t position;     /* the last seq that this connection has seen */
};

/* Called with each text message; `text` is valid until it returns. */
typedef void (*message_handler)(struct connection *, const char *text, size_t length);

/* Print a sentence and exit with status 1. */
_Noreturn void fail(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* Remember where the gateway is; every later connection goes there. */
void network_start(int port, const char *token, message_handler handler);

/* Connect over TCP and send the upgrade request with the bearer token. */
void connection_open(struct connection *c);

/* Be gone without a word; the connection may be opened again. */
void connection_drop(struct connection *c);

/* Queue one masked text frame; `connection_flush` sends what is queued. */
void connection_send(struct connection *c, const char *text, size_t length);
void connection_flush(struct connection *c);

/* Handle what arrives within `timeout_ms`; returns how many connections had something. */
int network_poll(int timeout_ms);

/* Nanoseconds of the monotonic clock. */
uint64_t now_ns(void);

#endif
