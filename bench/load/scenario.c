#define _GNU_SOURCE /* memmem */

#include "scenario.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "connection.h"
#include "process.h"

#define OPENING_AT_ONCE 32
#define REOPENING_AT_ONCE 1000 /* about as many as a listener lets wait */
#define EPOCH_ROOM 65
#define RING 4096 /* more than the messages that can be on their way at once */
#define AHEAD 4   /* windows that the slowest member may lag behind the publishers */
#define SEQ_CHECKED_EVERY 16
#define TEXT_ROOM 2048

#define IS(text, length, word)                             \
    ((length) >= sizeof "{\"type\":\"" word "\"" - 1 &&    \
     !memcmp(text, "{\"type\":\"" word "\"", sizeof "{\"type\":\"" word "\"" - 1))

enum setup { BARE, MEMBERS, OWN_SESSIONS, SHARED_SESSIONS, ASKERS_AND_AGENT };

struct scenario {
    const char *name;
    enum setup setup;
    void (*send_one)(struct connection *);
    message_handler handle;
    void (*run_units)(uint64_t units);
    void (*measure)(void);
};

struct reading {
    uint64_t wall_ns, server_ns, load_ns;
};

static struct options options;
static const struct scenario *scenario;
static struct connection *connections;
static char filler[TEXT_ROOM];
static unsigned opened, ready, opening_at_once = OPENING_AT_ONCE;
static uint64_t deadline_ns;

/* Units: wanted, begun and finished, since the start. */
static uint64_t goal, issued, completed;

/* How many members have seen the message at a position of the session's log. */
static unsigned seen_by[RING];

/* Answers to the registrations of agents that have come. */
static unsigned registered;

/* Delivery times, in `latency`. */
static uint64_t *samples, sample_count, sample_room, due_ns;

/* In `resume`: each session's epoch, whether clients come back, and where they are up to date. */
static char (*epochs)[EPOCH_ROOM];
static bool resuming;
static uint64_t last_position;

/* -- Waiting ------------------------------------------------------------- */

static void wait_for_network(int timeout_ms) {
    network_poll(timeout_ms);
    if (now_ns() > deadline_ns)
        fail("%s: after %u s only %" PRIu64 " of %" PRIu64 " units and %u of %u connections",
             options.scenario, options.deadline, completed, goal, ready, options.connections);
}

/* Presence of the members that have just joined is not part of what is measured. */
static void wait_for_quiet(void) {
    while (network_poll(100))
        if (now_ns() > deadline_ns) fail("%s: the server never becomes quiet", options.scenario);
}

/* -- Setting up: from the upgrade to a connection that takes part ------------ */

static void send_text(struct connection *c, const char *text) {
    connection_send(c, text, strlen(text));
}

static bool is_agent(const struct connection *c) {
    return scenario->setup == ASKERS_AND_AGENT && c->index == options.connections - 1;
}

static void introduce(struct connection *c) {
    char text[256];
    snprintf(text, sizeof text,
             "{\"type\":\"connect\",\"id\":\"hello\",\"payload\":"
             "{\"deviceId\":\"d%u\",\"role\":\"%s\"}}",
             c->index, is_agent(c) ? "node" : "control");
    send_text(c, text);
    c->stage = CONNECTING;
}

static unsigned session_of(const struct connection *c) {
    return c->index % options.sessions;
}

static void join(struct connection *c) {
    char text[256];
    if (resuming)
        snprintf(text, sizeof text,
                 "{\"type\":\"session_join\",\"id\":\"join\",\"payload\":"
                 "{\"sessionId\":\"bench-%u\",\"since\":{\"epoch\":\"%s\",\"seq\":%" PRIu64 "}}}",
                 session_of(c), epochs[session_of(c)], c->position);
    else
        snprintf(text, sizeof text,
                 "{\"type\":\"session_create\",\"id\":\"join\",\"payload\":"
                 "{\"sessionId\":\"bench-%u\",\"joinIfExists\":true}}",
                 session_of(c));
    send_text(c, text);
    c->stage = JOINING;
}

static void register_agents(struct connection *c) {
    char text[256];
    for (unsigned i = 1; i <= options.agents; i++) {
        snprintf(text, sizeof text,
                 "{\"type\":\"agent_register\",\"id\":\"register-%u\",\"payload\":{\"id\":\"a%u\","
                 "\"type\":\"custom\",\"name\":\"bench\",\"capabilities\":{\"tools\":[\"bench\"]}}}",
                 i, i);
        send_text(c, text);
    }
    c->stage = JOINING;
}

_Noreturn static void refuse(struct connection *c, const char *text, size_t length) {
    fail("connection %u: unexpected: %.*s", c->index, (int)(length < 500 ? length : 500), text);
}

/* What follows `name` in the text, which must be there. */
static const char *value_of(struct connection *c, const char *text, size_t length,
                            const char *name) {
    const char *found = memmem(text, length, name, strlen(name));
    if (!found) refuse(c, text, length);
    return found + strlen(name);
}

/* A session's epoch as its members learn it, or the promise that nothing is skipped. */
static void check_joined(struct connection *c, const char *text, size_t length) {
    if (resuming) {
        value_of(c, text, length, "\"recovery\":\"resumed\"");
        return;
    }
    const char *epoch = value_of(c, text, length, "\"epoch\":\"");
    const char *end = memchr(epoch, '"', (size_t)(text + length - epoch));
    if (!end || end - epoch >= EPOCH_ROOM) refuse(c, text, length);
    snprintf(epochs[session_of(c)], EPOCH_ROOM, "%.*s", (int)(end - epoch), epoch);
}

static void become_ready(struct connection *c) {
    c->stage = READY;
    ready++;
}

static void after_hello(struct connection *c) {
    if (scenario->setup == BARE)
        become_ready(c);
    else if (is_agent(c))
        register_agents(c);
    else if (scenario->setup == ASKERS_AND_AGENT)
        become_ready(c);
    else
        join(c);
}

static void continue_setup(struct connection *c, const char *text, size_t length) {
    if (c->stage == GREETING && IS(text, length, "session_info")) {
        /* What is counted in `connect` and `idle` ends at the gateway's greeting. */
        if (scenario->send_one)
            introduce(c);
        else
            become_ready(c);
    } else if (c->stage == CONNECTING && IS(text, length, "hello_ok")) {
        after_hello(c);
    } else if (c->stage == JOINING && IS(text, length, "agent_registered")) {
        if (++registered == options.agents) become_ready(c);
    } else if (c->stage == JOINING && IS(text, length, "session_info")) {
        if (scenario->setup == SHARED_SESSIONS) check_joined(c, text, length);
        become_ready(c);
    } else {
        fail("connection %u: unexpected in stage %d: %.*s", c->index, c->stage, (int)length, text);
    }
}

static void handle_message(struct connection *c, const char *text, size_t length) {
    if (IS(text, length, "presence") || IS(text, length, "head")) return;
    if (c->stage != READY)
        continue_setup(c, text, length);
    else
        scenario->handle(c, text, length);
}

static void open_up_to(uint64_t wanted) {
    while (ready < wanted) {
        while (opened < wanted && opened - ready < opening_at_once) {
            connections[opened].index = opened;
            connection_open(&connections[opened++]);
        }
        wait_for_network(0);
    }
}

/* -- Messages -------------------------------------------------------------- */

static void send_ping(struct connection *c) {
    char text[128];
    snprintf(text, sizeof text, "{\"type\":\"ping\",\"id\":\"p%" PRIu64 "\"}", c->sent);
    send_text(c, text);
}

static void send_chat(struct connection *c) {
    char text[TEXT_ROOM + 256];
    snprintf(text, sizeof text,
             "{\"type\":\"chat\",\"id\":\"c%u-%" PRIu64 "\",\"sessionId\":\"bench-%u\",\"payload\":"
             "{\"message\":\"%020" PRIu64 "%s\"}}",
             c->index, c->sent, session_of(c), due_ns, filler);
    send_text(c, text);
}

static void send_request(struct connection *c) {
    char text[TEXT_ROOM + 256];
    snprintf(text, sizeof text,
             "{\"type\":\"route_request\",\"id\":\"r%" PRIu64 "\",\"payload\":"
             "{\"capability\":\"bench\",\"params\":{\"text\":\"%s\"}}}",
             c->sent, filler);
    send_text(c, text);
}

static void send_stream_request(struct connection *c) {
    char text[256];
    snprintf(text, sizeof text,
             "{\"type\":\"route_request\",\"id\":\"r%" PRIu64 "\",\"payload\":"
             "{\"capability\":\"bench\",\"stream\":true}}",
             c->sent);
    c->position = 0;
    send_text(c, text);
}

static void finish_one(struct connection *c) {
    if (!c->in_flight) fail("connection %u: an answer to nothing", c->index);
    c->in_flight--;
    completed++;
}

static void handle_pong(struct connection *c, const char *text, size_t length) {
    if (!IS(text, length, "pong")) refuse(c, text, length);
    finish_one(c);
}

/* Every message is one step in the log for every member: a hole or a repeat shows at once. */
static void advance(struct connection *c, const char *text, size_t length) {
    c->position++;
    if (c->position % SEQ_CHECKED_EVERY) return;
    uint64_t seq = strtoull(value_of(c, text, length, "\"seq\":"), NULL, 10);
    if (seq != c->position)
        fail("connection %u: seq %" PRIu64 " where %" PRIu64 " was due", c->index, seq,
             c->position);
}

static void handle_own_ack(struct connection *c, const char *text, size_t length) {
    if (!IS(text, length, "ack")) refuse(c, text, length);
    advance(c, text, length);
    finish_one(c);
}

static void handle_delivery(struct connection *c, const char *text, size_t length) {
    if (IS(text, length, "ack")) {
        if (!c->in_flight) fail("connection %u: an ack for nothing", c->index);
        c->in_flight--;
    } else if (!IS(text, length, "chat")) {
        refuse(c, text, length);
    }
    advance(c, text, length);
    if (c->position > issued) fail("connection %u: more messages than were sent", c->index);
    unsigned *seen = &seen_by[c->position % RING];
    if (++*seen == options.connections) {
        *seen = 0;
        completed++;
    }
}

static void handle_missed(struct connection *c, const char *text, size_t length) {
    if (IS(text, length, "ack"))
        c->in_flight--;
    else if (!IS(text, length, "chat"))
        refuse(c, text, length);
    advance(c, text, length);
    if (c->position > last_position) fail("connection %u: more messages than were sent", c->index);
    completed += c->position == last_position;
}

static void handle_timed_delivery(struct connection *c, const char *text, size_t length) {
    if (sample_room && IS(text, length, "chat")) {
        uint64_t sent = strtoull(value_of(c, text, length, "\"message\":\""), NULL, 10);
        if (sample_count == sample_room) fail("more deliveries than were due");
        samples[sample_count++] = now_ns() - sent;
    }
    handle_delivery(c, text, length);
}

/* The id of a request that the agent has got; `*size` is its length. */
static const char *requested(struct connection *c, const char *text, size_t length, int *size) {
    const char *id = value_of(c, text, length, "\"requestId\":\"");
    const char *end = memchr(id, '"', (size_t)(text + length - id));
    if (!IS(text, length, "route_request") || !end) refuse(c, text, length);
    *size = (int)(end - id);
    return id;
}

static void answer_request(struct connection *c, const char *text, size_t length) {
    char answer[TEXT_ROOM + 512];
    int size;
    const char *id = requested(c, text, length, &size);
    snprintf(answer, sizeof answer,
             "{\"type\":\"route_response\",\"id\":\"s%" PRIu64 "\",\"payload\":{\"requestId\":"
             "\"%.*s\",\"ok\":true,\"result\":{\"text\":\"%s\"},\"done\":true}}",
             c->sent++, size, id, filler);
    send_text(c, answer);
}

/* A chunk is its number and the filler, so that a hole or a repeat shows at once. */
static void stream_answer(struct connection *c, const char *text, size_t length) {
    char answer[TEXT_ROOM + 512];
    int size;
    const char *id = requested(c, text, length, &size);
    for (unsigned i = 1; i <= options.chunks; i++) {
        snprintf(answer, sizeof answer,
                 "{\"type\":\"route_response\",\"id\":\"s%" PRIu64 "\",\"payload\":{\"requestId\":"
                 "\"%.*s\",\"ok\":true,\"chunk\":\"%05u%s\",\"done\":%s}}",
                 c->sent++, size, id, i, filler, i == options.chunks ? "true" : "false");
        send_text(c, answer);
    }
}

static void handle_routed(struct connection *c, const char *text, size_t length) {
    if (is_agent(c)) {
        answer_request(c, text, length);
        return;
    }
    if (!IS(text, length, "route_response")) refuse(c, text, length);
    value_of(c, text, length, "\"ok\":true");
    finish_one(c);
}

static void handle_streamed(struct connection *c, const char *text, size_t length) {
    if (is_agent(c)) {
        stream_answer(c, text, length);
        return;
    }
    if (!IS(text, length, "route_response")) refuse(c, text, length);
    uint64_t number = strtoull(value_of(c, text, length, "\"chunk\":\""), NULL, 10);
    if (number != ++c->position) refuse(c, text, length);
    bool is_last = memmem(text, length, "\"done\":true", 11);
    if (is_last != (number == options.chunks)) refuse(c, text, length);
    if (is_last) finish_one(c);
}

/* -- Running ----------------------------------------------------------------- */

static unsigned senders(void) {
    if (scenario->setup == MEMBERS) return options.publishers;
    return options.connections - (scenario->setup == ASKERS_AND_AGENT);
}

static void issue(struct connection *c) {
    c->in_flight++;
    c->sent++;
    issued++;
    scenario->send_one(c);
}

static void refill(void) {
    uint64_t ahead = (uint64_t)AHEAD * options.depth * senders();
    for (unsigned i = 0; i < senders(); i++) {
        struct connection *c = &connections[i];
        while (c->in_flight < options.depth && issued < goal && issued - completed < ahead)
            issue(c);
        if (c->out.length && !c->awaits_write) connection_flush(c);
    }
}

/*
 * It polls without ever sleeping: a sleeping generator would have to be woken
 * by the server's sends, and on a virtual machine that costs the server several
 * microseconds each, which clients behind a network card never cost it.
 */
static void run_saturated(uint64_t units) {
    goal += units;
    refill();
    while (completed < goal) {
        wait_for_network(0);
        refill();
    }
}

/* An open loop: a message's time counts from when it was due, not from when it could be sent. */
static void run_paced(uint64_t units) {
    uint64_t interval = 1000000000u / options.rate;
    goal += units;
    for (due_ns = now_ns(); issued < goal; due_ns += interval) {
        while (now_ns() < due_ns) wait_for_network(0);
        issue(&connections[0]);
        connection_flush(&connections[0]);
    }
    while (completed < goal) wait_for_network(0);
}

static void run_connects(uint64_t units) {
    goal += units;
    open_up_to(goal);
    completed = goal;
}

/* -- Measuring ----------------------------------------------------------------- */

static struct reading read_now(void) {
    struct reading reading = {.wall_ns = now_ns()};
    usleep(5000); /* the server's last tick ends */
    reading.server_ns = process_cpu_ns(options.pid);
    reading.load_ns = own_cpu_ns();
    return reading;
}

static void print_costs(struct reading from, struct reading to, double units) {
    double server = (double)(to.server_ns - from.server_ns);
    double wall = (double)(to.wall_ns - from.wall_ns);
    printf("{\"units\": %.0f, \"cpu_us\": %.4f, \"per_second\": %.0f, \"server_busy\": %.3f, "
           "\"load_busy\": %.3f}\n",
           units, server / units / 1e3, units / wall * 1e9, server / wall,
           (double)(to.load_ns - from.load_ns) / wall);
}

static void measure_cpu(void) {
    scenario->run_units(options.warmup);
    wait_for_quiet();
    struct reading from = read_now();
    scenario->run_units(options.count);
    struct reading to = read_now();
    unsigned deliveries = scenario->setup == MEMBERS ? options.connections - 1 : options.chunks;
    print_costs(from, to, (double)options.count * deliveries);
}

static void measure_memory(void) {
    scenario->run_units(options.warmup);
    wait_for_quiet();
    uint64_t before = process_rss(options.pid);
    scenario->run_units(options.count);
    wait_for_quiet();
    uint64_t after = process_rss(options.pid);
    printf("{\"units\": %" PRIu64 ", \"rss_kb\": %.3f}\n", options.count,
           ((double)after - (double)before) / (double)options.count / 1e3);
}

static int by_value(const void *a, const void *b) {
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

static void measure_latency(void) {
    scenario->run_units(options.warmup);
    wait_for_quiet();
    sample_room = options.count * (options.connections - 1);
    samples = calloc(sample_room, sizeof *samples);
    if (!samples) fail("out of memory");
    scenario->run_units(options.count);
    if (sample_count != sample_room) fail("fewer deliveries than were due");
    qsort(samples, sample_count, sizeof *samples, by_value);
    printf("{\"units\": %" PRIu64 ", \"p50_us\": %.1f, \"p99_us\": %.1f, \"max_us\": %.1f}\n",
           sample_count, (double)samples[sample_count / 2] / 1e3,
           (double)samples[sample_count * 99 / 100] / 1e3,
           (double)samples[sample_count - 1] / 1e3);
}

/* Send to each session from a member of its own, then wait until `receivers` have everything. */
static void publish_to_all(struct connection *first, uint64_t messages, uint64_t receivers) {
    last_position += messages;
    goal = receivers;
    for (completed = 0; completed < goal; wait_for_network(0)) {
        for (struct connection *c = first; c < first + options.sessions; c++) {
            while (c->in_flight < options.depth && c->position + c->in_flight < last_position)
                issue(c);
            if (c->out.length && !c->awaits_write) connection_flush(c);
        }
    }
}

static void drop(struct connection *first, unsigned count) {
    for (struct connection *c = first; c < first + count; c++) connection_drop(c);
}

/*
 * All clients are lost at once, miss messages, and come back at once. They are
 * live when each has all it missed; whether they are is seen by one more message.
 */
static void measure_resume(void) {
    struct connection *publishers = connections + options.connections;
    drop(connections, options.connections);
    open_up_to(options.connections + options.sessions);
    publish_to_all(publishers, options.count, options.sessions);
    drop(publishers, options.sessions);
    wait_for_quiet();
    usleep(500 * 1000); /* the server has noticed that they are gone */

    struct reading from = read_now();
    opened = ready = 0;
    resuming = true;
    opening_at_once = REOPENING_AT_ONCE;
    goal = options.connections;
    completed = 0;
    open_up_to(options.connections);
    while (completed < goal) wait_for_network(0);
    struct reading to = read_now();

    publish_to_all(connections, 1, options.connections);
    printf("{\"units\": %u, \"seconds\": %.4f, \"cpu_s\": %.4f}\n", options.connections,
           (double)(to.wall_ns - from.wall_ns) / 1e9,
           (double)(to.server_ns - from.server_ns) / 1e9);
}

static const struct scenario scenarios[] = {
    {"echo", BARE, send_ping, handle_pong, run_saturated, measure_cpu},
    {"fanout", MEMBERS, send_chat, handle_delivery, run_saturated, measure_cpu},
    {"publish", OWN_SESSIONS, send_chat, handle_own_ack, run_saturated, measure_cpu},
    {"request", ASKERS_AND_AGENT, send_request, handle_routed, run_saturated, measure_cpu},
    {"stream", ASKERS_AND_AGENT, send_stream_request, handle_streamed, run_saturated, measure_cpu},
    {"latency", MEMBERS, send_chat, handle_timed_delivery, run_paced, measure_latency},
    {"resume", SHARED_SESSIONS, send_chat, handle_missed, NULL, measure_resume},
    {"connect", BARE, NULL, refuse, run_connects, measure_cpu},
    {"idle", BARE, NULL, refuse, run_connects, measure_memory},
};

static const struct scenario *find_scenario(const char *name) {
    for (size_t i = 0; i < sizeof scenarios / sizeof *scenarios; i++)
        if (!strcmp(scenarios[i].name, name)) return &scenarios[i];
    fail("there is no scenario %s", name);
}

void scenario_run(const struct options *given) {
    options = *given;
    scenario = find_scenario(options.scenario);
    if (options.size >= TEXT_ROOM) fail("--size is at most %d", TEXT_ROOM - 1);
    if (scenario->setup == MEMBERS && (uint64_t)AHEAD * options.depth * options.publishers >= RING)
        fail("--depth times --publishers is too much");
    if (!strcmp(options.scenario, "stream") && options.depth > 1)
        fail("stream counts the chunks of one answer at a time: --depth must be 1");
    if (options.publishers > options.connections) fail("more publishers than connections");
    memset(filler, 'x', options.size);
    if (!scenario->send_one) options.connections = (unsigned)(options.warmup + options.count);
    if (options.connections % options.sessions) fail("--connections is no multiple of --sessions");
    connections = calloc(options.connections + options.sessions, sizeof *connections);
    epochs = calloc(options.sessions, sizeof *epochs);
    if (!connections || !epochs) fail("out of memory");
    deadline_ns = now_ns() + options.deadline * 1000000000ull;
    network_start(options.port, options.token, handle_message);
    if (scenario->send_one) open_up_to(options.connections);
    wait_for_quiet();
    scenario->measure();
}
