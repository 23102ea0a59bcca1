/* The capability table: the kernel's writer and the receiver's check. */
#ifndef ATOLL_TABLE_H
#define ATOLL_TABLE_H

#include "atomics.h"
#include "layout.h"

enum { SEGMENTS_MOST = 64 };

/* Why a message was refused; the order is that of native/__init__.py. */
enum refusal {
    REFUSED_NOT = 0,
    REFUSED_SLOT,
    REFUSED_CHANNEL,
    REFUSED_GENERATION,
    REFUSED_RIGHTS,
    REFUSED_EXPIRED,
    REFUSED_METHOD,
    REFUSED_SERVICE,
};

struct table {
    const struct entry SHARED *segments[SEGMENTS_MOST];
};

/*
 * Looks up `slot` as used on `channel`. On REFUSED_NOT `out` holds a consistent copy of the entry; on a
 * refusal it holds what was read (rights of a revoked entry read as 0).
 */
enum refusal table_check(const struct table *table, uint32_t slot, uint32_t generation, uint32_t channel,
                         struct entry *out);

#endif
