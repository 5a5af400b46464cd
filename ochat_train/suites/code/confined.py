"""The process that runs one program of a model: `python -I confined.py JOB_FILE`. It knows nothing of this project.

It shuts itself in before the program starts. Limits of the kernel bound time, memory, open files and the size of
files. A filter of system calls (seccomp) lets pass what computing needs, and answers everything else with "not
permitted": there are no other processes, no network, no signals to others, and files can only be read. The filter
cannot be taken off again.

What happened is written as lines to standard output, which the program does not have: "confined" once it is shut in,
then the job's secret if the program ran to its end.
"""

import ctypes
import json
import os
import platform
import resource
import struct
import sys

# Numbers of the calls that are allowed, by the machine: asm/unistd_64.h of x86, asm-generic/unistd.h of arm64.
_X86 = (
    *(0, 1, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 17, 19, 20, 21, 23, 24, 25, 28, 32, 35, 39, 60, 63, 79, 89),
    *(96, 97, 98, 99, 100, 102, 104, 107, 108, 110, 131, 158, 186, 202, 204, 217, 228, 229, 230, 231, 262, 267, 269),
    *(270, 273, 318, 332, 334, 439),
)
_ARM = (
    *(
        17,
        23,
        48,
        57,
        61,
        62,
        63,
        64,
        65,
        66,
        67,
        72,
        73,
        78,
        79,
        80,
        93,
        94,
        98,
        99,
        101,
        113,
        114,
        115,
        123,
        124,
        132,
    ),
    *(
        134,
        135,
        139,
        153,
        160,
        163,
        165,
        169,
        172,
        173,
        174,
        175,
        176,
        177,
        178,
        179,
        214,
        215,
        216,
        222,
        226,
        233,
        278,
    ),
    *(291, 293, 439),
)
# Number -> (argument, bits): allowed where none of the bits of that argument is set. Opening: only for reading, without
# O_CREAT, O_TRUNC and O_TMPFILE. prlimit64: only asking, the new limits are no address.
_WRITING = 0x400243
_ANY = 0xFFFFFFFF
_X86_WITHOUT = {2: (1, _WRITING), 257: (2, _WRITING), 302: (2, _ANY)}
_ARM_WITHOUT = {56: (2, _WRITING), 261: (2, _ANY)}
# Number -> (argument, values): of ioctl TCGETS, which asks for a terminal; of fcntl duplicating and flags.
_X86_VALUES = {16: (1, (0x5401,)), 72: (1, (0, 1, 2, 3, 1030))}
_ARM_VALUES = {29: (1, (0x5401,)), 25: (1, (0, 1, 2, 3, 1030))}
_MACHINES = {
    "x86_64": (0xC000003E, _X86, _X86_WITHOUT, _X86_VALUES),
    "aarch64": (0xC00000B7, _ARM, _ARM_WITHOUT, _ARM_VALUES),
}
_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _FILTER, _SIGKILL = 1, 38, 22, 2, 9
_LOAD, _JUMP_IF_EQUAL, _JUMP_IF_SET, _RETURN = 0x20, 0x15, 0x45, 0x06  # codes of the filter's instructions
_KILL, _ALLOW, _NOT_PERMITTED = 0x80000000, 0x7FFF0000, 0x00050001
_NUMBER_AT, _MACHINE_AT, _ARGUMENTS_AT = 0, 4, 16  # offsets in struct seccomp_data


def main() -> None:
    """Shut in, then run the program of the job."""
    with open(sys.argv[1], encoding="utf-8") as stream:
        job = json.load(stream)
    os.remove(sys.argv[1])  # it holds the secret
    out = os.dup(1)
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nothing, descriptor)
    limit(job["cpu_seconds"], job["memory_bytes"])
    try:
        confine()
    except OSError as error:
        os.write(out, f"not confined: {error}\n".encode())
        os._exit(1)
    os.write(out, b"confined\n")
    run(job["program"])
    os.write(out, job["secret"].encode() + b"\n")
    os._exit(0)


def run(program: str) -> None:
    """Run a program as a module. Whatever it raises ends this process."""
    exec(compile(program, "<answer>", "exec"), {"__name__": "answer"})


def limit(cpu_seconds: int, memory_bytes: int) -> None:
    """Limits that the kernel holds."""
    for kind, value in (
        (resource.RLIMIT_CPU, cpu_seconds),
        (resource.RLIMIT_AS, memory_bytes),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_NPROC, 0),
    ):
        resource.setrlimit(kind, (value, value))


def confine() -> None:
    """Install the filter. Raises OSError where this system has none."""
    libc = ctypes.CDLL(None, use_errno=True)
    machine = _MACHINES.get(platform.machine())
    if not sys.platform.startswith("linux") or machine is None:
        raise OSError(f"{sys.platform} on {platform.machine()} is not known")
    program = filter_program(*machine)
    code = ctypes.create_string_buffer(program)
    # struct sock_fprog: the number of instructions, and their address
    length = len(program) // 8
    fprog = ctypes.create_string_buffer(struct.pack("HxxxxxxP", length, ctypes.addressof(code)))
    for arguments in (
        (_PR_SET_PDEATHSIG, _SIGKILL, 0),
        (_PR_SET_NO_NEW_PRIVS, 1, 0),
        (_PR_SET_SECCOMP, _FILTER, ctypes.addressof(fprog)),
    ):
        option, value, address = arguments
        if libc.prctl(option, ctypes.c_ulong(value), ctypes.c_ulong(address), ctypes.c_ulong(0), ctypes.c_ulong(0)):
            raise OSError(ctypes.get_errno(), f"prctl {option}: {os.strerror(ctypes.get_errno())}")


def filter_program(machine: int, allowed: tuple, without: dict, values: dict) -> bytes:
    """The filter: another machine's calls end the process, and what is not listed is not permitted."""
    code = [
        (_LOAD, 0, 0, _MACHINE_AT),
        (_JUMP_IF_EQUAL, 1, 0, machine),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER_AT),
    ]
    for number in allowed:
        code += [(_JUMP_IF_EQUAL, 0, 1, number), (_RETURN, 0, 0, _ALLOW)]
    for number, (argument, bits) in without.items():
        both = (low_half(argument), high_half(argument)) if bits == _ANY else (low_half(argument),)
        checks = [step for half in both for step in ((_LOAD, 0, 0, half), (_JUMP_IF_SET, 0, 1, bits), deny())]
        code += [(_JUMP_IF_EQUAL, 0, len(checks) + 1, number), *checks, (_RETURN, 0, 0, _ALLOW)]
    for number, (argument, known) in values.items():
        checks = [(_LOAD, 0, 0, low_half(argument))]
        for value in known:
            checks += [(_JUMP_IF_EQUAL, 0, 1, value), (_RETURN, 0, 0, _ALLOW)]
        code += [(_JUMP_IF_EQUAL, 0, len(checks) + 1, number), *checks, deny()]
    code.append(deny())
    return b"".join(struct.pack("HBBI", *instruction) for instruction in code)


def deny() -> tuple:
    """The instruction that answers "not permitted"."""
    return (_RETURN, 0, 0, _NOT_PERMITTED)


def low_half(argument: int) -> int:
    """Where the lower 32 bits of an argument are, on the little-endian machines of the table."""
    return _ARGUMENTS_AT + 8 * argument


def high_half(argument: int) -> int:
    """Where the upper ones are."""
    return low_half(argument) + 4


if __name__ == "__main__":
    main()
