"""`ssh`: ranks on plain hosts, without a scheduler."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from cclm.errors import ConfigError
from launch.commands import local
from launch.commands.local import say
from launch.commands.parsers import Commands, usage
from launch.plan import JobPlan, JobRequest, Share, plan_hosts
from launch.ssh.connect import Connection, Ssh, ask_all, connected
from launch.ssh.hostfile import HostSlots, parse_hosts, read_hostfile
from launch.ssh.wire import Question

OURS = frozenset({"RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"})
OURS |= {"OMP_NUM_THREADS"}
"""Variables that the plan sets."""
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def add_to(commands: Commands) -> None:
    """Add `ssh`."""
    parser = commands.add_parser("ssh", help="run a command on plain hosts", usage=usage("ssh"))
    parser.add_argument("--grace-s", type=float, default=15.0, help="seconds from TERM to KILL once a rank has failed")
    parser.add_argument("--lost-s", type=float, default=60.0, help="a host without news for so long ends its ranks")
    parser.add_argument("--run-folder", type=Path, default=None, help="logs go to its logs/; default: runs/launch")
    local.add_shared_options(parser)
    add_options(parser)
    parser.set_defaults(carry_out=carry_out)


def add_options(parser: argparse._ActionsContainer) -> None:
    """Options that `plan` and `ssh` share."""
    parser.add_argument("--hostfile", type=Path, default=None, help='a line for each host: "name slots=8"')
    parser.add_argument("--hosts", default=None, metavar="A,B:8", help="the same on the command line")
    parser.add_argument("--ranks-per-host", type=int, default=None, help="default: its slots; one per GPU, or one")
    parser.add_argument("--interface", default=None, help="network interface of the ranks' traffic, as eth0")
    parser.add_argument("--master-address", default=None, help="default: that of --interface, or the first host's name")
    parser.add_argument("--env", action="append", default=[], metavar="NAME[=VALUE]", help="for every rank")
    parser.add_argument("--python", default=sys.executable, help="interpreter on every host; default: this one's path")
    parser.add_argument("--ssh-program", default=Ssh.program, help="another program in the place of ssh")
    parser.add_argument("--ssh-option", action="append", default=[], metavar="KEY=VALUE", help="as after `ssh -o`")
    parser.add_argument("--connect-timeout-s", type=int, default=Ssh.connect_timeout_s)


def carry_out(options: argparse.Namespace, command: tuple[str, ...]) -> int:
    """Ask the hosts, and run the ranks to their end."""
    from launch.ssh import carry

    if options.lost_s < 1 or options.grace_s < 0:
        got = f"--lost-s {options.lost_s:g} --grace-s {options.grace_s:g}"
        raise ConfigError(
            where="ssh",
            expected="--lost-s of at least 1, --grace-s of at least 0",
            got=got,
            do="Leave them out, or give more.",
        )
    with planned(options, command) as (plan, connections):
        outcome = carry.carry_out(
            plan, connections, python=options.python, say=say, grace_s=options.grace_s, lost_s=options.lost_s
        )
    return outcome.code


@contextmanager
def planned(options: argparse.Namespace, command: tuple[str, ...]) -> Iterator[tuple[JobPlan, tuple[Connection, ...]]]:
    """Plan the ranks by what the hosts say; yields the plan and the connections, at whose ends nothing runs yet."""
    hosts, environment = hosts_of(options), environment_of(options.env)
    if options.interface:
        environment = {"GLOO_SOCKET_IFNAME": options.interface, "NCCL_SOCKET_IFNAME": options.interface, **environment}
    request = JobRequest(
        command=command,
        folder=Path.cwd(),
        run_folder=(options.run_folder or Path("runs/launch")).absolute(),
        threads_per_rank=options.threads_per_rank,
        port=options.port,
        python=options.python,
        bind=options.bind == "auto",
    )
    check_request(request, hosts, options.ranks_per_host)
    master = options.master_address or (None if options.interface else hosts[0].name)
    ssh = Ssh(
        program=options.ssh_program,
        options=tuple(options.ssh_option),
        connect_timeout_s=options.connect_timeout_s,
        python=options.python,
    )
    questions = questions_for(request, hosts, environment, options.interface, master)
    with connected([host.host for host in hosts], ssh) as connections:
        answers = ask_all(connections, questions, ssh)
        machines = [answer.machine for answer in answers]
        shares = [
            Share(
                host=host.host,
                machine=machine,
                num_ranks=options.ranks_per_host or host.slots or max(machine.num_gpus, 1),
            )
            for host, machine in zip(hosts, machines, strict=True)
        ]
        address = master or answers[0].address
        assert address is not None, "a host without the interface has complained"
        yield plan_hosts(request, shares, address, environment), connections


def questions_for(
    request: JobRequest,
    hosts: Sequence[HostSlots],
    environment: Mapping[str, str],
    interface: str | None,
    master: str | None,
) -> list[Question]:
    """What each host is asked; the port concerns the first alone."""
    return [
        Question(
            folder=str(request.folder),
            run_folder=str(request.run_folder),
            interface=interface,
            master=master,
            port=request.port if host == hosts[0] else None,
            is_alone=len(hosts) == 1,
            environment=environment,
        )
        for host in hosts
    ]


def hosts_of(options: argparse.Namespace) -> tuple[HostSlots, ...]:
    """Read the hosts from the one option that names them."""
    if (options.hostfile is None) == (options.hosts is None):
        got = "neither" if options.hosts is None else "both"
        raise ConfigError(where="ssh", expected="--hostfile or --hosts", got=got, do="Name the hosts in one of them.")
    return read_hostfile(options.hostfile) if options.hosts is None else parse_hosts(options.hosts)


def environment_of(entries: Sequence[str]) -> dict[str, str]:
    """Read NAME=VALUE, or NAME for the value that it has here. Raises ConfigError with all complaints at once."""
    environment: dict[str, str] = {}
    complaints: list[str] = []
    for entry in entries:
        name, equals, value = entry.partition("=")
        if not VARIABLE.fullmatch(name):
            complaints.append(f"{name!r} is no name of a variable")
        elif name in OURS:
            complaints.append(f"{name} is set by the plan")
        elif not equals and name not in os.environ:
            complaints.append(f"{name} has no value here")
        environment[name] = value if equals else os.environ.get(name, "")
    if complaints:
        raise ConfigError(where="--env", expected="NAME=VALUE", got="; ".join(complaints), do="Mend the options.")
    return environment


def check_request(request: JobRequest, hosts: Sequence[HostSlots], ranks_per_host: int | None) -> None:
    """Refuse what needs no host to be seen as wrong, with all complaints at once."""
    complaints = [] if request.command else ["no command after `--`"]
    for name, count in (("--ranks-per-host", ranks_per_host), ("--threads-per-rank", request.threads_per_rank)):
        if count is not None and count < 1:
            complaints.append(f"{name} {count} is below 1")
    full = [host for host in hosts if host.slots is not None and (ranks_per_host or 0) > host.slots]
    complaints += [f"{host.host} has {host.slots} slot(s) for {ranks_per_host} rank(s)" for host in full]
    if complaints:
        raise ConfigError(
            where="ssh", expected="a job that these hosts can take", got="; ".join(complaints),
            do="For example: python -m launch ssh --hostfile hosts.txt -- python -m pretrain --recipe my_run.yaml",
        )  # fmt: skip
