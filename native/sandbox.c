/*
 * A child between clone and Python: how it is confined.
 *
 * Problem. A server has to be up in milliseconds, which rules out a fresh interpreter, and confined before
 * the first byte of its own code runs. The zygote has the interpreter and the SDK loaded and one thread; its
 * clone has all that for the price of its page tables. What stands between the clone and the server's code
 * must not allocate, take a lock or run Python: it runs here, from a plan that the parent has laid out in
 * memory the child inherits.
 *
 * The order of the steps is forced by what each takes away:
 *
 * - cgroups come first, so that all that follows is charged to the server;
 * - maps of ids before anything that asks for a capability in the new user namespace;
 * - mounts need capabilities, and the host's paths for their sources: all sources are opened first, as
 * detached trees, and only then is the new root put over a folder of the old one;
 * - the bounding set and the secure bits need CAP_SETPCAP, so before the identity changes;
 * - the identity takes the capabilities along; it also clears dumpable and the parent-death signal;
 * - the session keyring is left after it, so that the new one is the server's own;
 * - the parent-death signal is set here, and then the parent is looked at, once: it may have died before. The
 *   look is at a pidfd, since getppid is 0 in a pid namespace;
 * - no new rights before Landlock and seccomp, which ask for it;
 * - Landlock after the new root is in place: its rules name what is there now;
 * - seccomp last. After it only sendmsg, close and the exit run here.
 *
 * Every failure names its step and its row on `status`, and ends the child: nothing runs half confined.
 *
 * Raw system calls are used where glibc's wrapper does more than the call (setresuid signals every thread it
 * believes in; a trial is cloned from programs with threads) or where old C libraries lack one.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/capability.h>
#include <linux/sched.h>
#include <linux/securebits.h>
#include <poll.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "sandbox.h"

/* The newer system calls, which have one number on all architectures. */
enum {
    CALL_CLONE3 = 435,
    CALL_CLOSE_RANGE = 436,
    CALL_LANDLOCK_CREATE = 444,
    CALL_LANDLOCK_ADD = 445,
    CALL_LANDLOCK_RESTRICT = 446,
};

enum {
    JOIN_SESSION_KEYRING = 1,
    FILTER_MODE = 1,         /* SECCOMP_SET_MODE_FILTER */
    FILTER_NEW_LISTENER = 8, /* SECCOMP_FILTER_FLAG_NEW_LISTENER */
    FILTER_WAIT_KILLABLE = 32,
    FILTER_MOST = 4096, /* instructions, BPF_MAXINSNS */
    DESCRIPTORS_MOST = 64,
    NO_OOM_SCORE = -1001,
    NO_NICE = 100,
    EXIT_UNCONFINED = 125,
};

struct landlock_attributes {
    uint64_t fs, net, scoped;
};

struct landlock_path {
    uint64_t access;
    int32_t parent;
} __attribute__((packed));

struct filter_program {
    unsigned short length;
    const struct atoll_filter_instruction *instructions;
};

_Static_assert(sizeof(struct atoll_filter_instruction) == 8, "the kernel's sock_filter");
_Static_assert(sizeof(struct landlock_attributes) == 24,
               "the kernel's landlock_ruleset_attr of ABI 6 and later");
_Static_assert(sizeof(struct atoll_status) == 16, "the kernel side of Atoll unpacks four 32-bit words");

/* 0, or -1 with errno: nobody has learnt it. */
static int say(int status, int step, int error, int detail, int listener) {
    struct atoll_status word = {.step = step, .error = error, .detail = detail};
    struct iovec part = {&word, sizeof word};
    union {
        struct cmsghdr head;
        char room[CMSG_SPACE(sizeof(int))];
    } control = {0};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
    if (listener >= 0) {
        message.msg_control = &control;
        message.msg_controllen = sizeof control.room;
        control.head.cmsg_level = SOL_SOCKET;
        control.head.cmsg_type = SCM_RIGHTS;
        control.head.cmsg_len = CMSG_LEN(sizeof(int));
        memcpy(CMSG_DATA(&control.head), &listener, sizeof(int));
    }
    if (status < 0)
        return 0;
    ssize_t sent;
    while ((sent = sendmsg(status, &message, MSG_NOSIGNAL)) < 0 && errno == EINTR)
        ;
    return sent == (ssize_t)sizeof word ? 0 : -1;
}

void give_up(int status, int step, int detail) {
    say(status, step, errno, detail, -1);
    _exit(EXIT_UNCONFINED);
}

static int write_file(const char *path, const char *text, size_t length) {
    int file = open(path, O_WRONLY | O_CLOEXEC);
    if (file < 0)
        return -1;
    ssize_t written = write(file, text, length);
    int error = errno;
    close(file);
    errno = error;
    return written == (ssize_t)length ? 0 : -1;
}

/* Decimal digits of `value` at the end of `room`; no printf between clone and Python. */
static const char *decimal(int value, char room[16], size_t *length) {
    char *at = room + 16;
    unsigned rest = value < 0 ? -(unsigned)value : (unsigned)value;
    do
        *--at = (char)('0' + rest % 10);
    while (rest /= 10);
    if (value < 0)
        *--at = '-';
    *length = (size_t)(room + 16 - at);
    return at;
}

static void close_between(unsigned first, unsigned last, int status) {
    if (first <= last && syscall(CALL_CLOSE_RANGE, first, last, 0))
        give_up(status, ATOLL_STEP_DESCRIPTORS, -1);
}

/*
 * Give `sources` the numbers `targets` and close all else above 2. Sources are first moved out of the way of
 * all targets. Returns the new number of `status`, which closes at exec, or gives up.
 */
static int hand_over(const struct atoll_plan *plan) {
    int aside[DESCRIPTORS_MOST];
    int count = plan->descriptor_count;
    if (count < 0)
        return plan->status;
    if (count > DESCRIPTORS_MOST) {
        errno = E2BIG;
        give_up(plan->status, ATOLL_STEP_DESCRIPTORS, -1);
    }
    int above = count ? plan->targets[count - 1] + 1 : 3;
    if (above < 3)
        above = 3;
    for (int i = 0; i < count; i++) {
        aside[i] = fcntl(plan->sources[i], F_DUPFD_CLOEXEC, above);
        if (aside[i] < 0)
            give_up(plan->status, ATOLL_STEP_DESCRIPTORS, i);
    }
    int status = plan->status < 0 ? -1 : fcntl(plan->status, F_DUPFD_CLOEXEC, above);
    if (plan->status >= 0 && status < 0)
        give_up(plan->status, ATOLL_STEP_DESCRIPTORS, -1);
    int next = 3;
    for (int i = 0; i < count; i++) {
        int target = plan->targets[i];
        if (dup3(aside[i], target, 0) < 0)
            give_up(status, ATOLL_STEP_DESCRIPTORS, i);
        if (target < 3)
            continue;
        if (target < next) {
            errno = EINVAL; /* targets ascend */
            give_up(status, ATOLL_STEP_DESCRIPTORS, i);
        }
        close_between((unsigned)next, (unsigned)target - 1, status);
        next = target + 1;
    }
    if (status >= 0) {
        close_between((unsigned)next, (unsigned)status - 1, status);
        next = status + 1;
    }
    close_between((unsigned)next, ~0U, status);
    return status;
}

/* Whether a group is one of version 2. */
static int unified(int group) {
    struct stat found;
    return fstat(group, &found) == 0 && S_ISDIR(found.st_mode);
}

/* `born`: the group that the process was made in; -1: none. A thread that moves itself alone, and in version
 * 1 that is all that this process has, is moved without the lock that cgroup.procs is written under. */
static void join_groups(const struct atoll_plan *plan, int born) {
    for (int i = 0; i < plan->group_count; i++) {
        int group = plan->groups[i], procs = group;
        if (group == born)
            continue;
        if (unified(group))
            procs = openat(group, "cgroup.procs", O_WRONLY | O_CLOEXEC);
        if (procs < 0 || write(procs, "0", 1) != 1)
            give_up(plan->status, ATOLL_STEP_GROUPS, i);
        if (procs != group)
            close(procs);
    }
}

static void write_maps(const struct atoll_plan *plan) {
    if (!plan->uid_map)
        return;
    if (write_file("/proc/self/setgroups", "deny", 4) ||
        write_file("/proc/self/uid_map", plan->uid_map, strlen(plan->uid_map)) ||
        write_file("/proc/self/gid_map", plan->gid_map, strlen(plan->gid_map)))
        give_up(plan->status, ATOLL_STEP_MAPS, -1);
}

static void set_priority(const struct atoll_plan *plan) {
    if (plan->oom_score != NO_OOM_SCORE) {
        char room[16];
        size_t length;
        const char *text = decimal(plan->oom_score, room, &length);
        if (write_file("/proc/self/oom_score_adj", text, length))
            give_up(plan->status, ATOLL_STEP_PRIORITY, 0);
    }
    if (plan->nice != NO_NICE && setpriority(PRIO_PROCESS, 0, plan->nice))
        give_up(plan->status, ATOLL_STEP_PRIORITY, 1);
    if (plan->io_priority >= 0 && atoll_io_priority(0, plan->io_priority))
        give_up(plan->status, ATOLL_STEP_PRIORITY, 2);
}

/* Neither set nor bits can be changed without CAP_SETPCAP; who lacks it has nothing that no_new_privs leaves
 * to gain. */
static int too_poor(const struct atoll_plan *plan) {
    return errno == EPERM && plan->no_new_privileges;
}

static void drop_bounding(const struct atoll_plan *plan) {
    if (!plan->drop_capabilities)
        return;
    for (int i = 0; i < 64; i++)
        if (prctl(PR_CAPBSET_DROP, i, 0, 0, 0) && errno != EINVAL && !too_poor(plan))
            give_up(plan->status, ATOLL_STEP_BOUNDING, i);
    /* uid 0 means nothing, and a change of uid takes the capabilities along: for good. */
    unsigned long bits = SECBIT_NOROOT | SECBIT_NOROOT_LOCKED | SECBIT_NO_SETUID_FIXUP_LOCKED |
                         SECBIT_KEEP_CAPS_LOCKED | SECBIT_NO_CAP_AMBIENT_RAISE |
                         SECBIT_NO_CAP_AMBIENT_RAISE_LOCKED;
    if (prctl(PR_SET_SECUREBITS, bits, 0, 0, 0) && !too_poor(plan))
        give_up(plan->status, ATOLL_STEP_BOUNDING, -1);
}

static void take_identity(const struct atoll_plan *plan) {
    if (plan->gid >= 0 &&
        (syscall(SYS_setgroups, 0, NULL) || syscall(SYS_setresgid, plan->gid, plan->gid, plan->gid)))
        give_up(plan->status, ATOLL_STEP_IDENTITY, 0);
    if (plan->uid >= 0 && syscall(SYS_setresuid, plan->uid, plan->uid, plan->uid))
        give_up(plan->status, ATOLL_STEP_IDENTITY, 1);
}

static void drop_capabilities(const struct atoll_plan *plan) {
    struct __user_cap_header_struct head = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct none[2] = {0};
    /* Whoever was given a uid has none, also where inherited secure bits would have let them pass. */
    if (!plan->drop_capabilities && plan->uid < 0)
        return;
    if (prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0))
        give_up(plan->status, ATOLL_STEP_CAPABILITIES, -1);
    if (syscall(SYS_capset, &head, none))
        give_up(plan->status, ATOLL_STEP_CAPABILITIES, -1);
}

/* A session keyring's keys belong to whoever possesses it, whatever their uid: the one of the session that
 * booted the node is left behind. A host without keyrings, or one that denies them to us, denies them to the
 * child. */
static void leave_keyring(const struct atoll_plan *plan) {
    if (syscall(SYS_keyctl, JOIN_SESSION_KEYRING, NULL) < 0 && errno != ENOSYS && errno != EPERM)
        give_up(plan->status, ATOLL_STEP_KEYRING, -1);
}

static void landlock(const struct atoll_plan *plan) {
    struct landlock_attributes handled = {plan->landlock_fs, plan->landlock_net, plan->landlock_scoped};
    if (!handled.fs && !handled.net && !handled.scoped)
        return;
    int rules = (int)syscall(CALL_LANDLOCK_CREATE, &handled, sizeof handled, 0);
    if (rules < 0)
        give_up(plan->status, ATOLL_STEP_LANDLOCK, -1);
    for (int i = 0; i < plan->rule_count; i++) {
        int place = open(plan->rules[i].path, O_PATH | O_CLOEXEC);
        if (place < 0 && errno == ENOENT)
            continue;
        struct landlock_path rule = {plan->rules[i].access, place};
        if (place < 0 || syscall(CALL_LANDLOCK_ADD, rules, 1, &rule, 0))
            give_up(plan->status, ATOLL_STEP_LANDLOCK, i);
        close(place);
    }
    if (syscall(CALL_LANDLOCK_RESTRICT, rules, 0))
        give_up(plan->status, ATOLL_STEP_LANDLOCK, -1);
    close(rules);
}

/* Returns the listener, or -1 where none was asked for. */
static int load_filter(const struct atoll_plan *plan, int status) {
    struct filter_program program = {(unsigned short)plan->filter_length, plan->filter};
    if (!plan->filter_length)
        return -1;
    if (plan->filter_length < 0 || plan->filter_length > FILTER_MOST) {
        errno = E2BIG; /* cut to 16 bits, it would be another filter */
        give_up(status, ATOLL_STEP_FILTER, -1);
    }
    unsigned flags = plan->filter_notify ? FILTER_NEW_LISTENER | FILTER_WAIT_KILLABLE : 0;
    long listener = syscall(SYS_seccomp, FILTER_MODE, flags, &program);
    if (listener < 0)
        give_up(status, ATOLL_STEP_FILTER, -1);
    return plan->filter_notify ? (int)listener : -1;
}

static void confine(const struct atoll_plan *plan) {
    umask(0); /* what is made on the way has the modes that are written there */
    if (plan->name) {
        prctl(PR_SET_NAME, plan->name, 0, 0, 0);
        if ((plan->namespaces & CLONE_NEWUTS) && syscall(SYS_sethostname, plan->name, strlen(plan->name)))
            give_up(plan->status, ATOLL_STEP_HOSTNAME, -1);
    }
    set_priority(plan);
    if (plan->staging)
        root_enter(plan);
    else if (plan->cover_count)
        root_cover(plan);
    drop_bounding(plan);
    take_identity(plan);
    drop_capabilities(plan);
    leave_keyring(plan);
    umask(077); /* what it writes is its own, whatever the session that booted the node had set */
    if (plan->undumpable && prctl(PR_SET_DUMPABLE, 0, 0, 0, 0))
        give_up(plan->status, ATOLL_STEP_UNDUMPABLE, -1);
    if (plan->guardian >= 0 && atoll_die_with_parent(plan->guardian)) {
        errno = ESRCH;
        give_up(plan->status, ATOLL_STEP_PARENT, -1);
    }
    if (plan->no_new_privileges && prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
        give_up(plan->status, ATOLL_STEP_PRIVILEGES, -1);
    landlock(plan);
    int status = hand_over(plan);
    for (int i = 0; i < plan->limit_count; i++) {
        struct rlimit limit = {plan->limits[i].soft, plan->limits[i].hard};
        if (setrlimit((__rlimit_resource_t)plan->limits[i].resource, &limit))
            give_up(status, ATOLL_STEP_LIMITS, i);
    }
    int listener = load_filter(plan, status);
    /* A child of which nobody knows that it is confined, or whose listener nobody has, does not run. */
    if (say(status, ATOLL_STEP_DONE, 0, -1, listener))
        give_up(status, ATOLL_STEP_LISTENER, -1);
    if (listener >= 0)
        close(listener);
    if (status >= 0)
        close(status);
}

static void begin(const struct atoll_plan *plan, int born) {
    if (setsid() < 0)
        give_up(plan->status, ATOLL_STEP_SESSION, -1);
    join_groups(plan, born);
    write_maps(plan);
}

/*
 * A raw clone leaves glibc's note of the thread id as the parent's, and recursive locks are owned by that id.
 * The note is where the kernel was told to clear it at exit; the child writes its new id there. Where the
 * kernel cannot tell the place, the old id stays: it belongs to the zygote, so no other thread of this
 * process is likely to have it.
 *
 * The kernel forgets the list of robust locks at a clone, and releases none at the child's death until it is
 * told the list's head again: a lock in shared memory, such as the store's, would stay locked for ever.
 *
 * A group of version 2 is given to clone3: to move there afterwards takes 12 to 19 ms, since whoever moves
 * waits for all that forks and ends on the host (an RCU grace period). Containers are refused clone3, since a
 * filter cannot look at what it is asked for; and a group may refuse. Then it is clone, and the child moves
 * itself. Linux (6.18, at least) kills what is made in a group whose cgroup.kill was written to before:
 * whoever asks for the child sees its end, and asks again without `born`.
 */
static long clone_child(const struct atoll_plan *plan, uint64_t flags, int *pidfd, int *born) {
    int *place = NULL;
    void *robust = NULL;
    size_t robust_size = 0;
    flags |= CLONE_PIDFD;
    if (!prctl(PR_GET_TID_ADDRESS, &place, 0, 0, 0) && place)
        flags |= CLONE_CHILD_SETTID | CLONE_CHILD_CLEARTID;
    int listed = !syscall(SYS_get_robust_list, 0, &robust, &robust_size) && robust;
    long pid = -1;
    *born = -1;
    for (int i = 0; plan->born && i < plan->group_count && *born < 0; i++)
        if (unified(plan->groups[i]))
            *born = plan->groups[i];
    if (*born >= 0) {
        struct clone_args asked = {.flags = flags | CLONE_INTO_CGROUP,
                                   .pidfd = (uint64_t)(uintptr_t)pidfd,
                                   .child_tid = (uint64_t)(uintptr_t)place,
                                   .cgroup = (uint64_t)*born};
        pid = syscall(CALL_CLONE3, &asked, sizeof asked);
    }
    if (pid < 0) {
        *born = -1;
#if defined(__x86_64__)
        pid = syscall(SYS_clone, flags, NULL, pidfd, place, NULL);
#else
        pid = syscall(SYS_clone, flags, NULL, pidfd, NULL, place);
#endif
    }
    if (pid == 0 && listed)
        syscall(SYS_set_robust_list, robust, robust_size);
    return pid < 0 ? -errno : pid;
}

int atoll_sandbox_spawn(const struct atoll_plan *plan, int *pidfd) {
    int born;
    long pid = clone_child(plan, plan->namespaces | CLONE_PARENT, pidfd, &born);
    if (pid)
        return (int)pid;
    begin(plan, born);
    confine(plan);
    return 0;
}

void atoll_sandbox_enter(const struct atoll_plan *plan) {
    confine(plan);
}

/* In a user namespace the capabilities have to outlive the exec, for atoll_sandbox_enter to mount with and
 * then drop. */
static void keep_capabilities(const struct atoll_plan *plan) {
    struct __user_cap_header_struct head = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct held[2] = {0};
    if (!plan->uid_map)
        return;
    if (syscall(SYS_capget, &head, held))
        give_up(plan->status, ATOLL_STEP_CAPABILITIES, -1);
    held[0].inheritable = held[0].permitted;
    held[1].inheritable = held[1].permitted;
    if (syscall(SYS_capset, &head, held))
        give_up(plan->status, ATOLL_STEP_CAPABILITIES, -1);
    for (int i = 0; i < 64; i++)
        if (held[i / 32].permitted >> (i % 32) & 1 && prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, i, 0, 0))
            give_up(plan->status, ATOLL_STEP_CAPABILITIES, i);
}

int atoll_sandbox_execute(const struct atoll_plan *plan, char **arguments, char **environment, int *pidfd) {
    int born;
    long pid = clone_child(plan, plan->namespaces | CLONE_PARENT, pidfd, &born);
    if (pid)
        return (int)pid;
    begin(plan, born);
    keep_capabilities(plan);
    if (plan->guardian >= 0 && atoll_die_with_parent(plan->guardian)) {
        errno = ESRCH;
        give_up(plan->status, ATOLL_STEP_PARENT, -1);
    }
    int status = hand_over(plan);
    execve(arguments[0], arguments, environment);
    give_up(status, ATOLL_STEP_EXEC, -1);
}

int atoll_sandbox_try(const struct atoll_plan *plan, struct atoll_status *status) {
    int pair[2], pidfd = -1, born;
    struct atoll_plan trial = *plan;
    siginfo_t ended;
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair))
        return -errno;
    trial.status = pair[1];
    long pid = clone_child(plan, plan->namespaces, &pidfd, &born);
    if (pid == 0) {
        begin(&trial, born);
        confine(&trial);
        _exit(0);
    }
    close(pair[1]);
    if (pid < 0) {
        close(pair[0]);
        return (int)pid;
    }
    ssize_t length;
    while ((length = recv(pair[0], status, sizeof *status, 0)) < 0 && errno == EINTR)
        ;
    close(pair[0]);
    while (waitid(P_PIDFD, (id_t)pidfd, &ended, WEXITED | __WALL) && errno == EINTR)
        ;
    close(pidfd);
    return length == sizeof *status ? 0 : -EPROTO;
}

int atoll_landlock_version(void) {
    long version = syscall(CALL_LANDLOCK_CREATE, NULL, 0, 1);
    return version < 0 ? 0 : (int)version;
}

int atoll_io_priority(int thread, int priority) {
    return syscall(SYS_ioprio_set, 1, thread, priority) ? -errno : 0;
}

int atoll_die_with_parent(int guardian) {
    struct pollfd look = {guardian, POLLIN, 0};
    if (prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0))
        return -errno;
    return poll(&look, 1, 0) == 0 ? 0 : -ESRCH;
}
