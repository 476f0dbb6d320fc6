/* Sets the clock of the processes that preload it ahead by CLOCK_AHEAD seconds.
 *
 * What they wait for until a time of day is moved back, because the kernel's clock is not ahead. Clocks that only count,
 * such as CLOCK_MONOTONIC, are left alone: their values are too small to be a time of day.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <linux/futex.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdarg.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#define FIRST_TIME_OF_DAY 1000000000

static long ahead(void) {
    const char *seconds = getenv("CLOCK_AHEAD");
    return seconds ? atol(seconds) : 0;
}

static struct timespec of_the_kernel(const struct timespec *until) {
    struct timespec moved = *until;
    if (moved.tv_sec >= FIRST_TIME_OF_DAY) moved.tv_sec -= ahead();
    return moved;
}

static long (*the_syscall(void))(long, ...) {
    static long (*found)(long, ...);
    if (!found) found = (long (*)(long, ...))dlsym(RTLD_NEXT, "syscall");
    return found;
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    int status = (int)the_syscall()(SYS_clock_gettime, clock, now);
    if (!status && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) now->tv_sec += ahead();
    return status;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    int status = (int)the_syscall()(SYS_gettimeofday, now, zone);
    if (!status) now->tv_sec += ahead();
    return status;
}

time_t time(time_t *where) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (where) *where = now.tv_sec;
    return now.tv_sec;
}

/* C++ libraries wait by this system call themselves. */
long syscall(long number, ...) {
    long values[6];
    va_list arguments;
    va_start(arguments, number);
    for (int i = 0; i < 6; i++) values[i] = va_arg(arguments, long);
    va_end(arguments);
    struct timespec until;
    if (number == SYS_futex && (values[1] & FUTEX_CMD_MASK) == FUTEX_WAIT_BITSET && values[3]) {
        until = of_the_kernel((const struct timespec *)values[3]);
        values[3] = (long)&until;
    }
    return the_syscall()(number, values[0], values[1], values[2], values[3], values[4], values[5]);
}

#define WAITS_UNTIL(name, object)                                                        \
    int name(object *what, const struct timespec *until) {                               \
        static int (*real)(object *, const struct timespec *);                           \
        if (!real) real = (int (*)(object *, const struct timespec *))dlsym(RTLD_NEXT, #name); \
        struct timespec moved = of_the_kernel(until);                                    \
        return real(what, &moved);                                                       \
    }

WAITS_UNTIL(sem_timedwait, sem_t)
WAITS_UNTIL(pthread_mutex_timedlock, pthread_mutex_t)

int pthread_cond_timedwait(pthread_cond_t *condition, pthread_mutex_t *mutex, const struct timespec *until) {
    static int (*real)(pthread_cond_t *, pthread_mutex_t *, const struct timespec *);
    if (!real) *(void **)&real = dlvsym(RTLD_NEXT, "pthread_cond_timedwait", "GLIBC_2.3.2");  /* of two on x86-64 */
    if (!real) *(void **)&real = dlsym(RTLD_NEXT, "pthread_cond_timedwait");
    struct timespec moved = of_the_kernel(until);
    return real(condition, mutex, &moved);
}
