"""What the Linux kernel forbids a candidate program, set from inside its own process by ctypes.

Landlock names the files a process may read and write; a seccomp filter answers system calls.
Both can only be tightened once set, need no privilege, and hold for root as for everybody. The
filter lists what is forbidden: processes, network, signals, namespaces, privileges. What libc
tries in good faith (nscd behind getpwuid, chmod behind a copy) gets an error; what only an attack
or a subprocess does ends the process with SIGSYS. On another system or processor these functions
do nothing, which their results show.
"""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from collections.abc import Collection, Iterable, Sequence

# How the interpreters of judge and candidate start. -B: pyc files are for others to write. -S: no
# site-packages, whose hooks take long.
FLAGS = ("-s", "-S", "-B")
# From linux/prctl.h.
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_CHILD_SUBREAPER = 1, 4, 36
_PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 22, 38
_SIGKILL = 9

# Name, number on x86_64, number on aarch64 ("-": not there).
_FATAL = """
    fork 57 -  vfork 58 -  execve 59 221  execveat 322 281
    ptrace 101 117  process_vm_readv 310 270  process_vm_writev 311 271  kcmp 312 272
    process_madvise 440 440  process_mrelease 448 448  perf_event_open 298 241
    pidfd_open 434 434  pidfd_getfd 438 438  pidfd_send_signal 424 424
    rt_sigqueueinfo 129 138  rt_tgsigqueueinfo 297 240
    unshare 272 97  setns 308 268  chroot 161 51  pivot_root 155 41  mount 165 40  umount2 166 39
    open_tree 428 428  move_mount 429 429  fsopen 430 430  fsconfig 431 431  fsmount 432 432
    fspick 433 433  mount_setattr 442 442  name_to_handle_at 303 264  open_by_handle_at 304 265
    swapon 167 224  swapoff 168 225  acct 163 89  quotactl 179 60  quotactl_fd 443 443
    bpf 321 280  userfaultfd 323 282  fanotify_init 300 262
    io_uring_setup 425 425  io_uring_enter 426 426  io_uring_register 427 427
    add_key 248 217  request_key 249 218  keyctl 250 219
    init_module 175 105  finit_module 313 273  delete_module 176 106
    kexec_load 246 104  kexec_file_load 320 294  reboot 169 142
    iopl 172 -  ioperm 173 -  modify_ldt 154 -  personality 135 92  vhangup 153 58
    syslog 103 116  settimeofday 164 170  adjtimex 159 171  clock_settime 227 112
    clock_adjtime 305 266  sethostname 170 161  setdomainname 171 162
"""
# Landlock covers neither the attributes of files nor truncate (before its third version), memory
# in a memfd or in System V objects counts to no limit, and objects of the latter outlive us.
_DENIED = """
    connect 42 203  bind 49 200  listen 50 201  accept 43 202  accept4 288 242
    sendmsg 46 211  sendmmsg 307 269
    chmod 90 -  fchmod 91 52  fchmodat 268 53  fchmodat2 452 452
    chown 92 -  fchown 93 55  lchown 94 -  fchownat 260 54
    setxattr 188 5  lsetxattr 189 6  fsetxattr 190 7
    removexattr 197 14  lremovexattr 198 15  fremovexattr 199 16
    utime 132 -  utimes 235 -  futimesat 261 -  utimensat 280 88
    truncate 76 45  mknod 133 -  mknodat 259 33
    memfd_create 319 279  memfd_secret 447 447
    shmget 29 194  shmat 30 196  semget 64 190  msgget 68 186  mq_open 240 180
    shmctl 31 195  semctl 66 191  semop 65 193  semtimedop 220 192
    msgctl 71 187  msgsnd 69 189  msgrcv 70 188  mq_unlink 241 181
    setuid 105 146  setreuid 113 145  setresuid 117 147  setfsuid 122 151
    sync 162 81  syncfs 306 267
    setpriority 141 140  ioprio_set 251 30  sched_setparam 142 118  sched_setscheduler 144 119
    sched_setattr 314 274  migrate_pages 256 238  move_pages 279 239  tkill 200 130
"""
# Modes and times of files, which copies of files set.
_OF_FILES = {
    *("chmod", "fchmod", "fchmodat", "fchmodat2", "utime", "utimes", "futimesat", "utimensat"),
}
_LAST_KNOWN = 462  # mseal; later calls are answered as an older kernel does
_CLONE3 = 435  # its flags lie in memory, where no filter can look; libc falls back to clone

_KILL, _ALLOW, _ERRNO = 0x80000000, 0x7FFF0000, 0x00050000
_EPERM, _EACCES, _ENOSYS = (_ERRNO | code for code in (errno.EPERM, errno.EACCES, errno.ENOSYS))
# Of struct seccomp_data: the number, the architecture, the low word of an argument.
_AT_NUMBER, _AT_ARCH = 0, 4
_CLONE_THREAD, _AF_UNIX = 0x10000, 1
# Setting the owner of a file sends it signals of our choice.
_FCNTL_OWNER, _IOCTL_OWNER = (8, 10, 15), (0x8901, 0x8902)

# machine: (column in the tables, AUDIT_ARCH_*, clone, socket, sendto, kill, tgkill, prctl,
# prlimit64, sched_setaffinity, fcntl, ioctl)
_MACHINES = {
    "x86_64": (0, 0xC000003E, 56, 41, 44, 62, 234, 157, 302, 203, 72, 16),
    "aarch64": (1, 0xC00000B7, 220, 198, 206, 129, 131, 167, 261, 122, 25, 29),
}

# From linux/landlock.h.
_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 444, 445, 446
_WRITE_FILE, _READ_FILE, _READ_DIR, _REMOVE_FILE = 1 << 1, 1 << 2, 1 << 3, 1 << 5
_MAKE_REG, _TRUNCATE = 1 << 8, 1 << 14
_REMOVE_DIR, _MAKE_DIR, _REFER = 1 << 4, 1 << 7, 1 << 13
_ON_FILES = _WRITE_FILE | _READ_FILE | _TRUNCATE


class _Instruction(ctypes.Structure):
    _fields_ = (
        ("code", ctypes.c_uint16),
        ("jt", ctypes.c_uint8),
        ("jf", ctypes.c_uint8),
        ("k", ctypes.c_uint32),
    )


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.POINTER(_Instruction)))


class _Ruleset(ctypes.Structure):
    _fields_ = (("fs", ctypes.c_uint64), ("net", ctypes.c_uint64), ("scoped", ctypes.c_uint64))


class _PathBeneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("access", ctypes.c_uint64), ("parent_fd", ctypes.c_int32))


class _Capabilities(ctypes.Structure):
    _fields_ = (("header", ctypes.c_uint32 * 2), ("sets", ctypes.c_uint32 * 6))


def call(function: str, *arguments: object) -> int:
    """Call libc with words; -1 is its error."""
    words = [ctypes.c_ulong(a) if isinstance(a, int) else a for a in arguments]
    return getattr(ctypes.CDLL(None), function)(*words)


def guard_judge() -> None:
    """Adopt orphans, die with the parent, and let no process of the same user look inside."""
    if sys.platform == "linux":
        call("prctl", _PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        call("prctl", _PR_SET_PDEATHSIG, _SIGKILL, 0, 0, 0)
        call("prctl", _PR_SET_DUMPABLE, 0, 0, 0, 0)


def confine(
    readable: Iterable[str],
    scratch: str,
    layers: Collection[str],
    own_user: bool,
    free: bool = False,
) -> list[str]:
    """Confine this process for good; return which of the `layers` took hold.

    `layers`: of "landlock", "seccomp" and "threads". `readable`: files and folders that may be
    read; `scratch`: the folder in which files may be written too; `own_user`: whether this
    process is in a user namespace of its own; `free`: whether folders may be made in the scratch
    and what libraries try in good faith gets an error, a socket too. All else is read-only then.
    """
    if sys.platform != "linux":
        return []
    _be_killed_first()
    held = ["threads"] if "threads" in layers and _counted_apart(own_user) else []
    call("prctl", _PR_SET_PDEATHSIG, _SIGKILL, 0, 0, 0)
    call("prctl", _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    _drop_capabilities()
    if "landlock" in layers and _landlock(readable, scratch, free):
        held.append("landlock")
    if "seccomp" in layers and _seccomp(free):
        held.append("seccomp")
    return held


def _be_killed_first() -> None:
    """Where memory runs out, the kernel takes this process, and neither caller nor neighbour."""
    try:
        with open("/proc/self/oom_score_adj", "w", encoding="utf-8") as file:
            file.write("1000")
    except OSError:  # no /proc, or not ours to write
        return


def _counted_apart(own_user: bool) -> bool:
    """Whether a limit on threads counts those of this process alone.

    The kernel counts by real user, and since Linux 5.14 in each user namespace for itself. Root
    is never counted, so it takes a real user that nobody has; what it may read stays the same.
    """
    if os.geteuid() == 0:
        for user in (2**31 - 2 - os.getpid(), 2**16 - 3 - os.getpid() % 2**15):
            try:
                os.setresuid(user, -1, -1)
            except OSError:  # no such user in this namespace, or no right to be another
                continue
            return True
        return False
    version = os.uname().release.split("-")[0].split(".")
    return own_user and tuple(int(part) for part in version[:2]) >= (5, 14)


def _drop_capabilities() -> None:
    """Root without them keeps to its limits and may trace no process that forbids it."""
    empty = _Capabilities((0x20080522, 0))
    base = ctypes.addressof(empty)
    call("capset", ctypes.c_void_p(base), ctypes.c_void_p(base + 8))


def _landlock(readable: Iterable[str], scratch: str, free: bool) -> bool:
    version = call("syscall", _LANDLOCK_CREATE, None, 0, 1)
    if version < 1:
        return False
    # 13 rights on files at first; then REFER, TRUNCATE, and (5) IOCTL_DEV; TCP (4); abstract
    # sockets and signals to processes outside (6).
    handled = (1 << {1: 13, 2: 14, 3: 15, 4: 15}.get(version, 16)) - 1
    rules = _Ruleset(handled, 3 if version >= 4 else 0, 3 if version >= 6 else 0)
    ruleset = call("syscall", _LANDLOCK_CREATE, ctypes.byref(rules), ctypes.sizeof(rules), 0)
    if ruleset < 0:
        return False
    for path in readable:
        _allow(ruleset, path, (_READ_FILE | _READ_DIR) & handled)
    _allow(ruleset, os.devnull, (_READ_FILE | _WRITE_FILE) & handled)
    # Files only, if not asked otherwise: folders in folders would make a scratch hard to delete.
    writing = _WRITE_FILE | _REMOVE_FILE | _MAKE_REG | _TRUNCATE
    if free:
        writing |= _REMOVE_DIR | _MAKE_DIR | (_REFER if version >= 2 else 0)
    _allow(ruleset, scratch, (_READ_FILE | _READ_DIR | writing) & handled)
    held = call("syscall", _LANDLOCK_RESTRICT, ruleset, 0) == 0
    os.close(ruleset)
    return held


def _allow(ruleset: int, path: str, access: int) -> None:
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:  # not on this system
        return
    if not os.path.isdir(path):
        access &= _ON_FILES
    rule = _PathBeneath(access, fd)
    call("syscall", _LANDLOCK_ADD, ruleset, 1, ctypes.byref(rule), 0)
    os.close(fd)


def _seccomp(free: bool) -> bool:
    # A 32-bit interpreter on such a machine makes other calls.
    instructions = _filter(os.uname().machine, os.getpid(), free) if sys.maxsize > 2**32 else []
    if not instructions:
        return False
    array = (_Instruction * len(instructions))(*(_Instruction(*one) for one in instructions))
    program = _Program(len(array), array)
    return call("prctl", _PR_SET_SECCOMP, 2, ctypes.byref(program), 0, 0) == 0


def _filter(machine: str, pid: int, free: bool = False) -> list[tuple[int, int, int, int]]:
    """The program in classic BPF for the process `pid`; empty where the machine is unknown."""
    if machine not in _MACHINES:
        return []
    column, arch, *numbers = _MACHINES[machine]
    clone, socket, sendto, kill, tgkill, prctl, prlimit, affinity, fcntl, ioctl = numbers
    program = [_load(_AT_ARCH), *_unless(arch, _KILL), _load(_AT_NUMBER)]
    # Above it lie the x32 calls of x86_64: the same ones by other numbers.
    program += [_jump(0x35, 0x40000000, 0, 1), _return(_KILL)]
    program += [_jump(0x25, _LAST_KNOWN, 0, 1), _return(_ENOSYS)]
    program += _when(_CLONE3, [_return(_ENOSYS)])
    for table, answer in ((_FATAL, _KILL), (_DENIED, _EPERM)):
        words = table.split()
        numbers_of = (words[1::3], words[2::3])[column]
        for name, word in zip(words[::3], numbers_of, strict=True):
            if word != "-" and not (free and name in _OF_FILES):
                program += _when(int(word), [_return(answer)])
    threads = [_load(16), _jump(0x45, _CLONE_THREAD, 0, 1), _return(_ALLOW), _return(_KILL)]
    program += _when(clone, threads)
    other = _EACCES if free else _KILL
    program += _when(socket, _choose(0, (_AF_UNIX,), _EACCES, other))
    # With an address it is a connect; both words of the pointer must be zero.
    high = [_load(52), _jump(0x15, 0, 0, 1), _return(_ALLOW), _return(_EPERM)]
    program += _when(sendto, [_load(48), _jump(0x15, 0, 0, len(high) - 1), *high])
    for number in (kill, tgkill):
        program += _when(number, _choose(0, (pid,), _ALLOW, _KILL))
    for number in (prlimit, affinity):
        program += _when(number, _choose(0, (0, pid), _ALLOW, _EPERM))
    program += _when(prctl, _choose(0, (_PR_SET_PDEATHSIG,), _EPERM, _ALLOW))
    program += _when(fcntl, _choose(1, _FCNTL_OWNER, _EPERM, _ALLOW))
    program += _when(ioctl, _choose(1, _IOCTL_OWNER, _EPERM, _ALLOW))
    return [*program, _return(_ALLOW)]


def _load(offset: int) -> tuple[int, int, int, int]:
    return (0x20, 0, 0, offset)


def _return(answer: int) -> tuple[int, int, int, int]:
    return (0x06, 0, 0, answer)


def _jump(code: int, k: int, if_true: int, if_false: int) -> tuple[int, int, int, int]:
    return (code, if_true, if_false, k)


def _unless(value: int, answer: int) -> list[tuple[int, int, int, int]]:
    return [_jump(0x15, value, 1, 0), _return(answer)]


def _when(
    number: int, body: Sequence[tuple[int, int, int, int]]
) -> list[tuple[int, int, int, int]]:
    """The body, which must return, for one system call; the number is loaded."""
    return [_jump(0x15, number, 0, len(body)), *body]


def _choose(
    argument: int, values: Sequence[int], answer: int, otherwise: int
) -> list[tuple[int, int, int, int]]:
    """One answer where the low word of an argument is among the values, another elsewhere."""
    tests = [_jump(0x15, v, len(values) - i, 0) for i, v in enumerate(values)]
    return [_load(16 + 8 * argument), *tests, _return(otherwise), _return(answer)]


def children_of(parent: int) -> list[int]:
    """The living children of a process, where /proc tells."""
    found = []
    for name in os.listdir("/proc") if sys.platform == "linux" else ():
        if name.isdecimal():
            try:
                with open(f"/proc/{name}/stat", "rb") as stat:
                    # After the name in brackets, which may hold anything: state, parent.
                    state, ppid = stat.read().rpartition(b")")[2].split()[:2]
            except (OSError, ValueError):  # gone since
                continue
            if int(ppid) == parent and state not in (b"Z", b"X"):
                found.append(int(name))
    return found
