#include "process.h"

#include <ctype.h>
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include "connection.h"

/*
 * schedstat rather than stat: it counts nanoseconds where stat counts ticks of
 * 10 ms, which is as long as a whole round of the fastest server.
 */
static uint64_t thread_cpu_ns(pid_t pid, const char *thread) {
    char path[64];
    unsigned long long ns = 0;
    snprintf(path, sizeof path, "/proc/%d/task/%.16s/schedstat", pid, thread);
    FILE *file = fopen(path, "r");
    if (!file) return 0; /* the thread has just ended */
    if (fscanf(file, "%llu", &ns) != 1) fail("%s cannot be read", path);
    fclose(file);
    return ns;
}

uint64_t process_cpu_ns(pid_t pid) {
    char path[64];
    uint64_t sum = 0;
    snprintf(path, sizeof path, "/proc/%d/task", pid);
    DIR *threads = opendir(path);
    if (!threads) fail("the server (process %d) is gone", pid);
    for (struct dirent *entry; (entry = readdir(threads));)
        if (isdigit((unsigned char)entry->d_name[0])) sum += thread_cpu_ns(pid, entry->d_name);
    closedir(threads);
    if (!sum) fail("%s/*/schedstat tells no CPU time", path);
    return sum;
}

uint64_t process_rss(pid_t pid) {
    char path[64];
    unsigned long long pages = 0;
    snprintf(path, sizeof path, "/proc/%d/statm", pid);
    FILE *file = fopen(path, "r");
    if (!file || fscanf(file, "%*u %llu", &pages) != 1) fail("%s cannot be read", path);
    fclose(file);
    return pages * (uint64_t)sysconf(_SC_PAGESIZE);
}

uint64_t own_cpu_ns(void) {
    struct timespec used;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &used);
    return (uint64_t)used.tv_sec * 1000000000u + (uint64_t)used.tv_nsec;
}
