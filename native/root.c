/*
 * What a confined child sees of the host's files: a root of its own, or the host's with some folders hidden.
 *
 * Mounts change in the child's own namespace only, which is made private first. A step that fails ends the
 * child (give_up): it never runs on what the host has.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "sandbox.h"

/* The newer system calls, which have one number on all architectures. */
enum {
    CALL_OPEN_TREE = 428,
    CALL_MOVE_MOUNT = 429,
    CALL_MOUNT_SETATTR = 442,
};

enum {
    OPEN_TREE_CLONE_ = 1,
    OPEN_TREE_CLOEXEC_ = O_CLOEXEC,
    RECURSIVE_ = 0x8000,
    EMPTY_PATH_ = 0x1000,
    MOVE_MOUNT_F_EMPTY_PATH_ = 4,
    MOUNT_READ_ONLY = 0x1,
    MOUNT_NOSUID = 0x2,
    MOUNT_NODEV = 0x4,
    MOUNT_NOEXEC = 0x8,
    MOUNT_RECURSIVE = 0x4000,
    MOUNT_PRIVATE = 0x40000,
    UMOUNT_DETACH = 2,
    BINDS_MOST = 96,
};

struct mount_attributes {
    uint64_t set, clear, propagation, userns;
};

/* `prefix` + `path` in `room`; folders on the way are made. Returns -1 with errno. */
static int make_way(char room[PATH_MAX], const char *prefix, const char *path, int folder) {
    size_t first = strlen(prefix), second = strlen(path);
    if (first + second + 1 > PATH_MAX) {
        errno = ENAMETOOLONG;
        return -1;
    }
    memcpy(room, prefix, first);
    memcpy(room + first, path, second + 1);
    for (char *at = room + first + 1; *at; at++) {
        if (*at != '/')
            continue;
        *at = 0;
        int failed = mkdir(room, 0755) && errno != EEXIST;
        *at = '/';
        if (failed)
            return -1;
    }
    if (folder)
        return mkdir(room, 0755) && errno != EEXIST ? -1 : 0;
    int file = open(room, O_WRONLY | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0444);
    if (file < 0)
        return -1;
    close(file);
    return 0;
}

static long mount_(const char *source, const char *target, const char *type, unsigned long flags,
                   const char *options) {
    return syscall(SYS_mount, source, target, type, flags, options);
}

static int set_attributes(int tree, const char *path, unsigned flags, uint64_t set) {
    struct mount_attributes attributes = {.set = set};
    return (int)syscall(CALL_MOUNT_SETATTR, tree, path, flags, &attributes, sizeof attributes);
}

/* Each source as a detached tree with its attributes set: from here on the host's paths are no longer needed.
 */
static void open_sources(const struct atoll_plan *plan, int trees[BINDS_MOST]) {
    if (plan->bind_count > BINDS_MOST) {
        errno = E2BIG;
        give_up(plan->status, ATOLL_STEP_BINDS, -1);
    }
    for (int i = 0; i < plan->bind_count; i++) {
        const struct atoll_bind *bind = &plan->binds[i];
        trees[i] = (int)syscall(CALL_OPEN_TREE, AT_FDCWD, bind->source,
                                OPEN_TREE_CLONE_ | OPEN_TREE_CLOEXEC_ | RECURSIVE_);
        if (trees[i] < 0 || set_attributes(trees[i], "", EMPTY_PATH_ | RECURSIVE_, bind->attributes))
            give_up(plan->status, ATOLL_STEP_BINDS, i);
    }
}

static void place_trees(const struct atoll_plan *plan, const char *prefix, const int trees[BINDS_MOST]) {
    char path[PATH_MAX];
    for (int i = 0; i < plan->bind_count; i++) {
        struct stat is;
        if (fstat(trees[i], &is) || make_way(path, prefix, plan->binds[i].target, S_ISDIR(is.st_mode)) ||
            syscall(CALL_MOVE_MOUNT, trees[i], "", AT_FDCWD, path, MOVE_MOUNT_F_EMPTY_PATH_))
            give_up(plan->status, ATOLL_STEP_BINDS, i);
        close(trees[i]);
    }
}

static void mount_scratch_and_proc(const struct atoll_plan *plan) {
    char path[PATH_MAX];
    unsigned long flags = MOUNT_NOSUID | MOUNT_NODEV | MOUNT_NOEXEC;
    if (plan->scratch_options && (make_way(path, plan->staging, "/tmp", 1) ||
                                  mount_("tmpfs", path, "tmpfs", flags, plan->scratch_options)))
        give_up(plan->status, ATOLL_STEP_SCRATCH, -1);
    if (plan->proc_options && (make_way(path, plan->staging, "/proc", 1) ||
                               mount_("proc", path, "proc", flags, plan->proc_options)))
        give_up(plan->status, ATOLL_STEP_PROC, -1);
}

void root_enter(const struct atoll_plan *plan) {
    int trees[BINDS_MOST];
    if (mount_("", "/", NULL, MOUNT_PRIVATE | MOUNT_RECURSIVE, NULL))
        give_up(plan->status, ATOLL_STEP_PRIVATE, -1);
    open_sources(plan, trees);
    if (mount_("tmpfs", plan->staging, "tmpfs", MOUNT_NOSUID | MOUNT_NODEV, plan->root_options))
        give_up(plan->status, ATOLL_STEP_ROOT, -1);
    mount_scratch_and_proc(plan); /* before the binds: one of them may lie in /tmp */
    place_trees(plan, plan->staging, trees);
    /* The second pivot argument: the old root ends up stacked under the new one's "/", and is detached from
     * there. */
    if (chdir(plan->staging) || syscall(SYS_pivot_root, ".", ".") ||
        syscall(SYS_umount2, ".", UMOUNT_DETACH) || chdir("/") ||
        set_attributes(AT_FDCWD, "/", 0, MOUNT_READ_ONLY))
        give_up(plan->status, ATOLL_STEP_PIVOT, -1);
}

void root_cover(const struct atoll_plan *plan) {
    int trees[BINDS_MOST];
    if (mount_("", "/", NULL, MOUNT_PRIVATE | MOUNT_RECURSIVE, NULL))
        give_up(plan->status, ATOLL_STEP_PRIVATE, -1);
    open_sources(plan, trees);
    for (int i = 0; i < plan->cover_count; i++)
        if (mount_("tmpfs", plan->covers[i], "tmpfs", MOUNT_NOSUID | MOUNT_NODEV, plan->root_options))
            give_up(plan->status, ATOLL_STEP_ROOT, i);
    place_trees(plan, "", trees);
    for (int i = 0; i < plan->cover_count; i++)
        if (set_attributes(AT_FDCWD, plan->covers[i], 0, MOUNT_READ_ONLY))
            give_up(plan->status, ATOLL_STEP_ROOT, i);
}
