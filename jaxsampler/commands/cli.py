"""The command line: `jaxsampler restore | sample | train CONFIG | bench WHAT | search CONFIG | solvers`.

A subcommand is a function below; its arguments are the options, its docstring is the help. A user's mistake
(a file, a name, a value, a full disk) is one line on stderr and exit code 2; anything else is a bug and keeps
its traceback.
"""

import errno
import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from . import version

try:
    from tyro.conf import FlagCreatePairsOff as Flag
    from tyro.conf import Positional, arg
    from tyro.extras import SubcommandApp
except ModuleNotFoundError:
    if sys.argv[1:] == ["--version"]:
        print(version.report())
        sys.exit(0)
    print('jaxsampler: the command line needs more packages: pip install "jaxsampler[demo]"', file=sys.stderr)
    sys.exit(2)

from ..processes import alone, finish, join, number, stop, stop_for_bug

app = SubcommandApp()


@app.command
def restore(
    photo: Positional[Path | None] = None,
    /,
    *,
    task: str | None = None,
    mask: Path | None = None,
    steps: int | None = None,
    solver: str | None = None,
    order: int | None = None,
    seed: int = 0,
    out: Path | None = None,
    batch: Path | None = None,
    full: Flag[bool] = False,
    choose: Flag[bool] = False,
    weights: Path | None = None,
    no_cache: Flag[bool] = False,
    coordinator: str | None = None,
    process: int | None = None,
    processes: int | None = None,
) -> None:
    """Restore a damaged photo or a folder of them; without arguments, ten held-out examples, with numbers.

    Args:
        photo: The image to restore, of any size; colour, grey or with alpha.
        task: deblur, dehaze, dejpeg, lowlight, denoise, deraindrop, derain, deshadow, desnow or inpaint.
        mask: For inpaint, an image of the photo's size: white is known, black is filled. With --batch also a
            folder of masks.
        steps: Solver steps (10); multistep solvers make one network call in each.
        solver: A name that `jaxsampler solvers` lists, or a saved table (FILE.safetensors), which has its own
            steps and order; by default the member of MR Sampler that does best on training photos.
        order: Order of mr_ode (1-3) or mr_sde (1-2).
        seed: Seed of the starting noise and of the solver's noise.
        out: The file to write, by default PHOTO_restored.png or the next free name; with --batch the folder;
            without a photo the folder of the report (restored).
        batch: Restore every photo of this folder into --out; an interrupted run goes on where it stopped.
        full: Run the whole comparison on all held-out photos, about 10 minutes on 2 cores.
        choose: Compare the members of MR Sampler on training photos.
        weights: Another network: a .safetensors file with its .json card, as `jaxsampler train` writes.
        no_cache: Compile anew, and do not keep what is compiled in the user's cache folder.
        coordinator: With --batch, HOST:PORT of process 0, to run as several processes; not needed under SLURM
            or on a TPU pod.
        process: The number of this process, from 0.
        processes: How many there are.
    """
    if batch is not None:
        join(command="restore", **locals())
    elif (coordinator, process, processes) != (None, None, None):
        raise ValueError("--coordinator, --process and --processes are for --batch: leave them out")
    from ..files import claimed
    from . import compilations
    from .restore import command

    compilations.keep(not no_cache)
    if full and choose:
        raise ValueError("--full and --choose exclude each other: leave one out")
    if choose and out is not None:
        raise ValueError("--choose prints its result and writes nothing: leave --out out")
    if photo is None and batch is None:
        if any(option is not None for option in (task, mask, solver, steps, order)):
            raise ValueError(
                "missing photo: give PHOTO --task ..., or --batch FOLDER --out FOLDER --task ..."
            )
        net, target = command.network(weights), command.writable(out or Path("restored"))
        if choose:
            command.choice(net, seed=seed)
            return
        with claimed(target):
            (command.everything if full else command.demonstration)(net, target, seed=seed)
        return
    if photo is not None and batch is not None:
        raise ValueError("a photo and --batch exclude each other: leave one out")
    if full or choose:
        raise ValueError("--full and --choose use photos of their own: leave the photo out")
    if task is None:
        raise ValueError("missing --task: choose one of " + ", ".join(command.data.VERBS))
    if batch is not None and out is None:
        raise ValueError("missing --out: with --batch give --out FOLDER for the restored photos")
    command.expect_mask(task, mask is not None)
    restorer = command.restorer(command.network(weights), solver, order, steps, seed)
    if photo is not None:
        print(command.one(restorer, photo, task, mask, out))
    elif batch is not None and out is not None and (bad := command.folder(restorer, batch, task, mask, out)):
        raise ValueError("; ".join(bad))


@app.command
def sample(
    *,
    model: str | None = None,
    weights: Path | None = None,
    n: int = 64,
    label: Annotated[str | None, arg(name="class")] = None,
    solver: str = "dpmpp_2m",
    order: int | None = None,
    steps: int | None = None,
    grid: str | None = None,
    guidance: float = 1.0,
    seed: int = 0,
    batch: int = 100,
    out: Path = Path("samples"),
    no_cache: Flag[bool] = False,
    coordinator: str | None = None,
    process: int | None = None,
    processes: int | None = None,
) -> None:
    """Sample images from a trained network: a PNG of the first hundred, an NPZ of all, a JSON to repeat it.

    An interrupted run goes on where it stopped and ends with the same files. Image i depends only on the seed
    and on i.

    Args:
        model: fashion_edm (the default) or fashion_flow.
        weights: Another network: a .safetensors file with its .json card, as `jaxsampler train` writes.
        n: How many images.
        label: The class of all images, a name or a number; by default all classes in turn.
        solver: A name that `jaxsampler solvers` lists; a saved table (FILE.safetensors), which has its own
            steps and grid; or "learned", the shipped table learned for the model, of --steps network calls.
        order: Order, of solvers that have it as an option.
        steps: Solver steps (10; learned: 8 or the nearest); multistep solvers make one network call in each.
        grid: uniform, quadratic, cosine, karras, log_snr or polyexponential; by default what suits the
            network's path.
        guidance: Weight of classifier-free guidance: 0 any class, 1 the class, above 1 more of it (two
            network calls instead of one).
        seed: Seed of all noise.
        batch: How many images are computed at a time; it changes the memory needed, not the images.
        out: The folder for samples.png, samples.npz and samples.json.
        no_cache: Compile anew, and do not keep what is compiled in the user's cache folder.
        coordinator: HOST:PORT of process 0, to run as several processes; not needed under SLURM or on a TPU
            pod.
        process: The number of this process, from 0.
        processes: How many there are.
    """
    join(command="sample", **locals())
    from . import compilations, generate

    compilations.keep(not no_cache)
    plan = generate.plan(
        model=model,
        weights=weights,
        n=n,
        label=label,
        solver=solver,
        order=order,
        steps=steps,
        grid=grid,
        guidance=guidance,
        seed=seed,
        batch=batch,
    )
    report(generate.run(plan, out))


@app.command
def train(
    config: Positional[str],
    /,
    *,
    out: str | None = None,
    data: str | None = None,
    no_cache: Flag[bool] = False,
    coordinator: str | None = None,
    process: int | None = None,
    processes: int | None = None,
) -> None:
    """Train a network as a TOML config says; an interrupted training goes on where it stopped.

    Args:
        config: A TOML file, or the name of one that comes with the library: fashion_classifier, fashion_edm,
            fashion_flow or restore.
        out: The weights to write (NAME.safetensors); checkpoints and the log of losses go into the folder
            NAME beside.
        data: The folder with the files of Fashion-MNIST, if the config does not name it; without either they
            are downloaded.
        no_cache: Compile anew, and do not keep what is compiled in the user's cache folder.
        coordinator: HOST:PORT of process 0, to run as several processes; not needed under SLURM or on a TPU
            pod.
        process: The number of this process, from 0.
        processes: How many there are.
    """
    join(command="train", **locals())
    from . import compilations
    from .train import main

    compilations.keep(not no_cache)
    report(main(config, out, data))


@app.command
def bench(
    what: Positional[
        Literal["gradients", "inversion", "likelihood", "overhead", "precision", "quality", "speed"]
    ],
    /,
    *,
    out: Path = Path("bench"),
    rounds: int = 5,
    config: Path | None = None,
    data: Path | None = None,
    weights: Path | None = None,
    against: Path | None = None,
) -> None:
    """Measure the samplers; print a Markdown table and write it with a figure and the raw numbers.

    Args:
        what: gradients: memory, time and error of each adjoint. inversion: error of a round trip. likelihood:
            bits per dimension of the Fashion-MNIST networks, about 5 minutes on 2 cores. overhead: time on
            top of the network's, compile time, compilations. precision: error of low precision, per solver.
            quality: error of the samples per solver and number of calls, about 25 minutes on 2 cores; an
            interrupted run goes on. speed: CPU time against an older checkout, about 10 minutes.
        out: The folder for WHAT.md, WHAT.json (quality.csv) and WHAT.png.
        rounds: Turns of paired timing; the least time counts.
        config: For quality: a TOML file of what is measured; by default the one that comes with the library,
            quality.
        data: For quality: the folder with the files of Fashion-MNIST; by default the user's data folder,
            filled by download.
        weights: For quality: a folder with networks to replace the shipped ones, by the same names.
        against: For speed: the folder of an older checkout, which holds jaxsampler/.
    """
    from .bench import quality_report
    from .bench import report as bench_report

    if not 1 <= rounds <= 1000:
        raise ValueError(f"--rounds must be at least 1 and at most 1000, got {rounds}")
    if against is not None and what != "speed":
        raise ValueError(f"--against is for bench speed: leave it out of bench {what}")
    if what == "quality":
        print(quality_report.main(config, out, data, weights), end="")
    elif config or data or weights:
        raise ValueError(
            f"--config, --data and --weights are for bench quality: leave them out of bench {what}"
        )
    else:
        print(bench_report.write(what, out, rounds, against), end="")


@app.command
def search(
    config: Positional[Path],
    /,
    *,
    out: Path = Path("search"),
    data: Path | None = None,
    no_cache: Flag[bool] = False,
) -> None:
    """Search for better samplers of one problem, as a TOML config says; an interrupted search goes on.

    Args:
        config: A TOML file, or the name of one that comes with the library: ablation, empirical, fashion_edm,
            fashion_flow or mixture.
        out: The folder for the tables found (PROBLEM_CALLS.safetensors, for `--solver` and `js.Table.load`),
            PROBLEM.md and PROBLEM.png.
        data: The folder with the files of Fashion-MNIST; by default the user's data folder, filled by
            download.
        no_cache: Compile anew, and do not keep what is compiled in the user's cache folder.
    """
    from . import compilations
    from .search.report import main

    compilations.keep(not no_cache)
    print(main(config, out, data), end="")


@app.command
def solvers(*, bibtex: Flag[bool] = False) -> None:
    """List the solvers: order, calls per step, prediction, options, reference.

    Args:
        bibtex: Print the publications behind them instead, to cite what you use.
    """
    from ..solvers import bibliography, listing

    if bibtex:
        print(bibliography.bibtex((e.name, e.reference) for e in listing.entries()), end="")
    else:
        print(listing.markdown(), end="")


def report(result: object) -> None:
    """Print what a command made, once for all its processes."""
    if number() == 0:
        print(result)


def explain(error: Exception) -> str:
    """Say what went wrong in one line."""
    if isinstance(error, ModuleNotFoundError):
        return f'the package {error.name} is missing: pip install "jaxsampler[demo]"'
    if isinstance(error, MemoryError):
        return "out of memory: give a smaller --batch, or smaller images or networks"
    if isinstance(error, OSError) and error.strerror:
        where = f" ({error.filename2 or error.filename})" if error.filename else ""
        if error.errno == errno.ENOSPC:
            return f"the disk is full{where}: make room and run the command again"
        return f"{error.strerror}{where}"
    return " ".join(str(error).split())


def of_machine(error: RuntimeError) -> str | None:
    """In one line what JAX says of a machine that lacks memory or a device; None if it is something else."""
    told = " ".join(str(error).split())
    if "RESOURCE_EXHAUSTED" in told or "Out of memory" in told:
        return "the device is out of memory: give a smaller --batch, or smaller images or networks"
    return told[:300] if "nable to initialize backend" in told or "nknown backend" in told else None


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line (default: this process's) and return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that lacks a character is no reason to fail
    try:
        if arguments == ["--version"]:
            report(version.report())
        else:
            about = "Sample with diffusion and flow models; restore photographs."
            more = "jaxsampler --version prints what a report of a fault should begin with."
            app.cli(prog="jaxsampler", description=f"{about} {more}", args=arguments)
        finish()
        sys.stdout.flush()
    except BrokenPipeError:  # who read the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141 if alone() else stop(141, "nobody reads the output any more")
    except (ValueError, OSError, ModuleNotFoundError, MemoryError) as error:
        return stop(2, explain(error))
    except KeyboardInterrupt:
        return stop(130, "interrupted")
    except SystemExit as done:  # from tyro: help, or options that it cannot parse
        return int(done.code or 0)
    except Exception as error:
        if isinstance(error, RuntimeError) and (told := of_machine(error)):
            return stop(2, told)
        if alone():
            raise
        stop_for_bug(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
