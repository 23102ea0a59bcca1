/* Allocator of one bulk half. Its records lie in private memory; the peer sees only offsets it cannot change.
 */
#ifndef ATOLL_BULK_H
#define ATOLL_BULK_H

#include "atomics.h"
#include "layout.h"

enum { BULK_RECORDS = 128 };

struct bulk_record {
    uint64_t offset, length; /* in the half, multiples of LINE */
    uint64_t end;            /* position on the lane's ring behind the record that refers to it */
    uint32_t lane;
};

struct bulk {
    unsigned char SHARED *data;
    uint64_t size;
    uint32_t count;
    struct bulk_record records[BULK_RECORDS]; /* by offset, without overlap */
};

void bulk_begin(struct bulk *bulk, unsigned char SHARED *data, uint64_t size);

/* Forgets records whose ring position lies behind the index `seen[lane]` that the consumer has passed. */
void bulk_reclaim(struct bulk *bulk, const uint64_t *seen);

/* Finds room for `length` bytes; returns the offset, or UINT64_MAX if there is none now. Reserves nothing. */
uint64_t bulk_find(const struct bulk *bulk, uint64_t length);

/* Reserves what bulk_find found until `lane`'s consumer has passed `end`. */
void bulk_hold(struct bulk *bulk, uint64_t offset, uint64_t length, uint32_t lane, uint64_t end);

#endif
