/* What the kernel says about the server's process. */
#ifndef PROCESS_H
#define PROCESS_H

#include <stdint.h>
#include <sys/types.h>

/* CPU time of all live threads of a process so far, in nanoseconds. */
uint64_t process_cpu_ns(pid_t pid);

/* Resident memory of a process, in bytes. */
uint64_t process_rss(pid_t pid);

/* CPU time of this process so far, in nanoseconds. */
uint64_t own_cpu_ns(void);

#endif
