/*
 * The ordered accesses of Atoll. No other file touches atomics, and every use names its partner.
 *
 * Memory shared with a peer is only ever read through `load_relaxed` and `load_acquire` (each one single
 * load, so a word is never read twice behind our back), `copy_words`, and `copy_bytes`, and only ever written
 * through `store_relaxed`, `store_release`, `exchange` and `write_bytes`. A pointer to it is marked `SHARED`:
 * tests/native/test_source.py has a compiler treat it as one into another address space, and fails whatever
 * reaches through it otherwise.
 */
#ifndef ATOLL_ATOMICS_H
#define ATOLL_ATOMICS_H

#include <stdint.h>
#include <string.h>

#ifdef ATOLL_SOURCE_CHECK
#define SHARED __attribute__((noderef, address_space(1)))
#else
#define SHARED
#endif
/* The address alone, for calls that give a mapping back. */
#define bare(address) ((void *)(uintptr_t)(address))

/* A word of any struct: headers, entries and notices are copied word by word whatever their fields are. */
typedef uint64_t __attribute__((may_alias)) any_word;

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
static inline void copy_words(void *to, const void SHARED *from, unsigned count) {
    any_word *out = to;
    const any_word SHARED *in = from;
    for (unsigned i = 0; i < count; i++)
        out[i] = load_relaxed(&in[i]);
}

#ifdef ATOLL_RACING_PEER
/* For ThreadSanitizer, where a peer races on purpose: what may be torn is torn between bytes. */
static inline void move_bytes(unsigned char *to, const unsigned char *from, uint64_t length) {
    for (uint64_t i = 0; i < length; i++)
        store_relaxed(&to[i], load_relaxed(&from[i]));
}
#else
#define move_bytes memcpy
#endif

/* Copies bytes out of hostile memory. What follows uses the copy: without the barrier a compiler that sees
 * both could read the source a second time in its place. */
static inline void copy_bytes(void *to, const void SHARED *from, uint64_t length) {
    move_bytes(to, bare(from), length);
    __asm__ __volatile__("" ::: "memory");
}

/* Writes bytes where the peer reads them once it sees a later `store_release`. */
static inline void write_bytes(void SHARED *to, const void *from, uint64_t length) {
    move_bytes(bare(to), from, length);
}

static inline void cpu_relax(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("yield");
#endif
}

#endif
