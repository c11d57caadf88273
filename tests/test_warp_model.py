"""bench/warp_model.py on code whose times are known."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "bench"))

from warp_model import Machine, kernels

NONE = 7


def listing(*code):
    """What nvdisasm prints of (text, stall, scoreboard written, scoreboards waited for)."""
    lines = ["\t.section\t.text.kernel,", ".L_x_1:"]
    for at, (text, stall, written, waits) in enumerate(code):
        control = stall << 41 | written << 46 | NONE << 49 | sum(1 << b for b in waits) << 52
        lines += [
            f"        /*{at:04x}*/    {text} ;  /* 0x00000000 */",
            f"    /* {control:#018x} */",
        ]
    return "\n".join(lines)


def loop(*code):
    (kernel,) = kernels(listing(*code, ("@P0 BRA `(.L_x_1)", 5, NONE, ())))
    (body,) = kernel.loops(special=0)
    return body


def special(count, written=NONE, waits=()):
    return [(f"MUFU.EX2 R{i}, R{i}", 1, written, waits) for i in range(count)]


@pytest.mark.parametrize("warps", [1, 2, 4])
def test_special_functions_bind(warps):
    machine = Machine(warps=warps)
    body = loop(*special(40))
    assert machine.special_alone(body) == 320 * warps
    # Of one warp alone, what is behind the last one and the jump count too.
    assert machine.cycles(body) == pytest.approx(320 * warps, abs=16 if warps == 1 else 1)


def test_a_result_is_waited_for():
    """Each special function waits for the one before: its start, two cycles on, and its latency."""
    body = loop(*special(40, written=0, waits=(0,)))
    assert Machine(warps=1).cycles(body) == pytest.approx(40 * 22, abs=20)
    assert Machine(warps=2).cycles(body) == pytest.approx(40 * 22, abs=30)  # side by side


def test_issue_and_stalls_bind():
    plain = [("FFMA R1, R2, R3, R4", 1, NONE, ())] * 100
    assert Machine(warps=2, jump=0).cycles(loop(*plain)) == pytest.approx(202, abs=6)
    slow = [("FFMA R1, R2, R3, R4", 4, NONE, ())] * 100
    assert Machine(warps=2, jump=0).cycles(loop(*slow)) == pytest.approx(405, abs=2)


def test_shared_memory_binds():
    body = loop(*[("LDS.128 R4, [R1]", 1, NONE, ())] * 30)
    assert Machine(warps=2, wavefront=7).cycles(body) == pytest.approx(2 * 30 * 14, abs=2)


def test_only_loops_without_branches_are_taken():
    inner = special(4), [("BSYNC B0", 5, NONE, ())], special(4)
    (kernel,) = kernels(
        listing(*(i for part in inner for i in part), ("@P0 BRA `(.L_x_1)", 5, NONE, ()))
    )
    assert list(kernel.loops()) == []
    assert [i.name for i in kernel.instructions[3:5]] == ["MUFU.EX2", "BSYNC"]
