/*
 * The load generator of Trunkline's benchmark: one thread, one epoll loop.
 *
 *     load SCENARIO --port N --pid N --token T [--connections N] [--sessions N] [--publishers N]
 *          [--agents N] [--chunks N] [--depth N] [--size BYTES] [--rate PER_SECOND] [--warmup UNITS] [--count UNITS]
 *          [--deadline SECONDS]
 *
 * It prints one line of JSON, or a sentence on stderr and exits with 1.
 */
#include <signal.h>
#include <stdlib.h>
#include <string.h>

#include "connection.h"
#include "scenario.h"

static unsigned long number(const char *flag, const char *text) {
    char *end;
    unsigned long value = strtoul(text, &end, 10);
    if (!*text || *end) fail("%s needs a number, not %s", flag, text);
    return value;
}

static void set_option(struct options *options, const char *flag, const char *value) {
    if (!strcmp(flag, "--token")) options->token = value;
    else if (!strcmp(flag, "--port")) options->port = (int)number(flag, value);
    else if (!strcmp(flag, "--pid")) options->pid = (pid_t)number(flag, value);
    else if (!strcmp(flag, "--connections")) options->connections = (unsigned)number(flag, value);
    else if (!strcmp(flag, "--sessions")) options->sessions = (unsigned)number(flag, value);
    else if (!strcmp(flag, "--publishers")) options->publishers = (unsigned)number(flag, value);
    else if (!strcmp(flag, "--agents")) options->agents = (unsigned)number(flag, value);
    else if (!strcmp(flag, "--chunks")) options->chunks = (unsigned)number(flag, value);
    else if (!strcmp(flag, "--depth")) options->depth = (unsigned)number(flag, value);
    else if (!strcmp(flag, "--size")) options->size = (unsigned)number(flag, value);
    else if (!strcmp(flag, "--rate")) options->rate = (unsigned)number(flag, value);
    else if (!strcmp(flag, "--deadline")) options->deadline = (unsigned)number(flag, value);
    else if (!strcmp(flag, "--warmup")) options->warmup = number(flag, value);
    else if (!strcmp(flag, "--count")) options->count = number(flag, value);
    else fail("there is no option %s", flag);
}

int main(int argc, char **argv) {
    struct options options = {.connections = 2, .sessions = 1, .publishers = 1, .agents = 1,
                              .chunks = 1, .depth = 1, .size = 100, .rate = 50, .deadline = 60, .warmup = 100,
                              .count = 1000};
    if (argc < 2 || argc % 2) fail("usage: load SCENARIO [--option VALUE]...");
    options.scenario = argv[1];
    for (int i = 2; i < argc; i += 2) set_option(&options, argv[i], argv[i + 1]);
    if (!options.port || !options.pid || !options.token) fail("--port, --pid and --token are needed");
    if (!options.connections || !options.sessions || !options.publishers || !options.agents ||
        !options.chunks || !options.depth || !options.rate || !options.count)
        fail("a count of 0 measures nothing");
    signal(SIGPIPE, SIG_IGN);
    scenario_run(&options);
    return 0;
}
