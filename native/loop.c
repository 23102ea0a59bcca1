/*
 * A serving process's receive loop: one C call answers the last message, waits, and hands out the next.
 *
 * A channel is *active* (its rings are looked at on every pass) or *armed* (its `parked` word is set and the
 * doorbell wakes us through epoll). So 500 idle channels cost nothing, and a busy one no system call. The
 * loop parks by arming every active channel, looking once more, and sleeping in one epoll that also holds the
 * event loop's own descriptor.
 *
 * Between the capability check and the handler's first step the message is in the *window*: an odd number in
 * the status segment. The kernel's `revoke` writes the table, fences, and waits while the number it saw
 * stays: so either our check saw the revocation, or the kernel sees us in the window and waits until the
 * handler has begun. Python closes the window (writes an even number) as the first step of the handler.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "atomics.h"
#include "channel.h"
#include "loop.h"
#include "table.h"
#include "tape.h"
#include "wait.h"

atoll_loop *atoll_loop_new(const void *notice, void *status, uint64_t buffer) {
    struct atoll_loop *loop = calloc(1, sizeof *loop);
    if (!loop)
        return NULL;
    loop->buffer =
        mmap(NULL, buffer, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    loop->epoll = epoll_create1(EPOLL_CLOEXEC);
    if (loop->buffer == MAP_FAILED || loop->epoll < 0) {
        if (loop->buffer != MAP_FAILED)
            munmap(loop->buffer, buffer);
        if (loop->epoll >= 0)
            close(loop->epoll);
        free(loop);
        return NULL;
    }
    loop->notice = (const struct notice SHARED *)notice;
    loop->status = (struct status SHARED *)status;
    loop->buffer_size = buffer;
    loop->window = 1;
    return loop;
}

void atoll_loop_free(atoll_loop *loop) {
    close(loop->epoll);
    munmap(loop->buffer, loop->buffer_size);
    free(loop);
}

static struct atoll_channel *find(const struct atoll_loop *loop, uint32_t number) {
    struct atoll_channel *channel = loop->channels[number % CHANNELS_MOST];
    return channel && channel->number == number ? channel : NULL;
}

static void activate(struct atoll_loop *loop, struct atoll_channel *channel) {
    if (channel->active)
        return;
    channel->active = 1;
    channel->quiet = 0;
    park_over(channel->own);
    loop->active[loop->active_count++] = channel;
}

/* Arms one channel: 1 if it now sleeps, 0 if a message or room came in between (it stays active). */
static int arm(struct atoll_loop *loop, struct atoll_channel *channel) {
    park_announce(channel->own, PARK_DOORBELL);
    /* Cannot be spared: a last look at the ring, `channel_pending`; a last look at the room, `channel_room`.
     */
    if (channel_pending(channel) || channel_room(channel, 0) ||
        (channel->client_role && channel_news(channel, 0))) {
        park_over(channel->own);
        return 0;
    }
    for (uint32_t i = 0; i < loop->active_count; i++)
        if (loop->active[i] == channel) {
            loop->active[i] = loop->active[--loop->active_count];
            break;
        }
    channel->active = 0;
    return 1;
}

void atoll_loop_drain(atoll_loop *loop, int draining) {
    loop->draining = draining;
    /* What arrived meanwhile has rung its bell already, and calls were not taken: every channel is looked at
     * again. */
    for (uint32_t i = 0; i < CHANNELS_MOST; i++)
        if (loop->channels[i]) {
            loop->channels[i]->stuck = 0;
            activate(loop, loop->channels[i]);
        }
}

int atoll_loop_add(atoll_loop *loop, atoll_channel *channel, uint32_t number, int client) {
    if (loop->channels[number % CHANNELS_MOST])
        return EEXIST;
    if (channel->bulk_size > loop->buffer_size)
        return E2BIG;
    struct epoll_event event = {.events = EPOLLIN | EPOLLRDHUP | EPOLLET, .data.u64 = number};
    if (epoll_ctl(loop->epoll, EPOLL_CTL_ADD, channel->doorbell, &event))
        return errno;
    channel->number = number;
    channel->client_role = client;
    channel->active = channel->held = 0;
    channel->stuck = 0;
    loop->channels[number % CHANNELS_MOST] = channel;
    activate(loop, channel);
    return 0;
}

/* Was room made, and its client not told yet? The end of a burst tells it, but at the channel that is looked
 * at then: another one, if the loop's channels have changed places meanwhile. Where we are the client,
 * threads take, too, and tell themselves. */
static int room_made(const struct atoll_channel *channel) {
    return !channel->client_role && channel->freed;
}

void atoll_loop_remove(atoll_loop *loop, uint32_t number) {
    struct atoll_channel *channel = find(loop, number);
    if (!channel)
        return;
    epoll_ctl(loop->epoll, EPOLL_CTL_DEL, channel->doorbell, NULL);
    /* Whoever serves it next knows nothing of what was put off here, nor of room that was made. */
    if (load_relaxed(&channel->bell_due))
        channel_wake(channel);
    if (room_made(channel))
        channel_freed(channel);
    loop->channels[number % CHANNELS_MOST] = NULL;
    for (uint32_t i = 0; i < loop->active_count; i++)
        if (loop->active[i] == channel)
            loop->active[i] = loop->active[--loop->active_count];
    uint32_t kept = 0;
    for (uint32_t i = 0; i < loop->bell_count; i++)
        if (loop->bells[i] != channel)
            loop->bells[kept++] = loop->bells[i];
    loop->bell_count = kept;
    channel->active = 0;
    if (loop->current == channel)
        loop->current = NULL;
}

/* Replies
 * -----------------------------------------------------------------------------------------------------------
 */

static void bell_later(struct atoll_loop *loop, struct atoll_channel *channel) {
    if (load_relaxed(&channel->bell_due))
        return;
    store_relaxed(&channel->bell_due, 1);
    loop->bells[loop->bell_count++] = channel;
}

void atoll_loop_flush(atoll_loop *loop) {
    for (uint32_t i = 0; i < loop->bell_count; i++) {
        loop->woken |= channel_wake(loop->bells[i]);
        loop->bells[i]->freed = 0; /* who sleeps was woken, whatever for */
    }
    loop->bell_count = 0;
}

/* What was taken of one channel in a row is over: its client is woken now, once for all of it. */
static void batch_over(struct atoll_loop *loop, struct atoll_channel *channel) {
    atoll_loop_flush(loop);
    channel_freed(channel);
    loop->burst = 0;
}

static int64_t reply(struct atoll_loop *loop, struct atoll_channel *channel, uint64_t request, uint32_t lane,
                     uint32_t kind, const char *payload, uint32_t length) {
    struct header header = {
        .length = length, .request = request, .kind = (uint8_t)kind, .lane = (uint8_t)lane};
    if (loop->tape && !tape_takes(loop->tape, length))
        return R_FULL;
    int result = channel_produce(channel, &header, NULL, payload);
    if (!result) {
        if (loop->tape)
            tape_answer(loop->tape, channel->number, request, kind, payload, length);
        bell_later(loop, channel);
        if (kind == KIND_ITEM)
            channel_wake_elsewhere(channel); /* it reads while more is made */
    } else if (result == R_FULL)
        activate(loop, channel); /* room is looked for like a message */
    return result;
}

int64_t atoll_loop_reply(atoll_loop *loop, uint32_t number, uint64_t request, uint32_t lane, uint32_t kind,
                         const char *payload, uint32_t length) {
    struct atoll_channel *channel = find(loop, number);
    if (!channel || lane >= channel->lanes)
        return R_CLOSED;
    return reply(loop, channel, request, lane, kind, payload, length);
}

void atoll_loop_hold(atoll_loop *loop, uint32_t number, int held) {
    struct atoll_channel *channel = find(loop, number);
    if (!channel)
        return;
    channel->held = held;
    if (!held)
        activate(loop, channel);
}

/* Receiving
 * ---------------------------------------------------------------------------------------------------------
 */

static void window_open(struct atoll_loop *loop) {
    loop->window += 2;
    store_relaxed(&loop->status->window, loop->window);
    /* Pairs with the fence in atoll_notice_revoked: our window before our look at the table. Without it
     * `revoke` could see a closed window while we still see the old entry. */
    fence_store_load();
}

static void window_close(struct atoll_loop *loop) {
    store_release(&loop->status->window, 0);
}

/* Capability, right, service of a call. Leaves the window open on REFUSED_NOT. `method` is set if it was
 * found. */
static enum refusal check(struct atoll_loop *loop, const struct header *header, uint32_t number,
                          const struct method **method) {
    struct entry entry;
    atoll_message *message = &loop->message;
    *method = NULL;
    window_open(loop);
    enum refusal refusal = table_check(&loop->table, header->slot, header->generation, number, &entry);
    message->rights = entry.rights;
    message->badge = entry.badge;
    message->capability = entry.capability;
    message->interface = entry.interface;
    message->needed = 0;
    if (refusal == REFUSED_NOT) {
        *method = loop_method(loop, entry.interface, header->method);
        if (!*method)
            refusal = REFUSED_METHOD;
        else if (((*method)->right & entry.rights) != (*method)->right)
            refusal = REFUSED_RIGHTS;
        else if (header->lane < entry.service)
            refusal = REFUSED_SERVICE;
        if (*method)
            message->needed = (*method)->index;
    }
    if (refusal != REFUSED_NOT)
        window_close(loop);
    return refusal;
}

int atoll_loop_recheck(atoll_loop *loop, const atoll_message *message) {
    struct entry entry;
    window_open(loop);
    enum refusal refusal =
        table_check(&loop->table, message->slot, message->generation, message->channel, &entry);
    if (refusal == REFUSED_NOT && (message->rights & entry.rights) != message->rights)
        refusal = REFUSED_RIGHTS;
    if (refusal != REFUSED_NOT)
        window_close(loop);
    return (int)refusal;
}

/* Which lane of a channel is next: in order of class, but every eighth turn from the other end, so none
 * starves. */
static int next_lane(struct atoll_channel *channel) {
    int reverse = (++channel->turn & 7) == 0;
    for (uint32_t i = 0; i < channel->lanes; i++) {
        uint32_t lane = reverse ? channel->lanes - 1 - i : i;
        if (lane_ready(channel, lane))
            return (int)lane;
    }
    return -1;
}

static void note_traffic(struct atoll_loop *loop, struct atoll_channel *channel) {
    uint32_t cpu = (uint32_t)sched_getcpu();
    if (channel->seen_in != loop->load_window + 1) {
        channel->seen_in = loop->load_window + 1;
        loop->load_seen++;
        if (loop->load_seen > loop->load)
            loop->load = loop->load_seen;
    }
    if (load_relaxed(&channel->own->cpu) != cpu)
        store_relaxed(&channel->own->cpu, cpu);
    if (load_relaxed(&channel->own->load) != loop->load)
        store_relaxed(&channel->own->load, loop->load);
    if (++loop->counted % COUNT_EVERY)
        return;
    uint64_t now = clock_now();
    if (now - loop->load_began >= LOAD_WINDOW) {
        loop->load = loop->load_seen;
        loop->load_seen = 0;
        loop->load_window++;
        loop->load_began = now;
    }
}

static uint64_t take(struct atoll_loop *loop, struct atoll_channel *channel, uint32_t lane) {
    struct header header;
    const struct method *method = NULL;
    int found = channel_peek(channel, lane, &header);
    if (found < 0)
        return op_on(OP_MISBEHAVED, channel);
    if (!found)
        return 0; /* the peer took its record back since next_lane saw it: `header` holds nothing */
    if (loop->draining && header.kind <= KIND_CAST) {
        channel_leave(channel, lane);
        channel->stuck |= 1u << lane;
        return 0;
    }
    atoll_message *message = &loop->message;
    message->request = header.request;
    message->deadline = header.deadline;
    message->trace = header.trace;
    message->channel = channel->number;
    message->method = header.method;
    message->length = header.length;
    message->slot = header.slot;
    message->generation = header.generation;
    message->flags = header.flags;
    message->kind = header.kind;
    message->lane = header.lane;
    loop->idle_said = 0;
    loop->vain = 0;
    channel->quiet = 0;
    note_traffic(loop, channel);
    if (header.kind > KIND_CAST) {
        channel_take(channel, lane, &header, loop->buffer, message->context);
        loop->current = NULL;
        return op(OP_STREAM, 0, header.length);
    }
    enum refusal refusal = check(loop, &header, channel->number, &method);
    channel_take(channel, lane, &header, loop->buffer, message->context);
    loop->current = header.kind == KIND_CALL ? channel : NULL;
    loop->current_request = header.request;
    loop->current_lane = header.lane;
    if (refusal != REFUSED_NOT)
        return op(OP_REFUSED, refusal, header.length);
    if (header.deadline && clock_now() >= header.deadline) {
        window_close(loop);
        return op(OP_LATE, method->index, header.length);
    }
    loop->copies = method->copies;
    if (loop->tape)
        tape_call(loop->tape, message, loop->buffer);
    store_relaxed(&loop->status->in_handler, (uint64_t)method->index + 1);
    store_relaxed(&loop->status->served, load_relaxed(&loop->status->served) + 1);
    return op(header.kind == KIND_CALL ? OP_CALL : OP_CAST, method->index, header.length);
}

/* One pass over the active channels, the one of the last message first for a burst. 0: nothing there. */
static uint64_t poll(struct atoll_loop *loop) {
    for (uint32_t i = 0, count = loop->active_count; i < count && loop->active_count; i++) {
        if (loop->turn >= loop->active_count)
            loop->turn = 0;
        struct atoll_channel *channel = loop->active[loop->turn];
        if (channel->client_role) {
            if (channel_pending(channel) || channel_news(channel, 1) || channel_room(channel, 1)) {
                loop->turn++;
                loop->idle_said = 0;
                return op_on(OP_CLIENT, channel);
            }
        } else if (channel_room(channel, 1)) {
            loop->turn++;
            batch_over(loop, channel);
            return op(OP_EXTERNAL, 0, 0);
        } else if (!channel->held) {
            int lane = next_lane(channel);
            if (lane >= 0 && loop->burst >= BURST && loop->active_count == 1)
                batch_over(loop, channel);
            if (lane >= 0 && loop->burst < BURST) {
                loop->burst++;
                uint64_t found = take(loop, channel, (uint32_t)lane);
                if (found)
                    return found;
            } else if (lane >= 0) {
                count++; /* its burst is over, it comes again in this pass */
            }
        }
        if (loop->burst || loop->bell_count || room_made(channel))
            batch_over(loop, channel);
        if (++channel->quiet > QUIET_POLLS && loop->active_count > 1 && !channel_pending(channel) &&
            arm(loop, channel))
            continue;
        loop->turn++;
    }
    return 0;
}

/* Waits in epoll until `until` (0: for ever; 1: not at all). Activates what rang. 1: the event loop has
 * something. */
static int gather(struct atoll_loop *loop, uint64_t until) {
    struct epoll_event events[EVENTS];
    struct timespec wait = {0}, *limit = &wait;
    int external = 0;
    if (!until) {
        limit = NULL;
    } else if (until > 1) {
        uint64_t now = clock_now();
        if (until > now) {
            wait.tv_sec = (time_t)((until - now) / 1000000000u);
            wait.tv_nsec = (long)((until - now) % 1000000000u);
        }
    }
    int count = (int)syscall(SYS_epoll_pwait2, loop->epoll, events, EVENTS, limit, NULL, 0);
    if (count < 0)
        return 1; /* a signal: Python looks at it */
    for (int i = 0; i < count; i++) {
        if (events[i].data.u64 == UINT64_MAX) {
            external = 1;
            continue;
        }
        struct atoll_channel *channel = find(loop, (uint32_t)events[i].data.u64);
        if (!channel)
            continue;
        if (doorbell_drain(channel->doorbell) < 0 || events[i].events & (EPOLLRDHUP | EPOLLHUP))
            channel->deaf = DEAF_UNTOLD;
        activate(loop, channel);
    }
    return external;
}

/* After OP_PARKED: the event loop has slept for us. */
void atoll_loop_wake(atoll_loop *loop) {
    store_relaxed(&loop->status->parked, 0);
    gather(loop, 1);
    loop->woken = 1;
}

/* Sleeps until something happens. OP_EXTERNAL: the event loop has something, or time is up. OP_PARKED: it is
 * to sleep. 0: look again. */
static int park(struct atoll_loop *loop) {
    for (uint32_t i = 0; i < loop->active_count;) {
        struct atoll_channel *channel = loop->active[i];
        park_announce(channel->own, PARK_DOORBELL);
        /* Cannot be spared: a last look at the replies, `channel_pending`; a last look at the requests,
         * `lanes_ready`. A server that died rings like one that replied: what the kernel says of it is news,
         * too. */
        int pending = channel->client_role ? channel_pending(channel) || channel_news(channel, 0)
                                           : lanes_ready(channel);
        /* Cannot be spared: a last look at the room, `channel_room`. */
        if (channel_room(channel, 0) || (pending && !channel->held)) {
            park_over(channel->own);
            return 0; /* those armed so far stay armed: their doorbells are in the epoll */
        }
        channel->active = 0;
        loop->active[i] = loop->active[--loop->active_count];
    }
    if (load_relaxed(&loop->notice->gate))
        return OP_EXTERNAL;
    loop->parks++;
    store_relaxed(&loop->status->parked, 1);
    if (loop->outside)
        return OP_PARKED;
    int external = gather(loop, loop->until);
    store_relaxed(&loop->status->parked, 0);
    loop->woken = 1;
    return external || (loop->until && clock_now() >= loop->until) ? OP_EXTERNAL : 0;
}

/* Spins for the next message while a client runs on another core. */
static uint64_t spin(struct atoll_loop *loop) {
    uint64_t found, now, end = 0;
    uint32_t cpu = (uint32_t)sched_getcpu();
    int other = 0;
    if (loop->vain >= VAIN_SPINS || clock_stands())
        return 0;
    for (uint32_t i = 0; i < loop->active_count && !other; i++) {
        struct atoll_channel *channel = loop->active[i];
        other = channel->seen_in == loop->load_window + 1 && load_relaxed(&channel->peer->cpu) != cpu;
    }
    if (!other)
        return 0;
    do {
        for (int i = 0; i < SPIN_BATCH; i++) {
            if ((found = poll(loop))) {
                loop->woken = 0;
                return found;
            }
            cpu_relax();
        }
        now = clock_now();
        if (!end)
            end = now + (loop->copies ? SPIN_COPY : loop->woken ? SPIN_WOKEN : SPIN_USUAL);
    } while (now < end && !(loop->until && now >= loop->until) && !load_relaxed(&loop->notice->gate));
    loop->vain++;
    loop->woken = 0;
    return 0;
}

/* The handler of the last message has returned. Its caller knows by its own clock that it was late; this is
 * for whoever runs the server. */
static void note_return(struct atoll_loop *loop) {
    struct status SHARED *status = loop->status;
    if (!load_relaxed(&status->in_handler))
        return;
    store_relaxed(&status->in_handler, 0);
    if (loop->message.deadline && clock_now() >= loop->message.deadline)
        store_relaxed(&status->late, load_relaxed(&status->late) + 1);
}

/* `atoll_loop_next`, in words of the long form. */
static uint64_t next(struct atoll_loop *loop, const char *payload, uint64_t kind_length) {
    note_return(loop);
    store_relaxed(&loop->status->heartbeat, load_relaxed(&loop->status->heartbeat) + 1);
    if (kind_length && loop->current) {
        struct atoll_channel *channel = loop->current;
        uint32_t kind = kind_length >> 32 ? (uint32_t)(kind_length >> 32) : KIND_REPLY;
        int64_t result = reply(loop, channel, loop->current_request, loop->current_lane, kind, payload,
                               (uint32_t)kind_length);
        if (result == R_FULL)
            return op_on(OP_FULL, channel);
        if (result == R_TOO_LARGE)
            return op_on(OP_LARGE, channel);
        if (result == R_MISBEHAVED)
            return op_on(OP_MISBEHAVED, channel);
        loop->current = NULL;
    }
    loop->calls++;
    int due = loop->tape ? tape_due(loop->tape) : 0;
    if (due)
        return op(OP_TAPE, due, 0);
    for (int pass = 0;; pass++) {
        uint64_t found;
        if (load_relaxed(&loop->notice->gate)) {
            atoll_loop_flush(loop);
            return op(OP_GATED, 0, 0);
        }
        if (pass == 0 && (loop->calls % BURST == 0 || clock_coarse() >= loop->turn_over + SLOW_CALL)) {
            /* The event loop's turn, by time and not by count: looked at with traffic going on, and after a
             * slow handler. */
            uint64_t now = clock_now();
            if (now >= loop->turn_over) {
                loop->turn_over = now + TURN_EVERY;
                if (gather(loop, 1) || (loop->until && now >= loop->until)) {
                    atoll_loop_flush(loop);
                    return op(OP_EXTERNAL, 0, 0);
                }
                /* A client that keeps its ring full must not keep a server from what it does when all is
                 * drained. */
                if (!loop->idle_missed)
                    loop->idle_missed = now;
                if (loop->idle_wanted && now - loop->idle_missed >= IDLE_WITHIN) {
                    loop->idle_missed = 0;
                    atoll_loop_flush(loop);
                    return op(OP_IDLE, 0, 0);
                }
            }
        }
        if (pass == PASSES_MOST) {
            /* A peer that shows and takes back a record would have us look for ever. */
            atoll_loop_flush(loop);
            return op(OP_EXTERNAL, 0, 0);
        }
        if ((found = poll(loop)))
            return found;
        atoll_loop_flush(loop);
        if (loop->idle_wanted && !loop->idle_said) {
            loop->idle_said = 1;
            loop->idle_missed = 0;
            return op(OP_IDLE, 0, 0);
        }
        if (loop->until == 1) {
            gather(loop, 1);
            if ((found = poll(loop)))
                return found;
            return op(OP_EXTERNAL, 0, 0);
        }
        if ((found = spin(loop)))
            return found;
        int parked = park(loop);
        if (parked)
            return op(parked, 0, 0);
    }
}

uint64_t atoll_loop_next(atoll_loop *loop, const char *payload, uint64_t kind_length) {
    return op_short(next(loop, payload, kind_length));
}
