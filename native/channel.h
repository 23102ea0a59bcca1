/* One end's private view of a channel. See channel.c. */
#ifndef ATOLL_CHANNEL_H
#define ATOLL_CHANNEL_H

#include <sched.h>

#include "atomics.h"
#include "bulk.h"
#include "interface/ring.h"
#include "layout.h"
#include "ring.h"

/* Results of calls on a channel; what is not negative is (kind << 32 | length). Mirrored in
 * native/__init__.py. */
enum result {
    R_AGAIN = -1,      /* nothing yet: look at signals, the kernel, what waits for room, then come again */
    R_FULL = -2,       /* no room in the ring or the bulk half until the peer consumes */
    R_TOO_LARGE = -3,  /* more than a channel carries: use a stream or a grant */
    R_EPOCH = -4,      /* the server was replaced after a crash: atoll_channel_renew */
    R_CLOSED = -5,     /* the kernel closed this channel */
    R_MISBEHAVED = -6, /* the peer wrote what cannot be: atoll_channel_fault names the check */
    R_OTHER = -7,      /* a message for another request is in hand */
    R_DEADLINE = -8,
};

enum { DEAF_UNTOLD = 1, DEAF_TOLD = 2 };

struct atoll_channel {
    int server, doorbell;
    uint32_t lanes, epoch;
    unsigned char SHARED *memory;
    uint64_t bytes;
    struct side SHARED *own, *peer;
    struct producer out[LANES_MOST];
    struct consumer in[LANES_MOST];
    struct bulk bulk_out;
    uint64_t
        bulk_barrier[LANES_MOST]; /* after a hand-over: no bulk before the peer's index has passed these */
    int bulk_barred;
    const unsigned char SHARED *bulk_in;
    uint64_t bulk_size;
    const struct channel_notice SHARED *notice;
    const char *fault;
    unsigned char *buffer; /* private: what was received; bulk_size bytes */
    atoll_message message;
    atoll_counters counters;
    uint32_t sending; /* lock of the producing side: threads of one client send side by side */
    uint64_t requests;
    uint64_t call_request,
        call_end; /* number of the last atoll_call, and the ring position behind its request */
    uint64_t no_yield_until;
    uint64_t usual; /* ns that replies of late were waited for: a running mean */
    uint32_t vain;  /* spins in a row of the event loop that found nothing */
    /* Hints, by atomics alone: threads that send write them beside the one that receives. */
    int copies;    /* the call that is waited for takes buffers */
    int just_woke; /* the last send had to wake the peer: it needs longer than usual */
    int bell_due;  /* records were written whose wake-up is put off to the end of the batch */
    int deaf;      /* DEAF_*, not 0: the doorbell's other end was shut, and will not ring again */
    int ended;     /* its process lets go of this end: whoever sends or waits is to leave */
    int starved;   /* a record found no room, and nobody has been told of any since */
    uint64_t starved_at[LANES_MOST]; /* where the peer's indices stood then */
    int freed;                       /* records were taken, and the peer has not been looked at since */
    /* Only the receive loop touches these. */
    uint32_t number, turn;
    int client_role, active, held;
    uint32_t stuck;                  /* lanes whose next record is a call, while the loop drains */
    uint32_t told_epoch, told_state; /* what the loop has said of the kernel's notice of a client's channel */
    uint32_t quiet;                  /* polls in a row that found nothing */
    uint64_t seen_in;                /* load window in which a message was last taken */
};

/* The producing side is one thread's at a time. Never held across a system call, so a few turns are enough
 * unless its holder was preempted. */
static inline void sending_begin(struct atoll_channel *channel) {
    /* Pairs with store_release in sending_end: what the last holder wrote to the private half is seen. */
    for (unsigned turn = 1; exchange(&channel->sending, 1); turn++) {
        if (turn % 64)
            cpu_relax();
        else
            sched_yield();
    }
}

static inline void sending_end(struct atoll_channel *channel) {
    /* Pairs with exchange in sending_begin. */
    store_release(&channel->sending, 0);
}

/* Sends one record; `from` names the bytes' owner: the caller. R_* or 0. Does not wake. */
int channel_produce(struct atoll_channel *channel, struct header *header, const void *context,
                    const void *payload);

/*
 * Takes a header off lane `lane` into private memory and checks every field of it that has bounds.
 * 0: nothing there; 1: `header` is good; R_MISBEHAVED.
 */
int channel_peek(struct atoll_channel *channel, uint32_t lane, struct header *header);

/* Copies payload and context of the record that channel_peek approved, and gives its ring bytes back. */
void channel_take(struct atoll_channel *channel, uint32_t lane, const struct header *header,
                  unsigned char *payload, unsigned char *context);

/* Has the peer freed room since a record found none? `take`: whoever asks writes what waits for it. */
int channel_room(struct atoll_channel *channel, int take);

/* Leaves the record that channel_peek approved where it is: its next reader looks at it as if nobody had. */
static inline void channel_leave(const struct atoll_channel *channel, uint32_t lane) {
    (void)channel, (void)lane;
}

/* Whether a lane of a channel has something to take: while the loop drains, calls are left where they are,
 * and what comes behind them with them. */
static inline int lane_ready(const struct atoll_channel *channel, uint32_t lane) {
    return !(channel->stuck >> lane & 1) && ring_ready(&channel->in[lane]);
}

static inline int lanes_ready(const struct atoll_channel *channel) {
    for (uint32_t lane = 0; lane < channel->lanes; lane++)
        if (lane_ready(channel, lane))
            return 1;
    return 0;
}

/* The end of a batch of channel_take: wakes the peer if it sleeps and wants the room. */
void channel_freed(struct atoll_channel *channel);

/* Is there a record on any lane? */
int channel_pending(const struct atoll_channel *channel);

/* Has the kernel said anything new of this channel, or its process let go of it? R_EPOCH, R_CLOSED or 0. */
int channel_noticed(const struct atoll_channel *channel);

/* Is there what the loop has not handed out yet: something the kernel said of this channel, or that its bell
 * is deaf? `take`: it is handed out now. */
int channel_news(struct atoll_channel *channel, int take);
int channel_wake(struct atoll_channel *channel);

/* Wakes the peer now, if it sleeps on another core; on ours it would only take our place. What is put off
 * stays so. */
void channel_wake_elsewhere(struct atoll_channel *channel);
int64_t channel_fail(struct atoll_channel *channel, const char *check);

#endif
