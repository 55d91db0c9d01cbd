/* What the programs here that speak on 127.0.0.1 have in common. */
#pragma once
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#define DESCRIPTORS 65536

static void die(const char *what) { perror(what); exit(1); }

static struct sockaddr_in at(const char *port) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    address.sin_port = htons((uint16_t)atoi(port));
    return address;
}

static void watch(int queue, int fd) {
    int one = 1;
    struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (fd >= DESCRIPTORS || epoll_ctl(queue, EPOLL_CTL_ADD, fd, &event)) die("epoll_ctl");
}
