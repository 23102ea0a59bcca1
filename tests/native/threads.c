/*
 * Both ends of channels, and the kernel, as threads of one process: for ThreadSanitizer, which sees what lies
 * in one address space only. So both ends of a channel get the same mapping (the wrapped mmap below).
 *
 *   threads honest CALLS     a receive loop, threads that call, cast and wait in an event loop, a kernel that
 * grants, revokes, gates and writes notices threads hostile ROUNDS   the same ends, while a thread writes
 * anything anywhere; built with ATOLL_RACING_PEER
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "atomics.h"
#include "channel.h"
#include "loop.h"
#include "wait.h"

enum { RING_BITS = 12, BULK_BITS = 13, LANES = 2, CHANNELS = 2, METHOD = 77, LONGEST = 3000 };

#define MUST(condition)                                                                                      \
    do {                                                                                                     \
        if (!(condition)) {                                                                                  \
            fprintf(stderr, "%s:%d: broken: %s\n", __FILE__, __LINE__, #condition);                          \
            abort();                                                                                         \
        }                                                                                                    \
    } while (0)

static struct {
    int memory, bells[2]; /* server's, client's */
    unsigned char *mapped;
    struct atoll_channel *server, *client;
} channels[CHANNELS];

static unsigned char *notice, *table;
static struct status *status;
static struct atoll_loop *loop;
static uint64_t bytes, calls, base = 1ull << 40;
static uint32_t over, generation = 1; /* read and written by atomics alone */

void *__real_mmap(void *at, size_t length, int protection, int flags, int file, off_t offset);
int __real_munmap(void *at, size_t length);
void *__wrap_mmap(void *at, size_t length, int protection, int flags, int file, off_t offset);
int __wrap_munmap(void *at, size_t length);

void *__wrap_mmap(void *at, size_t length, int protection, int flags, int file, off_t offset) {
    for (int i = 0; i < CHANNELS; i++)
        if (file >= 0 && file == channels[i].memory && channels[i].mapped)
            return channels[i].mapped;
    return __real_mmap(at, length, protection, flags, file, offset);
}

int __wrap_munmap(void *at, size_t length) {
    for (int i = 0; i < CHANNELS; i++)
        if (at == channels[i].mapped)
            return 0;
    return __real_munmap(at, length);
}

static void begin(void) {
    base += 1ull << 32;
    memset(status, 0, PAGE);
    loop = atoll_loop_new(notice, status, 1u << BULK_BITS);
    MUST(loop && atoll_loop_segment(loop, 0, table) == 0 && atoll_loop_method(loop, 0, METHOD, 0, 1, 0) == 0);
    for (uint32_t i = 0; i < CHANNELS; i++) {
        memset(channels[i].mapped, 0, bytes);
        atoll_entry_write(table, i, i, load_relaxed(&generation), 1, i, 0, 0, 0, 9);
        atoll_notice_channel(notice, i, 1, STATE_OPEN, base, NULL);
        channels[i].server = atoll_channel_open(channels[i].memory, channels[i].bells[0], 1, LANES, RING_BITS,
                                                BULK_BITS, 1, base, NULL);
        channels[i].client = atoll_channel_open(channels[i].memory, channels[i].bells[1], 0, LANES, RING_BITS,
                                                BULK_BITS, 1, base, notice + (i + 1) * LINE);
        MUST(channels[i].server && channels[i].client);
        MUST(atoll_loop_add(loop, channels[i].server, i, 0) == 0);
    }
    store_relaxed(&over, 0);
}

static void end(void) {
    for (uint32_t i = 0; i < CHANNELS; i++) {
        atoll_loop_remove(loop, i);
        atoll_channel_close(channels[i].server);
        atoll_channel_close(channels[i].client);
    }
    atoll_loop_free(loop);
}

/* Echoes. `hostile`: a channel whose peer misbehaved is served no longer. */
static void *serve(void *hostile) {
    static char answer[1 << BULK_BITS];
    uint64_t packed = 0;
    while (!load_acquire(&over)) {
        atoll_loop_until(loop, clock_now() + 1000000);
        uint64_t received = op_long(atoll_loop_next(loop, answer, packed)), length = received & 0xFFFFFFFF;
        const atoll_message *message = atoll_loop_message(loop);
        packed = 0;
        switch (received >> 56) {
        case OP_CALL:
            store_release(&status->window, 0);
            memcpy(answer, atoll_loop_buffer(loop), length);
            packed = (uint64_t)KIND_REPLY << 32 | length;
            break;
        case OP_CAST:
            store_release(&status->window, 0);
            break;
        case OP_REFUSED:
            packed = (uint64_t)KIND_FAULT << 32;
            break;
        case OP_FULL:
            while (!hostile && atoll_loop_reply(loop, message->channel, message->request, message->lane,
                                                KIND_FAULT, answer, 0) == R_FULL)
                sched_yield();
            break;
        case OP_MISBEHAVED:
            MUST(hostile);
            atoll_loop_remove(loop, (uint32_t)length);
            break;
        default:
            sched_yield();
        }
    }
    return NULL;
}

static atoll_site to(uint32_t channel, uint8_t kind) {
    return (atoll_site){
        .method = METHOD, .slot = channel, .generation = load_relaxed(&generation), .lane = 1, .kind = kind};
}

/* Until the reply to `request` is there, as a thread waits that holds Python's lock on receiving. */
static void receive(struct atoll_channel *channel, int64_t result, const char *sent, uint32_t length) {
    while (result == R_AGAIN)
        result = atoll_wait(channel, atoll_call_request(channel), 0);
    MUST(result >= 0);
    if (result >> 32 == KIND_REPLY)
        MUST((result & 0xFFFFFFFF) == length && memcmp(atoll_channel_buffer(channel), sent, length) == 0);
}

static void *call(void *unused) {
    struct atoll_channel *channel = channels[0].client;
    char payload[LONGEST];
    for (uint64_t number = 0; number < calls; number++) {
        uint32_t length = (uint32_t)(number * 37 % (number % 16 ? 200 : LONGEST));
        atoll_site site = to(0, KIND_CALL);
        int64_t result;
        memset(payload, (int)number, length);
        while ((result = atoll_call(channel, &site, payload, length)) == R_FULL)
            sched_yield();
        if (result >= 0 && result >> 32 == 0)
            result |= (int64_t)KIND_REPLY << 32;
        receive(channel, result, payload, length);
        if (number % 64 == 0)
            usleep(200); /* so that both ends fall asleep now and then */
    }
    return unused;
}

static void *cast(void *unused) {
    static const char payload[LONGEST];
    for (uint64_t number = 0; number < calls; number++) {
        atoll_site site = to(0, KIND_CAST);
        while (atoll_post(channels[0].client, &site, 0, payload, (uint32_t)(number % 400)) == R_FULL)
            sched_yield();
    }
    return unused;
}

static void *wait_for_bell(void *unused) {
    struct atoll_channel *channel = channels[1].client;
    for (uint64_t number = 0; number < calls; number++) {
        atoll_site site = to(1, KIND_CALL);
        int64_t result;
        while (atoll_post(channel, &site, number + 1, "ping", 4) == R_FULL)
            sched_yield();
        while ((result = atoll_receive(channel)) == R_AGAIN) {
            if (atoll_spin(channel) || !atoll_arm(channel))
                continue;
            struct pollfd bell = {.fd = channels[1].bells[1], .events = POLLIN};
            MUST(poll(&bell, 1, -1) == 1);
            atoll_disarm(channel);
        }
        MUST(result >= 0 && channel->message.request == number + 1);
    }
    return unused;
}

static void *rule(void *unused) {
    uint64_t out[5];
    while (!load_acquire(&over)) {
        uint32_t next = load_relaxed(&generation) + 1;
        for (uint32_t i = 0; i < CHANNELS; i++) {
            atoll_entry_clear(table, i, next - 1);
            atoll_notice_revoked(notice);
            for (uint64_t window = atoll_status_window(status); window & 1;)
                if (atoll_status_window(status) != window)
                    break;
            atoll_entry_write(table, i, i, next, 1, i, 0, 0, 0, 9);
            atoll_notice_channel(notice, i, 1, STATE_OPEN, base, NULL);
            atoll_memory_wake(channels[i].mapped, 1, channels[i].bells[0]);
            atoll_memory_wake(channels[i].mapped, 0, channels[i].bells[1]);
        }
        store_relaxed(&generation, next);
        atoll_notice_gate(notice, 1);
        atoll_status_read(status, out);
        atoll_notice_gate(notice, 0);
        atoll_notice_withdrew(notice);
        usleep(100);
    }
    return unused;
}

static void *lie(void *unused) {
    uint64_t seed = base * 0x9E3779B97F4A7C15u;
    uint64_t *words = (uint64_t *)channels[0].mapped;
    while (!load_acquire(&over)) {
        seed ^= seed << 13, seed ^= seed >> 7, seed ^= seed << 17;
        uint64_t at = seed >> 32, value = seed % 3 ? seed : base + (seed >> 50) + 1;
        store_relaxed(&words[seed % 5 ? at % (bytes / 8) : at % 64], value);
        if (seed % 64 == 0)
            wake_surely((struct side *)channels[0].mapped, channels[0].bells[1]);
    }
    return unused;
}

/* Calls until its peer misbehaves, or the round is over. */
static void *suffer(void *unused) {
    struct atoll_channel *channel = channels[0].client;
    char payload[LONGEST] = {0};
    for (uint32_t number = 1; !load_acquire(&over); number++) {
        atoll_site site = to(0, KIND_CALL);
        int64_t sent = atoll_post(channel, &site, number, payload, number * 37 % LONGEST);
        if (sent == R_MISBEHAVED ||
            (sent >= 0 && atoll_wait(channel, number, clock_now() + 500000) == R_MISBEHAVED))
            break;
    }
    return unused;
}

static void honest(void) {
    pthread_t server, kernel, clients[4];
    void *(*const runs[])(void *) = {call, cast, cast, wait_for_bell};
    begin();
    MUST(pthread_create(&server, NULL, serve, NULL) == 0 && pthread_create(&kernel, NULL, rule, NULL) == 0);
    for (int i = 0; i < 4; i++)
        MUST(pthread_create(&clients[i], NULL, runs[i], NULL) == 0);
    for (int i = 0; i < 4; i++)
        MUST(pthread_join(clients[i], NULL) == 0);
    store_release(&over, 1);
    MUST(pthread_join(server, NULL) == 0 && pthread_join(kernel, NULL) == 0);
    end();
}

static void hostile(void) {
    pthread_t threads[4];
    void *(*const runs[])(void *) = {serve, suffer, lie, rule};
    for (uint64_t round = 0; round < calls; round++) {
        begin();
        for (int i = 0; i < 4; i++)
            MUST(pthread_create(&threads[i], NULL, runs[i], i == 0 ? &over : NULL) == 0);
        usleep(20000);
        store_release(&over, 1);
        for (int i = 0; i < 4; i++)
            MUST(pthread_join(threads[i], NULL) == 0);
        end();
    }
}

int main(int count, char **words) {
    MUST(count == 3);
    calls = strtoull(words[2], NULL, 10);
    bytes = atoll_channel_size(LANES, RING_BITS, BULK_BITS);
    notice = aligned_alloc(PAGE, PAGE), table = aligned_alloc(PAGE, TABLE_ENTRIES * LINE),
    status = aligned_alloc(PAGE, PAGE);
    MUST(notice && table && status);
    memset(notice, 0, PAGE), memset(table, 0, TABLE_ENTRIES * LINE);
    for (int i = 0; i < CHANNELS; i++) {
        channels[i].memory = memfd_create("channel", MFD_CLOEXEC | MFD_ALLOW_SEALING);
        MUST(channels[i].memory >= 0 && ftruncate(channels[i].memory, (off_t)bytes) == 0);
        MUST(fcntl(channels[i].memory, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) == 0);
        channels[i].mapped =
            __real_mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, channels[i].memory, 0);
        MUST(channels[i].mapped != MAP_FAILED && socketpair(AF_UNIX, SOCK_STREAM, 0, channels[i].bells) == 0);
    }
    if (strcmp(words[1], "honest") == 0)
        honest();
    else
        hostile();
    return 0;
}
