// SPDX-License-Identifier: Apache-2.0
/* What a request and an answer over a Unix socket cost before anyone does any
 * work for them: two processes, two CPUs, two wake-ups.
 *
 * usage: floor SERVER_CPU CLIENT_CPU SAMPLES     prints nanoseconds, one a line
 */
#define _GNU_SOURCE
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

/* About what an attach sends and is answered. */
enum { REQUEST = 160, ANSWER = 640 };

static void stay_on(int cpu)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	if (sched_setaffinity(0, sizeof(set), &set))
		exit(2);
}

static int take(int fd, char *buffer, int size)
{
	int have = 0, got;

	while (have < size) {
		got = read(fd, buffer + have, size - have);
		if (got <= 0)
			return 0;
		have += got;
	}
	return 1;
}

static long long now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000LL + t.tv_nsec;
}

int main(int argc, char **argv)
{
	char buffer[ANSWER] = {0};
	long long start;
	int ends[2], i;

	if (argc != 4 || socketpair(AF_UNIX, SOCK_STREAM, 0, ends))
		return 2;
	if (!fork()) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		stay_on(atoi(argv[1]));
		close(ends[0]);
		while (take(ends[1], buffer, REQUEST))
			if (write(ends[1], buffer, ANSWER) != ANSWER)
				return 1;
		return 0;
	}
	stay_on(atoi(argv[2]));
	close(ends[1]);
	for (i = 0; i < atoi(argv[3]); i++) {
		start = now();
		if (write(ends[0], buffer, REQUEST) != REQUEST || !take(ends[0], buffer, ANSWER))
			return 1;
		printf("%lld\n", now() - start);
	}
	return 0;
}
