"""The processes that run one program of a model: `python -I confined.py JOB_FILE`. They know nothing of this project.

There are two. One runs the model's code, and answers calls of its function. The other one runs the test, which the
first one never has, and calls that function through a pipe: only plain values pass, so that code can return what it
wants, and decide nothing. Both shut themselves in before they begin. Limits of the kernel bound time, memory, open
files and the size of files. A filter of system calls (seccomp) lets pass what computing needs, and answers everything
else with "not permitted": there are no other processes, no network, no signals to others, and files can only be read.
The filter cannot be taken off again.

What happened is written as lines to standard output, which only the test's process has: "confined" once it is shut in,
then the secret if the test ran to its end, or why the model's process ended.
"""

import ctypes
import json
import os
import platform
import resource
import struct
import sys
from typing import Any

# Numbers of the calls that are allowed, by the machine: asm/unistd_64.h of x86, asm-generic/unistd.h of arm64.
_X86 = (
    *(0, 1, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 17, 19, 20, 21, 23, 24, 25, 28, 32, 35, 39, 60, 61, 63, 79),
    *(89,),
    *(96, 97, 98, 99, 100, 102, 104, 107, 108, 110, 131, 158, 186, 202, 204, 217, 228, 229, 230, 231, 262, 267, 269),
    *(270, 273, 318, 332, 334, 439),
)
_ARM = (
    *(17, 23, 48, 57, 61, 62, 63, 64, 65, 66, 67, 72, 73, 78, 79, 80, 93, 94, 98, 99, 101, 113, 114, 115, 123, 124),
    *(132, 134, 135, 139, 153, 160, 163, 165, 169, 172, 173, 174, 175, 176, 177, 178, 179, 214, 215, 216, 222, 226),
    *(233, 260, 278, 291, 293, 439),
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
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _FILTER = 1, 4, 38, 22, 2
_SIGKILL, _SIGXCPU = 9, 24
_LOAD, _JUMP_IF_EQUAL, _JUMP_IF_SET, _RETURN = 0x20, 0x15, 0x45, 0x06  # codes of the filter's instructions
_KILL, _ALLOW, _NOT_PERMITTED = 0x80000000, 0x7FFF0000, 0x00050001
_NUMBER_AT, _MACHINE_AT, _ARGUMENTS_AT = 0, 4, 16  # offsets in struct seccomp_data


def main() -> None:
    """Start the process of the model's code, then run the test."""
    with open(sys.argv[1], encoding="utf-8") as stream:
        job = json.load(stream)
    sys.set_int_max_str_digits(0)
    calls, results = os.pipe(), os.pipe()
    nothing = os.open(os.devnull, os.O_RDWR)
    child = os.fork()
    if child == 0:
        for descriptor in (0, 1, 2):  # of them it has none: not the test, and not what the test says
            os.dup2(nothing, descriptor)
        os.close(calls[1])
        os.close(results[0])
        answer_calls(job, calls[0], results[1])
    os.close(calls[0])
    os.close(results[1])
    run_test(job, calls[1], results[0], child)


def answer_calls(job: dict, calls: int, results: int) -> None:
    """Run the model's code as a module, say so, and answer calls of its function. Does not return."""
    try:
        limit(job["cpu_seconds"], job["memory_bytes"])
        confine()
        module: dict = {"__name__": "answer"}
        exec(compile(job["code"], "<answer>", "exec"), module)
        send(results, None)
        while True:
            arguments = receive(calls)
            try:
                answer = {"value": plain(module[job["entry_point"]](*arguments))}
            except Exception as error:
                answer = {"error": type(error).__name__}
            send(results, answer)
    finally:
        os._exit(1)


def run_test(job: dict, calls: int, results: int, child: int) -> None:
    """Shut in, run the test, and say what came of it. Does not return."""
    test = json.load(sys.stdin)
    out = os.dup(1)
    os.dup2(os.open(os.devnull, os.O_RDWR), 1)
    limit(job["cpu_seconds"], job["memory_bytes"])

    def candidate(*arguments: Any) -> Any:
        send(calls, plain(list(arguments)))
        answer = receive(results)
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer["value"]

    try:
        confine()
    except OSError as error:
        os.write(out, f"not confined: {error}\n".encode())
        os._exit(1)
    os.write(out, b"confined\n")
    try:
        receive(results)  # its code ran to its end
        names = {"__name__": "test", "_candidate": candidate, job["entry_point"]: candidate}
        exec(compile(test["program"], "<test>", "exec"), names)
        os.write(out, test["secret"].encode() + b"\n")
    except EOFError:
        _, status = os.waitpid(child, 0)
        out_of_time = os.WIFSIGNALED(status) and os.WTERMSIG(status) in (_SIGXCPU, _SIGKILL)
        os.write(out, b"out of CPU time\n" if out_of_time else b"failed\n")
    finally:
        os._exit(0)


def send(descriptor: int, value: Any) -> None:
    """Write a value that `plain` gave, its length before it."""
    data = json.dumps(value).encode("ascii")
    data = struct.pack("<Q", len(data)) + data
    while data:
        data = data[os.write(descriptor, data) :]


def receive(descriptor: int) -> Any:
    """Read a value. Raises EOFError where the other process has ended."""
    (length,) = struct.unpack("<Q", read(descriptor, 8))
    return json.loads(read(descriptor, length), object_hook=restored)


def read(descriptor: int, length: int) -> bytes:
    """So many bytes."""
    data = bytearray()
    while len(data) < length:
        part = os.read(descriptor, min(length - len(data), 1 << 20))
        if not part:
            raise EOFError
        data += part
    return bytes(data)


def plain(value: Any) -> Any:
    """A value of built-in types for JSON; those that JSON has not as {type: content}. Raises TypeError for others."""
    if value is None or isinstance(value, (bool, str)):
        return value if value is None or isinstance(value, bool) else str.__str__(value)
    if isinstance(value, int):
        return int.__int__(value)
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, list):
        return [plain(item) for item in list.__iter__(value)]
    if isinstance(value, dict):
        return {"dict": [[plain(key), plain(item)] for key, item in dict.items(value)]}
    kinds: tuple = (tuple, set, frozenset)
    for kind in kinds:
        if isinstance(value, kind):
            return {kind.__name__: [plain(item) for item in kind.__iter__(value)]}
    if isinstance(value, complex):
        return {"complex": [value.real, value.imag]}
    if isinstance(value, bytes):
        return {"bytes": value.hex()}
    raise TypeError(f"{type(value).__name__} is no plain value")


def restored(pairs: dict) -> Any:
    """What `plain` wrote as an object; the answer to a call stays one."""
    ((kind, content),) = pairs.items()
    if kind in ("value", "error"):
        return pairs
    if kind == "complex":
        return complex(*content)
    makers: dict = {"dict": dict, "tuple": tuple, "set": set, "frozenset": frozenset, "bytes": bytes.fromhex}
    return makers[kind](content)


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
        (_PR_SET_DUMPABLE, 0, 0),
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
