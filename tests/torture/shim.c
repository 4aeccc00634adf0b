/* LD_PRELOAD: makes the Nth write, fsync or rename below a folder fail, or stop half-way; or flock do nothing. For tests. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char below[4096];
static int left = -1, code = EIO, torn = 0, seen = 0;

/* Count calls below a folder; the nth of them (from 1; 0 for none) fails with an errno, torn: after half. */
void shim_arm(const char *folder, int nth, int error, int half) {
    snprintf(below, sizeof below, "%s", folder);
    left = nth, code = error, torn = half, seen = 0;
}
int shim_seen(void) { return seen; }

static int inside(int fd) {
    char link[64], path[4096];
    if (!below[0]) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, sizeof path - 1);
    if (n < 0) return 0;
    path[n] = 0;
    return strncmp(path, below, strlen(below)) == 0;
}
static int now(void) { seen++; return left > 0 && --left == 0; }

/* A lock that is local to each node: with SHIM_NO_FLOCK every flock succeeds at once. */
int flock(int fd, int operation) {
    static int (*real)(int, int);
    if (getenv("SHIM_NO_FLOCK")) return 0;
    if (!real) real = dlsym(RTLD_NEXT, "flock");
    return real(fd, operation);
}
ssize_t write(int fd, const void *data, size_t size) {
    static ssize_t (*real)(int, const void *, size_t);
    if (!real) real = dlsym(RTLD_NEXT, "write");
    if (inside(fd) && now()) {
        if (torn && size > 1) real(fd, data, size / 2);
        errno = code;
        return -1;
    }
    return real(fd, data, size);
}
int fsync(int fd) {
    static int (*real)(int);
    if (!real) real = dlsym(RTLD_NEXT, "fsync");
    if (inside(fd) && now()) { errno = code; return -1; }
    return real(fd);
}
int rename(const char *from, const char *to) {
    static int (*real)(const char *, const char *);
    if (!real) real = dlsym(RTLD_NEXT, "rename");
    if (below[0] && strncmp(to, below, strlen(below)) == 0 && now()) { errno = code; return -1; }
    return real(from, to);
}
