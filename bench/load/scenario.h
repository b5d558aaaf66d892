/* What the load does: the Trunkline protocol's part of the benchmark. */
#ifndef SCENARIO_H
#define SCENARIO_H

#include <stdint.h>
#include <sys/types.h>

struct options {
    const char *scenario;
    const char *token;
    int port;
    pid_t pid;            /* the server, whose CPU time and memory are read */
    unsigned connections; /* that take part */
    unsigned sessions;    /* that the connections share, in turn */
    unsigned publishers;  /* members that send, in `fanout` */
    unsigned agents;      /* on the connection that answers requests */
    unsigned chunks;      /* of each answer, in `stream` */
    unsigned depth;       /* requests in flight per sending connection */
    unsigned size;        /* bytes of text in each chat or request */
    unsigned rate;        /* messages per second, in `latency` */
    unsigned deadline;    /* seconds until an unfinished run is a failure */
    uint64_t warmup;      /* units before the measured ones */
    uint64_t count;       /* units that are measured; in `resume`, messages missed */
};

/* Run it and print one line of JSON; whatever is lost or refused ends the process. */
void scenario_run(const struct options *given);

#endif
