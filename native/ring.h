/* One ring: its two ends as private values. See ring.c for the protocol. */
#ifndef ATOLL_RING_H
#define ATOLL_RING_H

#include "atomics.h"
#include "layout.h"

/* The end that writes records. All fields are private memory; `data` and `consumed` point into the channel.
 */
struct producer {
    unsigned char SHARED *data;
    const struct consumed SHARED *consumed; /* hostile: the peer's index */
    uint64_t size;                          /* power of two */
    uint64_t position;
    uint64_t seen;  /* last value of the peer's index that was checked */
    uint64_t stale; /* what the index held before the peer came to this epoch */
};

/* The end that reads records. */
struct consumer {
    const unsigned char SHARED *data; /* hostile */
    struct consumed SHARED *consumed;
    uint64_t size;
    uint64_t position;
};

enum ring_result { RING_DONE = 0, RING_NOTHING = 1, RING_FULL = 2, RING_FAULT = 3 };

void ring_producer_begin(struct producer *ring, unsigned char SHARED *data,
                         const struct consumed SHARED *consumed, uint64_t size, uint64_t position);
void ring_consumer_begin(struct consumer *ring, const unsigned char SHARED *data,
                         struct consumed SHARED *consumed, uint64_t size, uint64_t position);

/* Refreshes `seen` from the peer's index; RING_FAULT if the peer claims what cannot be. */
enum ring_result ring_observe(struct producer *ring);

/* Writes one record (header, optional context, `inline_length` payload bytes) and makes it visible. */
enum ring_result ring_produce(struct producer *ring, const struct header *header, const void *context,
                              const void *payload, uint32_t inline_length);

/* Copies the next record's header into private memory; the caller checks it before it uses a field. On
 * RING_NOTHING `header` is left as it was. */
enum ring_result ring_peek(const struct consumer *ring, struct header *header);

/* Bytes a record of these properties takes on the ring. */
static inline uint64_t ring_record(uint32_t flags, uint32_t inline_length) {
    return LINE + ((flags & FLAG_CONTEXT) ? LINE : 0) +
           (((uint64_t)inline_length + LINE - 1) & ~(uint64_t)(LINE - 1));
}

/* Copies `length` bytes at `offset` past the record's start out of the ring. */
void ring_copy(const struct consumer *ring, uint64_t offset, void *to, uint64_t length);

/* Gives the record's bytes back to the producer. */
void ring_finish(struct consumer *ring, uint64_t bytes);

static inline int ring_ready(const struct consumer *ring) {
    /* An event loop spins beside the thread that receives, which moves the position. */
    uint64_t position = load_relaxed(&ring->position);
    const uint64_t SHARED *commit = (const uint64_t SHARED *)(ring->data + (position & (ring->size - 1)));
    /* Pairs with store_release of `commit` in ring_produce: without it header and payload could still be old.
     */
    return load_acquire(commit) == position + 1;
}

#endif
