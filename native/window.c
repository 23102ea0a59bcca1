/*
 * The window between the capability check and the handler's first step.
 *
 * While a message is in it, the status segment shows an odd number that no message before had. The kernel's
 * `revoke` writes the table, fences, and waits while the number it saw stays: so either our check saw the
 * revocation, or the kernel sees us in the window and waits until the handler has begun. Python closes it
 * (writes 0) as the first step of the handler, after it has seen that no revocation was counted since.
 *
 * A process is frozen only outside its window, since a revocation would not wait for it there: the kernel
 * closes the gate, fences, and waits for the window like a revocation; we open the window, fence, and look at
 * the gate again. So either we see the gate and leave, or the kernel sees the window and waits with the
 * freeze.
 */
#include "atomics.h"
#include "loop.h"

void loop_window_close(struct atoll_loop *loop) {
    /* Pairs with load_acquire in atoll_status_window: closed only when what was looked at is done with. */
    store_release(&loop->status->window, 0);
}

int loop_window_open(struct atoll_loop *loop) {
    loop->window += 2;
    store_relaxed(&loop->status->window, loop->window);
    /* Pairs with the fences in atoll_notice_revoked and atoll_notice_gate: our window before our look at the
     * table and at the gate. Without it `revoke` could see a closed window while we still see the old entry,
     * and a process could be frozen inside a window that the kernel saw closed. */
    fence_store_load();
    if (!load_relaxed(&loop->notice->gate))
        return 1;
    loop_window_close(loop);
    return 0;
}

enum refusal loop_check(struct atoll_loop *loop, const struct header *header, uint32_t number,
                        const struct method **method) {
    struct entry entry;
    atoll_message *message = &loop->message;
    *method = NULL;
    enum refusal refusal = table_check(&loop->table, header->slot, header->generation, number, &entry);
    message->rights = entry.rights;
    message->badge = entry.badge;
    message->capability = entry.capability;
    message->interface = entry.interface;
    message->needed = 0;
    if (refusal == REFUSED_NOT) {
        *method = loop_method(loop, entry.interface, header->method);
        if (!*method)
            refusal = REFUSED_METHOD;
        else if (((*method)->right & entry.rights) != (*method)->right)
            refusal = REFUSED_RIGHTS;
        else if (header->lane < entry.service)
            refusal = REFUSED_SERVICE;
        if (*method)
            message->needed = (*method)->index;
    }
    if (refusal != REFUSED_NOT)
        loop_window_close(loop);
    return refusal;
}

int atoll_loop_recheck(atoll_loop *loop, const atoll_message *message) {
    struct entry entry;
    if (load_relaxed(&loop->status->window) & 1)
        /* Pairs with the fence in atoll_notice_revoked. The window stays the one that the kernel waits for.
         */
        fence_store_load();
    else if (!loop_window_open(loop))
        return RECHECK_GATED;
    enum refusal refusal =
        table_check(&loop->table, message->slot, message->generation, message->channel, &entry);
    if (refusal == REFUSED_NOT && (message->rights & entry.rights) != message->rights)
        refusal = REFUSED_RIGHTS;
    if (refusal != REFUSED_NOT)
        loop_window_close(loop);
    return (int)refusal;
}
