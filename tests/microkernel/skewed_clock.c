/*
 * Loaded before the C library: whoever asks for the time of day is told another, by as many seconds as a file
 * says. `SKEW` is that file. Clocks that nobody sets go on as they are.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

int clock_gettime(clockid_t clock, struct timespec *time) {
    static int (*real)(clockid_t, struct timespec *);
    char text[32] = "";
    if (!real)
        real = dlsym(RTLD_NEXT, "clock_gettime");
    int failed = real(clock, time);
    if (failed || clock != CLOCK_REALTIME)
        return failed;
    int skew = open(SKEW, O_RDONLY | O_CLOEXEC);
    if (skew >= 0) {
        if (read(skew, text, sizeof text - 1) > 0)
            time->tv_sec += strtol(text, NULL, 10);
        close(skew);
    }
    return 0;
}
