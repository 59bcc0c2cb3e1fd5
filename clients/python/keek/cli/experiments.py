"""Commands on experiments: which there are, changes of them, and what came of them."""

import argparse
import itertools
import json
from pathlib import Path
from typing import Final

from keek.cli.experiment_file import read_definition
from keek.cli.experiment_output import ExperimentTable, print_experiment
from keek.cli.output import note, print_json, printable
from keek.client import Client
from keek.v1.experiment_service_pb2 import Experiment

_PAGE: Final = 20
"""Experiments asked for at a time: definitions may be long."""


def list_experiments(client: Client, arguments: argparse.Namespace) -> int:
    """The latest experiments."""
    everything = client.iter_experiments(page_size=min(arguments.count, _PAGE), timeout_s=arguments.timeout_s)
    left = itertools.islice(everything, arguments.count)
    table = ExperimentTable()
    while some := list(itertools.islice(left, _PAGE)):
        if arguments.json:
            for experiment in some:
                print_json(experiment)
        else:
            table.add(some)
    return 0


def get(client: Client, arguments: argparse.Namespace) -> int:
    """One experiment."""
    return _show(client.get_experiment(arguments.experiment, timeout_s=arguments.timeout_s), arguments)


def create(client: Client, arguments: argparse.Namespace) -> int:
    """A new experiment."""
    definition = read_definition(arguments.file)
    return _show(client.create_experiment(definition, timeout_s=arguments.timeout_s), arguments)


def update(client: Client, arguments: argparse.Namespace) -> int:
    """An experiment as a file has it."""
    definition = read_definition(arguments.file)
    return _show(client.update_experiment(definition, timeout_s=arguments.timeout_s), arguments)


def start(client: Client, arguments: argparse.Namespace) -> int:
    """Gives an experiment its users."""
    return _show(client.start_experiment(arguments.experiment, timeout_s=arguments.timeout_s), arguments)


def stop(client: Client, arguments: argparse.Namespace) -> int:
    """Gives everyone the usual feeds."""
    return _show(client.stop_experiment(arguments.experiment, timeout_s=arguments.timeout_s), arguments)


def conclude(client: Client, arguments: argparse.Namespace) -> int:
    """Notes what was learnt."""
    experiment = client.conclude_experiment(
        arguments.experiment,
        winner=arguments.winner,
        conclusion=arguments.because,
        timeout_s=arguments.timeout_s,
    )
    return _show(experiment, arguments)


def _show(experiment: Experiment, arguments: argparse.Namespace) -> int:
    if arguments.json:
        print_json(experiment)
    else:
        print_experiment(experiment)
    return 0


def report(client: Client, arguments: argparse.Namespace) -> int:
    """What came of an experiment, and with `--html` a page of it."""
    answer = client.get_experiment_report(
        arguments.experiment,
        window_hours=arguments.window_hours,
        html=arguments.html is not None,
        timeout_s=arguments.timeout_s,
    )
    if arguments.json:
        print_json(json.loads(answer.report_json))
    else:
        print("\n".join(map(printable, answer.report_text.splitlines())), flush=True)
    if arguments.html is not None:
        _write(arguments.html, answer.report_html.encode())
        note(f"the page is in {arguments.html}")
    return 0


def _write(path: Path, content: bytes) -> None:
    """The whole file or none of it, whoever reads it meanwhile."""
    if path.exists() and not path.is_file():
        # A device, as /dev/null, is written to and not replaced.
        path.write_bytes(content)
        return
    partial = path.with_name(f"{path.name}.part")
    try:
        partial.write_bytes(content)
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
