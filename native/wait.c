/*
 * Waiting without losing a wake-up, and without a system call while the other end is awake.
 *
 * The word `parked` belongs to the end that sleeps. That end stores it, fences, looks at its rings once more
 * and only then sleeps. A producer commits its record, fences, and reads the word. Both sides store, fence,
 * load: of the two loads at least one sees the other's store (Dekker), so either the sleeper finds the record
 * or the producer finds it parked. The producer exchanges the word for 0 before it rings, so one sleep costs
 * one ring; the sleeper's futex call compares the word, so a ring between its last look and the call is not
 * lost; a doorbell keeps its byte.
 *
 * What a hostile peer can do with the word: set it (we make a system call a message, which changes nothing
 * else) or clear it (it loses its own ring; ours we look for in the kernel's notice and in slices). A
 * doorbell is one end of a stream socketpair, written with MSG_DONTWAIT: unlike an eventfd it can neither be
 * drained by who rings it nor made to block by who holds it (O_NONBLOCK of an eventfd lies in the shared file
 * description; a peer may clear it).
 */
#define _GNU_SOURCE
#include "wait.h"

#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "atomics.h"

uint64_t clock_now(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

uint64_t clock_coarse(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

int wake(struct side *peer, int doorbell) {
    /* Pairs with the fence in park_announce: our record before our look at `parked`. Without it both could
     * sleep. */
    fence_store_load();
    if (!load_relaxed(&peer->parked))
        return 0;
    uint32_t how = exchange(&peer->parked, 0);
    if (how & PARK_FUTEX)
        syscall(SYS_futex, &peer->parked, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
    if (how & PARK_DOORBELL) {
        ssize_t sent = send(doorbell, "!", 1, MSG_DONTWAIT | MSG_NOSIGNAL);
        (void)sent; /* a full doorbell rings already; a closed one is the kernel's to notice */
    }
    return how != 0;
}

int park_futex(struct side *own, uint64_t until) {
    uint64_t now = clock_now();
    if (now >= until)
        return ETIMEDOUT;
    struct timespec wait = {.tv_sec = (time_t)((until - now) / 1000000000u),
                            .tv_nsec = (long)((until - now) % 1000000000u)};
    return syscall(SYS_futex, &own->parked, FUTEX_WAIT, PARK_FUTEX, &wait, NULL, 0) == 0 ? 0 : errno;
}

void park_announce(struct side *own, uint32_t how) {
    store_relaxed(&own->parked, how);
    /* Pairs with the fence in wake: our word before our last look at the rings. Without it both could sleep.
     */
    fence_store_load();
}

void park_over(struct side *own) {
    store_relaxed(&own->parked, 0);
}

void doorbell_drain(int doorbell) {
    char bytes[256];
    /* Bounded: a flood is taken in slices, and the edge-triggered epoll reports what arrives afterwards. */
    for (int i = 0; i < 64 && recv(doorbell, bytes, sizeof bytes, MSG_DONTWAIT) == (ssize_t)sizeof bytes;
         i++) {
    }
}
