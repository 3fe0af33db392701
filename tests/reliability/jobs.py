"""What runs in processes that are killed: each is forked from a server that has imported torch."""

import contextlib
import multiprocessing
import os
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, ForkServerProcess
from typing import Any

import torch
import torch._dynamo  # the first optimiser of a process imports it; here the server does so once

from gtp_policy import CheckpointFolder, GTPLearner, StopSignal, load_checkpoint
from gtp_policy.errors import GTPError
from tests.reliability.small import BATCH, configs, digests, make_dataset

SAVE_EVERY = 2


def start(job: Any, *arguments: Any) -> tuple[ForkServerProcess, Connection]:
    """Starts a job in a separate process; returns it and what it sends."""
    # A fresh interpreter would need more than a second for its imports alone. The server imports
    # once, starts no thread and runs no backward pass, so that its children are clean.
    context: ForkServerContext = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    reader, writer = context.Pipe(duplex=False)
    process = context.Process(target=job, args=(writer, *arguments), daemon=True)
    process.start()
    writer.close()  # so that reading ends when the process does
    return process, reader


def sent(reader: Connection) -> list[Any]:
    """Returns all that a process sent before it ended."""
    messages = []
    while True:
        try:
            messages.append(reader.recv())
        except (EOFError, OSError):  # ended, or killed in the middle of a message
            return messages


def train(sender: Connection, directory: str, name: str, total: int) -> None:
    """Trains one config to its end, saving often; goes on where the folder's newest one stands.

    Sends "ready", then the digests of the final state.
    """
    torch.set_num_threads(1)
    dataset, folder = make_dataset(), CheckpointFolder(directory, keep=2)
    newest = folder.latest()
    if newest is not None:
        learner = load_checkpoint(newest).learner
    else:
        learner = GTPLearner.from_dataset(dataset, configs(total)[name])
    sender.send("ready")
    server = os.getppid()  # an orphan does not go on for ever
    with StopSignal() as stop:
        while learner.updates < total and not stop and os.getppid() == server:
            learner.update(dataset.sample(BATCH, generator=learner.stream("batch")))
            if learner.updates % SAVE_EVERY == 0:
                folder.save(learner)
    folder.save(learner)
    sender.send((learner.updates, digests(learner)))


def save_back_to_back(sender: Connection, directory: str) -> None:
    """Saves after every update until it is killed; sends the number of each update it has saved."""
    torch.set_num_threads(1)
    dataset, folder = make_dataset(), CheckpointFolder(directory, keep=3)
    newest = folder.latest()
    if newest is not None:
        learner = load_checkpoint(newest).learner
    else:
        learner = GTPLearner.from_dataset(dataset, configs(10_000)["behaviour cloning"])
    server = os.getppid()
    while os.getppid() == server:
        learner.update(dataset.sample(4, generator=learner.stream("batch")))
        # The state that was saved is described in another file of the checkpoint.
        folder.save(learner, metadata={"digests": digests(learner)})
        sender.send(learner.updates)


def use(sender: Connection, path: str) -> None:
    """Acts and trains with a loaded learner; sends what it raised that is no GTPError, or None."""
    torch.set_num_threads(1)
    dataset = make_dataset()
    try:
        with contextlib.suppress(GTPError):
            learner = load_checkpoint(path).learner
            learner.act(dataset.transitions.obs[:4], generator=learner.stream("use"))
            for _ in range(3):
                batch = dataset.sample(8, generator=learner.stream("batch"))
                learner.update(batch).to_floats()
    except Exception as error:
        sender.send(repr(error)[:300])
    else:
        sender.send(None)
