/* Lets the conformance suite (replication/memory/conformance_test.go) speak to the C library: one command a line, one answer a line. */
#include "hanode_memory.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static hanode_app *app;
static hanode_region *regions[16];
static char names[16][64];

static hanode_region *find(const char *name) {
	for (int i = 0; i < 16; i++)
		if (regions[i] && strcmp(names[i], name) == 0)
			return regions[i];
	return NULL;
}

static void say(int st, const char *text) {
	if (st)
		printf("err %d %s\n", st, hanode_error(app));
	else
		printf("ok %s\n", text);
}

static int show(void *arg, const void *rec, size_t n) {
	char *out = arg;
	for (size_t i = 0; i < n; i++)
		sprintf(out + strlen(out), "%02x", ((const unsigned char *)rec)[i]);
	strcat(out, ",");
	return 0;
}

int main(void) {
	static char line[65536], out[65536], a1[32768];
	char cmd[32], name[256];
	setvbuf(stdout, NULL, _IOLBF, 0);
	while (fgets(line, sizeof line, stdin)) {
		unsigned long long v1 = 0, v2 = 0, v3 = 0;
		out[0] = a1[0] = name[0] = 0;
		sscanf(line, "%31s %255s", cmd, name);
		if (strcmp(cmd, "dial") == 0) {
			char err[512];
			app = hanode_dial(name, err, sizeof err);
			if (app)
				printf("ok %s\n", hanode_service(app));
			else
				printf("err 0 %s\n", err);
			continue;
		}
		if (strcmp(cmd, "quit") == 0)
			break;
		if (strcmp(cmd, "open") == 0) {
			static const int track[] = {0, HANODE_TRACK_KERNEL, HANODE_TRACK_DECLARED, HANODE_TRACK_COMPARE};
			int flags = 0, t = 0;
			sscanf(line, "%*s %*s %llu %llu %d %d", &v1, &v2, &flags, &t);
			hanode_region *r = hanode_open(app, name, v1, (uint32_t)v2, flags | track[t]);
			for (int i = 0; r && i < 16; i++)
				if (!regions[i]) {
					regions[i] = r;
					strcpy(names[i], name);
					break;
				}
			if (r)
				printf("ok %llu\n", (unsigned long long)hanode_size(r));
			else
				printf("err %d %s\n", 1, hanode_error(app));
			continue;
		}
		if (strcmp(cmd, "put") == 0) {
			sscanf(line, "%*s %*s %llu %llu", &v1, &v2);
			memcpy((char *)hanode_bytes(find(name)) + v1, &v2, 8);
			hanode_mark(find(name), v1, 8);
			say(0, "");
		} else if (strcmp(cmd, "get") == 0) {
			sscanf(line, "%*s %*s %llu", &v1);
			hanode_poll(app, 0);
			memcpy(&v2, (char *)hanode_bytes(find(name)) + v1, 8);
			printf("ok %llu\n", v2);
		} else if (strcmp(cmd, "checkpoint") == 0) {
			char other[256] = "";
			sscanf(line, "%*s %*s %255s", other);
			hanode_region *two[2] = {find(name), find(other)};
			say(hanode_checkpoint_group(app, two, two[1] ? 2 : 1), "");
		} else if (strcmp(cmd, "async") == 0) {
			uint64_t t[20], num = 0, last = 0;
			int st = 0;
			sscanf(line, "%*s %*s %llu", &v1);
			hanode_region *r = find(name);
			for (int i = 0; i < 20 && !st; i++) {
				v3 = v1 + (unsigned)i;
				memcpy(hanode_bytes(r), &v3, 8);
				hanode_mark(r, 0, 8);
				st = hanode_start(app, &r, 1, &t[i]);
			}
			for (int i = 0; i < 20 && !st; i++) {
				st = hanode_wait(app, t[i], &num);
				if (!st && num <= last)
					st = 1;
				last = num;
			}
			say(st, "");
		} else if (strcmp(cmd, "append") == 0) {
			sscanf(line, "%*s %*s %32767s", a1);
			say(hanode_append(find(name), a1, strlen(a1)), "");
		} else if (strcmp(cmd, "replay") == 0) {
			int st = hanode_replay(find(name), show, out);
			say(st, out);
		} else if (strcmp(cmd, "grow") == 0) {
			sscanf(line, "%*s %*s %llu", &v1);
			say(hanode_grow(find(name), v1), "");
		} else if (strcmp(cmd, "restore") == 0) {
			say(hanode_restore(find(name)), "");
		} else if (strcmp(cmd, "release") == 0) {
			int st = 0;
			for (int i = 0; i < 16; i++)
				if (regions[i] && strcmp(names[i], name) == 0) {
					st = hanode_release(regions[i]);
					regions[i] = NULL;
				}
			say(st, "");
		} else if (strcmp(cmd, "role") == 0) {
			uint64_t e;
			hanode_poll(app, 50);
			int role = hanode_role(app, &e);
			printf("ok %d %llu\n", role, (unsigned long long)e);
		} else if (strcmp(cmd, "active") == 0) {
			say(hanode_wait_active(app, 10000), "");
		} else if (strcmp(cmd, "mayact") == 0) {
			printf("ok %d\n", hanode_may_act(app));
		} else if (strcmp(cmd, "redial") == 0) {
			int st = HANODE_AWAY;
			for (int i = 0; i < 500 && st == HANODE_AWAY; i++) {
				struct timespec t = {0, 10000000};
				st = hanode_redial(app);
				nanosleep(&t, NULL);
			}
			say(st, "");
		} else if (strcmp(cmd, "ready") == 0) {
			uint64_t e;
			hanode_role(app, &e);
			say(hanode_ready(app, e), "");
		} else if (strcmp(cmd, "heartbeat") == 0) {
			say(hanode_heartbeat(app), "");
		} else if (strcmp(cmd, "fail") == 0) {
			say(hanode_fail(app, name), "");
		} else if (strcmp(cmd, "speed") == 0) { /* ns of one hanode_may_act, the best of ten rounds */
			double best = 1e9;
			for (int k = 0; k < 10; k++) {
				struct timespec b, e;
				clock_gettime(CLOCK_MONOTONIC, &b);
				for (int i = 0; i < 100000; i++)
					v1 += (unsigned)hanode_may_act(app);
				clock_gettime(CLOCK_MONOTONIC, &e);
				double ns = ((double)(e.tv_sec - b.tv_sec) * 1e9 + (double)(e.tv_nsec - b.tv_nsec)) / 100000;
				best = ns < best ? ns : best;
			}
			printf("ok %.1f\n", best);
		} else
			printf("err 0 unknown command %s\n", cmd);
	}
	hanode_close(app);
	return 0;
}
