"""A rank's watch (`cclm.run.watch`) as the configuration wants it."""

from __future__ import annotations

import socket
from pathlib import Path

from cclm.config import RunConfig
from cclm.distributed.topology import Topology, write_recorded_collectives
from cclm.errors import Cause
from cclm.run.stop import note_left
from cclm.run.talk import Board, Talk
from cclm.run.watch import START, Limits, Watch


def make_watch(config: RunConfig, topology: Topology, board: Board | None) -> Watch:
    """Make this rank's watch, with the limits of its configuration."""
    settings, rank, folder = config.watch, topology.rank, Path(config.run_folder)
    floors = {START: settings.start_s, "step": settings.step_s, "save": settings.save_s}
    floors["evaluate"] = settings.evaluate_s
    floors["data"] = settings.step_s and settings.step_s + config.data.batch_timeout_s
    limits = Limits(floors_s=floors, first_s=settings.start_s, factor=settings.factor, num_first=settings.num_first)
    talk = None
    if board is not None:
        talk = Talk(board, rank, topology.world_size, socket.gethostname(), settings.silent_s)
    return Watch(folder, rank, limits, talk, silent_s=settings.silent_s, recorded=write_recorded_collectives)


def leave(watch: Watch, folder: Path | None, reason: str) -> None:
    """Note, on the rank that has the folder, and tell the others that a request ends this one before its first step."""
    if folder is not None:
        note_left(folder, reason)
    watch.tell(Cause.STOPPED, reason)
