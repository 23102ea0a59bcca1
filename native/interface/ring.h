/* What Python may call of the rings. Plain declarations: this text is the cdef and the C prototype in one. */

typedef struct atoll_channel atoll_channel;
typedef struct atoll_loop atoll_loop;

/* A message as it was received: header and context in private memory, and what the table said of its
 * capability. */
typedef struct {
    uint64_t request;
    uint64_t deadline;
    uint64_t trace;
    uint64_t badge;
    uint64_t rights;
    uint64_t capability;
    uint32_t channel;
    uint32_t method;
    uint32_t length;
    uint32_t slot;
    uint32_t generation;
    uint32_t interface;
    uint32_t needed;
    uint16_t flags;
    uint8_t kind;
    uint8_t lane;
    uint8_t context[64];
} atoll_message;

/* What is the same in every call of one method through one capability. */
typedef struct {
    uint32_t method;
    uint32_t slot;
    uint32_t generation;
    uint8_t lane;
    uint8_t kind;
    uint16_t flags;
    uint32_t copies; /* it takes buffers: a reply may take as long as a copy does */
} atoll_site;

typedef struct {
    uint64_t sent;
    uint64_t received;
    uint64_t bytes_sent;
    uint64_t bytes_received;
    uint64_t full;
    uint64_t parks;
    uint64_t wakes;
    uint64_t bulk;
} atoll_counters;

/* Channels. `memory` and `doorbell` stay the caller's. NULL and errno on failure. */
uint64_t atoll_channel_size(uint32_t lanes, uint32_t ring_bits, uint32_t bulk_bits);
atoll_channel *atoll_channel_open(int memory, int doorbell, int server, uint32_t lanes, uint32_t ring_bits,
                                  uint32_t bulk_bits, uint32_t epoch, uint64_t base, const void *notice);
void atoll_channel_close(atoll_channel *channel);
/* A client's end is let go: its threads that send or wait get R_CLOSED, those asleep at once. Its memory
 * stays. */
void atoll_channel_end(atoll_channel *channel);
atoll_channel *atoll_channel_resume(int memory, int doorbell, uint32_t lanes, uint32_t ring_bits,
                                    uint32_t bulk_bits, uint32_t epoch, const uint64_t *consumed,
                                    const uint64_t *produced);
void atoll_channel_positions(atoll_channel *channel, uint64_t *consumed, uint64_t *produced);
int atoll_channel_renew(atoll_channel *channel, uint64_t *taken);
uint32_t atoll_channel_epoch(atoll_channel *channel);
const char *atoll_channel_fault(atoll_channel *channel);
uint64_t atoll_channel_limit(atoll_channel *channel);
void *atoll_channel_buffer(atoll_channel *channel);
atoll_message *atoll_channel_message(atoll_channel *channel);
atoll_counters *atoll_channel_counters(atoll_channel *channel);

/* Client side. Results: see enum in channel.h, mirrored in native/__init__.py. Of what was sent: the position
 * behind it on its ring, a multiple of 64, plus the epoch modulo 64 (atoll_call_end, too). */
/* Of a plain reply its length alone. */
int64_t atoll_call(atoll_channel *channel, const atoll_site *site, const char *payload, uint32_t length);
int64_t atoll_wait(atoll_channel *channel, uint64_t request, uint64_t until);
int64_t atoll_send(atoll_channel *channel, const atoll_site *site, uint64_t request, const char *payload,
                   uint32_t length, uint64_t deadline, uint64_t trace, const char *context);
int64_t atoll_post(atoll_channel *channel, const atoll_site *site, uint64_t request, const char *payload,
                   uint32_t length);
uint64_t atoll_reserve_requests(atoll_channel *channel, uint32_t count);
uint64_t atoll_call_request(atoll_channel *channel);
uint64_t atoll_call_end(atoll_channel *channel);
int atoll_call_waits(atoll_channel *channel);
void atoll_ring_bell(atoll_channel *channel);
int64_t atoll_receive(atoll_channel *channel);
int atoll_spin(atoll_channel *channel);
int atoll_arm(atoll_channel *channel);
void atoll_disarm(atoll_channel *channel);
int atoll_channel_deaf(atoll_channel *channel);

/* Server side: the receive loop. */
atoll_loop *atoll_loop_new(const void *notice, void *status, uint64_t buffer);
void atoll_loop_free(atoll_loop *loop);
int atoll_loop_watch(atoll_loop *loop, int descriptor);
int atoll_loop_add(atoll_loop *loop, atoll_channel *channel, uint32_t number, int client);
void atoll_loop_remove(atoll_loop *loop, uint32_t number);
int atoll_loop_segment(atoll_loop *loop, uint32_t index, const void *entries);
/* `copies`: it takes buffers, and what is written into or read out of one takes longer than a usual wait. */
int atoll_loop_method(atoll_loop *loop, uint32_t interface, uint32_t number, uint32_t index, uint64_t right,
                      int copies);
void *atoll_loop_buffer(atoll_loop *loop);
atoll_message *atoll_loop_message(atoll_loop *loop);
void atoll_loop_until(atoll_loop *loop, uint64_t until);
void atoll_loop_idle_wanted(atoll_loop *loop, int wanted);
/* `kind_length`: the reply's kind in its upper half, 0 for KIND_REPLY, and its length; 0: there is none. */
uint64_t atoll_loop_next(atoll_loop *loop, const char *reply, uint64_t kind_length);
int64_t atoll_loop_reply(atoll_loop *loop, uint32_t channel, uint64_t request, uint32_t lane, uint32_t kind,
                         const char *payload, uint32_t length);
void atoll_loop_flush(atoll_loop *loop);
void atoll_loop_hold(atoll_loop *loop, uint32_t channel, int held);
void atoll_loop_drain(atoll_loop *loop, int draining);
int atoll_loop_recheck(atoll_loop *loop, const atoll_message *message);
uint64_t atoll_loop_parks(atoll_loop *loop);
int atoll_loop_sleep_outside(atoll_loop *loop);
void atoll_loop_wake(atoll_loop *loop);

/* For simulations: have the time of this process stand at a moment (CLOCK_MONOTONIC ns); 0: let it run. */
void atoll_clock_stand(uint64_t at);

/* The kernel's side: tables, notices, wake-ups. `segment`, `notice` and `memory` are its own writable
 * mappings. */
void atoll_entry_write(void *segment, uint32_t index, uint32_t channel, uint32_t generation, uint64_t rights,
                       uint64_t badge, uint64_t expiry, uint32_t interface, uint32_t service,
                       uint64_t capability);
void atoll_entry_clear(void *segment, uint32_t index, uint32_t generation);
void atoll_notice_gate(void *notice, uint32_t gate);
void atoll_notice_revoked(void *notice);
void atoll_notice_withdrew(void *notice);
void atoll_notice_channel(void *notice, uint32_t index, uint32_t epoch, uint32_t state, uint64_t base,
                          const uint64_t *taken);
uint64_t atoll_status_window(const void *status);
void atoll_status_read(const void *status, uint64_t *out);
int atoll_memory_taken(const void *memory, uint32_t lanes, uint64_t *taken);
void atoll_memory_wake(void *memory, int client, int doorbell);
int atoll_punch(int memory, uint64_t offset, uint64_t length);
void atoll_zero(void *memory, uint64_t length);
