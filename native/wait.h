/* Waking and being woken. See wait.c. */
#ifndef ATOLL_WAIT_H
#define ATOLL_WAIT_H

#include "atomics.h"
#include "layout.h"

uint64_t clock_now(void);    /* CLOCK_MONOTONIC, ns */
int clock_stands(void);      /* time is a simulation's: no spinning, it would not pass */
uint64_t clock_coarse(void); /* the same to a few ms, at a fifth of the price */

/* Wakes the end whose `parked` word this is, if it sleeps. Call after the record is visible. 1: a system call
 * was made. */
int wake(struct side SHARED *peer, int doorbell);

/* The same whatever the word says: for the kernel, which rings in place of an end that died or lies. */
void wake_surely(struct side SHARED *sleeper, int doorbell);

/* Sleeps on the own word while it holds PARK_FUTEX, `until` at most. Returns 0 or the errno of futex(2). */
int park_futex(struct side SHARED *own, uint64_t until);

/* Says to producers that this end is going to sleep, to be followed by a look at every ring, then by the
 * sleep. */
void park_announce(struct side SHARED *own, uint32_t how);
void park_over(struct side SHARED *own);

/* Takes off a doorbell what lies in it now, or so much that it can ring again; to be followed by a look at
 * the rings. 1: something was taken. 0: nothing lay there. -1: its other end was shut, and it will never ring
 * again; that is found behind the last byte only by who asks again, or by what epoll says. */
int doorbell_drain(int doorbell);

#endif
