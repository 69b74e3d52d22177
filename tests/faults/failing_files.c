// Makes calls that change files below a folder fail, as a full or broken file system does. For Linux, by LD_PRELOAD.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

static char folder[PATH_MAX];
static atomic_long calls;
static long from, until;
static int number;

// Let the calls from number `first` (the first is 1) to number `last` fail with an error; 0 for none.
void fail(const char* below, long first, long last, int error) {
  snprintf(folder, sizeof folder, "%s/", below);
  calls = 0;
  from = first;
  until = last;
  number = error;
}

long num_calls(void) { return calls; }

static int refused(const char* path) {
  if (!folder[0] || strncmp(path, folder, strlen(folder))) return 0;
  long call = atomic_fetch_add(&calls, 1) + 1;
  if (call < from || call > until) return 0;
  errno = number;
  return 1;
}

static int refused_file(int file) {
  char link[64], path[PATH_MAX];
  if (!folder[0]) return 0;
  snprintf(link, sizeof link, "/proc/self/fd/%d", file);
  ssize_t length = readlink(link, path, sizeof path - 1);
  if (length < 0) return 0;
  path[length] = 0;
  return refused(path);
}

static int refused_open(const char* path, int flags) { return (flags & (O_WRONLY | O_RDWR | O_CREAT)) && refused(path); }

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

#define OPEN(name)                                                        \
  int name(const char* path, int flags, ...) {                            \
    va_list rest;                                                         \
    va_start(rest, flags);                                                \
    mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0; \
    va_end(rest);                                                         \
    return refused_open(path, flags) ? -1 : REAL(name)(path, flags, mode); \
  }
OPEN(open)
OPEN(open64)

#define OPENAT(name)                                                      \
  int name(int where, const char* path, int flags, ...) {                 \
    va_list rest;                                                         \
    va_start(rest, flags);                                                \
    mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0; \
    va_end(rest);                                                         \
    return refused_open(path, flags) ? -1 : REAL(name)(where, path, flags, mode); \
  }
OPENAT(openat)
OPENAT(openat64)

#define ON_FILE(type, name, parameters, ...) \
  type name parameters { return refused_file(file) ? -1 : REAL(name)(__VA_ARGS__); }
ON_FILE(ssize_t, write, (int file, const void* data, size_t size), file, data, size)
ON_FILE(ssize_t, writev, (int file, const struct iovec* parts, int count), file, parts, count)
ON_FILE(ssize_t, pwrite, (int file, const void* data, size_t size, off_t at), file, data, size, at)
ON_FILE(ssize_t, pwrite64, (int file, const void* data, size_t size, off64_t at), file, data, size, at)
ON_FILE(ssize_t, pwritev, (int file, const struct iovec* parts, int count, off_t at), file, parts, count, at)
ON_FILE(int, fsync, (int file), file)
ON_FILE(int, fdatasync, (int file), file)
ON_FILE(int, ftruncate, (int file, off_t size), file, size)
ON_FILE(int, ftruncate64, (int file, off64_t size), file, size)

#define ON_PATH(name, parameters, path, ...) \
  int name parameters { return refused(path) ? -1 : REAL(name)(__VA_ARGS__); }
ON_PATH(mkdir, (const char* path, mode_t mode), path, path, mode)
ON_PATH(mkdirat, (int where, const char* path, mode_t mode), path, where, path, mode)
ON_PATH(rename, (const char* old, const char* new), new, old, new)
ON_PATH(renameat, (int a, const char* old, int b, const char* new), new, a, old, b, new)
ON_PATH(link, (const char* old, const char* new), new, old, new)
ON_PATH(symlink, (const char* old, const char* new), new, old, new)
