/*
 * A client's end of a channel: sending, receiving, and how long to spin before it sleeps.
 *
 * Threads of one client send side by side (the lock `sending`); receiving is one thread's at a time, which
 * Python's lock sees to. How long to spin is argued in docs/decisions/0001.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <sched.h>
#include <string.h>

#include "atomics.h"
#include "channel.h"
#include "wait.h"

enum {
    SPIN_BATCH = 32,          /* looks at the ring between two looks at the clock */
    SPIN_SHORT = 2500,        /* ns: the server has other clients to serve meanwhile */
    SPIN_USUAL = 20000,       /* ns */
    SPIN_SLOW = 60000,        /* ns: replies of late took so long; waking a halted core would double that */
    USUAL_SLOW = 60000,       /* ns: a mean wait up to which SPIN_SLOW is worth it */
    SPIN_COPY = 150000,       /* ns: the server copies a buffer of a MiB or so */
    SPIN_WOKEN = 100000,      /* ns: longer than a halted core takes to wake, or two sleepers stay asleep */
    YIELDS_MOST = 32,         /* hand-overs of the core before parking */
    YIELD_DEAR = 1000000,     /* ns: a yield that long means a busy program shares the core */
    YIELD_PAUSE = 1000000000, /* ns without yields after a dear one */
    SLICE = 1000000000,       /* ns parked at most before signals and the kernel are looked at */
    SPIN_LOOP = 15000,        /* ns an event loop spins before it waits */
    VAIN_MOST = 8,            /* spins in vain after which an event loop stops spinning */
    VAIN_AGAIN = 64,          /* and how many waits later it tries again */
};

/* The first of `count` numbers that no other request of this channel has. */
uint64_t atoll_reserve_requests(atoll_channel *channel, uint32_t count) {
    sending_begin(channel);
    uint64_t first = channel->requests + 1;
    channel->requests += count;
    sending_end(channel);
    return first;
}

/* Under `sending`. `request` 0 takes the next number. Returns 0 or R_*; `end` is the position behind the
 * record, a multiple of LINE, plus the epoch modulo LINE: in which of two epochs a record was written cannot
 * be told from positions alone, since each starts at a base of its own. */
static int send_locked(struct atoll_channel *channel, const atoll_site *site, uint64_t *request,
                       const char *payload, uint32_t length, uint64_t deadline, uint64_t trace,
                       const char *context, uint64_t *end) {
    int state = channel_noticed(channel);
    if (state)
        return state;
    if (site->lane >= channel->lanes)
        return R_TOO_LARGE;
    if (!*request)
        *request = ++channel->requests;
    struct header header = {.length = length,
                            .method = site->method,
                            .request = *request,
                            .slot = site->slot,
                            .generation = site->generation,
                            .kind = site->kind,
                            .lane = site->lane,
                            .flags = site->flags,
                            .deadline = deadline,
                            .trace = trace};
    int result = channel_produce(channel, &header, context, payload);
    if (!result)
        *end = channel->out[site->lane].position | (channel->epoch & (LINE - 1));
    return result;
}

int64_t atoll_send(atoll_channel *channel, const atoll_site *site, uint64_t request, const char *payload,
                   uint32_t length, uint64_t deadline, uint64_t trace, const char *context) {
    uint64_t end = 0;
    sending_begin(channel);
    int result = send_locked(channel, site, &request, payload, length, deadline, trace, context, &end);
    store_relaxed(&channel->bell_due, 1);
    sending_end(channel);
    return result ? result : (int64_t)end;
}

/* A call without deadline, trace and context, sent and rung for in one go. */
int64_t atoll_post(atoll_channel *channel, const atoll_site *site, uint64_t request, const char *payload,
                   uint32_t length) {
    int64_t end = atoll_send(channel, site, request, payload, length, 0, 0, NULL);
    if (end >= 0)
        store_relaxed(&channel->just_woke, channel_wake(channel));
    return end;
}

void atoll_ring_bell(atoll_channel *channel) {
    store_relaxed(&channel->just_woke, channel_wake(channel));
}

int64_t atoll_receive(atoll_channel *channel) {
    struct header header;
    channel->message.kind = 0; /* whoever is interrupted on its way back finds here whether it has one */
    for (uint32_t lane = 0; lane < channel->lanes; lane++) {
        int found = channel_peek(channel, lane, &header);
        if (found < 0)
            return found;
        if (!found)
            continue;
        atoll_message *message = &channel->message;
        message->request = header.request;
        message->method = header.method;
        message->length = header.length;
        message->kind = header.kind;
        message->lane = header.lane;
        message->flags = header.flags;
        message->trace = header.trace;
        message->deadline = header.deadline;
        channel_take(channel, lane, &header, channel->buffer, message->context);
        return (int64_t)header.kind << 32 | header.length;
    }
    channel_freed(channel);
    return R_AGAIN;
}

int atoll_arm(atoll_channel *channel) {
    channel_freed(channel);
    park_announce(channel->own, PARK_DOORBELL);
    /* Cannot be spared: a last look at the ring, `channel_pending`; a last look at the room, `channel_room`.
     * Of a notice the kernel rings whoever sleeps or not, and a doorbell keeps its byte. */
    if (!channel_pending(channel) && !channel_noticed(channel) && !channel_room(channel, 1))
        return 1;
    park_over(channel->own);
    return 0;
}

void atoll_disarm(atoll_channel *channel) {
    park_over(channel->own);
    int found = doorbell_drain(channel->doorbell);
    if (found > 0) /* behind the last byte may be the end, of which no further edge tells */
        found = doorbell_drain(channel->doorbell);
    if (found < 0)
        channel->deaf = DEAF_UNTOLD;
}

int atoll_channel_deaf(atoll_channel *channel) {
    return channel->deaf;
}

/*
 * For event loops, before they go to the trouble of waiting: spins shortly while the server is awake on
 * another core. 1: something arrived. A loop that mostly spins in vain (slow handlers) soon stops, and tries
 * again now and then.
 */
int atoll_spin(atoll_channel *channel) {
    uint32_t cpu = (uint32_t)sched_getcpu();
    if (channel_pending(channel))
        return 1;
    if (clock_stands())
        return 0;
    uint32_t vain = load_relaxed(&channel->vain); /* other loops' threads count, too: it is a hint */
    if (vain >= VAIN_MOST) {
        store_relaxed(&channel->vain, vain + 1);
        if ((vain + 1) % VAIN_AGAIN)
            return 0;
    }
    if (load_relaxed(&channel->peer->parked) || load_relaxed(&channel->peer->cpu) == cpu)
        return 0;
    if (load_relaxed(&channel->own->cpu) != cpu)
        store_relaxed(&channel->own->cpu, cpu);
    uint64_t end = clock_now() + SPIN_LOOP;
    do {
        for (int i = 0; i < SPIN_BATCH; i++) {
            if (channel_pending(channel)) {
                store_relaxed(&channel->vain, 0);
                return 1;
            }
            cpu_relax();
        }
    } while (clock_now() < end);
    if (vain < VAIN_MOST)
        store_relaxed(&channel->vain, vain + 1);
    return 0;
}

/* How long to spin for the server: see FAST-PATH's load-aware policy in docs/decisions/0001. 0: do not. */
static uint64_t spin_budget(const struct atoll_channel *channel, uint32_t cpu, uint32_t load) {
    if (load_relaxed(&channel->peer->cpu) == cpu)
        return 0;
    if (load >= 2)
        return SPIN_SHORT;
    if (channel->copies)
        return SPIN_COPY;
    if (load_relaxed(&channel->just_woke))
        return SPIN_WOKEN;
    return channel->usual > SPIN_USUAL / 2 && channel->usual < USUAL_SLOW ? SPIN_SLOW : SPIN_USUAL;
}

/* A reply came after so long. Bounded, so that one slow call is forgotten after a few quick ones. */
static void waited(struct atoll_channel *channel, uint64_t time) {
    if (time > 2 * USUAL_SLOW)
        time = 2 * USUAL_SLOW;
    channel->usual = (7 * channel->usual + time) / 8;
}

/* Takes the next message if there is one; the result of atoll_receive with other requests told apart. */
static int64_t receive_for(struct atoll_channel *channel, uint64_t request) {
    int64_t result = atoll_receive(channel);
    if (result < 0)
        return result;
    if (channel->message.request == request && (result >> 32) >= KIND_REPLY)
        return result;
    return R_OTHER;
}

int64_t atoll_wait(atoll_channel *channel, uint64_t request, uint64_t until) {
    uint32_t cpu = (uint32_t)sched_getcpu(), load = load_relaxed(&channel->peer->load);
    uint64_t budget = spin_budget(channel, cpu, load), spin_end = 0, slice_end = 0, began = 0;
    unsigned yields = load == 0 ? YIELDS_MOST : 0;
    if (load_relaxed(&channel->own->cpu) != cpu)
        store_relaxed(&channel->own->cpu, cpu);
    for (;;) {
        int64_t result;
        for (int i = 0; i < (budget ? SPIN_BATCH : 1); i++) {
            if ((result = receive_for(channel, request)) != R_AGAIN)
                goto done;
            cpu_relax();
        }
        int state = channel_noticed(channel);
        if (state) {
            /* What the server committed before it died is taken first: the notice was written after it.
             * Cannot be spared: another look after a notice, `receive_for(channel, request)`. */
            if ((result = receive_for(channel, request)) == R_AGAIN)
                result = state;
            goto done;
        }
        uint64_t now = clock_now();
        if (until && now >= until)
            return R_DEADLINE;
        /* A peer that wakes us for nothing, again and again, keeps nobody from looking at signals and at the
         * kernel. */
        if (!slice_end)
            slice_end = now + SLICE;
        if (now >= slice_end)
            return R_AGAIN;
        if (!spin_end) {
            began = now;
            spin_end = now + budget;
        }
        if (now < spin_end)
            continue;
        if (yields < YIELDS_MOST && now >= channel->no_yield_until) {
            yields++;
            sched_yield();
            if (clock_now() - now > YIELD_DEAR)
                channel->no_yield_until = now + YIELD_PAUSE;
            continue;
        }
        park_announce(channel->own, PARK_FUTEX);
        /* Cannot be spared: a last look at the ring, `channel_pending`; a last look at the notice,
         * `channel_noticed`. */
        if (channel_pending(channel) || channel_noticed(channel)) {
            park_over(channel->own);
            continue;
        }
        /* Cannot be spared: a last look at the room, `channel_room`. */
        if (channel_room(channel, 1)) {
            park_over(channel->own);
            return R_AGAIN;
        }
        channel->counters.parks++;
        int error = park_futex(channel->own, until && until < now + SLICE ? until : now + SLICE);
        park_over(channel->own);
        if (error == ETIMEDOUT || error == EINTR) {
            if ((result = receive_for(channel, request)) != R_AGAIN)
                goto done;
            return until && clock_now() >= until ? R_DEADLINE : R_AGAIN;
        }
        continue;
    done:
        waited(channel, began ? clock_now() - began : 0);
        store_relaxed(&channel->just_woke, 0);
        channel_freed(channel);
        return result;
    }
}

int64_t atoll_call(atoll_channel *channel, const atoll_site *site, const char *payload, uint32_t length) {
    uint64_t request = 0, end = 0;
    channel->call_end = 0;
    sending_begin(channel);
    int result = send_locked(channel, site, &request, payload, length, 0, 0, NULL, &end);
    sending_end(channel);
    if (result)
        return result;
    channel->call_request = request;
    channel->call_end = end;
    store_relaxed(&channel->just_woke, channel_wake(channel));
    channel->copies = site->copies;
    int64_t received = atoll_wait(channel, request, 0);
    channel->copies = 0;
    return received >> 32 == KIND_REPLY ? (int64_t)(uint32_t)received : received;
}

uint64_t atoll_call_request(atoll_channel *channel) {
    return channel->call_request;
}
uint64_t atoll_call_end(atoll_channel *channel) {
    return channel->call_end;
}
int atoll_call_waits(atoll_channel *channel) {
    return channel->call_end != 0;
}
