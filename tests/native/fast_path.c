/*
 * One call after the other between the two ends of a channel in one process, both awake; prints what the C
 * core asked of the system meanwhile. The linker hands it counting stand-ins for what it must not call
 * (--wrap).
 */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>

#include "channel.h"
#include "loop.h"

enum { CALLS = 10000, NUMBER = 7, METHOD = 99 };

static unsigned long asked[2];

#define COUNTED(which, type, name, parameters, arguments)                                                    \
    type __real_##name parameters;                                                                           \
    type __wrap_##name parameters;                                                                           \
    type __wrap_##name parameters {                                                                          \
        asked[which]++;                                                                                      \
        return __real_##name arguments;                                                                      \
    }

COUNTED(0, void *, malloc, (size_t size), (size))
COUNTED(0, void *, calloc, (size_t count, size_t size), (count, size))
COUNTED(0, void *, realloc, (void *old, size_t size), (old, size))
COUNTED(0, void *, aligned_alloc, (size_t line, size_t size), (line, size))
COUNTED(0, void *, mmap, (void *at, size_t size, int access, int flags, int file, off_t offset),
        (at, size, access, flags, file, offset))
COUNTED(1, ssize_t, send, (int end, const void *bytes, size_t length, int flags), (end, bytes, length, flags))
COUNTED(1, ssize_t, recv, (int end, void *bytes, size_t length, int flags), (end, bytes, length, flags))

long __wrap_syscall(long number, ...);
long __wrap_syscall(long number, ...) {
    asked[1]++;
    (void)number;
    abort(); /* none is allowed: what it would have been, the core file tells */
}

int main(int count, char **words) {
    int memory = count > 2 ? atoi(words[1]) : -1, bell = count > 2 ? atoi(words[2]) : -1;
    static _Alignas(4096) unsigned char notice[65536], table[65536], status[4096];
    const uint64_t base = 64000;
    atoll_entry_write(table, 3, NUMBER, 1, 1, 5, 0, 0, 0, 1000);
    atoll_channel *client = atoll_channel_open(memory, bell, 0, 3, 16, 20, 1, base, NULL);
    atoll_channel *server = atoll_channel_open(memory, bell, 1, 3, 16, 20, 1, base, NULL);
    atoll_loop *loop = atoll_loop_new(notice, status, 1 << 20);
    if (!client || !server || !loop)
        return 2;
    atoll_loop_method(loop, 0, METHOD, 0, 1, 0);
    atoll_loop_segment(loop, 0, table);
    if (atoll_loop_add(loop, server, NUMBER, 0))
        return 3;
    const atoll_site site = {.method = METHOD, .slot = 3, .generation = 1, .lane = 1, .kind = KIND_CALL};
    static char payload[100000];
    atoll_disarm(client);
    if (!asked[0] || !asked[1]) /* making all this asked for both: the stand-ins are in place */
        return 8;
    memset(asked, 0, sizeof asked);
    for (int i = 0; i < CALLS; i++) {
        uint32_t length = i % 10 ? 64 : sizeof payload; /* now and then through the bulk half */
        uint64_t request = (uint64_t)i + 1;
        if (atoll_post(client, &site, request, payload, length) < 0)
            return 4;
        /* As the serving loop does it, but for its turn of the event loop, which is a system call every 100
         * us. */
        ((struct atoll_loop *)loop)->turn_over = UINT64_MAX / 2;
        uint64_t received = op_long(atoll_loop_next(loop, NULL, 0));
        if (received >> 56 != OP_CALL || (uint32_t)received != length)
            return 5;
        ((struct status *)status)->window = 0;
        if (atoll_loop_reply(loop, NUMBER, request, 1, KIND_REPLY, payload, length))
            return 6;
        atoll_loop_flush(loop);
        if (atoll_wait(client, request, 0) != ((int64_t)KIND_REPLY << 32 | length))
            return 7;
    }
    printf("%lu %lu\n", asked[0], asked[1]);
    return 0;
}
