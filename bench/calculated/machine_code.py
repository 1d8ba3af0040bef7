"""The machine code of the kernels: registers, shared memory, and basic blocks with what their instructions occupy."""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted((ROOT / "csrc" / "cuda").glob("*.cu"))
CACHE = ROOT / "build" / "calculated"
FLAGS = ("-std=c++17", "-O3", "-arch=sm_90", "-DUSE_CUDA", "-DTORCH_TARGET_VERSION=0x020a000000000000", "-cubin")

BYTES = {"U8": 1, "S8": 1, "U16": 2, "S16": 2, "64": 8, "128": 16}
"""Bytes of an access by the suffix of its instruction; 4 without one."""
ACCESSES = {
    "LDG": ("read",),
    "LD": ("read", "shared_read"),
    "STG": ("written",),
    "ST": ("written", "shared_written"),
    "LDS": ("shared_read",),
    "STS": ("shared_written",),
    "ATOMG": ("read", "written"),
    "ATOM": ("read", "written"),
    "RED": ("read", "written"),
    "ATOMS": ("shared_read", "shared_written"),
}
"""What an instruction may access. Atomics do both."""
FUNCTIONS = {"MUFU.EX2": "exponentials", "MUFU.RSQ": "roots", "MUFU.SQRT": "roots"}
# The throughput table of NVIDIA's CUDA C++ Programming Guide for compute capability 9.0 has lanes a clock.
UNITS = {
    "integer": "IADD3 VIADD LOP3 SHF ISETP IMNMX VIMNMX VIADDMNMX SEL FSEL FSETP FSET FMNMX PRMT LEA PLOP3 IABS",
    "multiply": "IMAD",
    "double": "DADD DMUL DFMA DSETP",
    "special": "MUFU POPC FLO FRND",
}
UNIT_OF = {name: unit for unit, names in UNITS.items() for name in names.split()}

_INSTRUCTION = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+(?:(@!?U?P\w+)\s+)?([A-Z][A-Z0-9_.]*)(.*?);", re.MULTILINE)
_FUNCTION = re.compile(r"^\s*Function : ", re.MULTILINE)
_USAGE = re.compile(r"Function (?P<name>\S+?):\s+REG:(?P<registers>\d+) STACK:\d+ SHARED:(?P<shared>\d+)")
_INCLUDE = re.compile(r'^#include "(.+)"', re.MULTILINE)
_ADDRESS = re.compile(r"0x([0-9a-f]+)")


@dataclass(frozen=True)
class Instruction:
    address: int
    predicated: bool
    name: str  # with suffixes
    operands: str

    @property
    def opcode(self) -> str:
        return self.name.partition(".")[0]


@dataclass
class BasicBlock:
    """Instructions that run one after the other. ``uses`` counts them by unit, and the bytes that they access."""

    instructions: int = 0
    uses: Counter[str] = field(default_factory=Counter)
    successors: set[int] = field(default_factory=set)  # indices of blocks
    leaves: bool = False  # the kernel or a subroutine may end here


@dataclass(frozen=True)
class Kernel:
    """A compiled kernel. Block 0 is its entry."""

    name: str  # demangled, with template arguments
    registers: int
    shared_bytes: int  # static
    blocks: tuple[BasicBlock, ...]


def base_name(kernel: str) -> str:
    """Return a kernel's name without its template arguments and namespaces."""
    return kernel.partition("<")[0].rpartition("::")[2]


def find_tool(name: str) -> str:
    """Find a program of the CUDA toolkit on PATH, or in Triton's package. RuntimeError if there is none."""
    found = shutil.which(name)
    if found is None:
        try:
            import triton
        except ImportError:
            pass
        else:
            folder = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
            found = shutil.which(name, path=str(folder))
    if found is None:
        raise RuntimeError(f"{name} is needed and was not found; install the CUDA toolkit, or Triton for cuobjdump")
    return found


def output_of(*command: str) -> str:
    """Return what a program prints. RuntimeError with its last lines if it fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{(done.stdout + done.stderr)[-4000:]}")
    return done.stdout


def compile_for(kernels: Iterable[str], workers: int = 2) -> list[Path]:
    """Compile the sources of some kernels for sm_90; return the files. Those of unchanged sources stay in build/."""
    words = re.compile("|".join(rf"\b{re.escape(base_name(kernel))}\b" for kernel in kernels))
    needed = [source for source in SOURCES if any(words.search(path.read_text()) for path in included(source))]
    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(_compile, needed))


def included(source: Path) -> list[Path]:
    """Return a source and the headers of this project that it includes, directly or not."""
    found = [source]
    for path in found:  # grows meanwhile
        for name in _INCLUDE.findall(path.read_text()):
            header = (path.parent / name).resolve()
            if header not in found:
                found.append(header)
    return found


def _compile(source: Path) -> Path:
    nvcc = find_tool("nvcc")
    inputs = [output_of(nvcc, "--version"), torch.__version__, *FLAGS, *(x.read_text() for x in included(source))]
    key = hashlib.sha256("\0".join(inputs).encode()).hexdigest()[:16]
    kept = CACHE / f"{source.stem}-{key}.cubin"
    if not kept.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        for old in CACHE.glob(f"{source.stem}-*.cubin"):
            if len(old.stem) == len(kept.stem):
                old.unlink()
        include = Path(torch.__file__).parent / "include"
        partial = kept.with_suffix(".partial")
        output_of(nvcc, *FLAGS, f"-isystem={include}", str(source), "-o", str(partial))
        partial.replace(kept)
    return kept


def extract(library: Path) -> list[Path]:
    """Return the sm_90 code of a built library, as files of a temporary folder.

    Raises:
        OSError: There is no such file.
        RuntimeError: cuobjdump is missing, or the library has no such code.
    """
    library.open("rb").close()  # cuobjdump's own message names no file
    folder = Path(tempfile.mkdtemp(prefix="sm_90-"))
    command = [find_tool("cuobjdump"), "-arch", "sm_90", "-xelf", "all", str(library.resolve())]
    subprocess.run(command, cwd=folder, capture_output=True, check=False)
    found = sorted(folder.glob("*.cubin"))
    if not found:
        raise RuntimeError(f"{library} has no code for sm_90; build it with TORCH_CUDA_ARCH_LIST=9.0")
    return found


def read(files: Iterable[Path], wanted: set[str]) -> dict[str, Kernel]:
    """Return the kernels of compiled files whose demangled names are ``wanted``, by name."""
    cuobjdump, kernels = find_tool("cuobjdump"), {}
    for path in files:
        usage = {found["name"]: found for found in _USAGE.finditer(output_of(cuobjdump, "-res-usage", str(path)))}
        found = zip(demangled(usage), usage, strict=True)
        names = {mangled: name for name, mangled in found if name in wanted}
        if not names:
            continue
        listing = output_of(cuobjdump, "-sass", "-fun", ",".join(names), str(path))
        for function in _FUNCTION.split(listing)[1:]:
            mangled, _, code = function.partition("\n")
            kernel = usage[mangled.strip()]
            blocks = basic_blocks(instructions(code))
            name = names[mangled.strip()]
            kernels[name] = Kernel(name, int(kernel["registers"]), int(kernel["shared"]), blocks)
    return kernels


def demangled(names: Iterable[str]) -> list[str]:
    """Return names of kernels as the emulator has them."""
    from tests.simt.build import kernel_name

    done = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True)
    return [kernel_name(line) for line in done.stdout.splitlines()]


def instructions(code: str) -> list[Instruction]:
    """Return the instructions of a function's listing."""
    return [
        Instruction(int(found[1], 16), found[2] is not None, found[3], found[4])
        for found in _INSTRUCTION.finditer(code)
    ]


def basic_blocks(code: list[Instruction]) -> tuple[BasicBlock, ...]:
    """Split a function into blocks. Where a branch may go is never too few blocks, sometimes too many."""
    joins = [(x.address, x.operands.split(",")[0].strip(), _target(x)) for x in code if x.opcode == "BSSY"]
    begins = {code[0].address}
    for instruction, after in zip(code, [*code[1:], None], strict=True):
        targets = _targets(instruction, joins)
        if (targets or _stops(instruction)) and after is not None:
            begins.add(after.address)
        begins.update(targets)
    index = {address: i for i, address in enumerate(sorted(begins))}
    blocks = [BasicBlock() for _ in index]
    current = blocks[0]
    for instruction, after in zip(code, [*code[1:], None], strict=True):
        current = blocks[index[instruction.address]] if instruction.address in index else current
        current.instructions += 1
        current.uses.update(uses(instruction))
        targets = _targets(instruction, joins)
        current.successors.update(index[target] for target in targets)
        current.leaves |= instruction.opcode in ("EXIT", "RET", "BRX", "BREAK")
        returns = instruction.opcode in ("CALL", "WARPSYNC")
        stops = _stops(instruction) and not (instruction.predicated or returns or _conditional(instruction))
        if after is not None and after.address in index and not stops:
            current.successors.add(index[after.address])
    return tuple(blocks)


def uses(instruction: Instruction) -> Counter[str]:
    """Return what one instruction of a warp occupies: a unit, and bytes of memory of all lanes."""
    found: Counter[str] = Counter()
    parts = instruction.name.split(".")
    unit = UNIT_OF.get(parts[0])
    if unit is not None:
        found[unit] += 1
    size = next((BYTES[part] for part in parts[1:] if part in BYTES), 4)
    for access in ACCESSES.get(parts[0], ()):
        found[access] += 32 * size
    found["load_store"] += parts[0] in ACCESSES or parts[0] == "SHFL"
    if instruction.name in FUNCTIONS:
        found[FUNCTIONS[instruction.name]] += 32
    found["shuffles"] += parts[0] == "SHFL"
    found["barriers"] += parts[0] == "BAR"
    return found


def _stops(instruction: Instruction) -> bool:
    return instruction.opcode in ("BRA", "EXIT", "RET", "BSYNC", "BRX", "BREAK")


def _conditional(instruction: Instruction) -> bool:
    """Return whether a branch has its condition among its operands."""
    return instruction.opcode == "BRA" and re.match(r"\s*(!?U?P\d|\.DIV|UR\d)", instruction.operands) is not None


def _targets(instruction: Instruction, joins: list[tuple[int, str, int]]) -> set[int]:
    if instruction.opcode == "BRA" or instruction.name.startswith(("CALL.REL", "WARPSYNC.COLLECTIVE")):
        return {_target(instruction)}
    if instruction.opcode == "BSYNC":
        register = instruction.operands.strip()
        begun = [(at, to) for at, name, to in joins if name == register]
        around = [to for at, to in begun if at < instruction.address < to]
        return {around[-1]} if around else {to for _, to in begun}
    return set()


def _target(instruction: Instruction) -> int:
    return int(_ADDRESS.findall(instruction.operands)[-1], 16)
