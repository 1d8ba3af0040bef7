"""The calculated times of the CUDA kernels: arithmetic on examples made by hand, and counts of tiny calls."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from simt.build import load

from bench.calculated import __main__ as command
from bench.calculated import h200, machine_code, page
from bench.calculated.cases import CASES, Case, kd_ce, on_pair
from bench.calculated.execution import fewest_instructions
from bench.calculated.h200 import blocks_at_once, time_of_launch
from bench.calculated.launches import Launch, Launches, count
from bench.calculated.machine_code import Kernel, basic_blocks, instructions
from bench.calculated.table import Finding, calculate
from bench.record import RESULTS
from sftn_fast import ops
from sftn_fast.ops import _backend

LOOP = """
    Function : loop
        /*0000*/                   S2R R0, SR_TID.X ;                 /* 0x0000000000000919 */
                                                                      /* 0x000ee20000002100 */
        /*0010*/                   LDG.E.128 R4, desc[UR4][R2.64] ;   /* 0x0 */
        /*0020*/                   FFMA R8, R4, R5, R8 ;              /* 0x0 */
        /*0030*/               @P0 BRA 0x10 ;                         /* 0x0 */
        /*0040*/                   SHFL.BFLY PT, R9, R8, 0x10, 0x1f ; /* 0x0 */
        /*0050*/              @!P1 EXIT ;                             /* 0x0 */
        /*0060*/                   MUFU.EX2 R8, R8 ;                  /* 0x0 */
        /*0070*/                   STG.E desc[UR4][R6.64], R8 ;       /* 0x0 */
        /*0080*/                   EXIT ;                             /* 0x0 */
        /*0090*/                   BRA 0x90;                          /* 0x0 */
"""
# Two ways around a loop's body: loads of 16 bytes, or of 4.
BRANCHES = """
        /*0000*/                   BSSY B0, 0x60 ;
        /*0010*/               @P0 BRA 0x40 ;
        /*0020*/                   LDG.E.128 R4, desc[UR4][R2.64] ;
        /*0030*/                   BSYNC B0 ;
        /*0040*/                   LDG.E R4, desc[UR4][R2.64] ;
        /*0050*/                   BSYNC B0 ;
        /*0060*/               @P1 BRA 0x0 ;
        /*0070*/                   EXIT ;
"""


def kernel_of(code: str) -> Kernel:
    return Kernel("loop", 32, 0, basic_blocks(instructions(code)))


def test_blocks_of_a_loop() -> None:
    first, body, tail, end, padding = kernel_of(LOOP).blocks
    assert [block.instructions for block in (first, body, tail, end, padding)] == [1, 3, 2, 3, 1]
    assert [block.successors for block in (first, body, tail, end)] == [{1}, {1, 2}, {3}, set()]
    assert [block.leaves for block in (first, body, tail, end)] == [False, False, True, True]
    assert body.uses["read"] == 32 * 16
    assert end.uses["written"] == 32 * 4
    assert (end.uses["special"], end.uses["exponentials"], end.uses["load_store"]) == (1, 32, 1)


def test_fewest_instructions_of_a_loop() -> None:
    # three warps, of which one stores, go around the loop five times each
    counted = {"read": 3 * 5 * 512, "written": 128, "shuffles": 3, "exponentials": 32}
    executed = fewest_instructions(kernel_of(LOOP), 3, counted)
    assert executed["instructions"] == pytest.approx(3 * (1 + 5 * 3 + 2) + 3)
    assert executed["special"] == pytest.approx(1)
    assert executed["shuffles"] == pytest.approx(3)


def test_ways_of_a_branch_join() -> None:
    first, wide, narrow, last, leave = kernel_of(BRANCHES).blocks
    assert (first.successors, wide.successors, narrow.successors) == ({1, 2}, {3}, {3})
    assert (last.successors, leave.leaves) == ({0, 4}, True)
    executed = fewest_instructions(kernel_of(BRANCHES), 1, {"read": 4 * 512})
    assert executed["instructions"] == pytest.approx(4 * (2 + 2 + 1) + 1)


def test_other_machine_code_is_refused() -> None:
    with pytest.raises(ValueError, match="loop: its machine code has no barriers as counted"):
        fewest_instructions(kernel_of(LOOP), 1, {"barriers": 1})


@pytest.mark.parametrize(
    ("threads", "registers", "shared_bytes", "blocks"),
    [
        (256, 32, 0, 8),  # all 64 warps
        (256, 40, 0, 6),  # 6 x 8 warps of 1280 registers
        (96, 80, 0, 8),  # 25 warps of 2560 registers, in threes
        (32, 16, 0, 32),
        (128, 32, 47 << 10, 4),  # with a KiB of the system's, 48 of 228
        (1024, 65, 0, 0),  # refused
    ],
)
def test_blocks_at_once(threads: int, registers: int, shared_bytes: int, blocks: int) -> None:
    assert blocks_at_once(threads, registers, shared_bytes) == blocks


def test_time_of_a_launch() -> None:
    # 133 blocks: one multiprocessor has two of them
    time = time_of_launch(133, 8, {"instructions": 133 * 396_000, "special": 133 * 99_000}, 5.5e6 / 32, 0)
    assert time.limits["issue"] == pytest.approx(2 * 396_000 / 4 / 1980)
    assert time.limits["special functions"] == pytest.approx(2 * 99_000 / 0.5 / 1980)
    assert time.limits["L2"] == pytest.approx(1)
    assert time.limit == "special functions"
    assert time.total == pytest.approx(time.launch + 200)
    one_warp_each = time_of_launch(132, 1, {"instructions": 132 * 1980}, 0, 0)
    assert one_warp_each.limits["issue"] == pytest.approx(1)
    assert time_of_launch(132, 8, {}, 0, 4.3e6).limits["DRAM"] == pytest.approx(1)


@pytest.fixture
def emulator(emulated_ops: Any) -> Any:
    return load()


def test_a_tiny_call_is_counted(emulator: Any) -> None:
    counted = count(emulator, kd_ce(64, 32).run)
    forward, backward = counted.kernels
    assert (forward.blocks, forward.threads) == (
        64,
        32,
    )  # a warp for each row, over as many multiprocessors as possible
    assert backward.counted["written once"] == 64 * 32 * 4
    # each logit's at temperature 1 and at T
    assert min(forward.counted["exponentials"], backward.counted["exponentials"]) >= 2 * 2 * 64 * 32
    assert not counted.library


def test_a_sample_stands_for_the_grid(emulator: Any) -> None:
    def kernels_with(sample: int) -> list[Launch]:
        return count(emulator, on_pair(ops.hint_loss, 8, 32, 16, 16).run, sample=sample).kernels

    whole, sampled = kernels_with(0), kernels_with(4)
    assert whole[1] == sampled[1]
    assert whole[0].counted["read"] == pytest.approx(sampled[0].counted["read"], rel=0.02)  # the last block adds up


def test_a_sample_leaves_no_counter_behind(emulator: Any) -> None:
    """The blocks that do not run never arrive where the last one of the grid sums up."""
    count(emulator, kd_ce(64, 100).run, sample=2)
    call = kd_ce(64, 100)
    with ops.backend("fused"), _backend._use_namespace("cpu", torch.ops.sftn_fast_emulated):
        first = call.run().item()
    assert first == pytest.approx(call.run().item(), rel=1e-5)


def test_a_kernel_without_machine_code_is_an_error(emulator: Any) -> None:
    launch = Launch("sftn::new_kernel<float>", 1, 32, 0, {"read sectors": 1, "written sectors": 1})
    with pytest.raises(KeyError, match=r"tiny launches sftn::new_kernel<float>"):
        calculate(Case("tiny", lambda: kd_ce(2, 8)), kd_ce(2, 8), Launches([launch], [], 0), {})


def test_a_finding_adds_up() -> None:
    counted = {"read": 512.0, "written": 128.0, "read sectors": 16.0, "written sectors": 4.0}
    counted |= {"read once": 512.0, "written once": 128.0}
    launches = Launches([Launch("loop", 1, 32, 0, counted)] * 2, [], memsets=1)
    case = Case("tiny", lambda: kd_ce(2, 8), goal=10)
    finding = calculate(case, kd_ce(2, 8), launches, {"loop": kernel_of(LOOP)})
    row = finding.rows[0]
    assert (row["blocks_at_once"], row["warps_at_once"], row["instructions"]) == (32, 32, 9)
    assert finding.total_us == pytest.approx(1e6 * (2 * h200.LAUNCH + h200.MEMSET), abs=0.1)
    assert (finding.limit, finding.verdict) == ("launches", "met (10)")
    text = page.refreshed(f"before\n{page.BEGIN}\nold\n{page.END}\nbehind\n", [finding])
    assert text.startswith("before\n")
    assert "| tiny | 2 + 1 | 6.5 | launches | met (10) |" in text
    assert "old" not in text
    with pytest.raises(ValueError, match="no section"):
        page.refreshed("nothing", [finding])


def finding(name: str, total: float) -> Finding:
    return Finding(name, 1, 0, total, "issue", None, [])


ABOUT = {"date": "2026-12-01", "nvcc": "13.0", "torch": "2.14.1"}


def test_named_cases_are_written_beside_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As calculated before, and in the order of the cases."""
    first, second, *_ = (case.name for case in CASES)
    docs, called = tmp_path / "page.md", Launches([], [], 0)
    docs.write_text(f"{page.BEGIN}\n{page.END}\n")
    page.write([finding(second, 2.0), finding("a case of the past", 9.0)], tmp_path, None, ABOUT)
    monkeypatch.setattr(command, "DOCS", docs)
    monkeypatch.setattr(command, "conditions", lambda compiled: ABOUT | {"date": "2026-12-02"})
    monkeypatch.setattr("tests.simt.build.load", lambda: None)
    monkeypatch.setattr(command, "count", lambda *_, **__: called)
    monkeypatch.setattr(command, "calculate", lambda case, *_: finding(case.name, 1.0))
    monkeypatch.setattr(machine_code, "compile_for", lambda kernels: [])
    monkeypatch.setattr(sys, "argv", ["calculated", first, "--record", "--folder", str(tmp_path)])
    command.main()
    record = json.loads((tmp_path / f"{page.NAME}.json").read_text())
    assert record["conditions"]["date"] == "2026-12-02"
    assert [(x["case"], x["total_us"]) for x in record["results"]] == [(first, 1.0), (second, 2.0)]
    assert f"| {second} | 1 + 0 | 2.0 |" in docs.read_text()


@pytest.mark.parametrize("damage", ["another nvcc", "half", "absent"])
def test_other_records_are_not_mixed(damage: str, tmp_path: Path) -> None:
    path = tmp_path / f"{page.NAME}.json"
    page.write([finding("tiny", 2.0)], tmp_path, None, ABOUT | ({"nvcc": "12.9"} if damage == "another nvcc" else {}))
    if damage == "half":
        path.write_text(path.read_text()[:200])
    elif damage == "absent":
        path.unlink()
    with pytest.raises((ValueError, OSError), match=page.NAME):
        page.recorded(tmp_path, ABOUT)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "nvcc is needed and was not found"),
        (["--library", "no/such/file.so"], "no/such/file.so: No such file or directory"),
        (["KD", "--folder", "no/such/folder", "--record"], "no/such/folder"),
    ],
)
def test_what_is_missing_is_said_before_the_work(
    options: list[str], message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def no_work(*_: Any, **__: Any) -> None:
        pytest.fail("it counts")

    if "--record" in options:
        monkeypatch.setattr(command, "conditions", lambda compiled: ABOUT)
    else:
        monkeypatch.setenv("PATH", "")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command, "count", no_work)
    monkeypatch.setattr(sys, "argv", ["calculated", *options])
    with pytest.raises(SystemExit, match=message) as ended:
        command.main()
    assert "\n" not in str(ended.value)
    assert not list(tmp_path.iterdir())


def test_a_name_is_needed_to_keep_the_others(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(sys, "argv", ["calculated", "--record"])
    with pytest.raises(SystemExit, match="2"):
        command.main()
    assert "--record is for named cases" in capsys.readouterr().err


def test_sources_are_found_by_their_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_code, "_compile", lambda source: source)
    (source,) = machine_code.compile_for({"sftn::negatives_own_kernel", "sftn::sample_negatives_kernel<int>"})
    assert source.name == "contrastive_negatives.cu"
    names = {path.name for path in machine_code.included(source)}
    assert {"contrastive_negatives.h", "contrastive_negatives_many.cuh", "team.cuh", "keyed_random.h"} <= names
    assert "contrastive.h" not in names


def test_the_record_is_of_these_kernels(emulator: Any) -> None:
    """A kernel that was renamed, or whose template changed, makes the record stale."""
    record = json.loads((RESULTS / f"{page.NAME}.json").read_text())
    assert record["conditions"]["calculated"] is True
    assert record["conditions"]["measured"] is False
    assert record["conditions"]["assumed"] == page.ASSUMED
    instances = {row["instance"] for finding in record["results"] for row in finding["rows"] if "instance" in row}
    assert instances
    assert instances <= set(emulator.kernel_names().values()), "run python -m bench.calculated"
