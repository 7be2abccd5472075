"""`dise reproduce`, killed at random moments and on one and two Ray workers: the same tables, and how much faster.

    python benchmarks/reproduce.py kills --out results/reproduce-kills.json
    python benchmarks/reproduce.py workers --set epochs=1 --out results/reproduce-workers.json

`kills` runs a small grid of circles once without interruption, then on each engine: five times `kill -9` at a random
moment, and once to the end. `workers` runs the grid of circles on one Ray worker and on two, each with one thread; it
measures wall-clock, so nothing else should run. Both compare everything that has numbers.
"""

import argparse
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from dise.select.deploy import strict_json

KILLS = 5
SMALL = ("epochs=3", "iterations=5", "batch_size=64", "selection_sets=8", "test_sets=2")


def command(out, *options):
    return [
        *(sys.executable, "-m", "dise_experiments", "reproduce", "--task", "circles", "--preset", "sample"),
        *("--device", "cpu", "--threads", "1", "--out", str(out), *options),
    ]


def changes(settings):
    """Options that change settings of the preset."""
    return [option for setting in settings for option in ("--set", setting)]


def small(engine):
    rows = ["--seeds", "2", "--reg", "none", "--reg", "error", "--selector", "published"]
    return [*rows, *changes(SMALL), "--engine", engine, "--workers", "2"]


def run(out, *options):
    """The tables that a whole run prints, and its seconds."""
    since = time.perf_counter()
    ended = subprocess.run(command(out, *options), stdout=subprocess.PIPE, text=True, check=True)
    return ended.stdout.replace(str(out), "OUT"), time.perf_counter() - since


def numbers(out):
    """The content of all files with numbers, without seconds."""
    found = {}
    for name in ("metrics.json", "selection.json", "training.json", "*.safetensors"):
        for file in sorted((out / "circles").rglob(name)):
            found[str(file.relative_to(out))] = re.sub(rb'"seconds": [^,]*,', b"", file.read_bytes())
    return found


def killed(out, options, moments, longest):
    """Kill the command at a random moment, its children untouched."""
    program = subprocess.Popen(command(out, *options), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    moment = moments.uniform(0, longest)
    try:
        program.wait(moment)
    except subprocess.TimeoutExpired:
        program.send_signal(signal.SIGKILL)
        program.wait()
    return moment


def kills(folder, seed):
    """Each engine killed five times, against an uninterrupted run."""
    tables, seconds = run(folder / "unbroken", *small("local"))
    expected, rows = numbers(folder / "unbroken"), {}
    for engine in ("local", "ray"):
        moments, out = random.Random(f"{seed}/{engine}"), folder / engine
        at = [round(killed(out, small(engine), moments, seconds), 1) for _ in range(KILLS)]
        again, _ = run(out, *small(engine))
        same = {"tables": again == tables, "files": numbers(out) == expected}
        rows[engine] = {"killed_after_seconds": at, "same": same, "files": len(expected)}
        print(f"{engine}: killed after {at} s; same tables: {same['tables']}, same files: {same['files']}")
    return rows


def workers(folder, seeds, settings):
    """One Ray worker against two, each with one thread."""
    seconds, tables = {}, {}
    for number in (1, 2):
        options = ["--seeds", str(seeds), *changes(settings), "--engine", "ray", "--workers", str(number)]
        tables[number], seconds[number] = run(folder / str(number), *options)
        print(f"{number} workers: {seconds[number]:.0f} s")
    ratio = seconds[1] / seconds[2]
    same = tables[1] == tables[2] and numbers(folder / "1") == numbers(folder / "2")
    print(f"two workers are {ratio:.2f} times as fast as one; same numbers: {same}")
    made_with = {"seeds": seeds, "settings": settings, "processors": os.cpu_count()}
    return {"seconds": seconds, "ratio": ratio, "same": same, **made_with}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["kills", "workers"])
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--seeds", type=int, default=1, help="of the grid of `workers`")
    parser.add_argument("--set", action="append", default=[], help="NAME=VALUE, a setting of the grid of `workers`")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if options.what == "kills":
            result = kills(Path(folder), options.seed)
        else:
            result = workers(Path(folder), options.seeds, options.set)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(strict_json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
