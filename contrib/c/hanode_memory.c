/* See hanode_memory.h, and docs/memory.md for the protocol. */
#define _GNU_SOURCE
#include "hanode_memory.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define BLOCK 4096u
#define MAXMSG 65536
#define HEADER 32
#define MAXPARTS 16
#define MAXTICKETS 64
#define MAXREGIONS 16

enum { K_HELLO = 1, K_OPEN, K_CHECKPOINT, K_APPEND, K_GROW, K_TAKE, K_REPLAY, K_RECORD, K_CLOSE, K_READY, K_HEARTBEAT, K_FAIL, K_ROLE = 20, K_IMAGE = 21, K_ANSWER = 0x8000 };

struct msg { /* the header; the protocol is little endian, as every machine that this is built for */
	uint32_t len;
	uint16_t kind, flags;
	uint64_t id;
	uint32_t region, status;
	uint64_t value;
};

struct info {
	uint64_t epoch, gen, number, age, size, max, stage, logseq, lastseq, every;
	uint32_t layout, mode;
};

struct part {
	uint32_t region, blocks;
	uint64_t off;
};

struct ticket {
	uint64_t id, number;
	int used, done, status, n;
	struct part parts[MAXPARTS];
};

struct hanode_region {
	hanode_app *app;
	char name[64];
	uint32_t no, layout_wanted;
	int flags, live, uffd, pagemap, track;
	struct info info;
	uint8_t *mem, *stage, *shadow;
	uint64_t *marked, *owed, mapped, words, used; /* used: where the next checkpoint goes in the staging memory */
};

struct hanode_app {
	char path[108], service[256], err[1024];
	int fd, role, away, was; /* was: the role when the server went away */
	int pending; /* notices that arrived and were not followed yet: 1 active, 2 an image */
	uint64_t epoch, id;
	uint8_t *page;
	hanode_region *regions[MAXREGIONS];
	struct ticket tickets[MAXTICKETS];
	uint8_t buf[MAXMSG];
	int fds[2], nfds;
};

static uint64_t blocks_of(uint64_t size) { return (size + BLOCK - 1) / BLOCK; }
static uint64_t room_of(uint64_t n) { return (n * 8 + BLOCK - 1) / BLOCK * BLOCK; }

static int fail(hanode_app *a, int status, const char *what) {
	snprintf(a->err, sizeof a->err, "%s", what);
	return status;
}

static int away(hanode_app *a) {
	if (!a->away)
		snprintf(a->err, sizeof a->err, "service %s: the server of its memory is away; the memory stands, call hanode_redial", a->service);
	if (!a->away && a->role == HANODE_ACTIVE)
		a->was = HANODE_ACTIVE;
	a->away = 1;
	a->role = HANODE_IDLE;
	return HANODE_AWAY;
}

static int send_msg(hanode_app *a, struct msg *m, const void *body, size_t n, int fd) {
	if (a->away)
		return away(a);
	m->len = (uint32_t)(HEADER + n);
	m->id = ++a->id;
	struct iovec iov[2] = {{m, HEADER}, {(void *)body, n}};
	union {
		struct cmsghdr h;
		char b[CMSG_SPACE(sizeof(int))];
	} c;
	struct msghdr h = {.msg_iov = iov, .msg_iovlen = 2};
	if (fd >= 0) {
		h.msg_control = c.b;
		h.msg_controllen = sizeof c.b;
		struct cmsghdr *cm = CMSG_FIRSTHDR(&h);
		cm->cmsg_level = SOL_SOCKET;
		cm->cmsg_type = SCM_RIGHTS;
		cm->cmsg_len = CMSG_LEN(sizeof fd);
		memcpy(CMSG_DATA(cm), &fd, sizeof fd);
	}
	ssize_t w;
	while ((w = sendmsg(a->fd, &h, MSG_NOSIGNAL)) < 0 && errno == EINTR)
		;
	return w < 0 ? away(a) : HANODE_OK;
}

/* recv_msg reads one message into a->buf; its descriptors are in a->fds. */
static int recv_msg(hanode_app *a, int timeout_ms) {
	struct pollfd p = {a->fd, POLLIN, 0};
	if (a->away)
		return away(a);
	if (timeout_ms >= 0) {
		int r;
		while ((r = poll(&p, 1, timeout_ms)) < 0 && errno == EINTR)
			;
		if (r == 0)
			return HANODE_TIMEOUT;
	}
	char c[CMSG_SPACE(4 * sizeof(int))];
	struct iovec iov = {a->buf, sizeof a->buf};
	struct msghdr h = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = c, .msg_controllen = sizeof c};
	ssize_t n;
	while ((n = recvmsg(a->fd, &h, MSG_CMSG_CLOEXEC)) < 0 && errno == EINTR)
		;
	a->nfds = 0;
	if (n > 0)
		for (struct cmsghdr *cm = CMSG_FIRSTHDR(&h); cm; cm = CMSG_NXTHDR(&h, cm)) {
			if (cm->cmsg_level != SOL_SOCKET || cm->cmsg_type != SCM_RIGHTS)
				continue;
			size_t k = (cm->cmsg_len - CMSG_LEN(0)) / sizeof(int);
			for (size_t i = 0; i < k; i++) {
				int fd;
				memcpy(&fd, CMSG_DATA(cm) + i * sizeof fd, sizeof fd);
				if (a->nfds < 2)
					a->fds[a->nfds++] = fd;
				else
					close(fd);
			}
		}
	if (n < HEADER || ((struct msg *)a->buf)->len != (uint32_t)n)
		return away(a);
	return HANODE_OK;
}

static void drop_fds(hanode_app *a) {
	while (a->nfds > 0)
		close(a->fds[--a->nfds]);
}

/* owe: these blocks did not get through; the next checkpoint has them. Their table still stands in the staging memory. */
static void owe(hanode_app *a, struct ticket *t) {
	for (int i = 0; i < t->n; i++)
		for (int k = 0; k < MAXREGIONS; k++) {
			hanode_region *r = a->regions[k];
			if (!r || r->no != t->parts[i].region)
				continue;
			const uint32_t *table = (const uint32_t *)(r->stage + t->parts[i].off);
			for (uint32_t b = 0; b < t->parts[i].blocks; b++)
				r->owed[table[2 * b] / 64] |= 1ull << (table[2 * b] % 64);
		}
}

static int take(hanode_region *r, int all);

/* got handles a message that nobody in particular waits for; settle does what it asks for. */
static void got(hanode_app *a) {
	struct msg m;
	memcpy(&m, a->buf, sizeof m);
	if (m.kind == K_ROLE) {
		a->epoch = m.value;
		if (m.flags == HANODE_ACTIVE && a->role != HANODE_ACTIVE)
			a->pending |= 1; /* not active before every region has the newest image */
		else
			a->role = m.flags;
	} else if (m.kind == K_IMAGE) {
		a->pending |= 2;
	} else if (m.kind == (K_CHECKPOINT | K_ANSWER)) {
		for (int i = 0; i < MAXTICKETS; i++) {
			struct ticket *t = &a->tickets[i];
			if (!t->used || t->done || t->id != m.id)
				continue;
			t->done = 1;
			t->number = m.value;
			if ((t->status = (int)m.status) != HANODE_OK) {
				snprintf(a->err, sizeof a->err, "%.*s", (int)(m.len - HEADER), (char *)a->buf + HEADER);
				owe(a, t);
			}
		}
	} else if (m.id == 0 && m.status) {
		snprintf(a->err, sizeof a->err, "%.*s", (int)(m.len - HEADER), (char *)a->buf + HEADER);
		a->away = 1;
	}
	drop_fds(a);
}



/* ask sends a question and waits for its answer, which is in a->buf then. */
static int ask(hanode_app *a, struct msg *m, const void *body, size_t n, int fd) {
	int st = send_msg(a, m, body, n, fd);
	uint64_t id = m->id;
	while (st == HANODE_OK) {
		if ((st = recv_msg(a, -1)) != HANODE_OK)
			return st;
		struct msg *r = (struct msg *)a->buf;
		if (r->id == id && r->kind != (K_RECORD | K_ANSWER)) {
			if (r->status != HANODE_OK) {
				snprintf(a->err, sizeof a->err, "%.*s", (int)(r->len - HEADER), (char *)a->buf + HEADER);
				drop_fds(a);
			}
			return (int)r->status;
		}
		got(a);
	}
	return st;
}

/* settle does what notices ask for: takes images, and takes over. */
static int settle(hanode_app *a) {
	while (a->pending && !a->away) {
		int what = a->pending;
		a->pending = 0;
		for (int i = 0; i < MAXREGIONS; i++)
			if (a->regions[i] && a->role != HANODE_ACTIVE) {
				int st = take(a->regions[i], 0);
				if (st != HANODE_OK)
					return st;
			}
		if (what & 1)
			a->role = HANODE_ACTIVE;
	}
	return a->away ? HANODE_AWAY : HANODE_OK;
}

static int greet(hanode_app *a) {
	struct sockaddr_un sa = {.sun_family = AF_UNIX};
	memcpy(sa.sun_path, a->path, sizeof sa.sun_path);
	a->fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	if (a->fd < 0 || connect(a->fd, (struct sockaddr *)&sa, sizeof sa) < 0) {
		snprintf(a->err, sizeof a->err, "connect to the memory of the service at %s: %s", a->path, strerror(errno));
		if (a->fd >= 0)
			close(a->fd);
		a->fd = -1;
		return HANODE_AWAY;
	}
	a->away = 0;
	struct msg m = {.kind = K_HELLO, .value = 1};
	int st = ask(a, &m, "c", 1, -1);
	if (st != HANODE_OK) {
		close(a->fd);
		a->fd = -1;
		a->away = 1;
		return st;
	}
	struct msg *r = (struct msg *)a->buf;
	a->role = r->flags;
	a->epoch = r->value;
	snprintf(a->service, sizeof a->service, "%.*s", (int)(r->len - HEADER), (char *)a->buf + HEADER);
	if (a->nfds > 0 && !a->page) {
		void *p = mmap(NULL, 4096, PROT_READ, MAP_SHARED, a->fds[0], 0);
		if (p != MAP_FAILED && memcmp(p, "HANODEP1", 8) == 0)
			a->page = p;
		else
			st = fail(a, HANODE_BROKEN, "the deadline page is not of this layout: use a library of the server's version");
	}
	drop_fds(a);
	return st;
}

hanode_app *hanode_dial(const char *path, char *err, size_t errlen) {
	hanode_app *a = calloc(1, sizeof *a);
	int st = HANODE_BROKEN;
	if (!a)
		return NULL;
	a->fd = -1;
	if (!path)
		path = getenv("HANODE_MEMORY");
	if (!path || strlen(path) >= sizeof a->path)
		fail(a, st, "HANODE_MEMORY is not set: start this program as a process of a service that has memory, or name the socket");
	else {
		strcpy(a->path, path);
		st = greet(a);
	}
	if (st == HANODE_OK)
		return a;
	if (err && errlen)
		snprintf(err, errlen, "%s", a->err);
	hanode_close(a);
	return NULL;
}

const char *hanode_error(const hanode_app *a) { return a->err; }
const char *hanode_service(const hanode_app *a) { return a->service; }
int hanode_fd(const hanode_app *a) { return a->fd; }

int hanode_role(const hanode_app *a, uint64_t *epoch) {
	if (epoch)
		*epoch = a->epoch;
	return a->role;
}

int hanode_poll(hanode_app *a, int timeout_ms) {
	int st = recv_msg(a, timeout_ms);
	while (st == HANODE_OK) {
		got(a);
		if ((st = settle(a)) == HANODE_OK)
			st = recv_msg(a, 0);
		if (st == HANODE_TIMEOUT)
			return HANODE_OK;
	}
	return st;
}

static int64_t now_ns(clockid_t c) {
	struct timespec t;
	clock_gettime(c, &t);
	return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

int hanode_wait_active(hanode_app *a, int timeout_ms) {
	int64_t end = now_ns(CLOCK_MONOTONIC) + (int64_t)timeout_ms * 1000000;
	for (;;) {
		int st = settle(a);
		if (st != HANODE_OK)
			return st;
		if (a->role == HANODE_ACTIVE)
			return HANODE_OK;
		if (a->role == HANODE_FENCED) {
			snprintf(a->err, sizeof a->err, "service %s: fenced in epoch %llu", a->service, (unsigned long long)a->epoch);
			return HANODE_NOT_ACTIVE;
		}
		int64_t left = timeout_ms < 0 ? 1000 : (end - now_ns(CLOCK_MONOTONIC)) / 1000000;
		if (left < 0)
			return fail(a, HANODE_TIMEOUT, "not active within the time");
		if ((st = hanode_poll(a, (int)left)) != HANODE_OK && st != HANODE_TIMEOUT)
			return st;
	}
}

/* The page: two slots, a counter says which one counts; see internal/page. */
int hanode_may_act(const hanode_app *a) {
	if (a->role != HANODE_ACTIVE)
		return 0;
	if (!a->page)
		return 1;
	const uint8_t *p = a->page;
	for (int i = 0; i < 100; i++) {
		uint64_t n = __atomic_load_n((const uint64_t *)(p + 16), __ATOMIC_SEQ_CST);
		const uint8_t *s = p + 64 + 64 * (n & 1);
		int64_t deadline = __atomic_load_n((const int64_t *)(s + 8), __ATOMIC_SEQ_CST);
		uint32_t state = __atomic_load_n((const uint32_t *)(s + 32), __ATOMIC_SEQ_CST);
		if (__atomic_load_n((const uint64_t *)(p + 16), __ATOMIC_SEQ_CST) == n)
			return state == HANODE_ACTIVE && now_ns(CLOCK_BOOTTIME) < deadline;
	}
	return 0;
}

static int simple(hanode_app *a, int kind, uint64_t value, const char *text) {
	struct msg m = {.kind = (uint16_t)kind, .value = value};
	int st = ask(a, &m, text, text ? strlen(text) : 0, -1);
	return st == HANODE_OK ? settle(a) : st;
}

int hanode_ready(hanode_app *a, uint64_t epoch) { return simple(a, K_READY, epoch, NULL); }
int hanode_heartbeat(hanode_app *a) { return simple(a, K_HEARTBEAT, 0, NULL); }
int hanode_fail(hanode_app *a, const char *why) { return simple(a, K_FAIL, 0, why); }

/* Tracking of changes: values from include/uapi/linux/userfaultfd.h and fs.h. */
struct pm_region {
	uint64_t start, end, categories;
};
struct pm_scan {
	uint64_t size, flags, start, end, walk_end, vec, vec_len, max_pages, inverted, mask, any_of, ret;
};

static int protect(hanode_region *r, uint64_t from, uint64_t to) {
	uint64_t a[3] = {(uint64_t)(uintptr_t)r->mem + from, to - from, 1};
	return to > from ? ioctl(r->uffd, 0xc018aa06, a) : 0;
}

static int scan(hanode_region *r, uint64_t *bits, uint64_t blocks) {
	struct pm_region vec[256];
	uint64_t at = (uint64_t)(uintptr_t)r->mem, base = at, end = at + blocks * BLOCK;
	while (at < end) {
		struct pm_scan s = {.size = sizeof s, .flags = 3, .start = at, .end = end, .vec = (uint64_t)(uintptr_t)vec, .vec_len = 256, .mask = 2, .ret = 2};
		int n = ioctl(r->pagemap, 0xc0606610, &s);
		if (n < 0) {
			if (errno == EINTR || errno == EAGAIN)
				continue;
			return -1;
		}
		for (int i = 0; i < n; i++)
			for (uint64_t p = vec[i].start; p < vec[i].end; p += BLOCK)
				bits[(p - base) / BLOCK / 64] |= 1ull << ((p - base) / BLOCK % 64);
		if (s.walk_end <= at)
			return -1;
		at = s.walk_end;
	}
	return 0;
}

static int track_kernel(hanode_region *r) {
	uint64_t api[3] = {0xaa, 1 << 0 | 1 << 12 | 1 << 13 | 1 << 15, 0}, reg[4] = {(uint64_t)(uintptr_t)r->mem, r->mapped, 2, 0}, none[1] = {0};
	r->uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | 1);
	if (r->uffd < 0 || ioctl(r->uffd, 0xc018aa3f, api) < 0 || ioctl(r->uffd, 0xc020aa00, reg) < 0)
		return -1;
	r->pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	return r->pagemap < 0 || sysconf(_SC_PAGESIZE) != BLOCK ? -1 : scan(r, none, 1);
}

/* clean: everything counts as unchanged. */
static int clean(hanode_region *r) {
	memset(r->marked, 0, r->words * 8);
	if (r->track == HANODE_TRACK_KERNEL)
		return protect(r, 0, blocks_of(r->info.size) * BLOCK);
	if (r->track == HANODE_TRACK_COMPARE)
		memcpy(r->shadow, r->mem, blocks_of(r->info.size) * BLOCK);
	return 0;
}

/* changed adds the changed blocks to r->owed. */
static int changed(hanode_region *r) {
	uint64_t n = blocks_of(r->info.size);
	if (r->track == HANODE_TRACK_KERNEL)
		return scan(r, r->owed, n);
	if (r->track == HANODE_TRACK_DECLARED) {
		for (uint64_t w = 0; w < r->words; w++)
			r->owed[w] |= __atomic_exchange_n(&r->marked[w], 0, __ATOMIC_ACQ_REL);
		return 0;
	}
	for (uint64_t b = 0; b < n; b++)
		if (memcmp(r->shadow + b * BLOCK, r->mem + b * BLOCK, BLOCK) != 0) {
			memcpy(r->shadow + b * BLOCK, r->mem + b * BLOCK, BLOCK);
			r->owed[b / 64] |= 1ull << (b % 64);
		}
	return 0;
}

void hanode_mark(hanode_region *r, uint64_t off, uint64_t n) {
	for (uint64_t b = off / BLOCK; n && b <= (off + n - 1) / BLOCK && b / 64 < r->words; b++)
		__atomic_or_fetch(&r->marked[b / 64], 1ull << (b % 64), __ATOMIC_RELEASE);
}

static int open_at(hanode_region *r, int bring) {
	hanode_app *a = r->app;
	uint8_t body[8 + 64];
	uint32_t flags = (uint32_t)(r->flags & 3) | (bring ? 4u : 0u);
	if (bring)
		flags &= ~1u;
	memcpy(body, &r->layout_wanted, 4);
	memcpy(body + 4, &flags, 4);
	memcpy(body + 8, r->name, strlen(r->name));
	struct msg m = {.kind = K_OPEN, .value = r->info.size};
	int st = ask(a, &m, body, 8 + strlen(r->name), bring ? r->live : -1);
	if (st != HANODE_OK)
		return st;
	struct msg *h = (struct msg *)a->buf;
	if (a->nfds != 2 || h->len < HEADER + sizeof r->info) {
		drop_fds(a);
		return fail(a, HANODE_BROKEN, "the server's answer to an open is not of this version");
	}
	r->no = h->region;
	uint64_t before = r->info.stage;
	memcpy(&r->info, a->buf + HEADER, sizeof r->info);
	if (r->stage)
		munmap(r->stage, before);
	r->stage = mmap(NULL, r->info.stage, PROT_READ | PROT_WRITE, MAP_SHARED, a->fds[1], 0);
	r->used = 0;
	close(a->fds[1]);
	a->nfds = 0;
	if (bring)
		close(a->fds[0]);
	else {
		r->live = a->fds[0];
		r->mapped = blocks_of(r->info.max) * BLOCK;
		r->mem = mmap(NULL, r->mapped, PROT_READ | PROT_WRITE, MAP_SHARED, r->live, 0);
	}
	if (r->stage == MAP_FAILED || r->mem == MAP_FAILED)
		return fail(a, HANODE_BROKEN, "the region cannot be mapped: not enough address space or memory");
	return HANODE_OK;
}

static void unmap(hanode_region *r) {
	if (r->mem && r->mem != MAP_FAILED)
		munmap(r->mem, r->mapped);
	if (r->stage && r->stage != MAP_FAILED)
		munmap(r->stage, r->info.stage);
	int fds[3] = {r->live, r->uffd, r->pagemap};
	for (int i = 0; i < 3; i++)
		if (fds[i] >= 0)
			close(fds[i]);
	for (int i = 0; i < MAXREGIONS; i++)
		if (r->app->regions[i] == r)
			r->app->regions[i] = NULL;
	free(r->shadow);
	free(r->marked);
	free(r->owed);
	free(r);
}

hanode_region *hanode_open(hanode_app *a, const char *name, uint64_t size, uint32_t layout, int flags) {
	int slot = 0;
	while (slot < MAXREGIONS && a->regions[slot])
		slot++;
	hanode_region *r = calloc(1, sizeof *r);
	if (!r || slot == MAXREGIONS || strlen(name) >= sizeof r->name) {
		free(r);
		fail(a, HANODE_INVALID, "a region's name has 1 to 63 characters, and a process at most 16 regions");
		return NULL;
	}
	strcpy(r->name, name);
	r->app = a;
	r->live = r->uffd = r->pagemap = -1;
	r->layout_wanted = layout;
	r->flags = flags;
	r->info.size = size;
	int st = open_at(r, 0);
	if (st == HANODE_OK) {
		r->words = (r->mapped / BLOCK + 63) / 64;
		r->marked = calloc(r->words, 8);
		r->owed = calloc(r->words, 8);
		r->track = flags & (HANODE_TRACK_KERNEL | HANODE_TRACK_DECLARED | HANODE_TRACK_COMPARE);
		if (!r->track || r->track == HANODE_TRACK_KERNEL) {
			if (track_kernel(r) == 0)
				r->track = HANODE_TRACK_KERNEL;
			else if (r->track)
				st = fail(a, HANODE_BROKEN, "the kernel cannot track changes (needs Linux 6.7 and userfaultfd): declare ranges, or compare");
			else
				r->track = HANODE_TRACK_COMPARE;
		}
		if (r->track == HANODE_TRACK_COMPARE && !(r->shadow = calloc(1, r->mapped)))
			st = fail(a, HANODE_BROKEN, "no memory for the copy of the last checkpoint");
		if (st == HANODE_OK && (!r->marked || !r->owed || clean(r) != 0))
			st = fail(a, HANODE_BROKEN, "the region's changes cannot be tracked");
	}
	if (st != HANODE_OK) {
		unmap(r);
		return NULL;
	}
	a->regions[slot] = r;
	return settle(a) == HANODE_OK ? r : NULL;
}

void *hanode_bytes(const hanode_region *r) { return r->mem; }
uint64_t hanode_size(const hanode_region *r) { return r->info.size; }
uint64_t hanode_image(const hanode_region *r) { return r->info.number; }
uint32_t hanode_layout(const hanode_region *r) { return r->info.layout; }

static int take(hanode_region *r, int all) {
	struct msg m = {.kind = K_TAKE, .flags = (uint16_t)all, .region = r->no};
	int st = ask(r->app, &m, NULL, 0, -1);
	if (st != HANODE_OK)
		return st;
	memcpy(&r->info, r->app->buf + HEADER, sizeof r->info);
	memset(r->owed, 0, r->words * 8);
	return clean(r) == 0 ? HANODE_OK : fail(r->app, HANODE_BROKEN, "the region's changes cannot be tracked");
}

int hanode_restore(hanode_region *r) { return take(r, 1); }

int hanode_grow(hanode_region *r, uint64_t size) {
	struct msg m = {.kind = K_GROW, .region = r->no, .value = size};
	uint64_t before = blocks_of(r->info.size) * BLOCK;
	int st = ask(r->app, &m, NULL, 0, -1);
	if (st != HANODE_OK)
		return st;
	memcpy(&r->info, r->app->buf + HEADER, sizeof r->info);
	if (r->track == HANODE_TRACK_KERNEL && protect(r, before, blocks_of(r->info.size) * BLOCK) < 0)
		return fail(r->app, HANODE_BROKEN, "the region's changes cannot be tracked");
	return settle(r->app);
}

int hanode_release(hanode_region *r) {
	struct msg m = {.kind = K_CLOSE, .region = r->no};
	int st = ask(r->app, &m, NULL, 0, -1);
	unmap(r);
	return st;
}

int hanode_redial(hanode_app *a) {
	if (a->fd >= 0)
		close(a->fd);
	a->fd = -1;
	for (int i = 0; i < MAXTICKETS; i++)
		if (a->tickets[i].used && !a->tickets[i].done) {
			a->tickets[i].done = 1;
			a->tickets[i].status = HANODE_AWAY;
		}
	int st = greet(a), role = a->role;
	a->role = HANODE_IDLE;
	if (st == HANODE_OK && a->was == HANODE_ACTIVE && role == HANODE_STANDBY) {
		a->away = 1; /* what it holds may be older than this memory: it must not be shown in its place */
		return fail(a, HANODE_AWAY, "the new server does not lead yet: call hanode_redial again");
	}
	for (int i = 0; i < MAXREGIONS && st == HANODE_OK; i++)
		if (a->regions[i]) {
			hanode_region *r = a->regions[i];
			if ((st = open_at(r, 1)) == HANODE_OK) /* what the server holds may be older */
				for (uint64_t b = 0; b < blocks_of(r->info.size); b++)
					r->owed[b / 64] |= 1ull << (b % 64);
		}
	if (st == HANODE_OK) {
		a->role = role;
		a->was = HANODE_IDLE;
	}
	return st == HANODE_OK ? settle(a) : st;
}

void hanode_close(hanode_app *a) {
	if (!a)
		return;
	for (int i = 0; i < MAXREGIONS; i++)
		if (a->regions[i])
			unmap(a->regions[i]);
	if (a->fd >= 0)
		close(a->fd);
	if (a->page)
		munmap(a->page, 4096);
	free(a);
}

/* copy_changed puts the changed blocks into staging memory. */
static int copy_changed(hanode_region *r, struct part *p) {
	if (changed(r) < 0)
		return fail(r->app, HANODE_BROKEN, "the changed blocks of a region cannot be found");
	uint64_t n = 0, i = 0, blocks = blocks_of(r->info.size);
	for (uint64_t w = 0; w < r->words; w++)
		n += (uint64_t)__builtin_popcountll(r->owed[w]);
	p->region = r->no;
	p->blocks = (uint32_t)n;
	p->off = 0;
	if (n == 0)
		return HANODE_OK;
	uint64_t need = room_of(n) + n * BLOCK;
	if (r->used + need > r->info.stage) { /* wait until all that lies there was taken */
		for (int k = 0; k < MAXTICKETS; k++) {
			struct ticket *t = &r->app->tickets[k];
			while (t->used && !t->done) {
				int st = recv_msg(r->app, -1);
				if (st != HANODE_OK)
					return st;
				got(r->app);
			}
		}
		r->used = 0;
	}
	p->off = r->used;
	uint32_t *table = (uint32_t *)(r->stage + r->used);
	uint8_t *to = r->stage + r->used + room_of(n);
	for (uint64_t w = 0; w < r->words; w++) {
		uint64_t word = r->owed[w];
		r->owed[w] = 0;
		for (; word; word &= word - 1) {
			uint64_t b = w * 64 + (uint64_t)__builtin_ctzll(word);
			if (b >= blocks)
				continue;
			table[2 * i] = (uint32_t)b;
			table[2 * i + 1] = 0;
			memcpy(to + i * BLOCK, r->mem + b * BLOCK, BLOCK);
			i++;
		}
	}
	p->blocks = (uint32_t)i;
	r->used += need;
	return HANODE_OK;
}

int hanode_start(hanode_app *a, hanode_region **r, int n, uint64_t *ticket) {
	struct ticket *t = NULL;
	if (n < 1 || n > MAXPARTS)
		return fail(a, HANODE_INVALID, "a checkpoint of 1 to 16 regions");
	for (int i = 0; i < MAXTICKETS && !t; i++)
		if (!a->tickets[i].used)
			t = &a->tickets[i];
	if (!t)
		return fail(a, HANODE_BUSY, "64 checkpoints are under way: wait for one before you make another");
	int st = settle(a);
	if (st != HANODE_OK)
		return st;
	int idle = 1;
	for (int i = 0; i < MAXTICKETS; i++)
		idle = idle && (!a->tickets[i].used || a->tickets[i].done);
	memset(t, 0, sizeof *t);
	t->n = n;
	for (int i = 0; i < n && st == HANODE_OK; i++) {
		if (idle)
			r[i]->used = 0;
		st = copy_changed(r[i], &t->parts[i]);
		if (st != HANODE_OK)
			t->n = i;
	}
	struct msg m = {.kind = K_CHECKPOINT};
	if (st == HANODE_OK)
		st = send_msg(a, &m, t->parts, (size_t)n * sizeof t->parts[0], -1);
	if (st != HANODE_OK) {
		owe(a, t);
		return st;
	}
	t->used = 1;
	*ticket = t->id = m.id;
	return HANODE_OK;
}

int hanode_wait(hanode_app *a, uint64_t ticket, uint64_t *number) {
	for (int i = 0; i < MAXTICKETS; i++) {
		struct ticket *t = &a->tickets[i];
		if (!t->used || t->id != ticket)
			continue;
		while (!t->done) {
			int st = recv_msg(a, -1);
			if (st != HANODE_OK) {
				owe(a, t);
				t->used = 0;
				return st;
			}
			got(a);
		}
		t->used = 0;
		if (number)
			*number = t->number;
		return t->status;
	}
	return fail(a, HANODE_INVALID, "no such ticket, or it was waited for already");
}

int hanode_checkpoint_group(hanode_app *a, hanode_region **r, int n) {
	uint64_t ticket;
	int st = hanode_start(a, r, n, &ticket);
	return st == HANODE_OK ? hanode_wait(a, ticket, NULL) : st;
}

int hanode_checkpoint(hanode_region *r) { return hanode_checkpoint_group(r->app, &r, 1); }

int hanode_append(hanode_region *r, const void *record, size_t n) {
	if (n > 32768)
		return fail(r->app, HANODE_TOO_BIG, "a record has at most 32768 bytes");
	struct msg m = {.kind = K_APPEND, .region = r->no};
	int st = ask(r->app, &m, record, n, -1);
	return st == HANODE_OK ? settle(r->app) : st;
}

int hanode_replay(hanode_region *r, int (*fn)(void *, const void *, size_t), void *arg) {
	hanode_app *a = r->app;
	struct msg m = {.kind = K_REPLAY, .region = r->no};
	int st = send_msg(a, &m, NULL, 0, -1), stop = 0;
	uint64_t id = m.id;
	while (st == HANODE_OK) {
		if ((st = recv_msg(a, -1)) != HANODE_OK)
			return st;
		struct msg *h = (struct msg *)a->buf;
		if (h->id != id) {
			got(a);
			continue;
		}
		if (h->kind != (K_RECORD | K_ANSWER)) {
			if (h->status)
				snprintf(a->err, sizeof a->err, "%.*s", (int)(h->len - HEADER), (char *)a->buf + HEADER);
			return stop ? stop : (int)h->status;
		}
		if (!stop)
			stop = fn(arg, a->buf + HEADER, h->len - HEADER);
	}
	return st;
}
