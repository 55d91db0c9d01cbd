/* The least that can stand between client and server: epoll, and for each piece one read and one write. One
 * thread, an upstream connection per client, nothing looked at.
 *
 * relay PORT UPSTREAM_PORT, both on 127.0.0.1. */
#define _GNU_SOURCE
#include "loopback.h"
#include <errno.h>
#include <poll.h>
#include <unistd.h>

static int other[DESCRIPTORS];

static void welcome(int queue, int door, const char *upstream) {
    int fd = accept4(door, NULL, NULL, SOCK_NONBLOCK);
    if (fd < 0) return;
    struct sockaddr_in address = at(upstream);
    int up = socket(AF_INET, SOCK_STREAM, 0);
    if (connect(up, (struct sockaddr *)&address, sizeof address)) die("connect");
    other[fd] = up, other[up] = fd;
    watch(queue, fd), watch(queue, up);
}

/* Whether both sides are still there. A full socket is waited for: nobody here leaves that much unread. */
static int carry(int from) {
    static char piece[1 << 16];
    ssize_t got = recv(from, piece, sizeof piece, MSG_DONTWAIT), put = 0;
    if (got <= 0) return got < 0 && errno == EAGAIN;
    for (ssize_t sent = 0; sent < got; sent += put) {
        put = send(other[from], piece + sent, (size_t)(got - sent), MSG_NOSIGNAL | MSG_DONTWAIT);
        if (put >= 0) continue;
        if (errno != EAGAIN) return 0;
        struct pollfd full = {.fd = other[from], .events = POLLOUT};
        poll(&full, 1, 1000), put = 0;
    }
    return 1;
}

int main(int count, char **words) {
    if (count != 3) return 2;
    struct sockaddr_in address = at(words[1]);
    struct epoll_event ready[256];
    int one = 1, queue = epoll_create1(0), door = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    setsockopt(door, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(door, (struct sockaddr *)&address, sizeof address) || listen(door, 1024)) die("listen");
    watch(queue, door);
    for (;;) {
        int n = epoll_wait(queue, ready, 256, -1);
        for (int i = 0; i < n; i++) {
            int fd = ready[i].data.fd;
            if (fd == door) {
                welcome(queue, door, words[2]);
            } else if (other[fd] && !carry(fd)) {
                close(other[fd]), close(fd);
                other[other[fd]] = 0, other[fd] = 0;
            }
        }
    }
}
