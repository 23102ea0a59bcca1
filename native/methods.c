/*
 * Which method a message names: an open-addressed table from (interface, hash of the name) to the method's
 * index and the right it needs. Filled before the loop serves, read on every call; at most half full, so a
 * look-up is short.
 */
#include <errno.h>

#include "loop.h"

static uint32_t method_slot(uint32_t interface, uint32_t number) {
    return (number ^ interface * 0x9E3779B9u) % METHODS_MOST;
}

int atoll_loop_method(atoll_loop *loop, uint32_t interface, uint32_t number, uint32_t index, uint64_t right,
                      int copies) {
    if (loop->method_count >= METHODS_MOST / 2)
        return ENOSPC;
    uint32_t at = method_slot(interface, number);
    while (loop->methods[at].used) {
        if (loop->methods[at].interface == interface && loop->methods[at].number == number)
            return EEXIST;
        at = (at + 1) % METHODS_MOST;
    }
    loop->methods[at] = (struct method){.interface = interface,
                                        .number = number,
                                        .index = index,
                                        .used = 1,
                                        .right = right,
                                        .copies = copies != 0};
    loop->method_count++;
    return 0;
}

const struct method *loop_method(const struct atoll_loop *loop, uint32_t interface, uint32_t number) {
    for (uint32_t at = method_slot(interface, number); loop->methods[at].used; at = (at + 1) % METHODS_MOST)
        if (loop->methods[at].interface == interface && loop->methods[at].number == number)
            return &loop->methods[at];
    return NULL;
}
