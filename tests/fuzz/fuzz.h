/* What targets and driver share. A target reads its input as a program: bytes choose steps and their
 * operands. */
#ifndef ATOLL_FUZZ_H
#define ATOLL_FUZZ_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

struct input {
    const uint8_t *at;
    size_t left;
};

/* The next `bytes` bytes as a number; zeros behind the end. */
static inline uint64_t take(struct input *input, unsigned bytes) {
    uint64_t value = 0;
    for (unsigned i = 0; i < bytes && input->left; i++, input->at++, input->left--)
        value |= (uint64_t)*input->at << 8 * i;
    return value;
}

/* A broken invariant ends the run like a sanitizer's finding. */
#define MUST(condition)                                                                                      \
    do {                                                                                                     \
        if (!(condition)) {                                                                                  \
            fprintf(stderr, "%s:%d: broken: %s\n", __FILE__, __LINE__, #condition);                          \
            abort();                                                                                         \
        }                                                                                                    \
    } while (0)

void fuzz_serve(struct input *input);
void fuzz_receive(struct input *input);
void fuzz_table(struct input *input);
void fuzz_bulk(struct input *input);
void fuzz_nesting(struct input *input);
void fuzz_race(struct input *input);

#endif
