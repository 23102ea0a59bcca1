/*
 * The targets: the receive path of a server and of a client, the capability table, the bulk allocator, the
 * walk through a message's nesting, and a server that reads while another process writes.
 */
#define _GNU_SOURCE
#include <signal.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "atomics.h"
#include "interface/nesting.h"
#include "wait.h"
#include "world.h"

/* A reply's length is chosen by the input up to this many bytes: also more than a channel carries. */
enum { REPLY_MOST = 6000, STEPS_MOST = 200 };

static char reply_bytes[REPLY_MOST];

static struct atoll_loop *serving(void) {
    struct atoll_loop *loop = atoll_loop_new(world.notice, world.status, 1u << BULK_BITS);
    MUST(loop);
    for (unsigned i = 0; i < METHODS; i++)
        MUST(atoll_loop_method(loop, 0, world_method(i), i, 1u << i % 4, 0) == 0);
    MUST(atoll_loop_segment(loop, 0, world.table) == 0);
    MUST(atoll_loop_add(loop, world.channel, NUMBER, 0) == 0);
    atoll_loop_until(loop, 1);
    return loop;
}

/* What holds of every message that is handed out, whatever lies in shared memory. 0: the channel is to be
 * closed. */
static int handed_out(struct atoll_loop *loop, uint64_t handed) {
    uint64_t received = op_long(handed), what = received >> 56, index = received >> 32 & 0xFFFFFF,
             length = received & 0xFFFFFFFF;
    const atoll_message *message = atoll_loop_message(loop);
    int window = (int)(world.status->window & 1);
    MUST(window == (what == OP_CALL || what == OP_CAST));
    switch (what) {
    case OP_CALL:
    case OP_CAST:
        MUST(index < METHODS && message->slot < ENTRIES && message->rights & 1u << index % 4);
        MUST(message->badge == 100 + message->slot && message->lane >= message->slot % LANES);
        /* fall through */
    case OP_STREAM:
    case OP_REFUSED:
    case OP_LATE:
        MUST(length <= 1u << BULK_BITS && message->length == length && message->channel == NUMBER);
        break;
    case OP_MISBEHAVED:
        MUST(length == NUMBER && atoll_channel_fault(world.channel));
        return 0;
    default:
        MUST(what >= OP_CLIENT && what <= OP_LARGE);
    }
    world.status->window = 0;
    return 1;
}

void fuzz_serve(struct input *input) {
    world_begin(1);
    struct atoll_loop *loop = serving();
    uint64_t answer = 0;
    for (int step = 0, going = 1; going && input->left && step < STEPS_MOST; step++) {
        switch (take(input, 1) % 8) {
        case 0:
            answer = (uint64_t)KIND_REPLY << 32 | take(input, 2) % REPLY_MOST;
            break;
        case 1: {
            int64_t sent = atoll_loop_reply(loop, NUMBER, take(input, 1), (uint32_t)take(input, 1) % 4,
                                            KIND_ITEM, reply_bytes, (uint32_t)take(input, 2) % REPLY_MOST);
            MUST(sent == 0 || (sent < 0 && sent >= R_DEADLINE));
            going = sent != R_MISBEHAVED;
            break;
        }
        case 2:
            if (take(input, 1) & 1)
                atoll_entry_clear(world.table, (uint32_t)take(input, 1) % ENTRIES, 1);
            else
                atoll_notice_gate(world.notice, (uint32_t)take(input, 1) & 1);
            break;
        case 3:
        case 4:
            going = handed_out(loop, atoll_loop_next(loop, reply_bytes, answer));
            answer = 0;
            break;
        default:
            world_lie(input);
        }
    }
    for (int i = 0; i < 8; i++)
        if (!handed_out(loop, atoll_loop_next(loop, NULL, 0)))
            break;
    atoll_loop_remove(loop, NUMBER);
    atoll_loop_free(loop);
    world_end();
}

void fuzz_receive(struct input *input) {
    struct atoll_channel *channel;
    atoll_site site = {.method = world_method(0), .generation = 1, .kind = KIND_CALL};
    uint64_t taken[LANES_MOST];
    world_begin(0);
    channel = world.channel;
    for (int step = 0; input->left && step < STEPS_MOST; step++) {
        int64_t result = 0;
        switch (take(input, 1) % 10) {
        case 0:
            site.lane = (uint8_t)take(input, 1) % 4;
            result =
                atoll_send(channel, &site, 0, reply_bytes, (uint32_t)take(input, 2) % REPLY_MOST, 0, 0, NULL);
            break;
        case 1:
            result = atoll_wait(channel, take(input, 1), 1);
            break;
        case 2:
            result = atoll_arm(channel);
            atoll_disarm(channel);
            break;
        case 3:
            atoll_notice_channel(world.notice, 0, (uint32_t)take(input, 1) % 4,
                                 STATE_OPEN + (uint32_t)take(input, 1) % 3, take(input, 2) * LINE, NULL);
            result = atoll_channel_renew(channel, taken);
            break;
        case 4:
            atoll_ring_bell(channel);
            break;
        case 5:
        case 6:
            result = atoll_receive(channel);
            if (result >= 0)
                MUST((result & 0xFFFFFFFF) <= 1u << BULK_BITS && channel->message.length == (uint32_t)result);
            break;
        default:
            world_lie(input);
        }
        MUST(result >= R_DEADLINE);
        if (result == R_MISBEHAVED) {
            MUST(atoll_channel_fault(channel));
            break;
        }
    }
    world_end();
}

void fuzz_table(struct input *input) {
    static struct entry segment[TABLE_ENTRIES] __attribute__((aligned(LINE)));
    struct table table = {{NULL}};
    uint32_t which = (uint32_t)take(input, 1) % SEGMENTS_MOST;
    table.segments[which] = segment;
    memset(segment, 0, sizeof segment);
    for (uint32_t entry = 0; entry < 4; entry++)
        atoll_entry_write(segment, entry, NUMBER, 1, entry, entry, 0, 0, 0, 9);
    while (input->left) {
        uint32_t at = (uint32_t)take(input, 1) % 4, generation, channel;
        unsigned char *bytes = (unsigned char *)&segment[at];
        uint64_t word = take(input, 1) % 8, value = take(input, 1) & 1 ? take(input, 8) : take(input, 1);
        memcpy(bytes + word * 8, &value, 8);
        uint32_t slot = take(input, 1) & 1 ? (uint32_t)take(input, 4) : which * TABLE_ENTRIES + at;
        generation = (uint32_t)take(input, 1) % 3, channel = NUMBER + (uint32_t)take(input, 1) % 2;
        struct entry found;
        enum refusal refusal = table_check(&table, slot, generation, channel, &found);
        const struct entry *own = slot / TABLE_ENTRIES == which ? &segment[slot % TABLE_ENTRIES] : NULL;
        int good = own && !(own->sequence & 1) && own->generation == generation && generation &&
                   own->channel == channel && own->capability && (!own->expiry || own->expiry > clock_now());
        if (good && refusal == REFUSED_EXPIRED)
            continue; /* it expired between the two looks */
        MUST((refusal == REFUSED_NOT) == !!good);
        if (good)
            MUST(found.rights == own->rights && found.badge == own->badge);
    }
}

void fuzz_bulk(struct input *input) {
    static unsigned char half[1 << 13];
    static struct bulk bulk;
    uint64_t seen[LANES_MOST] = {0}, position[LANES_MOST] = {0};
    bulk_begin(&bulk, half, sizeof half);
    while (input->left) {
        uint32_t lane = (uint32_t)take(input, 1) % LANES_MOST;
        if (take(input, 1) & 1) {
            seen[lane] = take(input, 1) & 1 ? take(input, 8) : position[lane];
            bulk_reclaim(&bulk, seen);
        } else {
            uint64_t length = 1 + take(input, 2), offset = bulk_find(&bulk, length);
            if (offset != UINT64_MAX) {
                MUST(length <= sizeof half && offset <= sizeof half - length);
                bulk_hold(&bulk, offset, length, lane, position[lane] += LINE);
            }
        }
        MUST(bulk.count <= BULK_RECORDS);
        for (uint32_t i = 0; i < bulk.count; i++) {
            MUST(bulk.records[i].offset + bulk.records[i].length <= sizeof half);
            MUST(i == 0 || bulk.records[i - 1].offset + bulk.records[i - 1].length <= bulk.records[i].offset);
        }
    }
}

/* In memory that ends where the message does, so that whoever reads beyond it is found. */
void fuzz_nesting(struct input *input) {
    uint32_t limit = (uint32_t)take(input, 2);
    uint8_t *message = malloc(input->left ? input->left : 1);
    MUST(message);
    memcpy(message, input->at, input->left);
    int within = atoll_nests_within(message, input->left, limit);
    MUST(within == 0 || within == 1);
    MUST(within || !atoll_nests_within(message, input->left, limit / 2));
    free(message);
}

/* The liar is a process of its own and writes while we read: here every check must hold in the copy, not in
 * the source. */
void fuzz_race(struct input *input) {
    struct input lies = *input;
    world_begin(1);
    struct atoll_loop *loop = serving();
    pid_t liar = fork();
    MUST(liar >= 0);
    if (liar == 0) {
        for (;;) {
            struct input again = lies;
            while (again.left)
                world_lie(&again);
        }
    }
    for (int turn = 0; turn < 2000; turn++) {
        uint64_t received =
            atoll_loop_next(loop, reply_bytes, turn % 3 ? (uint64_t)KIND_REPLY << 32 | 64 : 0);
        if (!handed_out(loop, received))
            break;
    }
    kill(liar, SIGKILL);
    MUST(waitpid(liar, NULL, 0) == liar);
    atoll_loop_remove(loop, NUMBER);
    atoll_loop_free(loop);
    world_end();
}
