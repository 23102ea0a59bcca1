/*
 * A ring: one producer, one consumer, records of 64-byte lines.
 *
 * Positions run free (64 bits, counted in bytes, masked on access) and start at an unguessable base each
 * epoch. A record begins with a header whose first word is the record's position + 1, stored last with
 * release order. The consumer knows its own position, so it waits for exactly one value in exactly one word,
 * and taking a record costs one line fewer than an index would. Two things keep old bytes from passing for a
 * record: before it commits a record the producer zeroes the word where the next one will commit, and
 * positions never repeat.
 *
 * The consumer's index is published only so that the producer knows what it may overwrite; the producer looks
 * at it when the ring seems full by what it saw last.
 *
 * Rejected: a tail index (one more line moves a message), a double mapping that hides the wrap (records are
 * copied out anyway, so the wrap costs a branch), lengths in a side ring (two words that can disagree).
 *
 * Whatever the peer writes: a header is copied once and checked by the caller; the index is bounded here;
 * nothing in this file uses a value from shared memory as an address.
 */
#include "ring.h"

#include <string.h>

void ring_producer_begin(struct producer *ring, unsigned char SHARED *data,
                         const struct consumed SHARED *consumed, uint64_t size, uint64_t position) {
    ring->data = data;
    ring->consumed = consumed;
    ring->size = size;
    ring->position = position;
    ring->seen = position;
    ring->stale = load_relaxed(&consumed->position);
    /* Nothing is written yet: the peer may still be reading records of the epoch before. No zero is needed
     * where the first record will commit: who wrote what lies there could not know this epoch's base. */
}

void ring_consumer_begin(struct consumer *ring, const unsigned char SHARED *data,
                         struct consumed SHARED *consumed, uint64_t size, uint64_t position) {
    ring->data = data;
    ring->consumed = consumed;
    ring->size = size;
    store_relaxed(&ring->position, position);
    /* Ordered by nothing of its own: the first request of the epoch is committed after it, and who produces
     * here looks at it when it has that. Cannot be spared: the index at the new base,
     * `store_relaxed(&consumed->position, position)`. */
    store_relaxed(&consumed->position, position);
}

enum ring_result ring_observe(struct producer *ring) {
    /* Pairs with store_release in ring_finish: what the consumer copied must be out before we write over it.
     */
    uint64_t index = load_acquire(&ring->consumed->position);
    if (index == ring->seen)
        return RING_DONE;
    if (ring->position - index > ring->size || index - ring->seen > ring->size || index & (LINE - 1))
        return index == ring->stale ? RING_DONE : RING_FAULT;
    ring->seen = index;
    ring->stale = index;
    return RING_DONE;
}

static void put(struct producer *ring, uint64_t position, const void *bytes, uint64_t length) {
    uint64_t at = position & (ring->size - 1), first = ring->size - at;
    if (first > length)
        first = length;
    write_bytes(ring->data + at, bytes, first);
    if (length > first)
        write_bytes(ring->data, (const unsigned char *)bytes + first, length - first);
}

enum ring_result ring_produce(struct producer *ring, const struct header *header, const void *context,
                              const void *payload, uint32_t inline_length) {
    uint64_t need = ring_record(header->flags, inline_length), position = ring->position;
    /* One line more than the record: the next commit word is zeroed, and must not be one not yet consumed. */
    if (position + need + LINE - ring->seen > ring->size) {
        if (ring_observe(ring) == RING_FAULT)
            return RING_FAULT;
        if (position + need + LINE - ring->seen > ring->size)
            return RING_FULL;
    }
    uint64_t body = position + LINE;
    if (context) {
        put(ring, body, context, LINE);
        body += LINE;
    }
    if (inline_length)
        put(ring, body, payload, inline_length);
    unsigned char SHARED *line = ring->data + (position & (ring->size - 1));
    write_bytes(line + sizeof(uint64_t), (const unsigned char *)header + sizeof(uint64_t),
                LINE - sizeof(uint64_t));
    /* Cannot be spared: the zero where the next record will commit, `position + need`. */
    store_relaxed((uint64_t SHARED *)(ring->data + ((position + need) & (ring->size - 1))), 0);
    ring->position = position + need;
    /* Pairs with load_acquire in ring_ready: the record and the zero behind it are visible before it is. */
    store_release((uint64_t SHARED *)line, position + 1);
    return RING_DONE;
}

enum ring_result ring_peek(const struct consumer *ring, struct header *header) {
    if (!ring_ready(ring))
        return RING_NOTHING;
    /* The word that made it ready is known, and is not read a second time. */
    header->commit = ring->position + 1;
    copy_words((unsigned char *)header + sizeof header->commit,
               ring->data + (ring->position & (ring->size - 1)) + sizeof header->commit,
               LINE / sizeof(uint64_t) - 1);
    return RING_DONE;
}

void ring_copy(const struct consumer *ring, uint64_t offset, void *to, uint64_t length) {
    uint64_t at = (ring->position + offset) & (ring->size - 1), first = ring->size - at;
    if (first > length)
        first = length;
    copy_bytes(to, ring->data + at, first);
    if (length > first)
        copy_bytes((unsigned char *)to + first, ring->data, length - first);
}

void ring_finish(struct consumer *ring, uint64_t bytes) {
    store_relaxed(&ring->position, ring->position + bytes);
    /* Pairs with load_acquire in ring_observe: our copy is complete before the producer may write there. */
    store_release(&ring->consumed->position, ring->position);
}
