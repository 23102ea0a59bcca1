/* See world.h. Guard pages lie around what is mapped, so that one byte too far is a fault. */
#define _GNU_SOURCE
#include "world.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

struct world world = {.memory = -1};

uint32_t world_method(unsigned index) {
    return 0x9E3779B9u * (index + 1);
}

static void *guards[3];

static void guard(unsigned which, void *at) {
    void *page = mmap(at, PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
    MUST(page != MAP_FAILED || errno == EEXIST); /* something else lies there */
    if (page != at && page != MAP_FAILED)
        MUST(munmap(page, PAGE) == 0); /* an emulator that takes the flag for a wish */
    guards[which] = page == at ? at : NULL;
}

static void make(void) {
    world.bytes = atoll_channel_size(LANES, RING_BITS, BULK_BITS);
    world.memory = memfd_create("fuzzed", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    MUST(world.memory >= 0 && ftruncate(world.memory, (off_t)world.bytes) == 0);
    MUST(fcntl(world.memory, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) == 0);
    world.shared = mmap(NULL, world.bytes, PROT_READ | PROT_WRITE, MAP_SHARED, world.memory, 0);
    MUST(world.shared != MAP_FAILED);
    MUST(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, world.bells) == 0);
    world.notice = aligned_alloc(PAGE, PAGE);
    world.table = aligned_alloc(PAGE, SEGMENT);
    world.status = aligned_alloc(PAGE, PAGE);
    MUST(world.notice && world.table && world.status);
}

void world_begin(int server) {
    if (world.memory < 0)
        make();
    memset(world.shared, 0, world.bytes);
    memset(world.notice, 0, PAGE);
    memset(world.table, 0, SEGMENT);
    memset(world.status, 0, PAGE);
    world.server = server;
    world.base = 1ull << 40;
    for (unsigned lane = 0; lane < LANES; lane++)
        world.written[lane] = world.base;
    for (unsigned entry = 0; entry < ENTRIES; entry++)
        atoll_entry_write(world.table, entry, NUMBER, 1, entry, 100 + entry, 0, 0, entry % LANES,
                          1000 + entry);
    atoll_notice_channel(world.notice, 0, 1, STATE_OPEN, world.base, NULL);
    world.channel = atoll_channel_open(world.memory, world.bells[!server], server, LANES, RING_BITS,
                                       BULK_BITS, 1, world.base, server ? NULL : world.notice + LINE);
    MUST(world.channel);
    guard(0, world.channel->memory + world.bytes);
    guard(1, world.channel->memory - PAGE);
    guard(2, world.channel->buffer + world.channel->bulk_size);
}

void world_end(void) {
    char bytes[256];
    atoll_channel_close(world.channel);
    for (unsigned i = 0; i < 3; i++)
        if (guards[i])
            munmap(guards[i], PAGE);
    for (int end = 0; end < 2; end++)
        while (recv(world.bells[end], bytes, sizeof bytes, MSG_DONTWAIT) > 0) {
        }
}

static void put(unsigned lane, uint64_t position, const void *bytes, uint64_t length) {
    uint64_t ring = 1ull << RING_BITS;
    unsigned char *data = world.shared + PAGE + (2 * lane + (unsigned)!world.server) * ring;
    for (uint64_t i = 0; i < length; i++)
        data[(position + i) & (ring - 1)] = ((const unsigned char *)bytes)[i];
}

/* A record where the next one is looked for: right in all that `input` does not spoil. */
static void record(struct input *input) {
    unsigned lane = (unsigned)take(input, 1) % LANES, spoil = (unsigned)take(input, 1);
    uint64_t position = world.written[lane];
    unsigned char payload[2048];
    static const uint8_t kinds[2][4] = {{KIND_REPLY, KIND_FAULT, KIND_ITEM, KIND_CREDIT},
                                        {KIND_CALL, KIND_CAST, KIND_ITEM, KIND_CANCEL}};
    uint8_t choice = (uint8_t)take(input, 1);
    struct header header = {.commit = position + 1,
                            .length = (uint32_t)take(input, 2) % 1200,
                            .method = world_method(choice % (METHODS + 1)),
                            .request = take(input, 1),
                            .slot = (uint32_t)take(input, 1) % (ENTRIES + 2),
                            .generation = 1,
                            .epoch = 1,
                            .kind = kinds[world.server][choice % 4],
                            .lane = (uint8_t)lane};
    if (choice & 16)
        header.flags |= FLAG_CONTEXT;
    if (choice & 32) {
        header.flags |= FLAG_BULK;
        header.bulk = take(input, 2) % (1u << BULK_BITS);
    }
    if (spoil & 128) {
        uint64_t at = spoil % 56;
        uint64_t value = take(input, 8);
        memcpy((unsigned char *)&header + 8 + at, &value, 56 - at < 8 ? 56 - at : 8);
    }
    for (unsigned i = 0; i < 64; i++)
        payload[i] = (unsigned char)take(input, 1);
    put(lane, position + LINE, payload, 64);
    put(lane, position + 8, (unsigned char *)&header + 8, LINE - 8);
    put(lane, position, &header.commit, 8);
    uint64_t inline_length = header.flags & FLAG_BULK ? 0 : header.length;
    if (inline_length <= 1u << RING_BITS)
        world.written[lane] = position + LINE + (header.flags & FLAG_CONTEXT ? LINE : 0) +
                              ((inline_length + LINE - 1) & ~(uint64_t)(LINE - 1));
}

void world_lie(struct input *input) {
    struct side *sides = (struct side *)world.shared;
    unsigned char *indices = world.shared + 2 * LINE;
    uint64_t at;
    switch (take(input, 1) % 6) {
    case 0:
        at = take(input, 2) % world.bytes;
        for (unsigned left = (unsigned)take(input, 1); left && at < world.bytes; left--)
            world.shared[at++] = (unsigned char)take(input, 1);
        break;
    case 1:
        at = take(input, 1) % (2 * LANES);
        uint64_t index = world.base + (take(input, 1) & 1 ? take(input, 2) * LINE : take(input, 8));
        memcpy(indices + at * LINE, &index, sizeof index);
        break;
    case 2:
        sides[take(input, 1) & 1].parked = (uint32_t)take(input, 4);
        break;
    case 3:
        at = take(input, 1) & 1;
        if (send(world.bells[at], "!!", 2, MSG_DONTWAIT | MSG_NOSIGNAL) < 0)
            break;
        break;
    default:
        record(input);
    }
}
