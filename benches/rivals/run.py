#!/usr/bin/env python3
"""Runs this program and its rivals on the CPU in turn, and prints both with their ratio.

    python benches/rivals/run.py [--rounds N] [--steps N] [--batch N] [--infer] [--rival pytorch|ort|open_vino]... [NETWORK...]

Installs the rivals' pinned versions into target/rivals on first use (PyTorch takes some gigabytes), writes the networks as
ONNX files, and then runs, in each round and for each network, ours and each rival. The medians over the rounds go into
benches/record/rivals-MACHINE.csv. Ratios above 1 mean that this program is faster. The machine must be idle: PyTorch and
OpenVINO wait for their threads in a loop, and other work slows them by far more than its share.
"""

import argparse
import collections
import csv
import datetime
import json
import os
import pathlib
import re
import statistics
import subprocess
import sys
import venv

ROOT = pathlib.Path(__file__).resolve().parents[2]
HERE = ROOT / "benches/rivals"
FOLDER = ROOT / "target/rivals"
NETWORKS = ["resnet50", "mobilenet-v2", "mobilefacenet", "iresnet50"]
RIVALS = ["pytorch", "ort", "open_vino"]
OURS = "arcface-cu"


def install():
    """The Python with the rivals."""
    python = FOLDER / "bin/python"
    wanted = (HERE / "requirements.txt").read_text()
    stamp = FOLDER / "installed.txt"
    if not stamp.exists() or stamp.read_text() != wanted:
        if not python.exists():
            venv.create(FOLDER, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", "-r", HERE / "requirements.txt"], check=True)
        stamp.write_text(wanted)
    return python


def build():
    """The bench, as a program."""
    command = ["cargo", "bench", "--no-run", "--bench", "train_step", "--message-format", "json"]
    lines = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()
    built = [json.loads(line) for line in lines if line.startswith("{")]
    return next(b["executable"] for b in built if b.get("executable") and b["target"]["name"] == "train_step")


def machine():
    info = pathlib.Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.+)", info.read_text()) if info.exists() else None
    name = found[1] if found else "cpu"
    vectors = "avx512" if found and " avx512f" in info.read_text() else "avx2" if found and " avx2" in info.read_text() else "other"
    return f"{re.sub('[^a-z0-9]+', '-', name.lower()).strip('-')}-{vectors}-{os.cpu_count()}-cores"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=7)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rival", action="append", choices=RIVALS, dest="rivals")
    parser.add_argument("--infer", action="store_true", help="no training")
    parser.add_argument("networks", nargs="*", metavar="NETWORK")
    args = parser.parse_args()
    networks, rivals = args.networks or NETWORKS, args.rivals or RIVALS
    python, ours, onnx, lines = install(), build(), FOLDER / "onnx", FOLDER / "lines.jsonl"
    onnx.mkdir(exist_ok=True)
    subprocess.run([ours, "--onnx", onnx, *networks], check=True, stdout=subprocess.DEVNULL)
    options = ["--steps", str(args.steps), "--batch", str(args.batch), "--json", lines]
    alone = ["--infer"] if args.infer else []
    commands = [[ours, *alone, *options]]
    for rival in rivals:
        files = [onnx] if rival != "pytorch" else alone
        commands.append([python, HERE / f"{rival}.py", *options, *files])
    rates, versions = collections.defaultdict(list), {OURS: ""}
    for _ in range(args.rounds):
        for network in networks:
            for command in commands:
                subprocess.run([*command, network], check=True, stdout=sys.stderr)
                for line in map(json.loads, lines.read_text().splitlines()):
                    who = line.get("rival", OURS)
                    versions.setdefault(who, line.get("version", ""))
                    rates[line["network"], line["what"], line["batch"], who].append(line["images_per_second"])
    rows = []
    for (network, what, batch, who), found in rates.items():
        rate, mine = statistics.median(found), statistics.median(rates[network, what, batch, OURS])
        rows.append([network, what, batch, who, versions[who], f"{rate:.2f}", f"{mine / rate:.2f}"])
    rows.sort(key=lambda row: (row[1], networks.index(row[0]), -row[2], row[3] != OURS, row[3]))
    print("| network | | batch | program | version | img/s | ours / it |\n|---|---|---|---|---|---|---|")
    for row in rows:
        print(f"| {' | '.join(map(str, row))} |")
    record = ROOT / f"benches/record/rivals-{machine()}.csv"
    fresh = not record.exists()
    with record.open("a", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        if fresh:
            writer.writerow(["date", "rounds", "network", "what", "batch", "program", "version", "images_per_second", "ours_over_it"])
        for row in rows:
            writer.writerow([datetime.date.today(), args.rounds, *row])


main()
