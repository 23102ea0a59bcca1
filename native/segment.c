/* What Python's os module lacks for the kernel's memfds. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <string.h>

#include "interface/ring.h"

/* Gives the pages of [offset, offset + length) back, reading as zeros from then on. Returns 0 or an errno. */
int atoll_punch(int memory, uint64_t offset, uint64_t length) {
    return fallocate(memory, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)offset, (off_t)length) ? errno
                                                                                                       : 0;
}

/* Writes zeros over a mapping of the kernel's. In C, so that a thread of it holds up no other: the
 * interpreter's lock is given up meanwhile. */
void atoll_zero(void *memory, uint64_t length) {
    memset(memory, 0, length);
}
