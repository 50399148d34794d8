"""The command line: `jaxsampler restore | sample | train CONFIG | bench WHAT | search CONFIG | solvers`.

A subcommand is a function below; its arguments are the options, its docstring is the help. What goes wrong in the user's hands (a file, a
name, a value, the disk) is one line on stderr and exit code 2; anything else is a bug and keeps its traceback.
"""

import errno
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

try:
    from tyro.conf import FlagCreatePairsOff as Flag
    from tyro.conf import Positional, arg
    from tyro.extras import SubcommandApp
except ModuleNotFoundError:
    print('jaxsampler: the command line needs more packages: pip install "jaxsampler[demo]"', file=sys.stderr)
    sys.exit(2)

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
) -> None:
    """Restore a damaged photo, a folder of them or, without arguments, ten held-out examples with the numbers beside.

    Args:
        photo: The image to restore: any size; colour, grey or with alpha.
        task: deblur, dehaze, dejpeg, lowlight, denoise, deraindrop, derain, deshadow, desnow or inpaint.
        mask: For inpaint, an image of the photo's size: white is known, black is filled. With --batch also a folder of masks.
        steps: Solver steps (10); one network call each for multistep solvers.
        solver: A name that `jaxsampler solvers` lists, or a saved table (FILE.safetensors), which has its steps and order already; by
            default the member of MR Sampler that does best on training photos.
        order: Order of mr_ode (1-3) or mr_sde (1-2).
        seed: Of the starting noise and the solver's.
        out: The file to write (PHOTO_restored.png); with --batch the folder; without a photo the folder of the report (restored).
        batch: Restore every photo of this folder into --out; goes on where an interrupted run stopped.
        full: The whole study on all held-out photos, about 10 minutes on 2 cores.
        choose: Compare the members of MR Sampler on training photos.
        weights: Another network: a .safetensors file with its .json card, as `jaxsampler train` writes.
    """
    from .restore import command

    if photo is None and batch is None:
        if any(option is not None for option in (task, mask, solver, steps, order)):
            raise ValueError(
                "which photo? jaxsampler restore photo.jpg --task ..., or --batch FOLDER --out FOLDER"
            )
        net, target = command.network(weights), command.writable(out or Path("restored"))
        if choose:
            command.choice(net, seed=seed)
        elif full:
            command.everything(net, target, seed=seed)
        else:
            command.demonstration(net, target, seed=seed)
        return
    if photo is not None and batch is not None:
        raise ValueError("give one photo, or --batch FOLDER, not both")
    if full or choose:
        raise ValueError("--full and --choose use photos of their own; leave the photo out")
    if task is None:
        raise ValueError("what is to be undone? give --task, one of " + ", ".join(command.data.VERBS))
    if batch is not None and out is None:
        raise ValueError("--batch needs --out FOLDER, where the restored photos go")
    command.expect_mask(task, mask is not None)
    restorer = command.restorer(command.network(weights), solver, order, steps, seed)
    if photo is not None:
        print(command.one(restorer, photo, task, mask, out or Path(f"{photo.stem}_restored.png")))
    elif (
        batch is not None and out is not None and (failed := command.folder(restorer, batch, task, mask, out))
    ):
        raise ValueError("; ".join(failed))


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
) -> None:
    """Sample images of a trained network: a PNG of the first hundred, an NPZ of all, a JSON of what is needed to repeat it.

    An interrupted run goes on where it stopped and ends with the same files. Image i depends on the seed and on i only.

    Args:
        model: fashion_edm (the default) or fashion_flow.
        weights: Another network: a .safetensors file with its .json card, as `jaxsampler train` writes.
        n: How many images.
        label: The class of all images, a name or a number; by default all classes in turn.
        solver: A name that `jaxsampler solvers` lists; a saved table (FILE.safetensors), which has its steps and grid already; or
            "learned", the table that we learned for the model, of --steps network calls.
        order: Of solvers that have one as an option.
        steps: Solver steps (10; learned: 8, or what is nearest); one network call each for multistep solvers.
        grid: uniform, quadratic, cosine, karras, log_snr or polyexponential; by default what suits the network's path.
        guidance: Weight of classifier-free guidance: 0 any class, 1 the class, more of it above (two network calls instead of one).
        seed: Of all noise.
        batch: Images computed at a time; a matter of memory, not of what comes out.
        out: The folder for samples.png, samples.npz and samples.json.
    """
    from . import generate as gallery

    plan = gallery.plan(
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
    print(gallery.run(plan, out))


@app.command
def train(config: Positional[str], /, *, out: str | None = None, data: str | None = None) -> None:
    """Train a network as a TOML config says; an interrupted run is continued.

    Args:
        config: For instance configs/train/restore.toml or configs/train/fashion_edm.toml.
        out: The weights to write (NAME.safetensors); checkpoints and the loss log go into a folder beside, without the suffix.
        data: The folder with the files of Fashion-MNIST, where the config does not name it; without either they are downloaded.
    """
    from .train import main

    print(main(config, out, data))


@app.command
def bench(
    what: Positional[Literal["gradients", "inversion", "likelihood", "overhead", "precision", "quality"]],
    /,
    *,
    out: Path = Path("bench"),
    rounds: int = 5,
    config: Path | None = None,
    data: Path | None = None,
    weights: Path | None = None,
) -> None:
    """Measure the samplers themselves; prints a Markdown table, and writes it with a figure and the raw numbers.

    Args:
        what: gradients: memory, time and error of each route. inversion: what comes back of a round trip. likelihood: bits per
            dimension of the Fashion-MNIST networks, about 5 minutes on 2 cores. overhead: time beside the network's, compile time,
            compilations. precision: error of low precision, per solver. quality: error of the samples per solver and number of calls;
            about 25 minutes on 2 cores, goes on where an interrupted run stopped.
        out: The folder for WHAT.md, WHAT.json (quality.csv) and WHAT.png.
        rounds: Turns of paired timing; the least counts.
        config: Of quality, what is measured; by default as configs/bench/quality.toml.
        data: Of quality, the folder with the files of Fashion-MNIST; by default the user's data folder, filled by download.
        weights: Of quality, a folder with other networks than the shipped ones, by the same names.
    """
    from .bench import quality_report, report

    if what == "quality":
        print(quality_report.main(config, out, data, weights), end="")
    elif config or data or weights:
        raise ValueError(
            f"--config, --data and --weights are for bench quality; bench {what} measures on problems of its own"
        )
    else:
        print(report.write(what, out, rounds), end="")


@app.command
def search(config: Positional[Path], /, *, out: Path = Path("search"), data: Path | None = None) -> None:
    """Search for better samplers of one problem, as a TOML config says; an interrupted search goes on.

    Args:
        config: For instance configs/search/mixture.toml.
        out: The folder for the tables found (PROBLEM_CALLS.safetensors, for `--solver` and `js.Table.load`), PROBLEM.md and PROBLEM.png.
        data: The folder with the files of Fashion-MNIST (without it: the user's data folder, or a download).
    """
    from .search.report import main

    print(main(config, out, data), end="")


@app.command
def solvers() -> None:
    """List the solvers: order, calls per step, prediction, options, reference."""
    from ..solvers.listing import markdown

    print(markdown(), end="")


def explain(error: Exception) -> str:
    """What went wrong, in one line."""
    if isinstance(error, ModuleNotFoundError):
        return f'the package {error.name} is missing: pip install "jaxsampler[demo]"'
    if isinstance(error, OSError) and error.strerror:
        where = f" ({error.filename2 or error.filename})" if error.filename else ""
        if error.errno == errno.ENOSPC:
            return f"the disk is full{where}: make room and run the command again"
        return f"{error.strerror}{where}"
    return " ".join(str(error).split())


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line (default: this process's) and return its exit code."""
    try:
        app.cli(
            prog="jaxsampler",
            description="Sample with diffusion and flow models; restore photographs.",
            args=argv,
        )
    except (ValueError, OSError, ModuleNotFoundError) as error:
        print(f"jaxsampler: {explain(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("jaxsampler: interrupted", file=sys.stderr)
        return 130
    except SystemExit as done:  # tyro's: help, or options that it cannot parse
        return int(done.code or 0)
    return 0


if __name__ == "__main__":
    sys.exit(main())
