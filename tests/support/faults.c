/* Preloaded into a process under test: system calls that fail, and a wall clock that can be set while it runs.

   FAULTS_CALL   name of the call that fails: write, pwrite64, fdatasync, fsync, ftruncate64, posix_fallocate
   FAULTS_PATH   only on files whose path has this in it
   FAULTS_NTH    the first of these calls that fails, from 1
   FAULTS_COUNT  how many fail from there on
   FAULTS_ERRNO  with which number
   FAULTS_CLOCK  a file with eight bytes: by how many seconds the wall clock is wrong (int64, of the machine's order) */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>

static const char *call, *path;
static long nth, count;
static int number;
static atomic_long seen;
static volatile int64_t *skew_s;

__attribute__((constructor)) static void begin(void) {
    call = getenv("FAULTS_CALL");
    path = getenv("FAULTS_PATH");
    nth = atol(getenv("FAULTS_NTH") ?: "0");
    count = atol(getenv("FAULTS_COUNT") ?: "1");
    number = atoi(getenv("FAULTS_ERRNO") ?: "0");
    const char *clock = getenv("FAULTS_CLOCK");
    int fd = clock ? open(clock, O_RDONLY | O_CLOEXEC) : -1;
    if (fd >= 0) {
        void *map = mmap(NULL, sizeof(int64_t), PROT_READ, MAP_SHARED, fd, 0);
        skew_s = map == MAP_FAILED ? NULL : map;
        close(fd);
    }
}

static int fails(const char *name, int fd) {
    char link[64], target[4096];
    if (!call || !path || strcmp(call, name) != 0)
        return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t size = readlink(link, target, sizeof target - 1);
    if (size < 0)
        return 0;
    target[size] = 0;
    if (!strstr(target, path))
        return 0;
    long now = atomic_fetch_add(&seen, 1) + 1;
    return now >= nth && now < nth + count;
}

#define NEXT(name) ((typeof(&name))dlsym(RTLD_NEXT, #name))
#define FAIL(name, fd)                                                                                                 \
    if (fails(#name, fd)) {                                                                                            \
        errno = number;                                                                                                \
        return -1;                                                                                                     \
    }

ssize_t write(int fd, const void *data, size_t size) {
    FAIL(write, fd)
    return NEXT(write)(fd, data, size);
}

ssize_t pwrite64(int fd, const void *data, size_t size, off64_t at) {
    FAIL(pwrite64, fd)
    return NEXT(pwrite64)(fd, data, size, at);
}

int fdatasync(int fd) {
    FAIL(fdatasync, fd)
    return NEXT(fdatasync)(fd);
}

int fsync(int fd) {
    FAIL(fsync, fd)
    return NEXT(fsync)(fd);
}

int ftruncate64(int fd, off64_t size) {
    FAIL(ftruncate64, fd)
    return NEXT(ftruncate64)(fd, size);
}

/* This one returns its error. */
int posix_fallocate64(int fd, off64_t at, off64_t size) {
    return fails("posix_fallocate", fd) ? number : NEXT(posix_fallocate64)(fd, at, size);
}

int posix_fallocate(int fd, off_t at, off_t size) {
    return fails("posix_fallocate", fd) ? number : NEXT(posix_fallocate)(fd, at, size);
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    int done = NEXT(clock_gettime)(clock, now);
    if (done == 0 && skew_s && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
        now->tv_sec += *skew_s;
    return done;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    int done = NEXT(gettimeofday)(now, zone);
    if (done == 0 && skew_s)
        now->tv_sec += *skew_s;
    return done;
}

time_t time(time_t *out) {
    time_t now = NEXT(time)(NULL) + (skew_s ? *skew_s : 0);
    if (out)
        *out = now;
    return now;
}
