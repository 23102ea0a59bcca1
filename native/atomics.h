/*
 * The ordered accesses of Atoll. No other file touches atomics, and every use names its partner.
 *
 * Memory shared with a peer is only ever read through `load_relaxed`, `load_acquire` (each one single load,
 * so a word is never read twice behind our back) and `copy_words`; bulk bytes are copied out once by
 * `memcpy`.
 */
#ifndef ATOLL_ATOMICS_H
#define ATOLL_ATOMICS_H

#include <stdint.h>

#define load_relaxed(address)         __atomic_load_n((address), __ATOMIC_RELAXED)
#define load_acquire(address)         __atomic_load_n((address), __ATOMIC_ACQUIRE)
#define store_relaxed(address, value) __atomic_store_n((address), (value), __ATOMIC_RELAXED)
#define store_release(address, value) __atomic_store_n((address), (value), __ATOMIC_RELEASE)
#define exchange(address, value)      __atomic_exchange_n((address), (value), __ATOMIC_ACQ_REL)

/* Orders an own store before a later load of a word the peer writes (Dekker); the one fence that x86 needs
 * too. */
static inline void fence_store_load(void) {
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
}
/* Orders loads before later loads: the reader's side of a sequence lock. */
static inline void fence_loads(void) {
    __atomic_thread_fence(__ATOMIC_ACQUIRE);
}
/* Orders stores before later stores: the writer's side of a sequence lock. */
static inline void fence_stores(void) {
    __atomic_thread_fence(__ATOMIC_RELEASE);
}

/* Copies `count` 64-bit words out of hostile memory, each read exactly once. */
static inline void copy_words(uint64_t *to, const uint64_t *from, unsigned count) {
    for (unsigned i = 0; i < count; i++)
        to[i] = load_relaxed(&from[i]);
}

static inline void cpu_relax(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("yield");
#endif
}

#endif
