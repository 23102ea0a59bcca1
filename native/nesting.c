/*
 * How deep a MessagePack value nests, told without recursion and without building anything, before a decoder
 * that recurses sees it (https://github.com/msgpack/msgpack/blob/master/spec.md). The bytes are a peer's, in
 * memory of our own: nothing changes them meanwhile.
 */
#include <stddef.h>
#include <stdint.h>

#include "interface/nesting.h"

enum { DEEPEST = 256 };

static uint64_t big_endian(const uint8_t *data, size_t size, size_t at, size_t width) {
    uint64_t value = 0;
    for (size_t i = 0; i < width; i++) {
        value = value << 8 | (at + i < size ? data[at + i] : 0);
    }
    return value;
}

/* What follows the first byte of a value: so many bytes that hold no value, and so many values in it. */
struct body {
    uint64_t bytes;
    uint64_t values;
};

static struct body body_of(const uint8_t *data, size_t size, size_t at) {
    uint8_t first = data[at];
    if (first < 0x80 || first >= 0xe0) {
        return (struct body){0, 0};
    }
    if (first < 0x90) {
        return (struct body){0, 2 * (uint64_t)(first & 0x0f)};
    }
    if (first < 0xa0) {
        return (struct body){0, first & 0x0f};
    }
    if (first < 0xc0) {
        return (struct body){first & 0x1f, 0};
    }
    switch (first) {
    case 0xc4: /* bin: the length, then so many bytes */
    case 0xc5:
    case 0xc6: {
        size_t width = (size_t)1 << (first - 0xc4);
        return (struct body){width + big_endian(data, size, at + 1, width), 0};
    }
    case 0xc7: /* ext: the length, a type, then so many bytes */
    case 0xc8:
    case 0xc9: {
        size_t width = (size_t)1 << (first - 0xc7);
        return (struct body){width + 1 + big_endian(data, size, at + 1, width), 0};
    }
    case 0xca:
    case 0xce:
    case 0xd2: /* four bytes */
        return (struct body){4, 0};
    case 0xcb:
    case 0xcf:
    case 0xd3: /* eight */
        return (struct body){8, 0};
    case 0xcc:
    case 0xd0:
        return (struct body){1, 0};
    case 0xcd:
    case 0xd1:
        return (struct body){2, 0};
    case 0xd4: /* fixext: a type and a power of two */
    case 0xd5:
    case 0xd6:
    case 0xd7:
    case 0xd8:
        return (struct body){1 + ((uint64_t)1 << (first - 0xd4)), 0};
    case 0xd9: /* str */
    case 0xda:
    case 0xdb: {
        size_t width = (size_t)1 << (first - 0xd9);
        return (struct body){width + big_endian(data, size, at + 1, width), 0};
    }
    case 0xdc: /* array */
        return (struct body){2, big_endian(data, size, at + 1, 2)};
    case 0xdd:
        return (struct body){4, big_endian(data, size, at + 1, 4)};
    case 0xde: /* map */
        return (struct body){2, 2 * big_endian(data, size, at + 1, 2)};
    case 0xdf:
        return (struct body){4, 2 * big_endian(data, size, at + 1, 4)};
    default: /* nil, false, true; 0xc1, which is no value */
        return (struct body){0, 0};
    }
}

/* Whether no array or map of the value lies deeper than `limit`. What is malformed counts as within: its
 * decoder names the byte. A limit beyond DEEPEST counts as DEEPEST. */
int atoll_nests_within(const uint8_t *data, size_t size, uint32_t limit) {
    uint64_t lacking[DEEPEST]; /* a container that is open: how many values it lacks still */
    uint32_t open = 0;
    if (limit > DEEPEST) {
        limit = DEEPEST;
    }
    for (size_t at = 0; at < size;) {
        struct body body = body_of(data, size, at);
        if (open) {
            lacking[open - 1]--;
        }
        if (body.values) {
            if (open == limit) {
                return 0;
            }
            lacking[open++] = body.values;
        }
        while (open && !lacking[open - 1]) {
            open--;
        }
        if (!open || body.bytes >= size - at) {
            return 1;
        }
        at += 1 + body.bytes;
    }
    return 1;
}
