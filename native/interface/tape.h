/* What Python may call of a tape: the record of a server's calls, in memory that the kernel keeps (tape.h).
 */

typedef struct atoll_tape atoll_tape;

/* `memory`: as atoll_tape_memory says, for `size` bytes of records, a power of two. `payloads`: with
 * arguments and replies. One call of `every` is recorded, or each, if that is 1. `full`: none is ever
 * dropped, the loop waits for room. NULL and errno on failure. */
uint64_t atoll_tape_memory(uint64_t size);
atoll_tape *atoll_tape_new(void *memory, uint64_t size, int payloads, uint32_t every, int full);
void atoll_tape_free(atoll_tape *tape);
/* Have a loop record its calls. */
void atoll_loop_tape(atoll_loop *loop, atoll_tape *tape);
/* What a call in hand was given beside its arguments. Returns 0, or R_FULL where it was dropped. */
int atoll_tape_note(atoll_tape *tape, uint32_t channel, uint64_t request, uint32_t what, const char *payload,
                    uint32_t length);
/* Positions run free: what was written, and up to where it was put away elsewhere. */
uint64_t atoll_tape_written(atoll_tape *tape);
uint64_t atoll_tape_kept(atoll_tape *tape);
uint64_t atoll_tape_dropped(atoll_tape *tape);
/* The end of the last record that lies within `most` bytes of what was put away; of the next one, if that is
 * larger. */
uint64_t atoll_tape_cut(atoll_tape *tape, uint64_t most);
void atoll_tape_keep(atoll_tape *tape, uint64_t upto);
