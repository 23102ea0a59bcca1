/*
 * What a receive loop is told before it serves, and in between: where its table and its tape lie, which
 * descriptor ends its waiting, until when it may wait.
 */
#include <errno.h>
#include <sys/epoll.h>

#include "loop.h"
#include "tape.h"

void *atoll_loop_buffer(atoll_loop *loop) {
    return loop->buffer;
}
atoll_message *atoll_loop_message(atoll_loop *loop) {
    return &loop->message;
}
/* CLOCK_MONOTONIC ns until which atoll_loop_next may wait; 0: for ever; 1: not at all. */
void atoll_loop_until(atoll_loop *loop, uint64_t until) {
    loop->until = until;
}
void atoll_loop_idle_wanted(atoll_loop *loop, int wanted) {
    loop->idle_wanted = wanted;
}
uint64_t atoll_loop_parks(atoll_loop *loop) {
    return loop->parks;
}

/* The event loop's own descriptor: level-triggered, it ends our waiting with OP_EXTERNAL. Returns 0 or an
 * errno. */
int atoll_loop_watch(atoll_loop *loop, int descriptor) {
    struct epoll_event event = {.events = EPOLLIN, .data.u64 = UINT64_MAX};
    return epoll_ctl(loop->epoll, EPOLL_CTL_ADD, descriptor, &event) ? errno : 0;
}

/* From now on we sleep in the event loop: the descriptor that it waits for. */
int atoll_loop_sleep_outside(atoll_loop *loop) {
    loop->outside = 1;
    return loop->epoll;
}

int atoll_loop_segment(atoll_loop *loop, uint32_t index, const void *entries) {
    if (index >= SEGMENTS_MOST)
        return ERANGE;
    loop->table.segments[index] = (const struct entry SHARED *)entries;
    return 0;
}

void atoll_loop_tape(atoll_loop *loop, atoll_tape *tape) {
    loop->tape = tape;
}
