/* Loaded before the C library into a process that writes a store: notes, in one order, each write to a file
 * of the store, the beginning and the end of each sync, and what is said on the standard output.
 * tests/servers/state/power.py reads it. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

enum { NAME = 16 };

struct note {
    char kind; /* w: write, b and e: a sync begins and ends, s: said */
    char name[NAME - 1];
    uint64_t offset;
    uint64_t length;
};

static pthread_mutex_t one_at_a_time = PTHREAD_MUTEX_INITIALIZER;
static FILE *notes;

static int is_of_store(int descriptor, char *name) {
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length <= 0)
        return 0;
    path[length] = 0;
    const char *last = strrchr(path, '/');
    if (!last || (strcmp(last + 1, "data.mdb") && strncmp(last + 1, "log.", 4)))
        return 0;
    memset(name, 0, NAME - 1);
    strncpy(name, last + 1, NAME - 2);
    return 1;
}

/* The caller holds the mutex. */
static void note(char kind, const char *name, uint64_t offset, const struct iovec *parts, int count) {
    struct note head = {.kind = kind, .offset = offset};
    if (!notes && !(notes = fopen(WRITES, "ab")))
        return;
    memcpy(head.name, name, sizeof head.name);
    for (int i = 0; i < count; i++)
        head.length += parts[i].iov_len;
    fwrite(&head, sizeof head, 1, notes);
    for (int i = 0; i < count; i++)
        fwrite(parts[i].iov_base, 1, parts[i].iov_len, notes);
    fflush(notes);
}

static ssize_t write_parts(const char *real, int descriptor, const struct iovec *parts, int count,
                           off_t offset) {
    ssize_t (*next)(int, const struct iovec *, int, off_t) = dlsym(RTLD_NEXT, real);
    char name[NAME];
    if (!is_of_store(descriptor, name))
        return next(descriptor, parts, count, offset);
    pthread_mutex_lock(&one_at_a_time);
    ssize_t written = next(descriptor, parts, count, offset);
    note('w', name, (uint64_t)offset, parts, count);
    pthread_mutex_unlock(&one_at_a_time);
    return written;
}

ssize_t pwritev(int descriptor, const struct iovec *parts, int count, off_t offset) {
    return write_parts("pwritev", descriptor, parts, count, offset);
}

ssize_t pwritev64(int descriptor, const struct iovec *parts, int count, off_t offset) {
    return write_parts("pwritev64", descriptor, parts, count, offset);
}

/* Python calls these, with no flags. */
ssize_t pwritev2(int descriptor, const struct iovec *parts, int count, off_t offset, int flags) {
    (void)flags;
    return write_parts("pwritev", descriptor, parts, count, offset);
}

ssize_t pwritev64v2(int descriptor, const struct iovec *parts, int count, off_t offset, int flags) {
    return pwritev2(descriptor, parts, count, offset, flags);
}

ssize_t pwrite(int descriptor, const void *bytes, size_t length, off_t offset) {
    struct iovec part = {.iov_base = (void *)bytes, .iov_len = length};
    return write_parts("pwritev", descriptor, &part, 1, offset);
}

ssize_t pwrite64(int descriptor, const void *bytes, size_t length, off_t offset) {
    return pwrite(descriptor, bytes, length, offset);
}

/* Where the descriptor stands; and what is said on the standard output. */
static ssize_t write_here(int descriptor, const struct iovec *parts, int count) {
    ssize_t (*next)(int, const struct iovec *, int) = dlsym(RTLD_NEXT, "writev");
    char name[NAME] = "";
    if (descriptor != 1 && !is_of_store(descriptor, name))
        return next(descriptor, parts, count);
    pthread_mutex_lock(&one_at_a_time);
    off_t offset = descriptor == 1 ? 0 : lseek(descriptor, 0, SEEK_CUR);
    ssize_t written = next(descriptor, parts, count);
    note(descriptor == 1 ? 's' : 'w', name, (uint64_t)offset, parts, count);
    pthread_mutex_unlock(&one_at_a_time);
    return written;
}

ssize_t writev(int descriptor, const struct iovec *parts, int count) {
    return write_here(descriptor, parts, count);
}

ssize_t write(int descriptor, const void *bytes, size_t length) {
    struct iovec part = {.iov_base = (void *)bytes, .iov_len = length};
    return write_here(descriptor, &part, 1);
}

static int sync_noted(const char *real, int descriptor) {
    int (*next)(int) = dlsym(RTLD_NEXT, real);
    static uint32_t syncs;
    char name[NAME];
    if (!is_of_store(descriptor, name))
        return next(descriptor);
    pthread_mutex_lock(&one_at_a_time);
    uint64_t number = (uint64_t)getpid() << 32 | ++syncs;
    note('b', name, number, NULL, 0);
    pthread_mutex_unlock(&one_at_a_time);
    int failed = next(descriptor);
    pthread_mutex_lock(&one_at_a_time);
    if (!failed)
        note('e', name, number, NULL, 0);
    pthread_mutex_unlock(&one_at_a_time);
    return failed;
}

int fdatasync(int descriptor) {
    return sync_noted("fdatasync", descriptor);
}

int fsync(int descriptor) {
    return sync_noted("fsync", descriptor);
}
