/* The least a server can do for a GET: epoll, one read, one look at the request, one write. It knows one key,
 * counts nothing, expires nothing and checks nobody: what is above it is what the others do beside.
 *
 * bare PORT: listens on 127.0.0.1, one thread. SET replaces the key, GET answers it or null. */
#define _GNU_SOURCE
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#define CLIENTS 65536
#define IN_MAX (1 << 18)

struct client {
    char *in, *out;
    size_t have, size, room, sent;
};
static struct client *clients[CLIENTS];
static char key[256], *reply;
static size_t key_size, reply_size;

static void die(const char *what) { perror(what); exit(1); }

/* The number of a line such as $5\r\n; moves *at behind it. -1: the line is not there yet. */
static long number(const char **at, const char *end) {
    const char *line = memchr(*at, '\n', (size_t)(end - *at));
    if (!line) return -1;
    long n = strtol(*at + 1, NULL, 10);
    *at = line + 1;
    return n;
}

static void answer(struct client *c, const char *text, size_t size) {
    if (c->size + size > c->room) {
        c->room = (c->size + size) * 2;
        if (!(c->out = realloc(c->out, c->room))) die("realloc");
    }
    memcpy(c->out + c->size, text, size);
    c->size += size;
}

static void store(const char *name, size_t name_size, const char *value, size_t value_size) {
    key_size = name_size < sizeof key ? name_size : sizeof key;
    memcpy(key, name, key_size);
    if (!(reply = realloc(reply, value_size + 32))) die("realloc");
    reply_size = (size_t)sprintf(reply, "$%zu\r\n", value_size);
    memcpy(reply + reply_size, value, value_size);
    memcpy(reply + reply_size + value_size, "\r\n", 2);
    reply_size += value_size + 2;
}

/* One request: its size, or 0 if it is not there yet. */
static size_t request(struct client *c, const char *from, const char *end) {
    const char *at = from, *words[3] = {"", "", ""};
    size_t sizes[3] = {0};
    long count = number(&at, end);
    for (long i = 0; i < count; i++) {
        long size = number(&at, end);
        if (size < 0 || end - at < size + 2) return 0;
        if (i < 3) words[i] = at, sizes[i] = (size_t)size;
        at += size + 2;
    }
    if (count < 0) return 0;
    if (count == 2 && sizes[0] == 3 && (words[0][0] | 32) == 'g') {
        int is_known = reply && sizes[1] == key_size && !memcmp(words[1], key, key_size);
        answer(c, is_known ? reply : "$-1\r\n", is_known ? reply_size : 5);
    } else if (count == 3 && sizes[0] == 3 && (words[0][0] | 32) == 's') {
        store(words[1], sizes[1], words[2], sizes[2]);
        answer(c, "+OK\r\n", 5);
    } else {
        answer(c, "-ERR not here\r\n", 15);
    }
    return (size_t)(at - from);
}

/* Whether the client is still there. */
static int serve(int fd, struct client *c, uint32_t events) {
    if (events & EPOLLIN) {
        ssize_t got = read(fd, c->in + c->have, IN_MAX - c->have);
        if (got <= 0) return got < 0 && errno == EAGAIN;
        c->have += (size_t)got;
        size_t used = 0, size;
        while (used < c->have && (size = request(c, c->in + used, c->in + c->have))) used += size;
        memmove(c->in, c->in + used, c->have -= used);
    }
    while (c->sent < c->size) {
        ssize_t put = send(fd, c->out + c->sent, c->size - c->sent, MSG_NOSIGNAL);
        if (put < 0) return errno == EAGAIN;
        c->sent += (size_t)put;
    }
    c->size = c->sent = 0;
    return 1;
}

int main(int count, char **words) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct epoll_event ready[256], event = {.events = EPOLLIN};
    int one = 1, poll = epoll_create1(0), door = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    address.sin_port = htons((uint16_t)(count > 1 ? atoi(words[1]) : 0));
    setsockopt(door, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(door, (struct sockaddr *)&address, sizeof address) || listen(door, 1024)) die("listen");
    event.data.fd = door;
    epoll_ctl(poll, EPOLL_CTL_ADD, door, &event);
    for (;;) {
        int n = epoll_wait(poll, ready, 256, -1);
        for (int i = 0; i < n; i++) {
            int fd = ready[i].data.fd;
            if (fd == door) {
                if ((fd = accept4(door, NULL, NULL, SOCK_NONBLOCK)) < 0 || fd >= CLIENTS) continue;
                setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
                struct client *c = clients[fd] = calloc(1, sizeof *c);
                if (!c || !(c->in = malloc(IN_MAX))) die("malloc");
                event = (struct epoll_event){.events = EPOLLIN, .data.fd = fd};
                epoll_ctl(poll, EPOLL_CTL_ADD, fd, &event);
                continue;
            }
            struct client *c = clients[fd];
            if (serve(fd, c, ready[i].events)) {
                event = (struct epoll_event){.events = EPOLLIN | (c->size ? EPOLLOUT : 0), .data.fd = fd};
                if (c->size || ready[i].events & EPOLLOUT) epoll_ctl(poll, EPOLL_CTL_MOD, fd, &event);
                continue;
            }
            close(fd);
            free(c->in), free(c->out), free(c);
        }
    }
}
