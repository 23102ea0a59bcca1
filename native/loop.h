/* The receive loop's own data: private memory of the serving process. See loop.c. */
#ifndef ATOLL_LOOP_H
#define ATOLL_LOOP_H

#include "channel.h"
#include "table.h"

enum {
    CHANNELS_MOST = 4096,
    METHODS_MOST = 4096, /* slots of the open-addressed table: at most half are used */
    BURST = 16,          /* messages taken from one channel before the next one's turn */
    EVENTS = 64,
    TURN_EVERY = 100000, /* ns between two looks at the event loop while there is traffic */
    SLOW_CALL = 5000000, /* ns over the event loop's turn after which it is looked at whatever the count */
    SPIN_BATCH = 32,
    SPIN_USUAL = 20000,
    SPIN_WOKEN = 100000,
    SPIN_COPY = 150000, /* ns: the client of a call with a buffer writes the next MiB or so */
    VAIN_SPINS = 8,     /* spins without success after which spinning pauses */
    QUIET_POLLS = 4096, /* polls without a message after which a channel is armed while others go on */
    LOAD_WINDOW = 1000000000,
    COUNT_EVERY = 32,      /* messages between two looks at the clock */
    IDLE_WITHIN = 1000000, /* ns after which OP_IDLE is said although the rings are never drained */
    PASSES_MOST = 64,      /* looks without a message after which the event loop has its turn */
};

/* What atoll_loop_next returns: the top byte says what, then 24 bits of an index and 32 of a length. A call
 * of fewer than 1 << SHORT_BITS bytes comes as `index << SHORT_BITS | length`: a number that Python takes
 * apart without making others. Mirrored in native/__init__.py. */
enum { SHORT_BITS = 11 };

enum op {
    OP_CALL = 1,   /* index, length: a checked call; the window is open */
    OP_CAST,       /* index, length: the same, no reply wanted */
    OP_STREAM,     /* length: ITEM, END, CREDIT or CANCEL of a call in hand */
    OP_REFUSED,    /* index = enum refusal: the table says no */
    OP_LATE,       /* index: the deadline had passed when it was taken */
    OP_MISBEHAVED, /* on a channel: see atoll_channel_fault */
    OP_CLIENT,     /* on a channel: replies for one that we are the client of */
    OP_EXTERNAL,   /* the event loop has something to do, a reply has room again, or the time is up */
    OP_IDLE,       /* every ring is drained: once, before the loop waits */
    OP_FULL,       /* on a channel: the reply did not fit: keep it, hold the channel, try again */
    OP_GATED,      /* the kernel has closed the gate */
    OP_LARGE,      /* on a channel: the reply is larger than it carries */
    OP_PARKED,     /* every ring is drained and armed: the event loop sleeps for us, then atoll_loop_wake */
    OP_TAPE,       /* index: what tape_due says */
};

static inline uint64_t op(enum op what, uint64_t index, uint64_t length) {
    return (uint64_t)what << 56 | index << 32 | length;
}

/* What concerns a channel names it in place of the length: its number has all 32 bits. */
static inline uint64_t op_on(enum op what, const struct atoll_channel *channel) {
    return op(what, 0, channel->number);
}

/* A word as atoll_loop_next returns it, and back in its long form. */
static inline uint64_t op_short(uint64_t word) {
    uint64_t index = word >> 32 & 0xFFFFFF, length = word & 0xFFFFFFFF;
    return word >> 56 == OP_CALL && length < 1u << SHORT_BITS ? index << SHORT_BITS | length : word;
}
static inline uint64_t op_long(uint64_t word) {
    return word >> 56 ? word : op(OP_CALL, word >> SHORT_BITS, word & ((1u << SHORT_BITS) - 1));
}

struct method {
    uint32_t interface, number, index, used, copies;
    uint64_t right;
};

struct atoll_loop {
    const struct notice SHARED *notice;
    struct status SHARED *status;
    int epoll;
    uint64_t until, turn_over; /* turn_over: when the event loop must be looked at next */
    struct table table;
    struct method methods[METHODS_MOST];
    uint32_t method_count;
    struct atoll_channel *channels[CHANNELS_MOST]; /* by number modulo: numbers are dense per process */
    struct atoll_channel *active[CHANNELS_MOST];
    uint32_t active_count, turn, burst;
    struct atoll_channel *current; /* whose message was handed out last: reply goes there */
    uint64_t current_request;
    uint8_t current_lane;
    struct atoll_channel *bells[CHANNELS_MOST]; /* channels with records whose wake-up is put off */
    uint32_t bell_count;
    unsigned char *buffer;
    uint64_t buffer_size;
    atoll_message message;
    uint64_t window;
    int idle_wanted, idle_said, draining, outside;
    uint64_t idle_missed; /* when the event loop's turn came and the rings had not been drained since the last
                             OP_IDLE */
    uint64_t calls;       /* of atoll_loop_next */
    uint32_t vain;
    int copies; /* the last call took buffers */
    int woken;  /* the last message came after a park: its sender needs longer for the next one */
    uint64_t counted, load_began, load_window;
    uint32_t load_seen, load;
    uint64_t parks;
    struct atoll_tape *tape; /* where calls are recorded; NULL: nowhere */
};

/* The method of an interface with that number, or NULL. */
const struct method *loop_method(const struct atoll_loop *loop, uint32_t interface, uint32_t number);

#endif
