/* SPDX-License-Identifier: Apache-2.0 */
/* One end of a stream, a flood of datagrams, or a row of questions: a program of
 * its own, which enters a namespace and takes a CPU.
 *
 * usage: traffic WORK serve|ask NETNS CPU ADDRESS PORT WARM_UP SECONDS NUMBER
 *
 *	tcp	NUMBER streams of bulk data; who serves counts
 *	udp	datagrams of NUMBER bytes, as fast as they go; who serves counts
 *	rr	one byte there and back over TCP; who asks measures
 *	connect	connections opened and thrown away; who asks counts
 *	spray	datagrams of 18 bytes to NUMBER addresses from ADDRESS on; who asks counts
 *
 * Who counts drops the first WARM_UP seconds, counts for the next SECONDS, and prints
 * one line of JSON: count, seconds, busy (CPU seconds of the whole machine meanwhile),
 * and for rr p50 and p99 in microseconds. Who serves says "listening" first. ADDRESS
 * is the server's; it serves any. Who does not count goes on until it is ended.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define CHUNK (256 * 1024)
#define BATCH 64
#define STREAMS 64
#define ROUNDS 400000
#define PATIENCE 20 /* seconds without anything */

static char buffer[CHUNK];
static double warm_up, seconds;

static void fail(const char *what)
{
	perror(what);
	exit(1);
}

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec + t.tv_nsec / 1e9;
}

/* Seconds that all CPUs together have worked since boot. */
static double busy(void)
{
	unsigned long long user, nice, system, idle, wait, irq, softirq, steal;
	FILE *stat = fopen("/proc/stat", "r");

	if (!stat || fscanf(stat, "cpu %llu %llu %llu %llu %llu %llu %llu %llu", &user, &nice,
			    &system, &idle, &wait, &irq, &softirq, &steal) != 8)
		fail("/proc/stat");
	fclose(stat);
	return (double)(user + nice + system + irq + softirq + steal) / sysconf(_SC_CLK_TCK);
}

/* The clock of whoever counts: warming up, counting, over. */
struct window {
	double begin, start, work;
	unsigned long long count;
};

static void open_window(struct window *w)
{
	memset(w, 0, sizeof(*w));
	w->begin = now();
}

/* Add to the count, if it is time; 0 when it is over. */
static int counted(struct window *w, unsigned long long more)
{
	double t = now();

	if (!w->start) {
		if (t - w->begin >= warm_up) {
			w->start = t;
			w->work = busy();
		}
		return 1;
	}
	w->count += more;
	return t - w->start < seconds;
}

static void report(const struct window *w, double p50, double p99)
{
	double spent = now() - w->start, work = busy() - w->work;

	printf("{\"count\": %llu, \"seconds\": %.6f, \"busy\": %.3f, \"p50\": %.3f, \"p99\": %.3f}\n",
	       w->count, spent, work, p50, p99);
	fflush(stdout);
}

static int socket_of(int kind, struct sockaddr_in *own)
{
	int fd = socket(AF_INET, kind, 0), one = 1, room = 8 << 20;

	if (fd < 0)
		fail("socket");
	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	if (kind == SOCK_DGRAM)
		setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &room, sizeof(room));
	if (own && bind(fd, (struct sockaddr *)own, sizeof(*own)))
		fail("bind");
	return fd;
}

static void say_listening(void)
{
	printf("listening\n");
	fflush(stdout);
}

static int wait_for(int fd, short what)
{
	struct pollfd p = { .fd = fd, .events = what };

	return poll(&p, 1, PATIENCE * 1000) == 1;
}

static void serve_tcp(struct sockaddr_in *own, int streams)
{
	int door = socket_of(SOCK_STREAM, own), i, go_on = 1;
	struct pollfd p[STREAMS];
	struct window w;

	if (listen(door, STREAMS))
		fail("listen");
	say_listening();
	for (i = 0; i < streams; i++) {
		if (!wait_for(door, POLLIN))
			fail("nobody came");
		p[i].fd = accept(door, 0, 0);
		p[i].events = POLLIN;
	}
	open_window(&w);
	while (go_on) {
		if (streams > 1 && poll(p, streams, PATIENCE * 1000) <= 0)
			fail("the streams stopped");
		for (i = 0; i < streams && go_on; i++) {
			ssize_t got;

			if (streams > 1 && !(p[i].revents & POLLIN))
				continue;
			got = recv(p[i].fd, buffer, CHUNK, 0);
			if (got <= 0)
				fail("the sender went away");
			go_on = counted(&w, got);
		}
	}
	report(&w, 0, 0);
}

static void ask_tcp(struct sockaddr_in *other, int streams)
{
	struct pollfd p[STREAMS];
	int i;

	for (i = 0; i < streams; i++) {
		p[i].fd = socket_of(SOCK_STREAM, 0);
		p[i].events = POLLOUT;
		if (connect(p[i].fd, (struct sockaddr *)other, sizeof(*other)))
			fail("connect");
		if (streams > 1)
			fcntl(p[i].fd, F_SETFL, O_NONBLOCK);
	}
	for (;;) {
		if (streams > 1)
			poll(p, streams, -1);
		for (i = 0; i < streams; i++)
			if ((streams == 1 || p[i].revents) &&
			    send(p[i].fd, buffer, CHUNK, MSG_NOSIGNAL) < 0 && errno != EAGAIN)
				return;
	}
}

static void serve_udp(struct sockaddr_in *own, int size)
{
	int fd = socket_of(SOCK_DGRAM, own), got, i;
	struct mmsghdr messages[BATCH] = {};
	struct iovec rows[BATCH];
	struct window w;

	for (i = 0; i < BATCH; i++) {
		rows[i] = (struct iovec){ buffer + i * 2048, 2048 };
		messages[i].msg_hdr.msg_iov = &rows[i];
		messages[i].msg_hdr.msg_iovlen = 1;
	}
	say_listening();
	if (!wait_for(fd, POLLIN))
		fail("nothing came");
	open_window(&w);
	do {
		got = recvmmsg(fd, messages, BATCH, MSG_WAITFORONE, 0);
		if (got < 0)
			fail("recvmmsg");
		for (i = 0; i < got; i++)
			if (messages[i].msg_len != (unsigned)size)
				fail("a datagram of another size");
	} while (counted(&w, got));
	report(&w, 0, 0);
}

static void ask_udp(struct sockaddr_in *other, int size)
{
	struct iovec row = { buffer, size };
	struct mmsghdr messages[BATCH] = {};
	int fd = socket_of(SOCK_DGRAM, 0), i;

	if (connect(fd, (struct sockaddr *)other, sizeof(*other)))
		fail("connect");
	for (i = 0; i < BATCH; i++) {
		messages[i].msg_hdr.msg_iov = &row;
		messages[i].msg_hdr.msg_iovlen = 1;
	}
	while (sendmmsg(fd, messages, BATCH, 0) >= 0 || errno == ECONNREFUSED || errno == ENOBUFS)
		;
}

static void ask_spray(struct sockaddr_in *first, int addresses)
{
	unsigned base = ntohl(first->sin_addr.s_addr), state = 1;
	int fd = socket_of(SOCK_DGRAM, 0), i, sent;
	struct sockaddr_in to[BATCH];
	struct iovec row = { buffer, 18 };
	struct mmsghdr messages[BATCH] = {};
	struct window w;

	for (i = 0; i < BATCH; i++) {
		to[i] = *first;
		messages[i].msg_hdr.msg_iov = &row;
		messages[i].msg_hdr.msg_iovlen = 1;
		messages[i].msg_hdr.msg_name = &to[i];
		messages[i].msg_hdr.msg_namelen = sizeof(to[i]);
	}
	open_window(&w);
	do {
		for (i = 0; i < BATCH; i++) {
			state = state * 1664525 + 1013904223;
			to[i].sin_addr.s_addr = htonl(base + (state >> 8) % addresses);
		}
		sent = sendmmsg(fd, messages, BATCH, 0);
		if (sent < 0 && errno != ENOBUFS && errno != EHOSTUNREACH)
			fail("sendmmsg");
	} while (counted(&w, sent > 0 ? sent : 0));
	report(&w, 0, 0);
}

static int dial(struct sockaddr_in *other)
{
	int fd = socket_of(SOCK_STREAM, 0), one = 1;

	if (connect(fd, (struct sockaddr *)other, sizeof(*other)))
		fail("connect");
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	return fd;
}

static void serve_rr(struct sockaddr_in *own)
{
	int door = socket_of(SOCK_STREAM, own), fd, one = 1;

	if (listen(door, 1))
		fail("listen");
	say_listening();
	if (!wait_for(door, POLLIN))
		fail("nobody came");
	fd = accept(door, 0, 0);
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	while (recv(fd, buffer, 1, 0) == 1 && send(fd, buffer, 1, MSG_NOSIGNAL) == 1)
		;
}

static int compare(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

static void ask_rr(struct sockaddr_in *other)
{
	double *taken = calloc(ROUNDS, sizeof(*taken)), start;
	int fd = dial(other), go_on = 1;
	struct window w;

	open_window(&w);
	while (go_on && w.count < ROUNDS) {
		start = now();
		if (send(fd, buffer, 1, MSG_NOSIGNAL) != 1 || recv(fd, buffer, 1, 0) != 1)
			fail("the answer did not come");
		taken[w.count] = (now() - start) * 1e6;
		go_on = counted(&w, 1);
	}
	qsort(taken, w.count, sizeof(*taken), compare);
	report(&w, taken[w.count / 2], taken[w.count * 99 / 100]);
}

static void serve_connect(struct sockaddr_in *own)
{
	int door = socket_of(SOCK_STREAM, own), fd;

	if (listen(door, 1024))
		fail("listen");
	say_listening();
	while (wait_for(door, POLLIN)) {
		fd = accept(door, 0, 0);
		if (fd >= 0)
			close(fd);
	}
}

static void ask_connect(struct sockaddr_in *other)
{
	struct linger now_or_never = { 1, 0 };
	struct window w;
	int fd;

	open_window(&w);
	do {
		fd = dial(other);
		setsockopt(fd, SOL_SOCKET, SO_LINGER, &now_or_never, sizeof(now_or_never));
		close(fd);
	} while (counted(&w, 1));
	report(&w, 0, 0);
}

int main(int count, char **words)
{
	struct sockaddr_in other = { .sin_family = AF_INET }, own = other;
	int fd, serves, number;
	cpu_set_t cpus;

	if (count != 10)
		return 2;
	fd = open(words[3], O_RDONLY);
	if (fd < 0 || setns(fd, CLONE_NEWNET))
		fail(words[3]);
	CPU_ZERO(&cpus);
	CPU_SET(atoi(words[4]), &cpus);
	if (sched_setaffinity(0, sizeof(cpus), &cpus))
		fail("sched_setaffinity");
	inet_pton(AF_INET, words[5], &other.sin_addr);
	own.sin_port = other.sin_port = htons(atoi(words[6]));
	warm_up = atof(words[7]);
	seconds = atof(words[8]);
	number = atoi(words[9]);
	serves = !strcmp(words[2], "serve");
	if (!strcmp(words[1], "tcp"))
		serves ? serve_tcp(&own, number) : ask_tcp(&other, number);
	else if (!strcmp(words[1], "udp"))
		serves ? serve_udp(&own, number) : ask_udp(&other, number);
	else if (!strcmp(words[1], "rr"))
		serves ? serve_rr(&own) : ask_rr(&other);
	else if (!strcmp(words[1], "connect"))
		serves ? serve_connect(&own) : ask_connect(&other);
	else if (!strcmp(words[1], "spray") && !serves)
		ask_spray(&other, number);
	else
		return 2;
	return 0;
}
