/*
 * A channel as one end sees it: lanes and bulk halves. How a client sends and waits is in client.c.
 *
 * Everything that decides anything lies in private memory (struct atoll_channel); the shared memory holds
 * records, the indices of what was consumed, and hints. Geometry comes from the kernel. The peer may write
 * anything anywhere at any time: a header is copied once, its fields are checked in the copy (channel_peek),
 * and only the copy is used.
 *
 * Epochs. When a server dies the kernel publishes a new epoch and base in the client's notice (which the
 * server could never write). The client first takes the replies that were committed before, then calls
 * atoll_channel_renew, which puts its own words to the new base. Nobody waits: records of the old epoch never
 * match the new positions.
 */
#define _GNU_SOURCE
#include "channel.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "atomics.h"
#include "wait.h"

enum {
    INLINE_SHARE = 4, /* a payload over a quarter of the ring goes through the bulk half */
};

static uint64_t page_up(uint64_t bytes) {
    return (bytes + PAGE - 1) & ~(uint64_t)(PAGE - 1);
}
static uint64_t rings_at(uint32_t lanes) {
    return page_up(2 * LINE + 2ull * lanes * LINE);
}

uint64_t atoll_channel_size(uint32_t lanes, uint32_t ring_bits, uint32_t bulk_bits) {
    if (lanes < 1 || lanes > LANES_MOST || ring_bits < 12 || ring_bits > 24 || bulk_bits < 12 ||
        bulk_bits > 30)
        return 0;
    /* What lies in a ring is received into a buffer of a bulk half's size. */
    if ((1ull << ring_bits) / INLINE_SHARE > 1ull << bulk_bits)
        return 0;
    return rings_at(lanes) + 2ull * lanes * (1ull << ring_bits) + 2ull * (1ull << bulk_bits);
}

static unsigned char SHARED *ring_data(const struct atoll_channel *channel, uint32_t lane, int reply,
                                       uint64_t ring) {
    return channel->memory + rings_at(channel->lanes) + (2ull * lane + (uint64_t)reply) * ring;
}

static struct consumed SHARED *ring_index(const struct atoll_channel *channel, uint32_t lane, int reply) {
    return (struct consumed SHARED *)(channel->memory + 2 * LINE) + 2 * lane + (uint32_t)reply;
}

static void begin(struct atoll_channel *channel, uint64_t base) {
    for (uint32_t lane = 0; lane < channel->lanes; lane++) {
        struct producer *out = &channel->out[lane];
        struct consumer *in = &channel->in[lane];
        ring_producer_begin(out, out->data, out->consumed, out->size, base);
        ring_consumer_begin(in, in->data, in->consumed, in->size, base);
    }
    bulk_begin(&channel->bulk_out, channel->bulk_out.data, channel->bulk_size);
    channel->bulk_barred = 0;
    store_relaxed(&channel->starved, 0);
    store_relaxed(&channel->own->wants_room, 0);
}

/* The private half of a channel, mapped; nothing in shared memory has been written. NULL and errno on
 * failure. */
static struct atoll_channel *map_channel(int memory, int doorbell, int server, uint32_t lanes,
                                         uint32_t ring_bits, uint32_t bulk_bits, uint32_t epoch) {
    uint64_t bytes = atoll_channel_size(lanes, ring_bits, bulk_bits);
    struct stat found;
    if (!bytes) {
        errno = EINVAL;
        return NULL;
    }
    /* What can be made shorter would end us with SIGBUS. A seal stays, so it is enough to look once, before.
     */
    int seals = fcntl(memory, F_GET_SEALS);
    if (seals < 0)
        return NULL;
    if (!(seals & F_SEAL_SHRINK)) {
        errno = EPERM;
        return NULL;
    }
    if (fstat(memory, &found) < 0)
        return NULL;
    if ((uint64_t)found.st_size < bytes) {
        errno = ERANGE;
        return NULL;
    }
    struct atoll_channel *channel = aligned_alloc(LINE, (sizeof *channel + LINE - 1) & ~(size_t)(LINE - 1));
    if (!channel)
        return NULL;
    memset(channel, 0, sizeof *channel);
    void *mapped = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, memory, 0);
    channel->bulk_size = 1ull << bulk_bits;
    channel->buffer = mmap(NULL, channel->bulk_size, PROT_READ | PROT_WRITE,
                           MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (mapped == MAP_FAILED || channel->buffer == MAP_FAILED) {
        int error = errno;
        if (mapped != MAP_FAILED)
            munmap(mapped, bytes);
        if (channel->buffer != MAP_FAILED)
            munmap(channel->buffer, channel->bulk_size);
        free(channel);
        errno = error;
        return NULL;
    }
    /* What passes here may be private: no core file of either end has it. */
    madvise(mapped, bytes, MADV_DONTDUMP);
    madvise(channel->buffer, channel->bulk_size, MADV_DONTDUMP);
    channel->memory = (unsigned char SHARED *)mapped;
    channel->bytes = bytes;
    channel->server = server;
    channel->doorbell = doorbell;
    channel->lanes = lanes;
    channel->epoch = epoch;
    channel->own = (struct side SHARED *)channel->memory + (server ? 0 : 1);
    channel->peer = (struct side SHARED *)channel->memory + (server ? 1 : 0);
    uint64_t ring = 1ull << ring_bits, half = channel->bulk_size;
    for (uint32_t lane = 0; lane < lanes; lane++) {
        struct producer *out = &channel->out[lane];
        struct consumer *in = &channel->in[lane];
        out->size = in->size = ring;
        out->data = ring_data(channel, lane, server, ring);
        out->consumed = ring_index(channel, lane, server);
        in->data = ring_data(channel, lane, !server, ring);
        in->consumed = ring_index(channel, lane, !server);
    }
    unsigned char SHARED *bulk = channel->memory + rings_at(lanes) + 2ull * lanes * ring;
    bulk_begin(&channel->bulk_out, server ? bulk + half : bulk, half);
    channel->bulk_in = server ? bulk : bulk + half;
    return channel;
}

static void awake(struct atoll_channel *channel) {
    store_relaxed(&channel->own->cpu, (uint32_t)sched_getcpu());
    park_over(channel->own);
}

atoll_channel *atoll_channel_open(int memory, int doorbell, int server, uint32_t lanes, uint32_t ring_bits,
                                  uint32_t bulk_bits, uint32_t epoch, uint64_t base, const void *notice) {
    if (base & (LINE - 1)) {
        errno = EINVAL;
        return NULL;
    }
    struct atoll_channel *channel = map_channel(memory, doorbell, server, lanes, ring_bits, bulk_bits, epoch);
    if (!channel)
        return NULL;
    channel->notice = (const struct channel_notice SHARED *)notice;
    begin(channel, base);
    awake(channel);
    return channel;
}

/*
 * The server's end where the process before it stood. What lies unread in the rings stays as it is: neither
 * the word at the epoch's base nor an index may be written as for a new epoch.
 */
atoll_channel *atoll_channel_resume(int memory, int doorbell, uint32_t lanes, uint32_t ring_bits,
                                    uint32_t bulk_bits, uint32_t epoch, const uint64_t *consumed,
                                    const uint64_t *produced) {
    /* The process before us says where it stood: what is no start of a record would let one run past the
     * ring's end. */
    for (uint32_t lane = 0; lane < lanes && lane < LANES_MOST; lane++) {
        if (!((consumed[lane] | produced[lane]) & (LINE - 1)))
            continue;
        errno = EINVAL;
        return NULL;
    }
    struct atoll_channel *channel = map_channel(memory, doorbell, 1, lanes, ring_bits, bulk_bits, epoch);
    if (!channel)
        return NULL;
    for (uint32_t lane = 0; lane < lanes; lane++) {
        struct producer *out = &channel->out[lane];
        channel->in[lane].position = consumed[lane];
        out->position = produced[lane];
        /* What the peer still has to consume is at most a ring; where exactly its index stands is read when
         * needed. */
        out->seen = produced[lane] - out->size;
        out->stale = load_relaxed(&out->consumed->position);
        channel->bulk_barrier[lane] = produced[lane];
    }
    channel->bulk_barred = 1;
    awake(channel);
    return channel;
}

void atoll_channel_close(atoll_channel *channel) {
    munmap(bare(channel->memory), channel->bytes);
    munmap(channel->buffer, channel->bulk_size);
    free(channel);
}

void atoll_channel_end(atoll_channel *channel) {
    store_relaxed(&channel->ended, 1);
    /* As after a notice: who is about to sleep sees the word above. The peer is rung, too, and looks in vain.
     */
    wake_surely(channel->own, channel->doorbell);
}

void atoll_channel_positions(atoll_channel *channel, uint64_t *consumed, uint64_t *produced) {
    for (uint32_t lane = 0; lane < channel->lanes; lane++) {
        consumed[lane] = channel->in[lane].position;
        produced[lane] = channel->out[lane].position;
    }
}

/* A consistent copy of this channel's notice: only the kernel writes it, under a sequence lock. */
static int notice_read(const struct channel_notice SHARED *notice, struct channel_notice *out) {
    for (int i = 0; i < 1000; i++) {
        /* Pairs with store_release in atoll_notice_channel: fields no older than their sequence. */
        uint64_t before = load_acquire(&notice->sequence);
        if (!(before & 1)) {
            copy_words(out, notice, sizeof *out / sizeof(uint64_t));
            /* Pairs with fence_stores in atoll_notice_channel: without it a torn copy could pass. */
            fence_loads();
            /* Cannot be spared: another look at the sequence, `load_relaxed(&notice->sequence) == before`. */
            if (load_relaxed(&notice->sequence) == before)
                return 1;
        }
        cpu_relax();
    }
    return 0;
}

/* Has the kernel said anything new of this channel? R_EPOCH, R_CLOSED or 0. */
int channel_noticed(const struct atoll_channel *channel) {
    const struct channel_notice SHARED *notice = channel->notice;
    if (load_relaxed(&channel->ended))
        return R_CLOSED;
    if (!notice)
        return 0;
    /* Both pair with the fence in atoll_notice_channel: whoever has seen the notice finds, when it looks once
     * more, what the server committed before its end. Without them that look could have been earlier. */
    if (load_acquire(&notice->state) == STATE_CLOSED)
        return R_CLOSED;
    return load_acquire(&notice->epoch) != channel->epoch ? R_EPOCH : 0;
}

int channel_news(struct atoll_channel *channel, int take) {
    if (channel->deaf == DEAF_UNTOLD) {
        if (take)
            channel->deaf = DEAF_TOLD;
        return 1;
    }
    if (!channel_noticed(channel))
        return 0;
    uint32_t epoch = load_relaxed(&channel->notice->epoch), state = load_relaxed(&channel->notice->state);
    if (epoch == channel->told_epoch && state == channel->told_state)
        return 0; /* once: whoever was told may not care */
    if (take) {
        channel->told_epoch = epoch;
        channel->told_state = state;
    }
    return 1;
}

int atoll_channel_renew(atoll_channel *channel, uint64_t *taken) {
    struct channel_notice notice = {0};
    if (!channel->notice || !notice_read(channel->notice, &notice))
        return R_AGAIN;
    if (notice.state == STATE_CLOSED)
        return R_CLOSED;
    if (notice.epoch == channel->epoch)
        return 0;
    sending_begin(channel);
    for (uint32_t lane = 0; lane < LANES_MOST; lane++)
        taken[lane] = notice.taken[lane];
    /* An epoch that was skipped leaves nothing known of what its server took: all counts as taken. */
    if (notice.epoch != channel->epoch + 1)
        for (uint32_t lane = 0; lane < channel->lanes; lane++)
            taken[lane] = channel->out[lane].position;
    channel->epoch = notice.epoch;
    begin(channel, notice.base);
    sending_end(channel);
    return 1;
}

int64_t channel_fail(struct atoll_channel *channel, const char *check) {
    channel->fault = check;
    return R_MISBEHAVED;
}

uint32_t atoll_channel_epoch(atoll_channel *channel) {
    return channel->epoch;
}
const char *atoll_channel_fault(atoll_channel *channel) {
    return channel->fault;
}
uint64_t atoll_channel_limit(atoll_channel *channel) {
    return channel->bulk_size;
}
void *atoll_channel_buffer(atoll_channel *channel) {
    return channel->buffer;
}
atoll_message *atoll_channel_message(atoll_channel *channel) {
    return &channel->message;
}
atoll_counters *atoll_channel_counters(atoll_channel *channel) {
    return &channel->counters;
}

/* Room for `length` bytes in the own bulk half, or R_FULL, R_MISBEHAVED. */
static int bulk_room(struct atoll_channel *channel, uint32_t length, uint64_t *offset) {
    uint64_t seen[LANES_MOST] = {0};
    for (uint32_t lane = 0; lane < channel->lanes; lane++) {
        if (ring_observe(&channel->out[lane]) == RING_FAULT)
            return (int)channel_fail(channel, "consumed index, when a bulk record needed room");
        seen[lane] = channel->out[lane].seen;
        if (channel->bulk_barred && (int64_t)(seen[lane] - channel->bulk_barrier[lane]) < 0)
            return R_FULL;
    }
    channel->bulk_barred = 0;
    bulk_reclaim(&channel->bulk_out, seen);
    *offset = bulk_find(&channel->bulk_out, length);
    return *offset == UINT64_MAX ? R_FULL : 0;
}

static int produce(struct atoll_channel *channel, struct header *header, const void *context,
                   const void *payload) {
    struct producer *ring = &channel->out[header->lane];
    uint32_t length = header->length, inline_length = length;
    uint64_t offset = 0;
    header->epoch = channel->epoch;
    header->flags = (uint16_t)((header->flags & FLAG_AGAIN) | (context ? FLAG_CONTEXT : 0));
    if (length > ring->size / INLINE_SHARE) {
        if (length > channel->bulk_size)
            return R_TOO_LARGE;
        int result = bulk_room(channel, length, &offset);
        if (result) {
            channel->counters.full += result == R_FULL;
            return result;
        }
        write_bytes(channel->bulk_out.data + offset, payload, length);
        header->bulk = offset;
        header->flags |= FLAG_BULK;
        inline_length = 0;
        channel->counters.bulk++;
    }
    switch (ring_produce(ring, header, context, payload, inline_length)) {
    case RING_DONE:
        break;
    case RING_FULL:
        channel->counters.full++;
        return R_FULL;
    default:
        return (int)channel_fail(channel, "consumed index");
    }
    if (header->flags & FLAG_BULK)
        bulk_hold(&channel->bulk_out, offset, length, header->lane, ring->position);
    channel->counters.sent++;
    channel->counters.bytes_sent += length;
    return 0;
}

/*
 * Waiting for room is waiting for a record turned round: this end says that it wants room, fences, and tries
 * once more; the peer frees room, fences, and looks whether it is wanted (channel_freed, wake). One of the
 * two sees the other's store. Before it sleeps this end looks once more, too (channel_room).
 */
int channel_produce(struct atoll_channel *channel, struct header *header, const void *context,
                    const void *payload) {
    int result = produce(channel, header, context, payload);
    if (result == R_FULL) {
        for (uint32_t lane = 0; lane < channel->lanes; lane++)
            channel->starved_at[lane] = load_relaxed(&channel->out[lane].consumed->position);
        store_relaxed(&channel->starved, 1);
        store_relaxed(&channel->own->wants_room, 1);
        /* Pairs with the fences in channel_freed and wake: our word before our second look at the room. */
        fence_store_load();
        /* Cannot be spared: another try, `produce(channel, header, context, payload)`. */
        result = produce(channel, header, context, payload);
    }
    return result;
}

int channel_room(struct atoll_channel *channel, int take) {
    int changed = 0;
    if (!load_relaxed(&channel->starved)) /* as usual: without the lock */
        return 0;
    sending_begin(channel);
    for (uint32_t lane = 0; lane < channel->lanes; lane++)
        changed |= load_relaxed(&channel->out[lane].consumed->position) != channel->starved_at[lane];
    if (changed && take) {
        store_relaxed(&channel->starved, 0);
        store_relaxed(&channel->own->wants_room, 0);
    }
    sending_end(channel);
    return changed;
}

void channel_freed(struct atoll_channel *channel) {
    if (!channel->freed)
        return;
    channel->freed = 0;
    /* Pairs with the fence in channel_produce: our index before our look at the word. */
    fence_store_load();
    if (load_relaxed(&channel->peer->wants_room))
        channel_wake(channel);
}

int channel_peek(struct atoll_channel *channel, uint32_t lane, struct header *header) {
    struct consumer *ring = &channel->in[lane];
    if (ring_peek(ring, header) == RING_NOTHING)
        return 0;
    const char *check = NULL;
    if (header->flags & ~FLAGS_KNOWN)
        check = "flags";
    else if (header->lane != lane)
        check = "lane";
    else if (header->epoch != channel->epoch)
        check = "epoch";
    else if (channel->server
                 ? header->kind < KIND_CALL || header->kind > KIND_CANCEL
                 : header->kind != KIND_ITEM && header->kind != KIND_END && header->kind != KIND_CREDIT &&
                       header->kind != KIND_REPLY && header->kind != KIND_FAULT)
        check = "kind";
    else if (!(header->flags & FLAG_BULK) && header->length > ring->size / INLINE_SHARE)
        check = "length";
    else if (header->flags & FLAG_BULK &&
             (header->length > channel->bulk_size || header->bulk > channel->bulk_size - header->length))
        check = "bulk range";
    if (check)
        return (int)channel_fail(channel, check);
    return 1;
}

void channel_take(struct atoll_channel *channel, uint32_t lane, const struct header *header,
                  unsigned char *payload, unsigned char *context) {
    struct consumer *ring = &channel->in[lane];
    uint64_t body = LINE;
    if (header->flags & FLAG_CONTEXT) {
        ring_copy(ring, LINE, context, LINE);
        body += LINE;
    }
    if (header->flags & FLAG_BULK)
        copy_bytes(payload, channel->bulk_in + header->bulk, header->length);
    else
        ring_copy(ring, body, payload, header->length);
    ring_finish(ring, ring_record(header->flags, header->flags & FLAG_BULK ? 0 : header->length));
    channel->freed = 1;
    channel->counters.received++;
    channel->counters.bytes_received += header->length;
}

int channel_pending(const struct atoll_channel *channel) {
    for (uint32_t lane = 0; lane < channel->lanes; lane++)
        if (ring_ready(&channel->in[lane]))
            return 1;
    return 0;
}

static int ring_for(struct atoll_channel *channel) {
    int woke = wake(channel->peer, channel->doorbell);
    store_relaxed(&channel->counters.wakes, load_relaxed(&channel->counters.wakes) + (uint64_t)woke);
    return woke;
}

int channel_wake(struct atoll_channel *channel) {
    int woke = ring_for(channel);
    store_relaxed(&channel->bell_due, 0);
    return woke;
}

/* `bell_due` stays: the channel is in a loop's list of what is put off, and must not come into it twice. */
void channel_wake_elsewhere(struct atoll_channel *channel) {
    if (load_relaxed(&channel->peer->parked) && load_relaxed(&channel->peer->cpu) != (uint32_t)sched_getcpu())
        ring_for(channel);
}

/* Kernel
 * ------------------------------------------------------------------------------------------------------------
 */

int atoll_memory_taken(const void *memory, uint32_t lanes, uint64_t *taken) {
    const struct consumed SHARED *index =
        (const struct consumed SHARED *)((const unsigned char SHARED *)memory + 2 * LINE);
    if (lanes > LANES_MOST)
        return -1;
    for (uint32_t lane = 0; lane < lanes; lane++)
        taken[lane] = load_relaxed(&index[2 * lane].position); /* its writer has ended: the kernel saw it */
    return 0;
}

void atoll_memory_wake(void *memory, int client, int doorbell) {
    wake_surely((struct side SHARED *)memory + (client ? 1 : 0), doorbell);
}
