/* Preloaded into a program: logs every change to files below a folder, in order, and can fail writes as a full disk does.

   Each call and its log entry happen under one lock. Files are named by inode, so that renames need no bookkeeping.
   glibc's streams write through functions that no preload sees; hence streams are unbuffered and `fwrite` is wrapped.
   Shared, writable mappings are logged as 'M', which recorder.py refuses. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#define REAL(type, name, ...) ((type(*)(__VA_ARGS__))dlsym(RTLD_NEXT, name))
#define LOCKED pthread_mutex_lock(&lock)
#define DONE(result) do { int saved = errno; pthread_mutex_unlock(&lock); errno = saved; return result; } while (0)

static pthread_mutex_t lock = PTHREAD_RECURSIVE_MUTEX_INITIALIZER_NP;
static char root[PATH_MAX];
static int log_fd = -1;
static long writes_left = -1; /* before the disk is full; -1: it never is */
static int has_failed;

struct entry { char op; char pad[7]; uint64_t inode; int64_t offset; uint32_t name, data; };

static ssize_t real_write(int fd, const void *data, size_t count) {
  return REAL(ssize_t, "write", int, const void *, size_t)(fd, data, count);
}

/* Starts logging changes below `folder` to the file `log`, which lies elsewhere. */
void recorder_start(const char *folder, const char *log) {
  LOCKED;
  strcpy(root, folder);
  log_fd = REAL(int, "open", const char *, int, ...)(log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
  pthread_mutex_unlock(&lock);
}

void recorder_stop(void) { LOCKED; REAL(int, "close", int)(log_fd); log_fd = -1; *root = 0; pthread_mutex_unlock(&lock); }

/* After so many further writes, creations and extensions below the folder, the disk is full. */
void recorder_fill_disk(const char *folder, long writes) {
  LOCKED;
  strcpy(root, folder);
  writes_left = writes;
  has_failed = 0;
  pthread_mutex_unlock(&lock);
}

int recorder_is_full(void) { return has_failed; }

static void add(char op, uint64_t inode, int64_t offset, const void *name, size_t name_size, const void *data,
                size_t size) {
  if (log_fd < 0) return;
  struct entry entry = {op, {0}, inode, offset, name_size, size};
  int saved = errno;
  real_write(log_fd, &entry, sizeof entry);
  if (name_size) real_write(log_fd, name, name_size);
  if (size) real_write(log_fd, data, size);
  errno = saved;
}

static void add_path(char op, uint64_t inode, const char *path) { add(op, inode, 0, path, strlen(path), 0, 0); }

void recorder_mark(const char *text) { LOCKED; add_path('!', 0, text); pthread_mutex_unlock(&lock); }

static int is_below(const char *path) {
  size_t size = strlen(root);
  return size && !strncmp(path, root, size) && (path[size] == '/' || !path[size]);
}

/* The absolute path of `path` as *at() functions take it, if it lies below the folder. */
static int resolve(int folder, const char *path, char *found) {
  char link[64];
  if (!*root || !path) return 0;
  if (*path == '/') return snprintf(found, PATH_MAX, "%s", path), is_below(found);
  snprintf(link, sizeof link, folder == AT_FDCWD ? "/proc/self/cwd" : "/proc/self/fd/%d", folder);
  ssize_t size = readlink(link, found, PATH_MAX - 1);
  if (size < 0) return 0;
  snprintf(found + size, PATH_MAX - size, "/%s", path);
  return is_below(found);
}

/* Whether a descriptor is a file or folder below the folder; its status. */
static int is_ours(int fd, struct stat *status) {
  char path[64], found[PATH_MAX];
  if (!*root || fd == log_fd || fstat(fd, status) || !(S_ISREG(status->st_mode) || S_ISDIR(status->st_mode))) return 0;
  snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
  ssize_t size = readlink(path, found, sizeof found - 1);
  found[size < 0 ? 0 : size] = 0;
  return is_below(found);
}

static int is_full(void) {
  if (writes_left < 0 || writes_left-- > 0) return 0;
  writes_left = 0;
  has_failed = 1;
  errno = ENOSPC;
  return 1;
}

static int missing(const char *path) { struct stat status; return lstat(path, &status) != 0; }

static int logged_open(int folder, const char *path, int flags, mode_t mode) {
  char found[PATH_MAX];
  struct stat status;
  LOCKED;
  int ours = flags & (O_CREAT | O_TRUNC) && resolve(folder, path, found), created = ours && missing(found);
  if (created && is_full()) DONE(-1);
  int fd = REAL(int, "openat", int, const char *, int, ...)(folder, path, flags, mode);
  if (ours && fd >= 0 && !fstat(fd, &status)) {
    if (created) add_path('c', status.st_ino, found);
    else if (flags & O_TRUNC) add('t', status.st_ino, 0, 0, 0, 0, 0);
  }
  DONE(fd);
}

#define MODE va_list rest; va_start(rest, flags); mode_t mode = flags & O_CREAT ? va_arg(rest, mode_t) : 0; va_end(rest)
int open(const char *path, int flags, ...) { MODE; return logged_open(AT_FDCWD, path, flags, mode); }
int open64(const char *path, int flags, ...) { MODE; return logged_open(AT_FDCWD, path, flags, mode); }
int openat(int folder, const char *path, int flags, ...) { MODE; return logged_open(folder, path, flags, mode); }
int openat64(int folder, const char *path, int flags, ...) { MODE; return logged_open(folder, path, flags, mode); }
int creat(const char *path, mode_t mode) { return logged_open(AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, mode); }

FILE *fopen(const char *path, const char *mode) {
  char found[PATH_MAX];
  struct stat status;
  LOCKED;
  int ours = strpbrk(mode, "wa+") && resolve(AT_FDCWD, path, found), created = ours && missing(found);
  if (created && is_full()) DONE(NULL);
  FILE *stream = REAL(FILE *, "fopen", const char *, const char *)(path, mode);
  if (ours && stream && !fstat(fileno(stream), &status)) {
    setvbuf(stream, NULL, _IONBF, 0);
    if (created) add_path('c', status.st_ino, found);
    else if (*mode == 'w') add('t', status.st_ino, 0, 0, 0, 0, 0);
  }
  DONE(stream);
}
FILE *fopen64(const char *path, const char *mode) { return fopen(path, mode); }

size_t fwrite(const void *data, size_t size, size_t count, FILE *stream) {
  struct stat status;
  size_t (*real)(const void *, size_t, size_t, FILE *) = dlsym(RTLD_NEXT, "fwrite");
  if (!*root) return real(data, size, count, stream);
  LOCKED;
  int fd = fileno(stream), ours = is_ours(fd, &status);
  if (ours && is_full()) DONE(0);
  size_t done = real(data, size, count, stream);
  if (ours) add('w', status.st_ino, lseek(fd, 0, SEEK_CUR) - (int64_t)(done * size), 0, 0, data, done * size);
  DONE(done);
}

/* `offset` < 0: where the descriptor stands. */
static ssize_t logged_write(int fd, const void *data, size_t count, off_t offset) {
  struct stat status;
  if (!*root) return offset < 0 ? real_write(fd, data, count)
                                : REAL(ssize_t, "pwrite", int, const void *, size_t, off_t)(fd, data, count, offset);
  LOCKED;
  int ours = is_ours(fd, &status);
  if (ours && is_full()) DONE(-1);
  ssize_t done = offset < 0 ? real_write(fd, data, count)
                            : REAL(ssize_t, "pwrite", int, const void *, size_t, off_t)(fd, data, count, offset);
  if (ours && done > 0) add('w', status.st_ino, offset < 0 ? lseek(fd, 0, SEEK_CUR) - done : offset, 0, 0, data, done);
  DONE(done);
}
ssize_t write(int fd, const void *data, size_t count) { return logged_write(fd, data, count, -1); }
ssize_t pwrite(int fd, const void *data, size_t count, off_t offset) { return logged_write(fd, data, count, offset); }
ssize_t pwrite64(int fd, const void *data, size_t count, off_t offset) { return logged_write(fd, data, count, offset); }
ssize_t writev(int fd, const struct iovec *parts, int count) {
  ssize_t total = 0;
  struct stat status;
  if (!*root || !is_ours(fd, &status)) return REAL(ssize_t, "writev", int, const struct iovec *, int)(fd, parts, count);
  for (int i = 0; i < count; i++) {
    ssize_t done = write(fd, parts[i].iov_base, parts[i].iov_len);
    if (done < 0) return total ? total : -1;
    total += done;
  }
  return total;
}

#define TRUNCATE(name) int name(int fd, off_t size) { \
    struct stat status; \
    LOCKED; \
    int ours = is_ours(fd, &status); \
    if (ours && size > status.st_size && is_full()) DONE(-1); \
    int result = REAL(int, "ftruncate", int, off_t)(fd, size); \
    if (ours && !result) add('t', status.st_ino, size, 0, 0, 0, 0); \
    DONE(result); }
TRUNCATE(ftruncate)
TRUNCATE(ftruncate64)

#define SYNC(name) int name(int fd) { \
    struct stat status; \
    LOCKED; \
    int result = REAL(int, #name, int)(fd); \
    if (!result && is_ours(fd, &status)) add('s', status.st_ino, 0, 0, 0, 0, 0); \
    DONE(result); }
SYNC(fsync)
SYNC(fdatasync)

int renameat(int folder, const char *from, int other, const char *to) {
  char a[PATH_MAX], b[PATH_MAX];
  LOCKED;
  int ours = resolve(folder, from, a) + resolve(other, to, b);
  int result = REAL(int, "renameat", int, const char *, int, const char *)(folder, from, other, to);
  if (ours && !result) add('r', 0, 0, a, strlen(a), b, strlen(b));
  DONE(result);
}
int rename(const char *from, const char *to) { return renameat(AT_FDCWD, from, AT_FDCWD, to); }

int linkat(int folder, const char *from, int other, const char *to, int flags) {
  char a[PATH_MAX], b[PATH_MAX];
  LOCKED;
  int ours = resolve(folder, from, a) + resolve(other, to, b);
  int result = REAL(int, "linkat", int, const char *, int, const char *, int)(folder, from, other, to, flags);
  if (ours && !result) add('l', 0, 0, a, strlen(a), b, strlen(b));
  DONE(result);
}
int link(const char *from, const char *to) { return linkat(AT_FDCWD, from, AT_FDCWD, to, 0); }

int unlinkat(int folder, const char *path, int flags) {
  char found[PATH_MAX];
  LOCKED;
  int ours = resolve(folder, path, found), result = REAL(int, "unlinkat", int, const char *, int)(folder, path, flags);
  if (ours && !result) add_path('u', 0, found);
  DONE(result);
}
int unlink(const char *path) { return unlinkat(AT_FDCWD, path, 0); }
int rmdir(const char *path) { return unlinkat(AT_FDCWD, path, AT_REMOVEDIR); }
int remove(const char *path) {
  struct stat status;
  return !lstat(path, &status) && S_ISDIR(status.st_mode) ? rmdir(path) : unlink(path);
}

int mkdirat(int folder, const char *path, mode_t mode) {
  char found[PATH_MAX];
  struct stat status;
  LOCKED;
  int ours = resolve(folder, path, found);
  if (ours && missing(found) && is_full()) DONE(-1);
  int result = REAL(int, "mkdirat", int, const char *, mode_t)(folder, path, mode);
  if (ours && !result && !lstat(found, &status)) add_path('m', status.st_ino, found);
  DONE(result);
}
int mkdir(const char *path, mode_t mode) { return mkdirat(AT_FDCWD, path, mode); }

void *mmap(void *address, size_t size, int protection, int flags, int fd, off_t offset) {
  static void *(*real)(void *, size_t, int, int, int, off_t);
  struct stat status;
  if (!real) real = dlsym(RTLD_NEXT, "mmap");
  if (*root && fd >= 0 && flags & MAP_SHARED && protection & PROT_WRITE && is_ours(fd, &status)) {
    LOCKED;
    add('M', status.st_ino, 0, 0, 0, 0, 0);
    pthread_mutex_unlock(&lock);
  }
  return real(address, size, protection, flags, fd, offset);
}
