/* GETs at a fixed rate, whether or not the last ones were answered: what was due and could not be sent yet
 * waits, and the wait counts, as it does for whoever asked (no coordinated omission).
 *
 * openloop PORT CONNECTIONS RATE SECONDS KEYS VALUE_BYTES; RATE 0: each connection asks again once answered.
 * The first fifth is warming up. One line of JSON: answered per second, and microseconds from the intended
 * moment of sending to the last byte of the reply. Keys are key:000000000000 and so on. */
#define _GNU_SOURCE
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#define WAITING 4096
struct connection {
    int fd;
    size_t part;                 /* bytes of a reply that is not whole yet */
    unsigned first, count;       /* of `due` */
    uint64_t due[WAITING];       /* when what is unanswered was to be sent */
};
static struct connection *connections;
static uint32_t *taken;
static size_t answered, room, reply_bytes;
static uint64_t from, seed = 88172645463325252ull;
static long keys;

static void die(const char *what) { perror(what); exit(1); }

static uint64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void ask(struct connection *c, uint64_t due) {
    char request[64];
    seed ^= seed << 13, seed ^= seed >> 7, seed ^= seed << 17;
    int size = sprintf(request, "*2\r\n$3\r\nGET\r\n$16\r\nkey:%012ld\r\n", (long)(seed % (uint64_t)keys));
    if (c->count == WAITING) die("too many unanswered");
    c->due[(c->first + c->count++) % WAITING] = due;
    if (send(c->fd, request, (size_t)size, MSG_NOSIGNAL) != size) die("send");
}

/* Returns how many replies came. */
static unsigned hear(struct connection *c) {
    static char piece[1 << 18];
    ssize_t got = recv(c->fd, piece, sizeof piece, MSG_DONTWAIT);
    if (got <= 0) {
        if (got < 0 && errno == EAGAIN) return 0;
        die("recv");
    }
    if (!c->part && piece[0] != '$') fprintf(stderr, "%.60s\n", piece), exit(1);
    unsigned replies = (unsigned)((c->part + (size_t)got) / reply_bytes);
    uint64_t at = now();
    c->part = (c->part + (size_t)got) % reply_bytes;
    for (unsigned i = 0; i < replies; i++) {
        uint64_t due = c->due[c->first++ % WAITING];
        c->count--;
        if (due >= from && answered < room) taken[answered++] = (uint32_t)((at - due) / 10);
    }
    c->first %= WAITING;
    return replies;
}

static int by_size(const void *a, const void *b) {
    return (*(const uint32_t *)a > *(const uint32_t *)b) - (*(const uint32_t *)a < *(const uint32_t *)b);
}

static double part(double share) { return taken[(size_t)(share * (double)(answered - 1))] / 100.0; }

int main(int count, char **words) {
    if (count != 7) return 2;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    address.sin_port = htons((uint16_t)atoi(words[1]));
    int n = atoi(words[2]), one = 1, queue = epoll_create1(0);
    int timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
    double rate = atof(words[3]), seconds = atof(words[4]);
    char head[32];
    keys = atol(words[5]);
    reply_bytes = (size_t)sprintf(head, "$%s\r\n", words[6]) + (size_t)atol(words[6]) + 2;
    room = (size_t)((rate ? rate : 1e6) * seconds) + 1000;
    taken = malloc(room * sizeof *taken);
    connections = calloc((size_t)n, sizeof *connections);
    prctl(PR_SET_TIMERSLACK, 1);
    struct epoll_event ready[256], event = {.events = EPOLLIN, .data.ptr = NULL};
    epoll_ctl(queue, EPOLL_CTL_ADD, timer, &event);
    for (int i = 0; i < n; i++) {
        struct connection *c = &connections[i];
        c->fd = socket(AF_INET, SOCK_STREAM, 0);
        if (connect(c->fd, (struct sockaddr *)&address, sizeof address)) die("connect");
        setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        event.data.ptr = c;
        epoll_ctl(queue, EPOLL_CTL_ADD, c->fd, &event);
    }
    uint64_t begin = now() + 10000000, end = begin + (uint64_t)(seconds * 1e9), sent = 0, open = 0, at;
    from = begin + (uint64_t)(seconds * 0.2e9);
    if (!rate)
        for (int i = 0; i < n; i++) ask(&connections[i], now()), open++;
    while ((at = now()) < end + 2000000000u && (at < end || open)) {
        uint64_t due = begin + (rate ? (uint64_t)((double)sent * 1e9 / rate) : 0);
        while (rate && due <= at && due < end) {
            ask(&connections[sent++ % (uint64_t)n], due), open++;
            due = begin + (uint64_t)((double)sent * 1e9 / rate);
        }
        if (due < at || !rate) due = at + 100000000;
        struct itimerspec next = {.it_value = {(time_t)(due / 1000000000u), (long)(due % 1000000000u)}};
        timerfd_settime(timer, TFD_TIMER_ABSTIME, &next, NULL);
        int some = epoll_wait(queue, ready, 256, 100);
        for (int i = 0; i < some; i++) {
            struct connection *c = ready[i].data.ptr;
            uint64_t fired;
            if (!c) {
                if (read(timer, &fired, sizeof fired) < 0 && errno != EAGAIN) die("timer");
                continue;
            }
            for (unsigned heard = hear(c); heard; heard--) {
                open--;
                if (!rate && now() < end) ask(c, now()), open++;
            }
        }
    }
    if (open || !answered) fprintf(stderr, "%lu were not answered\n", (unsigned long)open), exit(1);
    qsort(taken, answered, sizeof *taken, by_size);
    printf("{\"per_s\": %.0f, \"p50_us\": %.1f, \"p99_us\": %.1f, \"p999_us\": %.1f, \"max_us\": %.1f}\n",
           (double)answered / (seconds * 0.8), part(0.5), part(0.99), part(0.999), part(1.0));
    return 0;
}
