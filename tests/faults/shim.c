// Makes a system call fail, or kills the process at it. Preloaded (LD_PRELOAD) into the program under test.
//
// Calls count that concern files below FAULTS_ROOT, which is also the working folder, by kind: open, read, write, fsync,
// rename, unlink (and rmdir), mkdir, truncate; `any` counts all of them but open and read.
//
//   FAULTS_AT   KIND:N:ERRNO:once  call N of the kind fails
//               KIND:N:ERRNO:on    so do all after it
//               KIND:N:kill        the process is killed before call N, or, if it writes, amid it
//   FAULTS_LOG  file to which a line is appended for each call: KIND PATH [PATH]
//
// A write that fails for want of space (ENOSPC) first writes a half, as a full disk does; the next write fails.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum kind { OPEN, READ, WRITE, FSYNC, RENAME, UNLINK, MKDIR, TRUNCATE, ANY, KINDS };
static const char *const NAMES[KINDS] = {"open",   "read",  "write",    "fsync", "rename",
                                         "unlink", "mkdir", "truncate", "any"};

static char root[PATH_MAX];
static size_t root_length;
static int log_file = -1;
static int wanted = -1, wanted_errno, is_kill, is_on;
static long wanted_call;
static atomic_long calls[KINDS];
// A half was written; the next write fails.
static atomic_int full;

__attribute__((constructor)) static void begin(void) {
    const char *text = getenv("FAULTS_ROOT");
    if (!text) return;
    snprintf(root, sizeof root, "%s", text);
    root_length = strlen(root);
    if ((text = getenv("FAULTS_LOG")))
        log_file = (int)syscall(SYS_openat, AT_FDCWD, text, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
    char name[16], how[16], mode[16] = "once";
    text = getenv("FAULTS_AT");
    if (!text || sscanf(text, "%15[^:]:%ld:%15[^:]:%15s", name, &wanted_call, how, mode) < 3) return;
    for (int kind = 0; kind < KINDS; kind++)
        if (!strcmp(name, NAMES[kind])) wanted = kind;
    is_kill = !strcmp(how, "kill");
    wanted_errno = is_kill ? 0 : atoi(how);
    is_on = !strcmp(mode, "on");
}

// The path below the root, or nothing.
static const char *below(const char *path) {
    if (!root_length) return NULL;
    if (path[0] != '/') return strncmp(path, "./", 2) ? path : path + 2;
    if (strncmp(path, root, root_length) || path[root_length] != '/') return NULL;
    return path + root_length + 1;
}

// That of a descriptor; `room` takes it.
static const char *below_fd(int fd, char room[PATH_MAX]) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, room, PATH_MAX - 1);
    if (length <= 0 || room[0] != '/') return NULL;
    room[length] = 0;
    return below(room);
}

// That of a name in an open folder.
static const char *below_at(int folder, const char *path, char room[PATH_MAX]) {
    if (folder == AT_FDCWD || path[0] == '/') return below(path);
    const char *start = below_fd(folder, room);
    if (!start) return NULL;
    size_t length = strlen(room);
    snprintf(room + length, PATH_MAX - length, "/%s", path);
    return start;
}

static void note(enum kind kind, const char *path, const char *other) {
    if (log_file < 0) return;
    char line[2 * PATH_MAX + 16];
    int length = other ? snprintf(line, sizeof line, "%s\t%s\t%s\n", NAMES[kind], path, other)
                       : snprintf(line, sizeof line, "%s\t%s\n", NAMES[kind], path);
    syscall(SYS_write, log_file, line, (size_t)length);
}

static void die(void) {
    syscall(SYS_kill, (pid_t)syscall(SYS_getpid), SIGKILL);
    for (;;) pause();
}

// Counts a call. Whether it is to fail: 1; or the process is to be killed: 2.
static int chosen(enum kind kind) {
    long call = atomic_fetch_add(&calls[kind], 1) + 1;
    long any = kind == OPEN || kind == READ ? 0 : atomic_fetch_add(&calls[ANY], 1) + 1;
    if (wanted == ANY) call = any;
    else if (wanted != (int)kind) return 0;
    if (is_kill) return call == wanted_call ? 2 : 0;
    return call == wanted_call || (is_on && call > wanted_call);
}

// For calls that do nothing where they fail.
static int fails(enum kind kind, const char *path, const char *other) {
    if (!path) return 0;
    int what = chosen(kind);
    if (what == 2) die();
    if (what) {
        errno = wanted_errno;
        return 1;
    }
    note(kind, path, other);
    return 0;
}

#define REAL(name) \
    static __typeof__(&name) real; \
    if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name);

#define OPENS(name, at, PARAMETERS, FOLDER, ...) \
    int name PARAMETERS { \
        REAL(name) \
        mode_t mode = 0; \
        if (flags & (O_CREAT | O_TMPFILE)) { \
            va_list rest; \
            va_start(rest, flags); \
            mode = va_arg(rest, mode_t); \
            va_end(rest); \
        } \
        char room[PATH_MAX]; \
        return fails(OPEN, below_at(FOLDER, path, room), NULL) ? -1 : real(__VA_ARGS__, flags, mode); \
    }
OPENS(open, 0, (const char *path, int flags, ...), AT_FDCWD, path)
OPENS(open64, 0, (const char *path, int flags, ...), AT_FDCWD, path)
OPENS(openat, 1, (int folder, const char *path, int flags, ...), folder, folder, path)
OPENS(openat64, 1, (int folder, const char *path, int flags, ...), folder, folder, path)

#define READS(name, PARAMETERS, ...) \
    ssize_t name PARAMETERS { \
        REAL(name) \
        char room[PATH_MAX]; \
        return fails(READ, below_fd(fd, room), NULL) ? -1 : real(__VA_ARGS__); \
    }
READS(read, (int fd, void *to, size_t size), fd, to, size)
READS(pread, (int fd, void *to, size_t size, off_t at), fd, to, size, at)
READS(pread64, (int fd, void *to, size_t size, off64_t at), fd, to, size, at)
READS(readv, (int fd, const struct iovec *to, int parts), fd, to, parts)

// Whether a write of `size` bytes fails, or how many it may write.
static int write_fails(int fd, size_t *size) {
    char room[PATH_MAX];
    const char *path = below_fd(fd, room);
    if (!path) return 0;
    int what = chosen(WRITE);
    if (!what && atomic_exchange(&full, 0)) what = 1;
    else if (what && *size > 1 && (what == 2 || wanted_errno == ENOSPC) && !atomic_load(&full)) {
        *size /= 2;
        atomic_store(&full, 1);
        return what == 2 ? 2 : 0;
    }
    if (what == 2) die();
    if (what) {
        errno = wanted_errno;
        return 1;
    }
    note(WRITE, path, NULL);
    return 0;
}

#define WRITES(name, PARAMETERS, ...) \
    ssize_t name PARAMETERS { \
        REAL(name) \
        int what = write_fails(fd, &size); \
        if (what == 1) return -1; \
        ssize_t written = real(__VA_ARGS__); \
        if (what == 2) die(); \
        return written; \
    }
WRITES(write, (int fd, const void *from, size_t size), fd, from, size)
WRITES(pwrite, (int fd, const void *from, size_t size, off_t at), fd, from, size, at)
WRITES(pwrite64, (int fd, const void *from, size_t size, off64_t at), fd, from, size, at)
WRITES(copy_file_range, (int in, off64_t *in_at, int fd, off64_t *at, size_t size, unsigned flags), in, in_at, fd, at, size, flags)
WRITES(sendfile64, (int fd, int in, off64_t *at, size_t size), fd, in, at, size)

ssize_t writev(int fd, const struct iovec *parts, int count) {
    // A part of what was asked for is a write, too.
    return count > 0 ? write(fd, parts[0].iov_base, parts[0].iov_len) : 0;
}

#define OTHER(name, kind, PATHS, PARAMETERS, ...) \
    int name PARAMETERS { \
        REAL(name) \
        char room[PATH_MAX], other[PATH_MAX]; \
        (void)room, (void)other; \
        return fails(kind, PATHS) ? -1 : real(__VA_ARGS__); \
    }
#define ONE(path) path, NULL
#define TWO(path, other) path, other
OTHER(fsync, FSYNC, ONE(below_fd(fd, room)), (int fd), fd)
OTHER(fdatasync, FSYNC, ONE(below_fd(fd, room)), (int fd), fd)
OTHER(ftruncate, TRUNCATE, ONE(below_fd(fd, room)), (int fd, off_t size), fd, size)
OTHER(ftruncate64, TRUNCATE, ONE(below_fd(fd, room)), (int fd, off64_t size), fd, size)
OTHER(rename, RENAME, TWO(below(from), below(to)), (const char *from, const char *to), from, to)
OTHER(unlink, UNLINK, ONE(below(path)), (const char *path), path)
OTHER(rmdir, UNLINK, ONE(below(path)), (const char *path), path)
OTHER(unlinkat, UNLINK, ONE(below_at(folder, path, room)), (int folder, const char *path, int flags), folder, path, flags)
OTHER(mkdir, MKDIR, ONE(below(path)), (const char *path, mode_t mode), path, mode)
