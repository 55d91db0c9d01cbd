/* The least that a proxy with one shared upstream connection can do: epoll, one read and one write per client
 * and turn, one read and one write upstream per turn, and as much of a look at requests and replies as is
 * needed to know where they end and whose they are. It knows no command, counts nothing, checks nobody and
 * forgets nobody: a client that leaves while it waits ends the program.
 *
 * forwarder PORT UPSTREAM_PORT, both on 127.0.0.1, one thread. */
#define _GNU_SOURCE
#include "loopback.h"
#include <errno.h>
#include <poll.h>
#include <string.h>
#include <unistd.h>

#define WAITING 65536 /* requests on their way: a power of two */

struct bytes {
    char *at;
    size_t size, room;
};
static struct bytes in[DESCRIPTORS], out[DESCRIPTORS];
static int waiting[WAITING], touched[DESCRIPTORS], touched_count;
static unsigned first, last;

static void make_room(struct bytes *b, size_t more) {
    if (b->size + more <= b->room) return;
    b->room = (b->size + more) * 2;
    if (!(b->at = realloc(b->at, b->room))) die("realloc");
}

static void add(struct bytes *b, const char *text, size_t size) {
    make_room(b, size);
    memcpy(b->at + b->size, text, size);
    b->size += size;
}

/* Where what begins at `at` ends, or null if that is not there yet: a line, a bulk string, or an array of them. */
static const char *end_of(const char *at, const char *end) {
    const char *line = memchr(at, '\n', (size_t)(end - at));
    if (!line) return NULL;
    char kind = *at;
    long n = kind == '*' || kind == '$' ? strtol(at + 1, NULL, 10) : -1;
    at = line + 1;
    if (kind == '$' && n >= 0) return end - at < n + 2 ? NULL : at + n + 2;
    for (; kind == '*' && n > 0; n--)
        if (!(at = end_of(at, end))) return NULL;
    return at;
}

/* Reads what is there; false where nobody is any more. */
static int fill(int fd) {
    make_room(&in[fd], 1 << 16);
    ssize_t got = recv(fd, in[fd].at + in[fd].size, in[fd].room - in[fd].size, MSG_DONTWAIT);
    if (got <= 0) return got < 0 && errno == EAGAIN;
    in[fd].size += (size_t)got;
    return 1;
}

/* A full socket is waited for: nobody here leaves that much unread. */
static void flush(int fd) {
    size_t sent = 0;
    while (sent < out[fd].size) {
        ssize_t put = send(fd, out[fd].at + sent, out[fd].size - sent, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (put < 0 && errno != EAGAIN) die("send");
        struct pollfd full = {.fd = fd, .events = POLLOUT};
        if (put < 0) poll(&full, 1, 1000), put = 0;
        sent += (size_t)put;
    }
    out[fd].size = 0;
}

static void take(int fd, int up) {
    const char *at = in[fd].at, *end = at + in[fd].size, *next;
    for (; at < end && (next = end_of(at, end)); at = next) {
        int client = fd == up ? waiting[first++ % WAITING] : up;
        if (fd != up) waiting[last++ % WAITING] = fd;
        if (last - first > WAITING) die("too many requests");
        if (!out[client].size && client != up) touched[touched_count++] = client;
        add(&out[client], at, (size_t)(next - at));
    }
    memmove(in[fd].at, at, in[fd].size = (size_t)(end - at));
}

int main(int count, char **words) {
    if (count != 3) return 2;
    struct epoll_event ready[256];
    struct sockaddr_in here = at(words[1]), there = at(words[2]);
    int one = 1, queue = epoll_create1(0), door = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    int up = socket(AF_INET, SOCK_STREAM, 0);
    setsockopt(door, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(door, (struct sockaddr *)&here, sizeof here) || listen(door, 1024)) die("listen");
    if (connect(up, (struct sockaddr *)&there, sizeof there)) die("connect");
    watch(queue, door), watch(queue, up);
    for (;;) {
        int n = epoll_wait(queue, ready, 256, -1), is_over = 0;
        for (int i = 0; i < n; i++) {
            int fd = ready[i].data.fd;
            if (fd == door) {
                if ((fd = accept(door, NULL, NULL)) >= 0) watch(queue, fd);
            } else if (fill(fd)) {
                take(fd, up);
            } else {
                is_over |= fd == up;
                in[fd].size = out[fd].size = 0;
                close(fd);
            }
        }
        if (is_over) return 0;
        flush(up);
        while (touched_count) flush(touched[--touched_count]);
    }
}
