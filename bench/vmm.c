/* SPDX-License-Identifier: Apache-2.0 */
/* What a VMM does with a machine's network interface, and no machine: it owns the tap that the
 * node gave it, and carries frames between it and the machine's own interface, which is
 * another tap in a namespace, where the machine's network stack is the kernel's.
 *
 * usage: vmm NETNS TAP MACHINE_NETNS MACHINE_TAP CPU
 *
 * A thread for each direction, as vhost has for each queue: one frame after another, with the
 * virtio header in front, so that checksums and TCP segmentation that are left to the device
 * pass whole. Says "ready", and goes on until a tap is gone.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#define LARGEST (1 << 17)
#define OFFLOADS (TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_TSO_ECN)

struct way {
	int from, to;
};

static void fail(const char *what)
{
	perror(what);
	exit(1);
}

static int open_tap(const char *netns, const char *name)
{
	struct ifreq wanted = { .ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR };
	int place = open(netns, O_RDONLY | O_CLOEXEC), tap;

	if (place < 0 || setns(place, CLONE_NEWNET))
		fail(netns);
	close(place);
	tap = open("/dev/net/tun", O_RDWR | O_CLOEXEC);
	if (tap < 0)
		fail("/dev/net/tun");
	strncpy(wanted.ifr_name, name, IFNAMSIZ - 1);
	if (ioctl(tap, TUNSETIFF, &wanted) || ioctl(tap, TUNSETOFFLOAD, OFFLOADS))
		fail(name);
	return tap;
}

static void *carry(void *argument)
{
	struct way *way = argument;
	char *frame = malloc(LARGEST);

	if (!frame)
		fail("malloc");
	for (;;) {
		ssize_t size = read(way->from, frame, LARGEST);

		if (size < 0)
			fail("read");
		if (write(way->to, frame, size) < 0 && errno != ENOBUFS && errno != ENOMEM)
			fail("write");
	}
}

int main(int count, char **words)
{
	struct way out, in;
	pthread_t thread;
	cpu_set_t cpus;

	if (count != 6)
		return 2;
	out.to = in.from = open_tap(words[1], words[2]);
	out.from = in.to = open_tap(words[3], words[4]);
	CPU_ZERO(&cpus);
	CPU_SET(atoi(words[5]), &cpus);
	if (sched_setaffinity(0, sizeof(cpus), &cpus))
		fail("sched_setaffinity");
	if (pthread_create(&thread, 0, carry, &in))
		fail("pthread_create");
	printf("ready\n");
	fflush(stdout);
	carry(&out);
	return 0;
}
