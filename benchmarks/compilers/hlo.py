"""What a compiled program's text (HLO) says: which kernels a step launches, for what, and what devices exchange."""

import math
import re
from typing import NamedTuple

_NO_WORK = r"(get-tuple-element|tuple|parameter|bitcast|constant|after-all|while|copy-done|all-reduce-done)"
_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "f32": 4, "s32": 4, "u32": 4, "f64": 8, "s64": 8}
# The parts of a step, by what a JAX operation's name contains; the first that fits.
_PARTS = {"augmentation": "augmentation", "transpose(": "backward", "jvp(": "forward"}
_PARTS |= {"optimizer": "optimizer", "packing": "packing", "MNISTNet": "forward"}
_COLLECTIVES = r"(all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute)(?:-start)?"


class Instruction(NamedTuple):
    """One instruction: its name and result, the operation, the JAX operation that it comes from, and the whole line."""

    name: str
    shape: str
    operation: str
    source: str
    line: str


def instructions_of(text: str) -> list[Instruction]:
    """The instructions that a step runs: those of the loop's body if there is a loop, else of the whole program."""
    computations: dict[str, list[str]] = {}
    current: list[str] = []
    for line in text.splitlines():
        if line and not line.startswith((" ", "}", "HloModule")) and line.endswith("{"):
            name = line.split()[1 if line.startswith("ENTRY") else 0].lstrip("%")
            current = computations.setdefault("ENTRY" if line.startswith("ENTRY") else name, [])
        elif line.startswith("  "):
            current.append(line.strip())
    bodies = re.findall(r" while\(.*?body=%?([\w.\-]+)", "\n".join(computations["ENTRY"]))
    parsed = []
    for line in computations[bodies[0] if bodies else "ENTRY"]:
        if found := re.match(r"(?:ROOT )?%([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\(", line):
            source = re.search(r'op_name="([^"]*)"', line)
            parsed.append(Instruction(*found.groups(), source.group(1) if source else "", line))
    return parsed


def part_of(instruction: Instruction) -> str:
    """The part of a step that an instruction belongs to."""
    if not instruction.source:
        return "unnamed"
    return next((part for sign, part in _PARTS.items() if sign in instruction.source), "bookkeeping")


def kind_of(instruction: Instruction) -> str:
    """The kind of kernel that an instruction is on a GPU."""
    target = re.search(r'custom_call_target="([^"]+)"', instruction.line)
    if target:
        kinds = {"conv": "convolution", "cublas": "matrix product"}
        return next((kinds[sign] for sign in kinds if sign in target.group(1)), target.group(1).strip("_"))
    if instruction.operation == "fusion":
        kind = re.search(r"kind=k(\w+)", instruction.line)
        names = {"Input": "reduction", "Loop": "elementwise"}
        if "gemm" in instruction.name:
            return "matrix product"
        return names.get(kind.group(1) if kind else "", "other fusion")
    return instruction.operation


def kernels(text: str) -> list[Instruction]:
    """What a GPU launches in a step."""
    return [instruction for instruction in instructions_of(text) if not re.fullmatch(_NO_WORK, instruction.operation)]


def collectives(text: str) -> tuple[int, int]:
    """How many a step has, and the bytes of their results on one device."""
    found = [i for i in instructions_of(text) if re.fullmatch(_COLLECTIVES, i.operation)]
    return len(found), sum(_size(i.shape) for i in found)


def pixel_gathers(text: str) -> int:
    """How many gathers of the whole program read slices of one element."""
    sizes = re.findall(r" gather\(.*?slice_sizes=\{([\d,]*)\}", text)
    return sum(math.prod(map(int, size.split(","))) == 1 for size in sizes)


def cycles(text: str) -> int:
    """The sum of the cycles that a TPU's compiler writes beside a step's instructions."""
    lines = "\n".join(instruction.line for instruction in instructions_of(text))
    return sum(int(number) for number in re.findall(r'"estimated_cycles":"(\d+)"', lines))


def hbm_bytes(text: str) -> int:
    """Bytes that a step's instructions read and write in a TPU's main memory, at most.

    Layouts mark by `S(1)` what lies in memory on the chip. The compiler's "bytes accessed" count that too. Of what an
    instruction gathers from, it reads as much as it returns.
    """
    instructions = instructions_of(text)
    shapes = {instruction.name: instruction.shape for instruction in instructions}
    total = 0
    for name, shape, operation, _, line in instructions:
        if re.fullmatch(_NO_WORK, operation):
            continue
        operands = re.findall(r"%([\w.\-]+)", line.split(f" {operation}(", 1)[1].split("), ")[0])
        read = [_in_hbm(shapes[operand]) for operand in operands if operand in shapes]
        total += _in_hbm(shape) + (min(sum(read), _size(shape)) if "gather" in name else sum(read))
    return total


def _in_hbm(shape: str) -> int:
    return _size(re.sub(r"\w+\[[\d,]*\]\{[^}]*S\(\d+\)\}", "", shape))


def _size(shape: str) -> int:
    arrays = re.findall(r"(\w+)\[([\d,]*)\]", shape)
    return sum(_BYTES.get(kind, 4) * math.prod(int(n) for n in sides.split(",") if n) for kind, sides in arrays)
