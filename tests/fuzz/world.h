/* A channel with both ends in one process: the one under test opened as the SDK does, the other one a liar's.
 */
#ifndef ATOLL_WORLD_H
#define ATOLL_WORLD_H

#include "channel.h"
#include "fuzz.h"
#include "loop.h"

enum {
    RING_BITS = 12,
    BULK_BITS = 12,
    LANES = 3,
    NUMBER = 7,
    METHODS = 8,
    ENTRIES = 8,
    SEGMENT = TABLE_ENTRIES * LINE,
};

struct world {
    int memory, bells[2]; /* server's, client's */
    unsigned char *shared;
    uint64_t bytes, base;
    int server; /* which end is under test */
    struct atoll_channel *channel;
    uint64_t written[LANES]; /* where the liar writes its next record */
    unsigned char *notice, *table;
    struct status *status;
};

extern struct world world;

/* A fresh channel over zeroed memory; `server`: the server's end is under test. */
void world_begin(int server);
void world_end(void);

/* One lie: bytes anywhere, a record that is nearly right, an index, a word, a ring of the bell. */
void world_lie(struct input *input);

/* Methods by number, as the loop knows them. */
uint32_t world_method(unsigned index);

#endif
