/* Replicated memory for applications in C and C++: what is in a region when a checkpoint has returned is in the memory of the standby too.
 *
 *   hanode_app *app = hanode_dial(NULL, err, sizeof err);                  the service's socket, from HANODE_MEMORY
 *   hanode_region *calls = hanode_open(app, "calls", 1 << 20, 1, 0);       its content is the newest image
 *   hanode_wait_active(app, -1);                                           a hot standby waits here, and takes each image as it arrives
 *   for (;;) {
 *       read_request(&req);
 *       apply(hanode_bytes(calls), &req);
 *       if (hanode_checkpoint(calls) != HANODE_OK) die(hanode_error(app)); the standby holds it
 *       answer(&req);
 *   }
 *
 * Needs Linux and nothing else. One thread at a time per hanode_app (hanode_may_act and hanode_mark: any thread). Write to a region only while you are active, and
 * not while a checkpoint of it is being made. Keep no pointers in a region. docs/memory.md describes the protocol.
 */
#ifndef HANODE_MEMORY_H
#define HANODE_MEMORY_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct hanode_app hanode_app;
typedef struct hanode_region hanode_region;

/* What functions return. hanode_error says it in a sentence that names region and remedy. */
enum {
	HANODE_OK = 0,
	HANODE_INVALID = 1,    /* the question makes no sense */
	HANODE_FOREIGN = 2,    /* not a process of the service */
	HANODE_NOT_ACTIVE = 3, /* fenced, standby, or the lease is over: end, or wait to be active */
	HANODE_BUSY = 4,       /* the region belongs to another process */
	HANODE_TOO_BIG = 5,
	HANODE_LAYOUT = 6, /* the image has another layout version */
	HANODE_UNKNOWN = 7,
	HANODE_LOG_FULL = 8, /* make a checkpoint */
	HANODE_BROKEN = 9,
	HANODE_AWAY = 10,   /* the server is gone; the memory stands: see hanode_redial */
	HANODE_TIMEOUT = 11
};

enum { HANODE_IDLE = 0, HANODE_STANDBY = 1, HANODE_ACTIVE = 2, HANODE_FENCED = 4 };

/* Flags of hanode_open. Without one of the last three: by the kernel where it can (Linux 6.7), else by comparing. */
enum {
	HANODE_DISCARD = 1,    /* begin empty */
	HANODE_ANY_LAYOUT = 2, /* give the image whatever its version is: see hanode_layout */
	HANODE_TRACK_KERNEL = 0x100,
	HANODE_TRACK_DECLARED = 0x200, /* hanode_mark says what is written */
	HANODE_TRACK_COMPARE = 0x400   /* needs the memory twice */
};

hanode_app *hanode_dial(const char *path, char *err, size_t errlen);
int hanode_redial(hanode_app *app); /* after HANODE_AWAY: connects again and brings the regions along */
void hanode_close(hanode_app *app);
const char *hanode_error(const hanode_app *app);
const char *hanode_service(const hanode_app *app);
int hanode_fd(const hanode_app *app);                   /* readable: call hanode_poll */
int hanode_poll(hanode_app *app, int timeout_ms);       /* takes notices: role, and images while standby. HANODE_OK or HANODE_TIMEOUT or HANODE_AWAY */
int hanode_role(const hanode_app *app, uint64_t *epoch);
int hanode_wait_active(hanode_app *app, int timeout_ms); /* -1: for ever. HANODE_NOT_ACTIVE if fenced */
int hanode_may_act(const hanode_app *app);              /* 1: this very moment. Some 50 ns: ask before each act */
int hanode_ready(hanode_app *app, uint64_t epoch);
int hanode_heartbeat(hanode_app *app);
int hanode_fail(hanode_app *app, const char *why);

hanode_region *hanode_open(hanode_app *app, const char *name, uint64_t size, uint32_t layout, int flags);
void *hanode_bytes(const hanode_region *r);
uint64_t hanode_size(const hanode_region *r);
uint64_t hanode_image(const hanode_region *r); /* number of the newest image at open or take */
uint32_t hanode_layout(const hanode_region *r);
void hanode_mark(hanode_region *r, uint64_t off, uint64_t n);
int hanode_grow(hanode_region *r, uint64_t size); /* where it is: pointers stay valid */
int hanode_restore(hanode_region *r);             /* throws away what was written since the newest image */
int hanode_release(hanode_region *r);             /* gives the region back; r is gone */

int hanode_checkpoint(hanode_region *r);
int hanode_checkpoint_group(hanode_app *app, hanode_region **r, int n);                /* one image of several */
int hanode_start(hanode_app *app, hanode_region **r, int n, uint64_t *ticket);         /* returns at once; each ticket must be waited for */
int hanode_wait(hanode_app *app, uint64_t ticket, uint64_t *number);

int hanode_append(hanode_region *r, const void *record, size_t n); /* message log beside the region */
int hanode_replay(hanode_region *r, int (*fn)(void *arg, const void *record, size_t n), void *arg);

#ifdef __cplusplus
}
#endif
#endif
