// SPDX-License-Identifier: Apache-2.0
/* The life of a sandbox from C, one step a run:
 *
 *	example reserve [KIND [UID]]
 *	example add NETNS [INTERFACE]
 *	example attach NAME VPC [SLOT [ADDRESS [ADDRESS6]]]	a word "-" leaves that out
 *	example detach NAME [GENERATION]
 *	example release SLOT
 *	example exec SLOT COMMAND [ARG...]	with the slot's tap as descriptor 3
 *
 * Prints what it learned as name=value lines; a failure is one line on standard
 * error and exit status 1. A platform keeps one client and its connection instead.
 */
#include "geneve_ebpf.h"

#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void show_slot(const struct gnv_slot *slot)
{
	printf("slot=%s\nkind=%s\nnetns=%s\ntap=%s\nhost_interface=%s\nhost_ifindex=%" PRIu32 "\n",
	       slot->id, slot->kind, slot->netns, slot->tap, slot->host_interface,
	       slot->host_ifindex);
}

static void show_guest(const struct gnv_guest *guest)
{
	printf("guest_address=%s\nguest_address6=%s\nguest_gateway=%s\nguest_gateway6=%s\n"
	       "guest_mac=%s\nguest_gateway_mac=%s\nguest_mtu=%" PRIu32 "\n",
	       guest->address, guest->address6, guest->gateway, guest->gateway6, guest->mac,
	       guest->gateway_mac, guest->mtu);
}

static const char *word(int argc, char **argv, int at)
{
	return at < argc && strcmp(argv[at], "-") ? argv[at] : NULL;
}

int main(int argc, char **argv)
{
	struct gnv_client client;
	struct gnv_sandbox sandbox;
	struct gnv_guest guest;
	struct gnv_slot slot;
	const char *step = argc > 1 ? argv[1] : "";
	int code = gnv_open(&client, NULL, 5000);

	if (code) {
		/* said below */
	} else if (!strcmp(step, "reserve") && argc <= 4) {
		uint32_t owner = argc == 4 ? (uint32_t)strtoul(argv[3], NULL, 10) : 0;
		struct gnv_reserve_options options = { .kind = word(argc, argv, 2) };

		if (argc == 4)
			options.owner = &owner;
		code = gnv_reserve(&client, &options, &slot, &guest);
		if (!code) {
			show_slot(&slot);
			show_guest(&guest);
		}
	} else if (!strcmp(step, "add") && (argc == 3 || argc == 4)) {
		int existed;

		code = gnv_add_slot(&client, argv[2], word(argc, argv, 3), &slot, &guest, &existed);
		if (!code) {
			printf("existed=%d\n", existed);
			show_slot(&slot);
			show_guest(&guest);
		}
	} else if (!strcmp(step, "attach") && argc >= 4 && argc <= 7) {
		struct gnv_attach_options options = {
			.slot = word(argc, argv, 4),
			.address = word(argc, argv, 5),
			.address6 = word(argc, argv, 6),
		};

		code = gnv_attach(&client, argv[2], argv[3], &options, &sandbox);
		if (!code) {
			printf("address=%s\naddress6=%s\nmac=%s\nvni=%" PRIu32
			       "\ngeneration=%" PRIu64 "\nexisted=%d\nagent_ns=%" PRIu64 "\n",
			       sandbox.address, sandbox.address6, sandbox.mac, sandbox.vni,
			       sandbox.generation, sandbox.existed, sandbox.agent_ns);
			show_slot(&sandbox.slot);
			show_guest(&sandbox.guest);
		}
	} else if (!strcmp(step, "detach") && (argc == 3 || argc == 4)) {
		code = gnv_detach(&client, argv[2],
				  argc == 4 ? strtoull(argv[3], NULL, 10) : 0);
	} else if (!strcmp(step, "release") && argc == 3) {
		code = gnv_release(&client, argv[2]);
	} else if (!strcmp(step, "exec") && argc >= 4) {
		int tap;

		code = gnv_open_tap(&client, argv[2], &tap);
		if (!code) {
			if (tap != 3)
				dup2(tap, 3);
			else
				fcntl(tap, F_SETFD, 0);
			execvp(argv[3], argv + 3);
			perror(argv[3]);
			return 127;
		}
	} else {
		fprintf(stderr, "usage: %s reserve|add|attach|detach|release|exec ...\n", argv[0]);
		return 2;
	}
	gnv_close(&client);
	if (code) {
		fprintf(stderr, "%s: %s (%s)%s\n", gnv_code_name(code), client.message,
			client.hint, gnv_is_retryable(code) ? " - try again later" : "");
		return 1;
	}
	return 0;
}
