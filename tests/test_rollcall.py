"""Processes that know of one another, played by threads: what is given arrives everywhere in order, and of
who dies, fails, hangs or never comes all others hear, with the line that says which.
"""

import contextlib
import queue
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import jax.numpy as jnp
import pytest

from jaxsampler import processes, rollcall
from jaxsampler.processes import Place, from_slurm, from_tpu, place
from jaxsampler.rollcall import Member, free_port


class Crowd:
    """Members that join together; `heard[i]` has what the i-th was told of another's end."""

    def __init__(self, total, counts=None, numbers=None, patience=5.0):
        self.port, self.heard = free_port(), [queue.Queue() for _ in range(total)]
        self.counts, self.numbers = counts or [total] * total, numbers or range(total)
        self.patience = patience

    def join(self, i):
        """A member, or the line of its failure."""
        try:
            return Member(
                self.numbers[i],
                self.counts[i],
                ("localhost", self.port),
                gone=self.heard[i].put,
                patience=self.patience,
            )
        except ValueError as error:
            return str(error)

    def come(self, who=None):
        with ThreadPoolExecutor(len(self.heard)) as pool:
            return list(pool.map(self.join, range(len(self.heard)) if who is None else who))

    def said(self, i, seconds=5.0):
        return self.heard[i].get(timeout=seconds)


def together(*calls):
    with ThreadPoolExecutor(len(calls)) as pool:
        return [f.result() for f in [pool.submit(call) for call in calls]]


def cut(member):
    """What the system does with the connections of a process that dies."""
    member.over = True
    member.loop.call_soon_threadsafe(member.writer.close)


def test_values_arrive_everywhere_in_order_and_all_leave():
    crowd = Crowd(3)
    members = crowd.come()
    for turn in range(20):
        want = [[turn, i] for i in range(3)]
        assert together(*(lambda m=m, k=turn: m.gather([k, m.number]) for m in members)) == [want] * 3
    big = "x" * 10**6
    assert together(*(lambda m=m: m.gather(big if m.number else None) for m in members))[2][1] == big
    together(*(lambda m=m: m.gather(last=True) for m in members))
    together(*(m.leave for m in members))
    assert all(heard.empty() for heard in crowd.heard)
    assert not any(m.thread.is_alive() for m in members)


def test_a_wait_may_be_bounded_and_is_a_barrier():
    one, other = Crowd(2).come()
    with pytest.raises(TimeoutError):
        one.gather("early", seconds=0.2)
    assert other.gather("late") == ["early", "late"]


@pytest.mark.parametrize("dead", [0, 2])
def test_the_others_hear_of_a_death(dead):
    crowd = Crowd(3)
    members = crowd.come()
    if dead:
        cut(members[dead])
    else:  # the desk goes with it

        def end():
            crowd.heard[0].put(None)
            desk = members[0].desk
            desk.over = True
            for writer in desk.members.values():
                writer.close()

        members[0].loop.call_soon_threadsafe(end)
    for i in {0, 1, 2} - {dead, *([] if dead else [0])}:
        assert crowd.said(i) == f"process {dead} of 3 died"


@pytest.mark.parametrize("failing", [0, 1])
def test_the_others_hear_why_one_fails_before_it_ends(failing):
    crowd = Crowd(3)
    members = crowd.come()
    members[failing].fail("the disk is full")
    for i in {0, 1, 2} - {failing}:
        if i:  # before `fail` returned, unless it is the desk's own
            assert crowd.heard[i].get_nowait() == f"process {failing} of 3 stopped: the disk is full"
        else:
            assert crowd.said(i) == f"process {failing} of 3 stopped: the disk is full"
    assert crowd.heard[failing].empty()


@pytest.mark.parametrize("frozen", [0, 1])
def test_who_is_silent_is_dead(monkeypatch, frozen):
    """Its connection is open, as that of a machine without power."""
    monkeypatch.setattr(rollcall, "SILENT", 1.0)
    monkeypatch.setattr(rollcall, "BEAT", 0.1)
    crowd = Crowd(2)
    members = crowd.come()
    time.sleep(1.5)  # alive, by their beats alone
    assert all(heard.empty() for heard in crowd.heard)
    members[frozen].over = True
    members[frozen].loop.call_soon_threadsafe(time.sleep, 5)
    assert crowd.said(1 - frozen, 3.0) == f"process {frozen} of 2 died"


@pytest.mark.parametrize(
    ("crowd", "why"),
    [
        (dict(counts=[2, 3]), "process 1 counts 3 processes, process 0 2: give all the same --processes"),
        (dict(numbers=[0, 1, 1], total=3), "two processes are number 1"),
    ],
)
def test_who_does_not_fit_stops_all(crowd, why):
    crowd = Crowd(crowd.pop("total", 2), **crowd)
    for said in crowd.come():
        assert why in said


def test_who_does_not_come_is_named_to_all():
    crowd = Crowd(4, patience=0.5)
    for said in crowd.come([0, 2]):
        assert said == "processes 1, 3 of 4 did not join within 0.5 s: start all 4"


def test_a_coordinator_that_is_not_there():
    began = time.monotonic()
    said = Crowd(2, patience=0.5).join(1)
    assert said.startswith("no process 0 at localhost:") and "within 0.5 s" in said and "refused" in said
    assert time.monotonic() - began < 3


def test_a_port_in_use():
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        crowd = Crowd(2)
        crowd.port = taken.getsockname()[1]
        assert crowd.join(0) == f"cannot listen on port {crowd.port}: it is in use; choose another"


def test_strangers_are_no_members():
    crowd = Crowd(2, patience=3.0)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(crowd.join, 0)
        for nonsense in (b"GET / HTTP/1.1\r\n\r\n", b"[1]\n", b'{"process": "0"}\n', b"\xff\n", b""):
            for _ in range(50):
                with contextlib.suppress(ConnectionRefusedError):
                    stranger = socket.create_connection(("localhost", crowd.port))
                    break
                time.sleep(0.05)
            stranger.sendall(nonsense)
            stranger.close()
        members = [pool.submit(crowd.join, 1).result(), first.result()]
    assert together(*(lambda m=m: m.gather(m.number) for m in members)) == [[0, 1]] * 2
    assert all(heard.empty() for heard in crowd.heard)


def test_a_tunnel_leads_to_the_desk_and_outlives_it():
    """JAX's end of it stays open when process 0 is gone, so that JAX does not abort."""
    first, second = Crowd(2).come()
    with socket.create_server(("127.0.0.1", first.inner)) as service:
        near = socket.create_connection(("127.0.0.1", second.inner))
        far, _ = service.accept()
        near.sendall(b"a" * 10**6)
        got = b""
        while len(got) < 10**6:
            got += far.recv(2**20)
        far.sendall(b"answer")
        assert near.recv(100) == b"answer"
        far.close()
        near.settimeout(0.5)
        with pytest.raises(TimeoutError):
            near.recv(1)


# -- options and environments


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ((None, 1, None), "--process 1 without --coordinator: give --coordinator HOST:PORT"),
        ((None, None, 2), "--processes 2 without --coordinator: give --coordinator HOST:PORT"),
        (("node7", 0, 2), "--coordinator node7 is not HOST:PORT: write for instance localhost:1234"),
        ((":80", 0, 2), "--coordinator :80 is not HOST:PORT"),
        (("node7:", 0, 2), "--coordinator node7: is not HOST:PORT"),
        (("node7:70000", 0, 2), "is not HOST:PORT"),
        (("node7:http", 0, 2), "is not HOST:PORT"),
        (("node7:80", None, 2), "--coordinator without --process"),
        (("node7:80", 0, None), "--coordinator without --processes"),
        (("node7:80", 2, 2), "--process 2 is none of the 2 of --processes: number them from 0 to 1"),
        (("node7:80", -1, 2), "--process -1 is none of the 2"),
        (("node7:80", 0, 0), "--processes must be at least 1, got 0"),
    ],
)
def test_options_that_do_not_fit(given, why):
    with pytest.raises(ValueError) as error:
        place(*given)
    assert why in str(error.value)


def test_options_that_fit():
    assert place("node7:80", 1, 3) == Place("node7", 80, 1, 3)
    assert place("[::1]:80", 1, 3) == Place("::1", 80, 1, 3)
    assert place("node7:80", 0, 1) is None
    assert place(None, None, None) is None


SLURM = {
    "SLURM_JOB_ID": "1234567",
    "SLURM_STEP_ID": "1",
    "SLURM_STEP_NODELIST": "gpu[007-009,12],big1",
    "SLURM_STEP_NUM_TASKS": "10",
    "SLURM_PROCID": "5",
    "SLURM_NODEID": "2",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_TASKS_PER_NODE": "2(x4),1(x2)",
}


@pytest.mark.parametrize(
    ("nodes", "host"),
    [("gpu[007-009,12],big1", "gpu007"), ("gpu[3,5]", "gpu3"), ("a-1,b", "a-1"), ("node17", "node17")],
)
def test_slurm(nodes, host):
    here = from_slurm(SLURM | {"SLURM_STEP_NODELIST": nodes})
    assert here is not None and here[:1] + here[2:] == (host, 5, 10, None)
    assert 2**15 < here.port < 2**16
    assert from_slurm(SLURM | {"SLURM_STEP_ID": "2"}).port != here.port  # two steps of one job at once


def test_slurm_with_one_task_or_outside_a_step_is_alone():
    assert from_slurm(SLURM | {"SLURM_STEP_NUM_TASKS": "1"}) is None
    assert from_slurm({k: v for k, v in SLURM.items() if "STEP" not in k}) is None  # in a batch script


@pytest.mark.parametrize(
    ("visible", "node", "local", "gpus"),
    [
        ("0,1,2,3", "2", "1", [2, 3]),  # two tasks on four GPUs
        ("0,1", "0", "0", [0]),
        ("3", "0", "1", None),  # bound to its own already
        ("0,1,2,3", "4", "0", None),  # one task has the machine
        ("", "0", "1", None),
    ],
)
def test_slurm_tasks_divide_the_gpus_of_a_machine(visible, node, local, gpus):
    env = SLURM | {"CUDA_VISIBLE_DEVICES": visible, "SLURM_NODEID": node, "SLURM_LOCALID": local}
    assert from_slurm(env).gpus == gpus


def test_tpu_pods():
    pod = {"TPU_WORKER_HOSTNAMES": "t0,t1,t2", "TPU_WORKER_ID": "2"}
    assert from_tpu(pod) == Place("t0", processes.TPU_PORT, 2, 3)
    slices = {
        "MEGASCALE_NUM_SLICES": "2",
        "MEGASCALE_SLICE_ID": "1",
        "MEGASCALE_COORDINATOR_ADDRESS": "m:8080",
    }
    assert from_tpu(pod | slices) == Place("m", processes.TPU_PORT, 5, 6)
    assert from_tpu({"TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0"}) is None
    assert from_tpu({}) is None


def test_jax_in_use_is_said_to_all(monkeypatch):
    jnp.zeros(()).block_until_ready()
    port, heard = free_port(), queue.Queue()
    stopped = threading.Event()

    def other():
        member = Member(1, 2, ("localhost", port), gone=heard.put, patience=5.0)
        member.gather({})
        stopped.wait(5)

    thread = threading.Thread(target=other)
    thread.start()
    try:
        with pytest.raises(ValueError, match="JAX is in use already"):
            processes.join(f"localhost:{port}", 0, 2)
        monkeypatch.setattr(processes, "_exit", lambda code: stopped.set())
        processes.stop(2, "why")
        assert heard.get(timeout=5) == "process 0 of 2 stopped: why"
    finally:
        stopped.set()
        thread.join()
        processes._member = None


def test_unequal_settings_are_named(monkeypatch):
    others = [{"seed": 1, "n": 4}, {"seed": 1, "n": 4}, {"seed": 2, "n": 4, "grid": "karras"}]
    monkeypatch.setattr(processes, "gather", lambda mine: others)
    with pytest.raises(ValueError) as error:
        processes.agree(others[0])
    assert "process 2 has another grid, seed than process 0: start all with the same" in str(error.value)
