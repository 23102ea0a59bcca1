/*
 * Loaded before the C library: the store's log fails to be synced, or the last page of its database to be
 * written, as often as a file says. `FAULTS` is that file: one byte a fault to come, 's' (the sync fails),
 * 'h' (the sync is held until the file says 'g'), 'r' (the log's file system has become read-only), 'm' (the
 * page that ends a commit is not written), 'l' (it is written, and that is told as a failure).
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

/* Whether its file is of that name, followed by so many more characters. */
static int is_the_stores(int descriptor, const char *name, int more) {
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = readlink(link, path, sizeof path - 1);
    ssize_t named = (ssize_t)strlen(name);
    if (length < named + more)
        return 0;
    return !memcmp(path + length - named - more, name, (size_t)named);
}

/* Takes the next fault, if it is of that kind. */
static int fault(char kind) {
    struct stat is;
    char next = 0;
    int taken = 0, faults = open(FAULTS, O_RDWR | O_CLOEXEC);
    if (faults < 0)
        return 0;
    flock(faults, LOCK_EX);
    if (!fstat(faults, &is) && is.st_size > 0) {
        if (pread(faults, &next, 1, is.st_size - 1) == 1 && next == kind)
            taken = !ftruncate(faults, is.st_size - 1);
    }
    close(faults);
    return taken;
}

int fdatasync(int descriptor) {
    static int (*real)(int);
    if (!real)
        real = dlsym(RTLD_NEXT, "fdatasync");
    if (is_the_stores(descriptor, "/log.", 1)) {
        if (fault('s')) {
            errno = EIO;
            return -1;
        }
        if (fault('h'))
            while (!fault('g'))
                usleep(100);
    }
    return real(descriptor);
}

ssize_t pwrite(int descriptor, const void *data, size_t size, off_t place) {
    static ssize_t (*real)(int, const void *, size_t, off_t);
    if (!real)
        real = dlsym(RTLD_NEXT, "pwrite");
    if (place < 2 * 4096 && is_the_stores(descriptor, "/data.mdb", 0)) {
        int lie = fault('l');
        if (lie)
            real(descriptor, data, size, place);
        if (lie || fault('m')) {
            errno = EIO;
            return -1;
        }
    }
    return real(descriptor, data, size, place);
}

/* Python calls this for pwritev, with no flags. */
ssize_t pwritev64v2(int descriptor, const struct iovec *parts, int count, off_t place, int flags) {
    static ssize_t (*real)(int, const struct iovec *, int, off_t, int);
    if (!real)
        real = dlsym(RTLD_NEXT, "pwritev64v2");
    if (is_the_stores(descriptor, "/log.", 1) && fault('r')) {
        errno = EROFS;
        return -1;
    }
    return real(descriptor, parts, count, place, flags);
}

ssize_t pwrite64(int descriptor, const void *data, size_t size, off_t place) {
    return pwrite(descriptor, data, size, place);
}
