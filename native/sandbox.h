/* Between the steps of a child's confinement (sandbox.c) and its root (root.c). */
#ifndef ATOLL_SANDBOX_H
#define ATOLL_SANDBOX_H

#include <stddef.h>
#include <stdint.h>

#include "interface/sandbox.h"

/* Ends the child: whoever reads `status` learns the step, the row and errno; there is no other way on. */
__attribute__((noreturn)) void give_up(int status, int step, int detail);

/* Enter the plan's root. Asks for the capability to mount. */
void root_enter(const struct atoll_plan *plan);

/* Keep the host's root, hide the plan's `covers`, and let its binds stand in them. */
void root_cover(const struct atoll_plan *plan);

#endif
