"""The programs of `jaxsampler sample` and `train` on 64 devices are those on 8: the same length, the same
memory on each for the same share of a batch, nothing gathered, nothing by way of the host.

One process with 64 simulated devices compiles four programs and runs one (about 15 s).
"""

import json

import pytest
from test_devices import finish, worker


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    out = tmp_path_factory.mktemp("many") / "out.json"
    finish(worker(64, out, file="many_devices_worker.py"))
    return json.loads(out.read_text())


@pytest.mark.slow
@pytest.mark.parametrize("what", ["sampling", "training"])
def test_a_program_does_not_grow_with_the_devices(programs, what):
    """Slow: the first waits for the process."""
    few, many = programs[what]
    for count in ("traces", "temporary", "output"):
        assert few[count] == many[count] > 0, count
    assert many["length"] == pytest.approx(few["length"], rel=0.01)
    assert few["traces"] == {"sampling": 2, "training": 1}[what]  # guidance calls the network twice


@pytest.mark.parametrize("what", ["sampling", "training"])
def test_nothing_goes_by_way_of_the_host(programs, what):
    for program in programs[what]:
        assert (program["host"], program["host bytes"]) == ([], 0)


def test_what_moves_between_devices(programs):
    """Nothing in sampling; in training the sums of gradients, and what comes out is on all devices."""
    assert programs["a gather is seen"]["moves"] == {"all-gather": 1}  # the check itself works
    assert [p["moves"] for p in programs["sampling"]] == [{}, {}]
    few, many = programs["training"]
    assert few["moves"] == many["moves"]
    assert set(few["moves"]) == {"all-reduce"}
    assert all(few["whole"]) and all(many["whole"])


def test_images_drawn_on_many_devices_are_those_of_one(programs):
    assert programs["images differ by"] <= 1
    assert programs["spread"] > 10
