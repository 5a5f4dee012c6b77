// SPDX-License-Identifier: Apache-2.0
/* What an attach costs a caller in C, with clients/c.
 *
 * usage: attach HOST CPU VPC PREFIX COUNT     attaches PREFIX-0 and so on, then
 * detaches them; prints nanoseconds, one a line. Before that it asks for what changes
 * nothing, as a client learns how soon it is answered.
 */
#define _GNU_SOURCE
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "../clients/c/geneve_ebpf.h"

enum { LEAD_IN = 300 };

static long long now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000LL + t.tv_nsec;
}

int main(int argc, char **argv)
{
	struct gnv_client client;
	struct gnv_sandbox sandbox;
	int i, done, count, code;
	char name[64];
	cpu_set_t set;

	if (argc != 6 || (code = gnv_open(&client, argv[1], 30000)))
		return 2;
	CPU_ZERO(&set);
	CPU_SET(atoi(argv[2]), &set);
	if (sched_setaffinity(0, sizeof(set), &set))
		return 2;
	count = atoi(argv[5]);
	for (i = 0; i < LEAD_IN; i++)
		gnv_detach(&client, "nobody", 0);
	for (done = 0; done < count; done++) {
		long long start = now();

		snprintf(name, sizeof(name), "%s-%d", argv[4], done);
		code = gnv_attach(&client, name, argv[3], NULL, &sandbox);
		if (code || sandbox.existed)
			break;
		printf("%lld\n", now() - start);
	}
	if (done < count)
		fprintf(stderr, "%s: %s\n", gnv_code_name(code), client.message);
	for (i = 0; i < done; i++) {
		snprintf(name, sizeof(name), "%s-%d", argv[4], i);
		gnv_detach(&client, name, 0);
	}
	gnv_close(&client);
	return done < count;
}
