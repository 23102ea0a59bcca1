/*
 * Waiting without losing a wake-up, and without a system call while the other end is awake.
 *
 * Claim. After an *event* (a record was committed, or the kernel has written a notice) the end it concerns
 * looks at its rings and its notice within finite steps of its own, of who made the event, and, if that one
 * dies, of the kernel. Whatever else is written into the shared words can break that only for whoever wrote
 * it.
 *
 * The sleeper is one at a time a side (a receive loop, an event loop, or the one thread that holds
 * `receiving`):
 * - A   parked := how
 * - F   fence
 * - L   look at every ring and at the notice
 * - S   sleep, or not if L found any
 * Whoever makes an event:
 * - E   the event
 * - F'  fence
 * - P   if parked != 0, then exchange it for 0, and whoever got a value != 0 rings
 *
 * 1. A before L, E before P, a full fence in between on both sides (Dekker). If P does not read what A
 * stored, F' comes before F, and L sees E. Otherwise P reads it, or a 0 that another exchange put there after
 * A: so of all who made events that L missed, exactly one exchanged the value of A, and that one rings.
 * 2. A ring is not lost between L and S. The futex call sleeps only while the word still holds PARK_FUTEX,
 * which the exchange has taken away, and compares it under the lock that the wake-up takes. A doorbell keeps
 * its byte.
 * 3. A ring is not lost in a doorbell. Something is taken from it before the look, never after, and as much
 * as makes room for a ring: the rest of a message that has begun would not, so of one that fills our buffer
 * all is taken that lies behind it (FIONREAD says how much). What stays (a message with descriptors ends what
 * one call takes) rings no more by itself; but whatever comes is a new edge, and a doorbell that is full has
 * bytes which no look came after: their edge is still due.
 * 4. A ring too many costs a look: a producer may be late and exchange the word of a later sleep. `park_over`
 * may wipe a word that somebody would have exchanged: its owner is awake, and looks again after every A.
 * 5. Rings that are put off (loop.c's `bells`: one wake-up a batch) are made up for before the loop turns to
 * another channel, to the event loop, to sleep, or away from the channel for good.
 * 6. Who exchanged the word may die before it rings (kill -9 strikes between any two instructions), or may
 * have put off its ring. Then the word is 0 and nobody else would ring. The kernel sees the death, writes the
 * notice and rings without asking the word (`wake_surely`); so it does whenever it has something to say.
 *
 * The peer is hostile. It may set the word: we make a system call a message, which changes nothing else. It
 * may clear it, or move a futex sleeper to another word (FUTEX_REQUEUE), or wait there itself with a lock
 * that our wake-up trips over: then its own rings are lost, which it could as well have not made; ours to it
 * are its own affair; and the kernel's are found in the notice, since a thread sleeps for a second at most
 * and a doorbell is no futex. It may flood the doorbell: see 3. It may not drain it, nor block who rings: a
 * doorbell is one end of a stream socketpair, written with MSG_DONTWAIT (O_NONBLOCK of an eventfd lies in the
 * shared file description; a peer may clear it). It may shut its end down, after which the kernel could not
 * ring either: `doorbell_drain` says so, or epoll beside what still lies there, and the channel is closed for
 * it.
 */
#define _GNU_SOURCE
#include "wait.h"

#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "atomics.h"

/* Where a simulation has the time stand; 0: the host's clock runs. */
static uint64_t standing;

void atoll_clock_stand(uint64_t at) {
    standing = at;
}

int clock_stands(void) {
    return standing != 0;
}

uint64_t clock_now(void) {
    struct timespec now;
    if (standing)
        return standing;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

uint64_t clock_coarse(void) {
    struct timespec now;
    if (standing)
        return standing;
    clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static void ring(struct side SHARED *sleeper, int doorbell, uint32_t how) {
    if (how & PARK_FUTEX)
        syscall(SYS_futex, &sleeper->parked, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
    if (how & PARK_DOORBELL) {
        ssize_t sent = send(doorbell, "!", 1, MSG_DONTWAIT | MSG_NOSIGNAL);
        (void)sent; /* a full doorbell rings already; a closed one is the kernel's to notice */
    }
}

int wake(struct side SHARED *peer, int doorbell) {
    /* Pairs with the fence in park_announce: our record before our look at `parked`. Without it both could
     * sleep. */
    fence_store_load();
    if (!load_relaxed(&peer->parked))
        return 0;
    /* Pairs with park_announce's store: taken once, however many see it. Without it every record would ring.
     */
    uint32_t how = exchange(&peer->parked, 0);
    ring(peer, doorbell, how);
    return how != 0;
}

void wake_surely(struct side SHARED *sleeper, int doorbell) {
    /* Pairs with the fence in park_announce: the notice before the ring. Who announces itself later sees it.
     */
    fence_store_load();
    /* A futex call that has not begun must find the word changed.
     * Cannot be spared: the word that is cleared, `store_relaxed(&sleeper->parked, 0)`. */
    store_relaxed(&sleeper->parked, 0);
    ring(sleeper, doorbell, PARK_FUTEX | PARK_DOORBELL);
}

int park_futex(struct side SHARED *own, uint64_t until) {
    uint64_t now = clock_now();
    if (now >= until)
        return ETIMEDOUT;
    struct timespec wait = {.tv_sec = (time_t)((until - now) / 1000000000u),
                            .tv_nsec = (long)((until - now) % 1000000000u)};
    return syscall(SYS_futex, &own->parked, FUTEX_WAIT, PARK_FUTEX, &wait, NULL, 0) == 0 ? 0 : errno;
}

void park_announce(struct side SHARED *own, uint32_t how) {
    store_relaxed(&own->parked, how);
    /* Pairs with the fence in wake: our word before our last look at the rings. Without it both could sleep.
     */
    fence_store_load();
}

void park_over(struct side SHARED *own) {
    store_relaxed(&own->parked, 0);
}

int doorbell_drain(int doorbell) {
    char bytes[4096];
    int left = 0;
    ssize_t got = recv(doorbell, bytes, sizeof bytes, MSG_DONTWAIT);
    if (got == (ssize_t)sizeof bytes) {
        /* A flood. Not until it is empty: a peer that rings without pause would keep us here. */
        if (ioctl(doorbell, FIONREAD, &left))
            left = 0;
        while (left > 0 && (got = recv(doorbell, bytes, sizeof bytes, MSG_DONTWAIT)) > 0)
            left -= (int)got;
    }
    return got > 0 ? 1 : got < 0 ? 0 : -1;
}
