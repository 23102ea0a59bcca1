/*
 * Capability entries, one line each, written by the kernel alone (the receiver's mapping comes from a memfd
 * sealed against future writing) and read under a sequence lock: odd while the kernel writes, so a torn entry
 * is never used. A kernel that died in the middle leaves an odd sequence: the entry reads as revoked.
 */
#include "table.h"

#include <string.h>

#include "atomics.h"
#include "interface/ring.h"
#include "wait.h"

enum { READ_TRIES = 1000 };

static int entry_read(const struct entry SHARED *entry, struct entry *out) {
    for (int i = 0; i < READ_TRIES; i++) {
        /* Pairs with the stores of `sequence` in entry_publish. */
        uint64_t before = load_acquire(&entry->sequence);
        if (before & 1) {
            cpu_relax();
            continue;
        }
        copy_words(out, entry, sizeof *out / sizeof(uint64_t));
        /* Pairs with fence_stores in entry_publish: the copy before the second look. Without it a torn copy
         * could pass. */
        fence_loads();
        /* Cannot be spared: another look at the sequence, `load_relaxed(&entry->sequence) == before`. */
        if (load_relaxed(&entry->sequence) == before)
            return 1;
    }
    memset(out, 0, sizeof *out);
    return 0;
}

enum refusal table_check(const struct table *table, uint32_t slot, uint32_t generation, uint32_t channel,
                         struct entry *out) {
    uint32_t segment = slot / TABLE_ENTRIES;
    memset(out, 0, sizeof *out);
    if (segment >= SEGMENTS_MOST || !table->segments[segment])
        return REFUSED_SLOT;
    if (!entry_read(&table->segments[segment][slot % TABLE_ENTRIES], out))
        return REFUSED_GENERATION;
    if (!out->generation)
        return REFUSED_SLOT;
    if (out->channel != channel)
        return REFUSED_CHANNEL;
    if (out->generation != generation || !out->capability)
        return REFUSED_GENERATION;
    if (out->expiry && clock_now() >= out->expiry)
        return REFUSED_EXPIRED;
    return REFUSED_NOT;
}

static void entry_publish(struct entry SHARED *entry, const struct entry *value) {
    uint64_t sequence = load_relaxed(&entry->sequence) | 1;
    store_relaxed(&entry->sequence, sequence);
    fence_stores(); /* odd before any field; pairs with the reader's second look */
    const any_word *from = (const any_word *)value;
    any_word SHARED *to = (any_word SHARED *)entry;
    for (unsigned i = 1; i < sizeof *entry / sizeof(uint64_t); i++)
        store_relaxed(&to[i], from[i]);
    /* Pairs with load_acquire in entry_read: even only after every field. */
    store_release(&entry->sequence, sequence + 1);
}

void atoll_entry_write(void *segment, uint32_t index, uint32_t channel, uint32_t generation, uint64_t rights,
                       uint64_t badge, uint64_t expiry, uint32_t interface, uint32_t service,
                       uint64_t capability) {
    struct entry value = {.channel = channel,
                          .generation = generation,
                          .rights = rights,
                          .badge = badge,
                          .expiry = expiry,
                          .interface = interface,
                          .service = service,
                          .capability = capability};
    entry_publish(&((struct entry SHARED *)segment)[index % TABLE_ENTRIES], &value);
}

void atoll_entry_clear(void *segment, uint32_t index, uint32_t generation) {
    /* `capability` 0 marks it revoked; channel and generation stay so that the holder is told "revoked", not
     * "no slot". */
    struct entry SHARED *entry = &((struct entry SHARED *)segment)[index % TABLE_ENTRIES];
    struct entry value = {.channel = load_relaxed(&entry->channel), .generation = generation};
    entry_publish(entry, &value);
}

void atoll_notice_gate(void *notice, uint32_t gate) {
    /* A request, ordered by nothing: a loop that misses it takes one message more. What a frozen process must
     * not have in its window, the kernel sees by looking once it stands still. */
    store_relaxed(&((struct notice SHARED *)notice)->gate, gate);
}

void atoll_notice_revoked(void *notice) {
    struct notice SHARED *page = (struct notice SHARED *)notice;
    /* Behind the entries it counts by the fence of the last of them (entry_publish). */
    store_relaxed(&page->revocations, load_relaxed(&page->revocations) + 1);
    fence_store_load(); /* the entries before the caller looks at the window: pairs with the fence in loop.c's
                           check */
}

void atoll_notice_withdrew(void *notice) {
    struct notice SHARED *page = (struct notice SHARED *)notice;
    /* Ordered by nothing: the packet that it tells of went before it, by a system call. */
    store_relaxed(&page->withdrawals, load_relaxed(&page->withdrawals) + 1);
}

void atoll_notice_channel(void *notice, uint32_t index, uint32_t epoch, uint32_t state, uint64_t base,
                          const uint64_t *taken) {
    struct channel_notice SHARED *line = &((struct channel_notice SHARED *)notice)[index + 1];
    uint64_t sequence = load_relaxed(&line->sequence) | 1;
    store_relaxed(&line->sequence, sequence);
    /* Pairs with fence_loads in channel.c's notice_read: odd before any field. */
    fence_stores();
    store_relaxed(&line->epoch, epoch);
    store_relaxed(&line->state, state);
    store_relaxed(&line->base, base);
    for (int i = 0; i < LANES_MOST; i++)
        store_relaxed(&line->taken[i], taken ? taken[i] : 0);
    /* Pairs with load_acquire in channel.c's notice_read. */
    store_release(&line->sequence, sequence + 1);
}

uint64_t atoll_status_window(const void *status) {
    return load_acquire(&((const struct status SHARED *)status)->window);
}

void atoll_status_read(const void *status, uint64_t *out) {
    const struct status SHARED *page = (const struct status SHARED *)status;
    out[0] = load_relaxed(&page->heartbeat);
    out[1] = load_relaxed(&page->in_handler);
    out[2] = load_relaxed(&page->served);
    out[3] = load_relaxed(&page->parked);
    out[4] = load_relaxed(&page->late);
}
