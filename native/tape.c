/*
 * Records are written whole: `written` moves over one with a single store, after its bytes. Whoever takes up
 * the tape of a process that died in between finds the records before it.
 */
#include "tape.h"

#include <errno.h>
#include <stdlib.h>

#include "wait.h"

uint64_t atoll_tape_memory(uint64_t size) {
    return PAGE + size;
}

atoll_tape *atoll_tape_new(void *memory, uint64_t size, int payloads, uint32_t every, int full) {
    if (size < 4 * (TAPE_WHOLE + TAPE_RESERVE) || size & (size - 1) || !every) {
        errno = EINVAL;
        return NULL;
    }
    struct atoll_tape *tape = calloc(1, sizeof *tape);
    if (!tape)
        return NULL;
    tape->head = (struct tape_head SHARED *)memory;
    tape->data = (unsigned char SHARED *)memory + PAGE;
    tape->size = size;
    tape->payloads = payloads;
    tape->every = every;
    tape->full = full;
    tape->chance = clock_now() | 1;
    return tape;
}

void atoll_tape_free(atoll_tape *tape) {
    free(tape);
}

uint64_t atoll_tape_written(atoll_tape *tape) {
    return tape->written;
}
uint64_t atoll_tape_kept(atoll_tape *tape) {
    return tape->kept;
}
uint64_t atoll_tape_dropped(atoll_tape *tape) {
    return tape->dropped;
}

void atoll_tape_keep(atoll_tape *tape, uint64_t upto) {
    tape->kept = upto;
    store_relaxed(&tape->head->kept, upto);
    tape->told = tape->hurried = tape->barred = 0;
}

uint64_t atoll_tape_cut(atoll_tape *tape, uint64_t most) {
    uint64_t at = tape->kept;
    while (at < tape->written) {
        uint32_t size; /* it lies in one piece: records begin at multiples of 8 */
        copy_bytes(&size, tape->data + (at & (tape->size - 1)), sizeof size);
        if (at != tape->kept && at + size - tape->kept > most)
            break;
        at += size;
    }
    return at;
}

static uint64_t room(const struct atoll_tape *tape) {
    return tape->size - (tape->written - tape->kept);
}

static void put(struct atoll_tape *tape, uint64_t *at, const void *from, uint64_t length) {
    uint64_t begin = *at & (tape->size - 1), first = tape->size - begin;
    if (first > length)
        first = length;
    write_bytes(tape->data + begin, from, first);
    if (length > first)
        write_bytes(tape->data, (const unsigned char *)from + first, length - first);
    *at += length;
}

/* A record of up to three parts, the last of `kept` bytes; `least`: what has to be left for others. 0: there
 * is no room. */
static int record(struct atoll_tape *tape, struct tape_record *what, const void *fixed, uint64_t fixed_length,
                  const void *context, uint64_t context_length, const void *payload, uint64_t kept,
                  uint64_t least) {
    uint64_t bytes = sizeof *what + fixed_length + context_length + kept;
    uint64_t whole = (bytes + 7) & ~(uint64_t)7, at = tape->written;
    if (room(tape) < whole + least)
        return 0;
    what->size = (uint32_t)whole;
    put(tape, &at, what, sizeof *what);
    if (fixed_length)
        put(tape, &at, fixed, fixed_length);
    if (context_length)
        put(tape, &at, context, context_length);
    if (kept)
        put(tape, &at, payload, kept);
    tape->written += whole;
    /* Pairs with nothing that runs beside it: it keeps the bytes before the position for whoever takes up the
     * tape of a process that has ended. */
    store_release(&tape->head->written, tape->written);
    return 1;
}

static void drop(struct atoll_tape *tape) {
    tape->dropped++;
    store_relaxed(&tape->head->dropped, tape->dropped);
}

static uint64_t *open_slot(struct atoll_tape *tape, uint32_t channel, uint64_t request) {
    return &tape->open[(request ^ (uint64_t)channel * 0x9E3779B1u) % TAPE_OPEN];
}
static uint64_t open_mark(uint32_t channel, uint64_t request) {
    return (request << 16 ^ channel) | 1ull << 63;
}

/* Chance and not a count: callers may come in a rhythm. */
static int sampled(struct atoll_tape *tape) {
    tape->chance ^= tape->chance << 13;
    tape->chance ^= tape->chance >> 7;
    tape->chance ^= tape->chance << 17;
    return tape->chance % tape->every == 0;
}

void tape_call(struct atoll_tape *tape, const atoll_message *message, const void *payload) {
    if (tape->every > 1 && !sampled(tape))
        return;
    int cut = message->length > TAPE_WHOLE, with = tape->payloads && !cut;
    struct tape_record what = {
        .kind = TAPE_CALL,
        .flags = cut || !tape->payloads ? TAPE_CUT : 0,
        .channel = message->channel,
        .length = message->length,
        .request = message->request,
        .time = clock_now(),
    };
    uint64_t context = message->flags & FLAG_CONTEXT ? sizeof message->context : 0;
    if (!record(tape, &what, message, TAPE_MESSAGE, message->context, context, payload,
                with ? message->length : 0, TAPE_RESERVE))
        drop(tape);
    else if (tape->every > 1)
        *open_slot(tape, message->channel, message->request) = open_mark(message->channel, message->request);
}

int tape_takes(const struct atoll_tape *tape, uint32_t length) {
    return !tape->full || room(tape) >= sizeof(struct tape_record) + (length <= TAPE_WHOLE ? length + 7 : 0);
}

void tape_answer(struct atoll_tape *tape, uint32_t channel, uint64_t request, uint32_t kind,
                 const void *payload, uint32_t length) {
    if (kind == KIND_ITEM || kind == KIND_CREDIT)
        return;
    if (tape->every > 1) {
        uint64_t *slot = open_slot(tape, channel, request);
        if (*slot != open_mark(channel, request))
            return;
        *slot = 0;
    }
    int with = tape->payloads && length <= TAPE_WHOLE;
    struct tape_record what = {
        .kind = TAPE_ANSWER,
        .flags = with ? 0 : TAPE_CUT,
        .what = (uint16_t)kind,
        .channel = channel,
        .length = length,
        .request = request,
        .time = clock_now(),
    };
    if (!record(tape, &what, NULL, 0, NULL, 0, payload, with ? length : 0, 0))
        drop(tape);
}

int atoll_tape_note(atoll_tape *tape, uint32_t channel, uint64_t request, uint32_t what, const char *payload,
                    uint32_t length) {
    int cut = length > TAPE_WHOLE;
    struct tape_record noted = {
        .kind = TAPE_NOTE,
        .flags = cut ? TAPE_CUT : 0,
        .what = (uint16_t)what,
        .channel = channel,
        .length = length,
        .request = request,
        .time = clock_now(),
    };
    if (record(tape, &noted, NULL, 0, NULL, 0, payload, cut ? 0 : length, 0))
        return 0;
    drop(tape);
    return R_FULL;
}

int tape_due(struct atoll_tape *tape) {
    if (tape->full && !tape->barred && room(tape) < 2 * (TAPE_WHOLE + TAPE_RESERVE)) {
        tape->barred = tape->told = tape->hurried = 1;
        return 2;
    }
    if (!tape->told && tape->written != tape->kept) {
        tape->told = 1;
        return 1;
    }
    if (!tape->hurried && room(tape) < tape->size / 2) {
        tape->hurried = 1;
        return 1;
    }
    return 0;
}
