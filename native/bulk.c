/*
 * First fit over at most BULK_RECORDS live records kept in order of offset. Records are freed out of order
 * (lanes are drained by weight), which a plain ring of bytes could not do without waiting for the slowest
 * lane.
 */
#include "bulk.h"

#include <string.h>

static uint64_t rounded(uint64_t length) {
    return (length + LINE - 1) & ~(uint64_t)(LINE - 1);
}

void bulk_begin(struct bulk *bulk, unsigned char SHARED *data, uint64_t size) {
    bulk->data = data;
    bulk->size = size;
    bulk->count = 0;
}

void bulk_reclaim(struct bulk *bulk, const uint64_t *seen) {
    uint32_t kept = 0;
    for (uint32_t i = 0; i < bulk->count; i++) {
        struct bulk_record *record = &bulk->records[i];
        if ((int64_t)(seen[record->lane] - record->end) >= 0)
            continue;
        bulk->records[kept++] = *record;
    }
    bulk->count = kept;
}

uint64_t bulk_find(const struct bulk *bulk, uint64_t length) {
    uint64_t at = 0, need = rounded(length);
    if (bulk->count == BULK_RECORDS || need > bulk->size)
        return UINT64_MAX;
    for (uint32_t i = 0; i < bulk->count; i++) {
        if (bulk->records[i].offset - at >= need)
            return at;
        at = bulk->records[i].offset + bulk->records[i].length;
    }
    return bulk->size - at >= need ? at : UINT64_MAX;
}

void bulk_hold(struct bulk *bulk, uint64_t offset, uint64_t length, uint32_t lane, uint64_t end) {
    uint32_t i = bulk->count;
    while (i > 0 && bulk->records[i - 1].offset > offset)
        i--;
    memmove(&bulk->records[i + 1], &bulk->records[i], (bulk->count - i) * sizeof(struct bulk_record));
    bulk->records[i] =
        (struct bulk_record){.offset = offset, .length = rounded(length), .end = end, .lane = lane};
    bulk->count++;
}
