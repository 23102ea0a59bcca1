/*
 * What lies in shared memory. Nothing here describes itself: sizes come from the kernel over the control
 * socket, and no word in shared memory is believed for where another one lies.
 *
 * A channel's memory, in this order:
 *   line 0         `struct side` of the server      (the server writes; a producer may exchange `parked`)
 *   line 1         `struct side` of the client
 *   lines 2..      per lane: `struct consumed` of the request ring (server writes), of the reply ring (client
 * writes) page boundary  per lane: request ring, reply ring bulk half of the client, bulk half of the server
 */
#ifndef ATOLL_LAYOUT_H
#define ATOLL_LAYOUT_H

#include <stddef.h>
#include <stdint.h>

enum {
    LINE = 64,
    PAGE = 4096,
    LANES_MOST = 3,
    TABLE_ENTRIES = 1024, /* a segment of a capability table */
};

/* First line of every record. `commit` is the record's position + 1 and is stored last (ring.c). */
struct header {
    uint64_t commit;
    uint32_t length; /* payload bytes */
    uint32_t method; /* hash of the method's name; 0 in replies */
    uint64_t request;
    uint32_t slot, generation;
    uint32_t epoch;
    uint16_t flags;
    uint8_t kind, lane;
    uint64_t deadline; /* CLOCK_MONOTONIC ns, 0: none */
    uint64_t trace;
    uint64_t bulk; /* offset in the sender's bulk half, if FLAG_BULK */
};
_Static_assert(sizeof(struct header) == LINE, "a header is one cache line");
_Static_assert(offsetof(struct header, bulk) == 56, "the header has no holes");

/* Second line of a record, if FLAG_CONTEXT. */
struct context {
    uint8_t transaction[16];
    uint8_t workflow[16];
    uint64_t span;
    uint32_t step, reserved;
    uint64_t extra[2];
};
_Static_assert(sizeof(struct context) == LINE, "a context block is one cache line");

enum { FLAG_BULK = 1, FLAG_CONTEXT = 2, FLAG_AGAIN = 4, FLAGS_KNOWN = 7 };

enum kind {
    KIND_CALL = 1,
    KIND_CAST = 2,
    KIND_ITEM = 3,
    KIND_END = 4,
    KIND_CREDIT = 5,
    KIND_CANCEL = 6,
    KIND_REPLY = 8,
    KIND_FAULT = 9,
};

/* One end's public words. `cpu` and `load` are hints for how long to spin and are bounded by whoever reads
 * them. */
struct side {
    uint32_t parked; /* 0: awake; else how to wake this end, PARK_* */
    uint32_t cpu;
    uint32_t load;
    uint32_t wants_room; /* not 0: a record of this end found no room; who frees some wakes this end */
    uint32_t reserved[12];
};
_Static_assert(sizeof(struct side) == LINE, "one line a side");

struct consumed {
    uint64_t position;
    uint64_t reserved[7];
};
_Static_assert(sizeof(struct consumed) == LINE, "indices lie on lines of their own");

enum { PARK_FUTEX = 1, PARK_DOORBELL = 2 };

/* Capability table: only the kernel writes; `sequence` is odd while it does. */
struct entry {
    uint64_t sequence;
    uint32_t channel, generation;
    uint64_t rights;
    uint64_t badge;
    uint64_t expiry; /* CLOCK_MONOTONIC ns, 0: none */
    uint32_t interface;
    uint32_t service;    /* the best (lowest) lane this capability may use */
    uint64_t capability; /* the kernel's number of it, for the record */
    uint64_t reserved;
};
_Static_assert(sizeof(struct entry) == LINE, "one line an entry");

/* Notice segment: only the kernel writes. Line 0, then one line a channel of this process. */
struct notice {
    uint32_t gate; /* not 0: take no further message */
    uint32_t reserved0;
    uint64_t revocations; /* how often the table has lost entries: who has checked before checks again */
    uint64_t withdrawals; /* how often something was taken back of buffers that this process shared or was
                             SHARED */
    uint64_t reserved[5];
};
_Static_assert(sizeof(struct notice) == LINE, "one line");
_Static_assert(offsetof(struct notice, withdrawals) == 16, "deliveries.py reads the third word");

enum { STATE_NONE = 0, STATE_OPEN = 1, STATE_RESTARTING = 2, STATE_CLOSED = 3 };

struct channel_notice {
    uint64_t sequence; /* odd while the kernel writes */
    uint32_t epoch, state;
    uint64_t base;              /* where this epoch's positions start */
    uint64_t taken[LANES_MOST]; /* request positions that the dead server of the epoch before had consumed */
    uint64_t reserved[2];
};
_Static_assert(sizeof(struct channel_notice) == LINE, "one line a channel");

/* Status segment: a serving process writes, the kernel reads and believes nothing but liveness of it. */
struct status {
    uint64_t window; /* odd number: a message is between capability check and dispatch; even: none is */
    uint64_t reserved0[7];
    uint64_t heartbeat;  /* passes of the receive loop */
    uint64_t in_handler; /* method index + 1 of the handler that runs, 0: none */
    uint64_t served;     /* calls and casts handed to handlers */
    uint64_t parked;
    uint64_t late; /* of those, the ones whose handler returned after their deadline */
    uint64_t reserved1[3];
};
_Static_assert(sizeof(struct status) == 2 * LINE, "two lines");
_Static_assert(offsetof(struct status, heartbeat) == LINE, "the window has a line of its own");

#endif
