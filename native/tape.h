/*
 * A tape: the record of a server's calls, in memory that outlives its process.
 *
 * The serving process alone writes it. The kernel holds the same memory and reads it when the process has
 * ended, whatever ended it: so the call that did is there. A page with the positions, then a ring of
 * `size` bytes that holds whole records.
 */
#ifndef ATOLL_TAPE_H
#define ATOLL_TAPE_H

#include "atomics.h"
#include "channel.h"
#include "interface/tape.h"
#include "layout.h"

enum {
    TAPE_RESERVE = 64 << 10, /* bytes that a new call leaves to the answers and notes of those in hand */
    TAPE_WHOLE = 256 << 10, /* bytes of a payload that is recorded at most; of a longer one only its length */
    TAPE_OPEN = 1024,       /* calls in hand that a tape which samples knows again */
};

enum tape_kind {
    TAPE_CALL = 1,   /* of message: a call was handed out */
    TAPE_ANSWER = 2, /* of `what` (enum kind): it was answered */
    TAPE_NOTE = 3,   /* of `what`: what Python has to say of it */
};

enum { TAPE_CUT = 1 };

/* First bytes of a record; what follows is a multiple of 8 bytes. */
struct tape_record {
    uint32_t size; /* of the whole */
    uint8_t kind, flags;
    uint16_t what;
    uint32_t channel, length; /* length: of the payload, before it was cut */
    uint64_t request;
    uint64_t time; /* CLOCK_MONOTONIC ns */
};
_Static_assert(sizeof(struct tape_record) == 32, "ipc/system/calls.py takes it apart");

/* What of a message goes on the tape: all but the context, which follows if there is one. */
enum { TAPE_MESSAGE = offsetof(atoll_message, context) };
_Static_assert(TAPE_MESSAGE == 80, "ipc/system/calls.py takes it apart");

/* The shared page. */
struct tape_head {
    uint64_t written, kept, dropped;
};

struct atoll_tape {
    struct tape_head SHARED *head;
    unsigned char SHARED *data;
    uint64_t size, written, kept, dropped;
    int payloads, full;
    uint32_t every;
    uint64_t chance;
    int told;                 /* that there is something, */
    int hurried;              /* that there is much, */
    int barred;               /* that there is no room */
    uint64_t open[TAPE_OPEN]; /* of a tape that samples: what it has of the calls in hand */
};

/* A call is handed out: `message` with its `payload`. */
void tape_call(struct atoll_tape *tape, const atoll_message *message, const void *payload);

/* Whether an answer of that length may be sent; 0: it has to wait for room. */
int tape_takes(const struct atoll_tape *tape, uint32_t length);

/* An answer was sent. Its client has it already: the tape costs it nothing. */
void tape_answer(struct atoll_tape *tape, uint32_t channel, uint64_t request, uint32_t kind,
                 const void *payload, uint32_t length);

/* Whether Python has to hear of the tape now: 0; 1: there is something to put away; 2: and no room for a
 * call. */
int tape_due(struct atoll_tape *tape);

#endif
