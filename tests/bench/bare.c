/* The floor: what a ring in shared memory costs when it does nothing else.
 *
 * One producer and one consumer a lane, 256 slots of two cache lines. A slot is published by storing its position + 1
 * as its first word, so the consumer polls the very line that carries the message. Nothing is checked, nobody is
 * hostile, there are no lengths beyond a slot, no deadlines and no death but the parent's. What it must not do is be
 * slow: the goals of the typed call are ratios to this.
 *
 * Parking: the consumer stores parked = 1, fences, looks once more, sleeps in the futex. The producer publishes, fences,
 * reads parked. One of the two sees the other's store, whatever the order, so no wake-up is lost.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <stdalign.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "bare.h"

enum { SLOTS = 256, PAYLOAD = 112 };

typedef struct {
    alignas(64) _Atomic uint64_t commit;
    uint64_t length;
    char payload[PAYLOAD];
} slot;

typedef struct {
    alignas(64) _Atomic uint32_t parked;
    alignas(64) _Atomic uint64_t consumed;
    slot slots[SLOTS];
} lane;

typedef struct {
    lane request, reply;
} memory;

_Static_assert(sizeof(slot) == 128, "a slot is two cache lines");

struct side {
    alignas(64) lane *in;
    lane *out;
    uint64_t in_position, out_position, out_free, spin;
    pid_t parent;
    memory *mapped;
    alignas(64) char buffer[PAYLOAD];
};

static inline void relax(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static double clock_seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

static long futex(_Atomic uint32_t *word, int operation, uint32_t value, const struct timespec *timeout) {
    return syscall(SYS_futex, word, operation, value, timeout, NULL, 0);
}

size_t bare_bytes(void) { return sizeof(memory); }
size_t bare_buffer_bytes(void) { return PAYLOAD; }
char *bare_buffer(side *self) { return self->buffer; }

side *bare_open(int descriptor, int role, uint64_t spin) {
    memory *mapped = mmap(NULL, sizeof(memory), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, descriptor, 0);
    if (mapped == MAP_FAILED) return NULL;
    side *self = aligned_alloc(64, (sizeof(side) + 63) / 64 * 64);
    if (!self) return NULL;
    memset(self, 0, sizeof *self);
    self->mapped = mapped;
    self->in = role ? &mapped->request : &mapped->reply;
    self->out = role ? &mapped->reply : &mapped->request;
    self->out_free = SLOTS;
    self->spin = spin;
    self->parent = getppid();
    return self;
}

void bare_close(side *self) {
    munmap(self->mapped, sizeof(memory));
    free(self);
}

static void send(side *self, const char *data, uint64_t length) {
    lane *out = self->out;
    uint64_t position = self->out_position++;
    while (position >= self->out_free) {
        self->out_free = atomic_load_explicit(&out->consumed, memory_order_acquire) + SLOTS;
        if (position >= self->out_free) sched_yield();
    }
    slot *next = &out->slots[position % SLOTS];
    next->length = length;
    memcpy(next->payload, data, length > PAYLOAD ? PAYLOAD : length);
    atomic_store_explicit(&next->commit, position + 1, memory_order_release);
    atomic_thread_fence(memory_order_seq_cst);
    if (atomic_load_explicit(&out->parked, memory_order_relaxed)) {
        atomic_store_explicit(&out->parked, 0, memory_order_relaxed);
        futex(&out->parked, FUTEX_WAKE, 1, NULL);
    }
}

static uint64_t receive(side *self) {
    lane *in = self->in;
    uint64_t wanted = self->in_position + 1;
    slot *next = &in->slots[self->in_position % SLOTS];
    for (uint64_t turn = 0; atomic_load_explicit(&next->commit, memory_order_acquire) != wanted; turn++) {
        if (turn < self->spin) {
            relax();
            continue;
        }
        atomic_store_explicit(&in->parked, 1, memory_order_relaxed);
        atomic_thread_fence(memory_order_seq_cst);
        if (atomic_load_explicit(&next->commit, memory_order_acquire) == wanted) break;
        const struct timespec second = {.tv_sec = 1};
        if (futex(&in->parked, FUTEX_WAIT, 1, &second) && errno == ETIMEDOUT && getppid() != self->parent) return 0;
        turn = 0;
    }
    atomic_store_explicit(&in->parked, 0, memory_order_relaxed);
    uint64_t length = next->length;
    memcpy(self->buffer, next->payload, length > PAYLOAD ? PAYLOAD : length);
    self->in_position = wanted;
    atomic_store_explicit(&in->consumed, wanted, memory_order_release);
    return length;
}

uint64_t bare_next(side *self) { return receive(self); }

uint64_t bare_call(side *self, const char *data, uint64_t length) {
    send(self, data, length);
    return receive(self);
}

uint64_t bare_reply_and_next(side *self, const char *data, uint64_t length) {
    send(self, data, length);
    return receive(self);
}

void bare_say_end(side *self) { send(self, "", 0); }

double bare_ping(side *self, uint64_t n, uint64_t length) {
    char data[PAYLOAD] = {0};
    double start = clock_seconds();
    for (uint64_t i = 0; i < n; i++) {
        send(self, data, length);
        receive(self);
    }
    return clock_seconds() - start;
}

void bare_echo(side *self) {
    uint64_t length;
    while ((length = receive(self))) send(self, self->buffer, length);
}

double bulk_write(side *self, char *shared, const char *private, uint64_t bytes, uint64_t n) {
    double start = clock_seconds();
    for (uint64_t i = 0; i < n; i++) {
        memcpy(shared, private, bytes);
        send(self, "written", 8);
        receive(self);
    }
    return clock_seconds() - start;
}

void bulk_read(side *self, const char *shared, char *private, uint64_t bytes) {
    while (receive(self)) {
        memcpy(private, shared, bytes);
        send(self, "read", 8);
    }
}

double bulk_copy_twice(char *shared, char *from, char *to, uint64_t bytes, uint64_t n) {
    double start = clock_seconds();
    for (uint64_t i = 0; i < n; i++) {
        memcpy(shared, from, bytes);
        __asm__ volatile("" ::: "memory");
        memcpy(to, shared, bytes);
        __asm__ volatile("" ::: "memory");
    }
    return clock_seconds() - start;
}

/* two threads -------------------------------------------------------------------------------------------------------- */

typedef struct {
    alignas(64) _Atomic uint32_t word;
    uint64_t n;
    int parked;
} duet;

static void duet_turns(duet *shared, uint32_t mine, uint64_t n) {
    for (uint64_t i = 0; i < n; i++) {
        uint32_t seen;
        while ((seen = atomic_load_explicit(&shared->word, memory_order_acquire)) != mine) {
            if (shared->parked)
                futex(&shared->word, FUTEX_WAIT_PRIVATE, seen, NULL);
            else
                relax();
        }
        atomic_store_explicit(&shared->word, !mine, memory_order_release);
        if (shared->parked) futex(&shared->word, FUTEX_WAKE_PRIVATE, 1, NULL);
    }
}

enum { SETTLE = 50 };

static void *duet_second(void *argument) {
    duet *shared = argument;
    duet_turns(shared, 1, SETTLE + shared->n);
    return NULL;
}

/* The second thread is born on its core: born on the first one's, it would wait there for a time slice. */
static double one_way(int core_a, int core_b, uint64_t n, int parked) {
    cpu_set_t before, first, other;
    CPU_ZERO(&first);
    CPU_ZERO(&other);
    CPU_SET(core_a, &first);
    CPU_SET(core_b, &other);
    duet shared = {.n = n, .parked = parked};
    pthread_t second;
    pthread_attr_t born;
    double took = -1;
    if (sched_getaffinity(0, sizeof before, &before) || pthread_attr_init(&born)) return -1;
    if (!sched_setaffinity(0, sizeof first, &first) && !pthread_attr_setaffinity_np(&born, sizeof other, &other) &&
        !pthread_create(&second, &born, duet_second, &shared)) {
        duet_turns(&shared, 0, SETTLE);
        double start = clock_seconds();
        duet_turns(&shared, 0, n);
        took = clock_seconds() - start;
        pthread_join(second, NULL);
    }
    pthread_attr_destroy(&born);
    sched_setaffinity(0, sizeof before, &before);
    return took < 0 ? -1 : took / (double)n / 2;
}

double line_one_way(int core_a, int core_b, uint64_t n) { return one_way(core_a, core_b, n, 0); }
double wake_one_way(int core_a, int core_b, uint64_t n) { return one_way(core_a, core_b, n, 1); }
