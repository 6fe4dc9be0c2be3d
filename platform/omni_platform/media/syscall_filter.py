"""A seccomp filter for the decoder process: no files, no network, no programs, no other processes.

The forbidden system calls are listed and everything else passes: a list of what may be called would differ with
every libc, and its gaps would kill decoders on machines nobody tested.
"""

from __future__ import annotations

import ctypes
import errno
import platform
import struct

_X86_64, _AARCH64 = 0xC000003E, 0xC00000B7  # AUDIT_ARCH_*
_X32_BIT = 0x40000000
_CLONE_THREAD = 0x00010000

# name: (number on x86_64, number on aarch64); None where the architecture has no such call.
_FORBIDDEN: dict[str, tuple[int | None, int | None]] = {
    # Files by name. Reading and writing descriptors that are open already stays possible.
    "open": (2, None),
    "creat": (85, None),
    "openat": (257, 56),
    "openat2": (437, 437),
    "open_by_handle_at": (304, 265),
    "name_to_handle_at": (303, 264),
    "memfd_create": (319, 279),
    "truncate": (76, 45),
    "rename": (82, None),
    "renameat": (264, 38),
    "renameat2": (316, 276),
    "mkdir": (83, None),
    "mkdirat": (258, 34),
    "rmdir": (84, None),
    "link": (86, None),
    "linkat": (265, 37),
    "unlink": (87, None),
    "unlinkat": (263, 35),
    "symlink": (88, None),
    "symlinkat": (266, 36),
    "mknod": (133, None),
    "mknodat": (259, 33),
    "chmod": (90, None),
    "fchmod": (91, 52),
    "fchmodat": (268, 53),
    "chown": (92, None),
    "fchown": (93, 55),
    "lchown": (94, None),
    "fchownat": (260, 54),
    "setxattr": (188, 5),
    "utimensat": (280, 88),
    "chroot": (161, 51),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsmount": (432, 432),
    # The network, and sockets of any other kind.
    "socket": (41, 198),
    "socketpair": (53, 199),
    "connect": (42, 203),
    "bind": (49, 200),
    "listen": (50, 201),
    "accept": (43, 202),
    "accept4": (288, 242),
    # Programs and other processes.
    "execve": (59, 221),
    "execveat": (322, 281),
    "fork": (57, None),
    "vfork": (58, None),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "kill": (62, 129),
    "tkill": (200, 130),
    "pidfd_open": (434, 434),
    "pidfd_getfd": (438, 438),
    "pidfd_send_signal": (424, 424),
    "setns": (308, 268),
    "unshare": (272, 97),
    # Ways around the above, and large parts of the kernel that no codec needs.
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "kexec_load": (246, 104),
    "reboot": (169, 142),
}
_CLONE = (56, 220)
_CLONE3 = (435, 435)
_SECCOMP = (317, 277)
_SET_MODE_FILTER, _FLAG_ALL_THREADS = 1, 1

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW = 0x7FFF0000


def install_filter() -> bool:
    """Forbid the calls above to every thread of this process for good; False where that is not possible.

    A forbidden call fails with EACCES. The caller must have set "no new privileges" before.
    """
    machine = {"x86_64": 0, "aarch64": 1}.get(platform.machine())
    if platform.system() != "Linux" or machine is None:
        return False
    program = _program(machine)
    buffer = ctypes.create_string_buffer(program)
    filter_ = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(buffer))
    libc = ctypes.CDLL(None, use_errno=True)
    return libc.syscall(_SECCOMP[machine], _SET_MODE_FILTER, _FLAG_ALL_THREADS, filter_) == 0


def _program(machine: int) -> bytes:
    """The filter as BPF: an architecture check, then one comparison per forbidden call."""
    refuse, unknown = (0x00050000 | errno.EACCES), (0x00050000 | errno.ENOSYS)
    code = [
        _instruction(_LOAD, 4),  # the architecture of the call: 32-bit calls have other numbers
        _instruction(_EQUAL, (_X86_64, _AARCH64)[machine], on_true=1),
        _instruction(_RETURN, refuse),
        _instruction(_LOAD, 0),  # its number
    ]
    if machine == 0:
        code += [_instruction(_AT_LEAST, _X32_BIT, on_false=1), _instruction(_RETURN, refuse)]
    # glibc starts threads with clone3, whose flags a filter cannot read, and falls back to clone.
    code += [_instruction(_EQUAL, _CLONE3[machine], on_false=1), _instruction(_RETURN, unknown)]
    for numbers in _FORBIDDEN.values():
        if numbers[machine] is not None:
            code += [_instruction(_EQUAL, numbers[machine], on_false=1), _instruction(_RETURN, refuse)]
    code += [
        _instruction(_EQUAL, _CLONE[machine], on_false=3),
        _instruction(_LOAD, 16),  # the low half of the first argument: threads pass, processes do not
        _instruction(_ANY_BIT, _CLONE_THREAD, on_true=1),
        _instruction(_RETURN, refuse),
        _instruction(_RETURN, _ALLOW),
    ]
    return b"".join(code)


def _instruction(operation: int, value: int | None, *, on_true: int = 0, on_false: int = 0) -> bytes:
    return struct.pack("=HBBI", operation, on_true, on_false, value)
