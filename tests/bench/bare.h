typedef struct side side;

/* The ring. `memory` is a mapping of bare_bytes() shared by both sides; `role` 0 is the client, 1 the server. */
size_t bare_bytes(void);
side *bare_open(int descriptor, int role, uint64_t spin);
void bare_close(side *self);
char *bare_buffer(side *self);
size_t bare_buffer_bytes(void);
uint64_t bare_call(side *self, const char *data, uint64_t length);
uint64_t bare_next(side *self);
uint64_t bare_reply_and_next(side *self, const char *data, uint64_t length);
void bare_say_end(side *self);

/* Ping-pong of the ring with no Python on either side: seconds for n round trips of `length` bytes; the echo ends at an empty message. */
double bare_ping(side *self, uint64_t n, uint64_t length);
void bare_echo(side *self);

/* The bulk pair: n times write `bytes` from private memory into `shared`, hand it over through the ring, read it in full. */
double bulk_write(side *self, char *shared, const char *private, uint64_t bytes, uint64_t n);
void bulk_read(side *self, const char *shared, char *private, uint64_t bytes);
double bulk_copy_twice(char *shared, char *from, char *to, uint64_t bytes, uint64_t n);

/* Two threads pinned to two cores hand one cache line to and fro n times: seconds of one way, or -1 if pinning failed. */
double line_one_way(int core_a, int core_b, uint64_t n);
/* The same two threads parked on futexes: seconds of one wake-up. */
double wake_one_way(int core_a, int core_b, uint64_t n);
