// SPDX-License-Identifier: Apache-2.0
/* HTTP/1.1 and JSON over a Unix socket, as much of both as the agent's answers need.
 *
 * The peer is the agent, which is trusted; what it sends is bounded all the same:
 * an answer has to fit the client's buffer, and every read stops at its end.
 *
 * One file, so that it and its header can be copied into another program's sources. In
 * order: codes, JSON, the connection, requests, and what the header declares.
 */
#define _GNU_SOURCE
#include "geneve_ebpf.h"

#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define NAME_LETTERS "abcdefghijklmnopqrstuvwxyz0123456789._-"
#define INTERFACE_LETTERS NAME_LETTERS "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
#define ADDRESS_LETTERS "0123456789abcdefABCDEF:."

/* Nanoseconds that an answer is looked for before the caller sleeps: being woken costs
 * about as much as an attach. Only soon after the last answer, or the agent sleeps, too.
 * And of how many answers in a row that came later, at the most, the next ones are slept
 * for at once.
 */
enum { LOOK = 100000, SOON = 1000000, SLEEP_MOST = 255 };

/* A piece of the buffer. */
struct span {
	const char *at, *end;
};

static const struct {
	const char *name;
	int retryable;
} codes[] = {
	[GNV_OK] = { "ok", 0 },
#define X(number, name, slug, retryable) [number] = { #slug, retryable },
	GNV_CODES(X)
#undef X
};
enum { CODES = sizeof(codes) / sizeof(codes[0]) };

const char *gnv_code_name(int code)
{
	return code >= 0 && code < CODES ? codes[code].name : "internal";
}

int gnv_is_retryable(int code)
{
	return code >= 0 && code < CODES && codes[code].retryable;
}

/* Say what failed, in words; returns the code. */
__attribute__((format(printf, 4, 5))) static int fail(struct gnv_client *client, int code,
						      const char *hint, const char *message, ...)
{
	va_list values;

	va_start(values, message);
	vsnprintf(client->message, sizeof(client->message), message, values);
	va_end(values);
	snprintf(client->hint, sizeof(client->hint), "%s", hint);
	return code;
}

/* As `fail`, and the connection is of no use any more. */
static int broken(struct gnv_client *client, const char *why)
{
	gnv_close(client);
	return fail(client, GNV_AGENT_UNREACHABLE,
		    "look at the agent's log; whether the request was carried out is not known",
		    "the agent at %s: %s", client->path, why);
}

/* -- JSON */

static const char *skip_space(struct span text)
{
	while (text.at < text.end && strchr(" \t\r\n", *text.at))
		text.at++;
	return text.at;
}

/* Behind the string that begins at text.at; NULL if it has no end. */
static const char *skip_string(struct span text)
{
	for (text.at++; text.at < text.end; text.at++) {
		if (*text.at == '\\')
			text.at++;
		else if (*text.at == '"')
			return text.at + 1;
	}
	return NULL;
}

/* Behind the value that begins at text.at; NULL if it has no end. */
static const char *skip_value(struct span text)
{
	int depth = 0;

	while (text.at < text.end) {
		char one = *text.at;

		if (one == '"') {
			text.at = skip_string(text);
			if (!text.at)
				return NULL;
		} else if (one == '{' || one == '[') {
			depth++;
			text.at++;
		} else if (one == '}' || one == ']') {
			if (!depth)
				return text.at; /* the end of what holds a bare value */
			depth--;
			text.at++;
		} else if (one == ',' && !depth) {
			return text.at;
		} else {
			text.at++;
			continue; /* inside a number, a word, or between the values of a container */
		}
		if (!depth)
			return text.at;
	}
	return NULL;
}

/* The value of a member of the object that `text` is; {NULL, NULL} if it has none. */
static struct span member(struct span text, const char *name)
{
	const struct span none = { NULL, NULL };
	size_t length = strlen(name);

	if (!text.at || text.at == text.end || *text.at != '{')
		return none;
	text.at++;
	for (;;) {
		struct span key, value;

		text.at = skip_space(text);
		if (text.at == text.end || *text.at != '"')
			return none;
		key.at = text.at + 1;
		text.at = skip_string(text);
		if (!text.at)
			return none;
		key.end = text.at - 1;
		text.at = skip_space(text);
		if (text.at == text.end || *text.at != ':')
			return none;
		text.at++;
		value.at = text.at = skip_space(text);
		value.end = text.at = skip_value(text);
		if (!text.at)
			return none;
		if (key.end - key.at == (ptrdiff_t)length && !memcmp(key.at, name, length))
			return value;
		text.at = skip_space(text);
		if (text.at == text.end || *text.at != ',')
			return none;
		text.at++;
	}
}

/* One code point as UTF-8; the bytes written. */
static int put_utf8(char *out, unsigned point)
{
	if (point < 0x80) {
		out[0] = (char)point;
		return 1;
	}
	if (point < 0x800) {
		out[0] = (char)(0xC0 | point >> 6);
		out[1] = (char)(0x80 | (point & 63));
		return 2;
	}
	out[0] = (char)(0xE0 | point >> 12);
	out[1] = (char)(0x80 | (point >> 6 & 63));
	out[2] = (char)(0x80 | (point & 63));
	return 3;
}

/* What an escape stands for, as UTF-8 in `piece`; its length, 0 if it is none.
 * `at` is behind the backslash, and is moved to the escape's last letter.
 */
static int escaped(struct span *value, char piece[4])
{
	static const char named[] = "\"\\/bfnrt", meant[] = "\"\\/\b\f\n\r\t";
	const char *place = strchr(named, *value->at);
	unsigned point = 0;
	int i;

	if (place && *place) {
		piece[0] = meant[place - named];
		return 1;
	}
	if (*value->at != 'u' || value->end - value->at < 5)
		return 0;
	for (i = 0; i < 4; i++) {
		const char *digits = "0123456789abcdef";
		const char *digit = strchr(digits, *++value->at | 32);

		if (!digit || !*digit)
			return 0;
		point = point << 4 | (unsigned)(digit - digits);
	}
	return put_utf8(piece, point);
}

/* A string's text into `out`; "" for null and what is no string. 0 if it did not fit,
 * or is not one that JSON has.
 */
static int text_of(struct span value, char *out, size_t size)
{
	size_t used = 0;

	out[0] = 0;
	if (!value.at || value.end - value.at < 2 || *value.at != '"')
		return 1;
	for (value.at++, value.end--; value.at < value.end; value.at++) {
		char piece[4] = { *value.at };
		int length = 1;

		if (*value.at == '\\') {
			value.at++;
			length = value.at < value.end ? escaped(&value, piece) : 0;
		}
		if (!length || used + (size_t)length >= size)
			return 0;
		memcpy(out + used, piece, (size_t)length);
		used += (size_t)length;
		out[used] = 0;
	}
	return 1;
}

/* A whole number that is not negative; 0 for what is none. */
static uint64_t number_of(struct span value)
{
	uint64_t number = 0;

	for (; value.at && value.at < value.end; value.at++) {
		if (*value.at < '0' || *value.at > '9')
			return 0;
		number = number * 10 + (uint64_t)(*value.at - '0');
	}
	return number;
}

/* -- HTTP */

static void hang_up(struct gnv_client *client)
{
	if (client->fd >= 0)
		close(client->fd);
	client->fd = -1;
}

static int connect_to_agent(struct gnv_client *client)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	struct timeval patience = {
		.tv_sec = client->timeout_ms / 1000,
		.tv_usec = client->timeout_ms % 1000 * 1000,
	};
	int error;

	client->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (client->fd < 0)
		return fail(client, GNV_AGENT_UNREACHABLE, "", "no socket: %s", strerror(errno));
	setsockopt(client->fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
	setsockopt(client->fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof(patience));
	memcpy(address.sun_path, client->path, sizeof(address.sun_path));
	if (!connect(client->fd, (struct sockaddr *)&address, sizeof(address)))
		return GNV_OK;
	error = errno;
	gnv_close(client);
	if (error == EACCES || error == EPERM)
		return fail(client, GNV_NOT_PERMITTED, "run it as root, or as a member of its group",
			    "may not use the agent's socket %s", client->path);
	return fail(client, GNV_AGENT_UNREACHABLE,
		    "start one with `geneve-ebpf agent run --config FILE`, or name its socket in "
		    GNV_HOST_VARIABLE,
		    "no agent at %s: %s", client->path, strerror(error));
}

/* Have a connection that the agent still holds its end of. A request is never
 * sent twice, so it has to be sent to somebody.
 */
static int be_connected(struct gnv_client *client)
{
	char byte;

	if (client->fd >= 0) {
		if (recv(client->fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT) < 0 &&
		    (errno == EAGAIN || errno == EWOULDBLOCK))
			return GNV_OK;
		gnv_close(client); /* it was closed, or holds bytes nobody asked for */
	}
	return connect_to_agent(client);
}

static int send_all(struct gnv_client *client)
{
	size_t sent = 0;

	while (sent < client->used) {
		ssize_t some = send(client->fd, client->buffer + sent, client->used - sent,
				    MSG_NOSIGNAL);

		if (some < 0 && errno == EINTR)
			continue;
		if (some < 0)
			return broken(client, errno == EAGAIN ? "it does not read" : strerror(errno));
		sent += (size_t)some;
	}
	return GNV_OK;
}

/* Note the descriptor that came with a piece of an answer; one is all that the agent passes. */
static void take_passed(struct gnv_client *client, struct msghdr *message)
{
	struct cmsghdr *part;

	for (part = CMSG_FIRSTHDR(message); part; part = CMSG_NXTHDR(message, part)) {
		int passed;

		if (part->cmsg_level != SOL_SOCKET || part->cmsg_type != SCM_RIGHTS)
			continue;
		memcpy(&passed, CMSG_DATA(part), sizeof(passed));
		if (client->passed < 0)
			client->passed = passed;
		else
			close(passed);
	}
}

static void drop_passed(struct gnv_client *client)
{
	if (client->passed >= 0)
		close(client->passed);
	client->passed = -1;
}

/* Up to all that fits of an answer, and a descriptor that comes with it. */
static ssize_t receive_some(struct gnv_client *client, int flags)
{
	union {
		struct cmsghdr align;
		char room[CMSG_SPACE(sizeof(int))]; /* more than one does not fit, and is closed */
	} control;
	struct iovec piece = {
		.iov_base = client->buffer + client->used,
		.iov_len = sizeof(client->buffer) - 1 - client->used,
	};
	struct msghdr message = {
		.msg_iov = &piece,
		.msg_iovlen = 1,
		.msg_control = &control,
		.msg_controllen = sizeof(control),
	};
	ssize_t some;

	do {
		some = recvmsg(client->fd, &message, flags | MSG_CMSG_CLOEXEC);
	} while (some < 0 && errno == EINTR);
	if (some > 0)
		take_passed(client, &message);
	return some;
}

static long long now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000LL + t.tv_nsec;
}

/* As `receive_some`, for the beginning of an answer: look for it before sleeping. Where
 * that is in vain, because the agent has no other CPU than ours for instance, it is
 * soon hardly ever done any more.
 */
static ssize_t receive_first(struct gnv_client *client)
{
	long long start = now(), end = start + LOOK;
	ssize_t some;

	if (start - client->answered > SOON)
		return receive_some(client, 0);
	if (client->sleeps) {
		client->sleeps--;
		return receive_some(client, 0);
	}
	do {
		some = receive_some(client, MSG_DONTWAIT);
		if (some >= 0 || (errno != EAGAIN && errno != EWOULDBLOCK)) {
			client->sleep_next /= 2;
			return some;
		}
	} while (now() < end);
	client->sleep_next = 2 * client->sleep_next + 1;
	if (client->sleep_next > SLEEP_MOST)
		client->sleep_next = SLEEP_MOST;
	client->sleeps = client->sleep_next;
	return receive_some(client, 0);
}

/* Read on, behind what `buffer` has. */
static int receive(struct gnv_client *client)
{
	ssize_t some;

	if (client->used == sizeof(client->buffer) - 1)
		return broken(client, "its answer is larger than this client takes");
	some = client->used ? receive_some(client, 0) : receive_first(client);
	client->answered = now();
	if (some < 0)
		return broken(client, errno == EAGAIN || errno == EWOULDBLOCK ?
					      "it did not answer in time" :
					      strerror(errno));
	if (!some)
		return broken(client, "it closed the connection before its answer was whole");
	client->used += (size_t)some;
	client->buffer[client->used] = 0;
	return GNV_OK;
}

/* The value of a header line in the answer's head, NULL if there is none. */
static const char *header(const char *head, const char *end, const char *name)
{
	size_t length = strlen(name);

	while (head < end) {
		if (!strncasecmp(head, name, length) && head[length] == ':') {
			for (head += length + 1; *head == ' '; head++)
				;
			return head;
		}
		head = strstr(head, "\r\n");
		if (!head)
			break;
		head += 2;
	}
	return NULL;
}

/* The error that the agent answered with. */
static int refused(struct gnv_client *client, int status, struct span body)
{
	struct span error = member(body, "error");
	char slug[64];
	int code;

	text_of(member(error, "message"), client->message, sizeof(client->message));
	text_of(member(error, "hint"), client->hint, sizeof(client->hint));
	text_of(member(error, "code"), slug, sizeof(slug));
	for (code = 1; code < CODES; code++)
		if (!strcmp(codes[code].name, slug))
			return code;
	if (!error.at)
		return fail(client, GNV_INTERNAL, "", "the agent answered %d without saying why",
			    status);
	return GNV_INTERNAL; /* of a newer agent: its words are there */
}

/* Send what is in `buffer`; the answer's status and body. */
static int ask(struct gnv_client *client, int *status, struct span *body)
{
	const char *end, *value;
	long length = 0;
	int code, reusable;
	size_t whole;

	client->retry_after = 0;
	drop_passed(client); /* with an answer that nobody expected one with */
	code = be_connected(client);
	if (code || (code = send_all(client)))
		return code;
	client->used = 0;
	client->buffer[0] = 0;
	while (!(end = strstr(client->buffer, "\r\n\r\n")))
		if ((code = receive(client)))
			return code;
	end += 2; /* the last line's end stays with the head */
	if (sscanf(client->buffer, "HTTP/1.%*1d %3d", status) != 1 || *status < 200 ||
	    header(client->buffer, end, "transfer-encoding"))
		return broken(client, "what answers is not an agent");
	value = header(client->buffer, end, "content-length");
	if (value)
		length = strtol(value, NULL, 10);
	if (length < 0 || length >= (long)sizeof(client->buffer))
		return broken(client, "its answer is larger than this client takes");
	value = header(client->buffer, end, "retry-after");
	if (value)
		client->retry_after = atoi(value);
	value = header(client->buffer, end, "connection");
	reusable = !value || strncasecmp(value, "close", 5);
	end += 2;
	whole = (size_t)(end - client->buffer) + (size_t)length;
	while (client->used < whole)
		if ((code = receive(client)))
			return code;
	if (client->used > whole)
		return broken(client, "it said more than it had announced");
	if (!reusable)
		hang_up(client); /* and keep what came with the answer */
	body->at = end;
	body->end = end + length;
	return *status >= 400 ? refused(client, *status, *body) : GNV_OK;
}

/* -- Requests */

__attribute__((format(printf, 2, 3))) static void put(struct gnv_client *client,
						      const char *format, ...)
{
	va_list values;
	int length;

	va_start(values, format);
	length = vsnprintf(client->buffer + client->used, sizeof(client->buffer) - client->used,
			   format, values);
	va_end(values);
	/* Everything that is put has a length that was checked: it fits. */
	client->used += (size_t)length;
}

/* Is it one to 63 of these letters? So nothing in it has to be quoted in a path or in JSON. */
static int is_plain(const char *text, const char *letters)
{
	size_t length = text ? strspn(text, letters) : 0;

	return length && length < 64 && !text[length];
}

/* Is it an absolute path in which nothing has to be quoted in JSON? */
static int is_plain_path(const char *text)
{
	if (!text || *text != '/')
		return 0;
	for (; *text; text++)
		if ((unsigned char)*text < ' ' || *text == '"' || *text == '\\')
			return 0;
	return 1;
}

static int refuse_name(struct gnv_client *client, const char *what, const char *text)
{
	return fail(client, GNV_BAD_NAME, "1 to 63 of a-z 0-9 . _ -", "'%.80s' is not a valid %s",
		    text ? text : "", what);
}

/* Write a whole request into `buffer`. */
static void request(struct gnv_client *client, const char *method, const char *path,
		    const char *body)
{
	client->used = 0;
	put(client, "%s %s HTTP/1.1\r\nHost: agent\r\nContent-Length: %zu\r\n\r\n%s", method, path,
	    strlen(body), body);
}

static int read_slot(struct span body, struct gnv_slot *slot)
{
	struct span value = member(body, "slot");

	slot->host_ifindex = (uint32_t)number_of(member(value, "host_ifindex"));
	return text_of(member(value, "id"), slot->id, sizeof(slot->id)) && slot->id[0] &&
	       text_of(member(value, "kind"), slot->kind, sizeof(slot->kind)) &&
	       text_of(member(value, "netns"), slot->netns, sizeof(slot->netns)) &&
	       text_of(member(value, "tap"), slot->tap, sizeof(slot->tap)) &&
	       text_of(member(value, "host_interface"), slot->host_interface,
		       sizeof(slot->host_interface));
}

static int read_guest(struct span body, struct gnv_guest *guest)
{
	struct span value = member(body, "guest");

	guest->mtu = (uint32_t)number_of(member(value, "mtu"));
	return text_of(member(value, "address"), guest->address, sizeof(guest->address)) &&
	       text_of(member(value, "address6"), guest->address6, sizeof(guest->address6)) &&
	       text_of(member(value, "gateway"), guest->gateway, sizeof(guest->gateway)) &&
	       text_of(member(value, "gateway6"), guest->gateway6, sizeof(guest->gateway6)) &&
	       text_of(member(value, "mac"), guest->mac, sizeof(guest->mac)) &&
	       text_of(member(value, "gateway_mac"), guest->gateway_mac,
		       sizeof(guest->gateway_mac));
}

static int unreadable(struct gnv_client *client)
{
	return fail(client, GNV_INTERNAL, "are client and agent of one version?",
		    "the agent's answer is not what this client reads");
}

int gnv_open(struct gnv_client *client, const char *host, int timeout_ms)
{
	static const char scheme[] = "unix://";
	const char *path;

	memset(client, 0, sizeof(*client));
	client->fd = client->passed = -1;
	client->timeout_ms = timeout_ms > 0 ? timeout_ms : 1;
	if (!host)
		host = getenv(GNV_HOST_VARIABLE);
	if (!host || !*host)
		host = "unix://" GNV_DEFAULT_SOCKET;
	path = host + sizeof(scheme) - 1;
	if (strncmp(host, scheme, sizeof(scheme) - 1) || *path != '/' ||
	    strlen(path) >= sizeof(client->path))
		return fail(client, GNV_BAD_REQUEST, "such as unix://" GNV_DEFAULT_SOCKET,
			    "'%.120s' does not name an agent's socket", host);
	memcpy(client->path, path, strlen(path) + 1);
	return GNV_OK;
}

void gnv_close(struct gnv_client *client)
{
	hang_up(client);
	drop_passed(client);
}

int gnv_reserve(struct gnv_client *client, const struct gnv_reserve_options *options,
		struct gnv_slot *slot, struct gnv_guest *guest)
{
	const char *kind = options ? options->kind : NULL;
	const uint32_t *owner = options ? options->owner : NULL;
	char text[128], *at = text;
	struct span body;
	int code, status;

	if (kind && !is_plain(kind, NAME_LETTERS))
		return refuse_name(client, "kind of slot", kind);
	*at++ = '{';
	if (kind)
		at += sprintf(at, "\"kind\":\"%s\"%s", kind, owner ? "," : "");
	if (owner)
		at += sprintf(at, "\"owner\":%" PRIu32, *owner);
	*at++ = '}';
	*at = 0;
	request(client, "POST", "/v1/slots:reserve", text);
	code = ask(client, &status, &body);
	if (code)
		return code;
	if (!read_slot(body, slot) || (guest && !read_guest(body, guest)))
		return unreadable(client);
	return GNV_OK;
}

int gnv_add_slot(struct gnv_client *client, const char *netns, const char *interface,
		 struct gnv_slot *slot, struct gnv_guest *guest, int *existed)
{
	char text[384];
	struct span body;
	int code, status, length;

	if (!is_plain_path(netns) || strlen(netns) >= sizeof(slot->netns))
		return fail(client, GNV_BAD_NETNS, "such as /run/netns/web, no \" and no \\ in it",
			    "'%.80s' is no path that this client sends", netns ? netns : "");
	if (interface && !is_plain(interface, INTERFACE_LETTERS))
		return fail(client, GNV_BAD_REQUEST, "such as eth0",
			    "'%.80s' is not an interface's name", interface);
	length = snprintf(text, sizeof(text), "{\"netns\":\"%s\"", netns);
	if (interface)
		length += snprintf(text + length, sizeof(text) - (size_t)length,
				   ",\"interface\":\"%s\"", interface);
	snprintf(text + length, sizeof(text) - (size_t)length, "}");
	request(client, "POST", "/v1/slots", text);
	code = ask(client, &status, &body);
	if (code)
		return code;
	if (existed)
		*existed = status == 200;
	if (!read_slot(body, slot) || (guest && !read_guest(body, guest)))
		return unreadable(client);
	return GNV_OK;
}

int gnv_release(struct gnv_client *client, const char *slot)
{
	struct span body;
	char path[96];
	int status;

	if (!is_plain(slot, NAME_LETTERS))
		return refuse_name(client, "slot", slot);
	snprintf(path, sizeof(path), "/v1/slots/%s", slot);
	request(client, "DELETE", path, "");
	return ask(client, &status, &body);
}

int gnv_open_tap(struct gnv_client *client, const char *slot, int *tap)
{
	struct span body;
	char path[96];
	int code, status;

	if (!is_plain(slot, NAME_LETTERS))
		return refuse_name(client, "slot", slot);
	snprintf(path, sizeof(path), "/v1/taps/%s", slot);
	request(client, "POST", path, "");
	code = ask(client, &status, &body);
	if (code)
		drop_passed(client);
	else if (client->passed < 0)
		return unreadable(client);
	*tap = client->passed;
	client->passed = -1;
	return code;
}

int gnv_attach(struct gnv_client *client, const char *name, const char *vpc,
	       const struct gnv_attach_options *options, struct gnv_sandbox *sandbox)
{
	static const struct gnv_attach_options none;
	const struct {
		const char *name, *value;
	} addresses[] = {
		{ "address", options ? options->address : NULL },
		{ "address6", options ? options->address6 : NULL },
	};
	char path[96], text[384];
	struct span body;
	int code, status, length;
	size_t i;

	if (!options)
		options = &none;
	if (!is_plain(name, NAME_LETTERS))
		return refuse_name(client, "sandbox", name);
	if (!is_plain(vpc, NAME_LETTERS))
		return refuse_name(client, "vpc", vpc);
	if (options->slot && !is_plain(options->slot, NAME_LETTERS))
		return refuse_name(client, "slot", options->slot);
	length = snprintf(text, sizeof(text), "{\"vpc\":\"%s\"", vpc);
	for (i = 0; i < 2; i++) {
		if (!addresses[i].value)
			continue;
		if (!is_plain(addresses[i].value, ADDRESS_LETTERS))
			return fail(client, GNV_BAD_ADDRESS, "such as 10.0.0.5 or fd00:1::5",
				    "'%.80s' is not an IP address", addresses[i].value);
		length += snprintf(text + length, sizeof(text) - (size_t)length, ",\"%s\":\"%s\"",
				   addresses[i].name, addresses[i].value);
	}
	if (options->slot)
		length += snprintf(text + length, sizeof(text) - (size_t)length,
				   ",\"slot\":\"%s\"", options->slot);
	snprintf(text + length, sizeof(text) - (size_t)length, "}");
	snprintf(path, sizeof(path), "/v1/sandboxes/%s", name);
	request(client, "PUT", path, text);
	code = ask(client, &status, &body);
	if (code || !sandbox)
		return code;
	sandbox->existed = status == 200;
	sandbox->vni = (uint32_t)number_of(member(body, "vni"));
	sandbox->generation = number_of(member(body, "generation"));
	sandbox->agent_ns = number_of(member(member(body, "timing_ns"), "total"));
	if (!sandbox->generation || !read_slot(body, &sandbox->slot) ||
	    !read_guest(body, &sandbox->guest) ||
	    !text_of(member(body, "address"), sandbox->address, sizeof(sandbox->address)) ||
	    !text_of(member(body, "address6"), sandbox->address6, sizeof(sandbox->address6)) ||
	    !text_of(member(body, "mac"), sandbox->mac, sizeof(sandbox->mac)))
		return unreadable(client);
	return GNV_OK;
}

int gnv_detach(struct gnv_client *client, const char *name, uint64_t generation)
{
	struct span body;
	char path[128];
	int status;

	if (!is_plain(name, NAME_LETTERS))
		return refuse_name(client, "sandbox", name);
	if (generation)
		snprintf(path, sizeof(path), "/v1/sandboxes/%s?generation=%" PRIu64, name,
			 generation);
	else
		snprintf(path, sizeof(path), "/v1/sandboxes/%s", name);
	request(client, "DELETE", path, "");
	return ask(client, &status, &body);
}
