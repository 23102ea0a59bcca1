/* How a child of the zygote is made and confined. A plan is built by the parent, read by the child, and owned
 * by the parent throughout. */

struct atoll_bind {
    const char *source; /* a path in the host's tree */
    const char
        *target; /* absolute, in the new root; made there as a folder or an empty file, like the source */
    uint64_t attributes; /* MOUNT_ATTR_*, set on the whole tree */
};

struct atoll_path_rule {
    const char *path; /* as seen after the new root is in place; one that does not exist is passed over */
    uint64_t access;  /* LANDLOCK_ACCESS_FS_* */
};

struct atoll_limit {
    int resource;
    uint64_t soft;
    uint64_t hard;
};

struct atoll_filter_instruction {
    uint16_t code;
    uint8_t jt;
    uint8_t jf;
    uint32_t k;
};

/* A count of 0, a null pointer, and -1 for an id or a descriptor mean: leave that as it is. */
struct atoll_plan {
    uint64_t namespaces; /* CLONE_NEW* flags, asked for at clone */
    const char *name;    /* of the process, and of the host in a namespace of its own */
    int64_t uid;         /* -1: stay who we are */
    int64_t gid;
    const char *uid_map; /* the line for /proc/self/uid_map when `namespaces` has a user namespace */
    const char *gid_map;
    const char *staging; /* an existing folder that the new root is mounted on; null: keep the host's root */
    const char *root_options; /* of the tmpfs that is the root, and of each cover */
    const char *
        *covers; /* folders of the host's root that an empty tmpfs hides; binds may then lie in them */
    int cover_count;
    const char *scratch_options; /* of the tmpfs on /tmp; null: none */
    const char *proc_options;    /* of /proc; null: none */
    const struct atoll_bind *binds;
    int bind_count;
    const struct atoll_limit *limits;
    int limit_count;
    const int *groups; /* to join: folders of version 2, tasks files of version 1 */
    int group_count;
    int born;        /* make it in its group of version 2, if that goes, rather than have it move there */
    int oom_score;   /* -1001: leave */
    int nice;        /* 100: leave */
    int io_priority; /* -1: leave */
    int drop_capabilities;
    int undumpable;
    int no_new_privileges;
    uint64_t landlock_fs; /* handled accesses; all three 0: no Landlock */
    uint64_t landlock_net;
    uint64_t landlock_scoped;
    const struct atoll_path_rule *rules;
    int rule_count;
    const struct atoll_filter_instruction *filter;
    int filter_length;
    int filter_notify;    /* send the listener along with the status */
    const int *sources;   /* descriptors to hand over, */
    const int *targets;   /* and the numbers they get; ascending */
    int descriptor_count; /* -1: leave the table of descriptors alone; else all others above 2 are closed */
    int status;           /* gets one struct atoll_status, then is closed */
    int guardian;         /* pidfd of the kernel: without it there is no life; -1 in a trial */
};

/* What a child says of itself on `status`: error 0 = it is confined as planned. `detail` is the row of the
 * plan at fault, or -1. */
struct atoll_status {
    int32_t step;
    int32_t error;
    int32_t detail;
    int32_t pad;
};

enum atoll_step {
    ATOLL_STEP_DONE,
    ATOLL_STEP_CLONE,
    ATOLL_STEP_DESCRIPTORS,
    ATOLL_STEP_SESSION,
    ATOLL_STEP_GROUPS,
    ATOLL_STEP_LIMITS,
    ATOLL_STEP_PRIORITY,
    ATOLL_STEP_MAPS,
    ATOLL_STEP_HOSTNAME,
    ATOLL_STEP_PRIVATE,
    ATOLL_STEP_BINDS,
    ATOLL_STEP_ROOT,
    ATOLL_STEP_SCRATCH,
    ATOLL_STEP_PROC,
    ATOLL_STEP_PIVOT,
    ATOLL_STEP_BOUNDING,
    ATOLL_STEP_IDENTITY,
    ATOLL_STEP_CAPABILITIES,
    ATOLL_STEP_KEYRING,
    ATOLL_STEP_UNDUMPABLE,
    ATOLL_STEP_PARENT,
    ATOLL_STEP_PRIVILEGES,
    ATOLL_STEP_LANDLOCK,
    ATOLL_STEP_FILTER,
    ATOLL_STEP_LISTENER,
    ATOLL_STEP_EXEC
};

/* Clone a child of the caller's parent and confine it. Returns 0 in the child, its pid in the caller (with
   *pidfd open, the caller's to close), or -errno. The caller is single-threaded. The child never returns
   unless every step worked: otherwise it reports and exits 125. */
int atoll_sandbox_spawn(const struct atoll_plan *plan, int *pidfd);

/* Clone a child into the plan's namespaces that runs `arguments` afresh, with `environment`; only descriptors
   are handed over, the rest of the plan is for atoll_sandbox_enter in the new program. Same returns. */
int atoll_sandbox_execute(const struct atoll_plan *plan, char **arguments, char **environment, int *pidfd);

/* Confine the calling process, which atoll_sandbox_execute has started. Returns only when it is. */
void atoll_sandbox_enter(const struct atoll_plan *plan);

/* A trial: a child of the caller is confined, then exits at once. Returns 0 with *status filled, or -errno.
 */
int atoll_sandbox_try(const struct atoll_plan *plan, struct atoll_status *status);

/* The ABI of Landlock, 0 for none. */
int atoll_landlock_version(void);

/* Set the I/O class and level of one thread. Returns 0 or -errno. */
int atoll_io_priority(int thread, int priority);

/* Die with the parent, and at once if `guardian` (a pidfd) is dead already. Returns 0 or -errno. */
int atoll_die_with_parent(int guardian);
