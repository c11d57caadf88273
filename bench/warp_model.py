"""What a turn of a kernel's loops takes by its machine code: a model of one scheduler of an H100.

    python bench/warp_model.py KERNELS.cubin PART-OF-A-NAME [PART...] [--warps 2]
        [--wavefront 7] [--latency 55] [--jump 9] [--pairs 1]

For choosing among versions of a loop without a GPU. nvdisasm has to be on the PATH. Loops without
a branch and with special functions are listed: instructions of a turn, what its special functions
alone take for all warps, and what the model says.

The model: warps issue in order, one instruction a cycle among them. The compiler has written into
each how many cycles the next one waits, which scoreboards it waits for and which it sets. A special
function starts every 8 cycles and takes 20; an access to shared memory takes a wavefront or two,
and --latency cycles; both wait in one queue of two places. --jump: cycles of a taken branch.

Held against samples of an H100 (bench/NOTES.md): --wavefront 7 --latency 55 --jump 9 --pairs 2
where wgmma reads shared memory as well, --wavefront 4 --latency 28 --jump 2 where it does little.
"""

from __future__ import annotations

import argparse
import re
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

SPECIAL = ("MUFU", "F2F", "I2F", "F2I")
MEMORY = ("LDS", "STS", "LDC", "SHFL", "LDG", "STG", "LDL", "STL", "S2R", "SYNCS")
HALF_RATE = (
    "FMNMX", "FSETP", "ISETP", "LOP3", "IADD3", "SEL", "FSEL", "SHF", "LEA", "PRMT", "PLOP3", "MOV",
    "VIADD", "VIADDMNMX", "VIMNMX", "R2UR",
)  # fmt: skip
BRANCHES = ("BRA", "BSYNC", "BSSY", "CALL", "RET", "EXIT")


@dataclass
class Instruction:
    text: str
    control: int  # the upper eight bytes of its code

    @property
    def name(self) -> str:
        return re.sub(r"^@!?U?P\w+\s+", "", self.text).split()[0]

    def among(self, names: Sequence[str]) -> bool:
        return self.name.split(".")[0] in names

    @property
    def stall(self) -> int:
        return max(1, self.control >> 41 & 15)

    @property
    def written(self) -> int:
        """The scoreboard that waits for its result; 7: none."""
        return self.control >> 46 & 7

    @property
    def read(self) -> int:
        """The scoreboard that waits until its operands have been read; 7: none."""
        return self.control >> 49 & 7

    @property
    def waits(self) -> list[int]:
        return [b for b in range(6) if self.control >> 52 >> b & 1]


@dataclass
class Kernel:
    name: str
    instructions: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)

    def loops(self, special: int = 4) -> Iterator[list[Instruction]]:
        """Bodies of loops without a branch but their last instruction."""
        for end, jump in enumerate(self.instructions):
            target = re.search(r"\.L_x_\d+", jump.text)
            if not jump.name.startswith("BRA") or not jump.text.startswith("@") or not target:
                continue
            body = self.instructions[self.labels[target[0]] : end + 1]
            if any(i.among(BRANCHES) for i in body[:-1]):
                continue
            if sum(i.among(SPECIAL) for i in body) >= special:
                yield body


def kernels(text: str) -> list[Kernel]:
    """Of the output of ``nvdisasm --print-instruction-encoding``."""
    found: list[Kernel] = []
    for line in text.splitlines():
        if section := re.match(r"\s*\.section\s+\.text\.([^,\s]+)", line):
            found.append(Kernel(section[1]))
        elif not found:
            continue
        elif label := re.match(r"(\.L_x_\d+):", line):
            found[-1].labels[label[1]] = len(found[-1].instructions)
        elif code := re.match(r"\s*/\*[0-9a-f]+\*/\s+(.*?);\s*/\* 0x[0-9a-f]+ \*/", line):
            found[-1].instructions.append(Instruction(code[1].strip(), 0))
        elif (upper := re.match(r"\s*/\* (0x[0-9a-f]+) \*/\s*$", line)) and found[-1].instructions:
            found[-1].instructions[-1].control = int(upper[1], 16)
    return found


@dataclass
class Machine:
    warps: int = 2
    wavefront: int = 7
    latency: int = 55
    jump: int = 9
    pairs: int = 1  # wavefronts of an access to two numbers a lane
    special_every: int = 8
    special_latency: int = 20
    operands_read: int = 6
    queue: int = 2

    def wavefronts(self, instruction: Instruction) -> int:
        return 2 if ".128" in instruction.name else self.pairs if ".64" in instruction.name else 1

    def special_alone(self, body: list[Instruction]) -> int:
        return self.warps * self.special_every * sum(i.among(SPECIAL) for i in body)

    def cycles(self, body: list[Instruction], turns: int = 20) -> float:
        """Of a turn, all warps side by side."""
        warps = range(self.warps)
        place, turn, scoreboards = [0] * self.warps, [0] * self.warps, [[0] * 6 for _ in warps]
        ready = [int(1.3 * w * len(body)) for w in warps]  # out of step
        free = {"special": 0, "memory": 0, "half": 0}
        waiting: list[int] = []  # when what is in the queue leaves it
        ends: list[list[int]] = [[] for _ in warps]
        now = last = 0
        while min(turn) < turns:
            waiting = [t for t in waiting if t > now]
            for step in warps:
                w = (last + 1 + step) % self.warps
                i = body[place[w]]
                unit = (
                    "special" if i.among(SPECIAL)
                    else "memory" if i.among(MEMORY)
                    else "half" if i.among(HALF_RATE) else ""
                )  # fmt: skip
                if ready[w] > now or any(scoreboards[w][b] > now for b in i.waits):
                    continue
                if unit == "half" and free["half"] > now:
                    continue
                if unit in ("special", "memory") and len(waiting) >= self.queue:
                    continue
                last, ready[w] = w, now + i.stall
                if unit == "half":
                    free["half"] = now + 2
                elif unit:
                    start = max(now + 2, free[unit])
                    busy = self.wavefront * self.wavefronts(i)
                    free[unit] = start + (self.special_every if unit == "special" else busy)
                    waiting.append(start)
                    after = self.special_latency if unit == "special" else self.latency
                    for board, time in ((i.written, after), (i.read, self.operands_read)):
                        if board < 6:
                            scoreboards[w][board] = max(scoreboards[w][board], start + time)
                place[w] += 1
                if place[w] == len(body):
                    ready[w] += self.jump
                    place[w], turn[w] = 0, turn[w] + 1
                    ends[w].append(now)
                break
            now += 1
        return sum((e[turns - 2] - e[4]) / (turns - 6) for e in ends) / self.warps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cubin")
    parser.add_argument(
        "names", nargs="+", metavar="PART", help="of the kernel's name; all of them"
    )
    for option in ("warps", "wavefront", "latency", "jump", "pairs"):
        parser.add_argument(f"--{option}", type=int, default=getattr(Machine, option))
    options = vars(parser.parse_args())
    cubin, names = options.pop("cubin"), options.pop("names")
    machine = Machine(**options)
    command = ["nvdisasm", "--print-instruction-encoding", "-c", cubin]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    for kernel in kernels(text):
        if not all(name in kernel.name for name in names):
            continue
        print(kernel.name)
        for body in kernel.loops():
            print(
                f"  {len(body):4} instructions, special functions {machine.special_alone(body):5} "
                f"cycles, a turn {machine.cycles(body):6.0f}"
            )


if __name__ == "__main__":
    main()
