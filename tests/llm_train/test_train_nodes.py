"""Two machines under torchrun, as two agents of it on this one, with a static rendezvous."""

import json
import os
import signal
import time
from pathlib import Path

import pytest

from fork_ranks import run_ranks

TIMEOUT_S = 60


def on_two_nodes(run_rank, folder):
    """What torchrun's agent on each of two nodes, with one rank each, says in the end.

    `torchrun --nnodes 2 --node-rank N --master-addr … --master-port …` starts the same agent; here
    it forks its rank from the warm process. An agent whose rank failed answers with its report.
    """
    from llm_train.edge.launch import free_port

    port = free_port()

    def agent(node):
        from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
        from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
        from torch.distributed.launcher.api import LaunchConfig, elastic_launch

        for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
            del os.environ[name]  # the agent sets its ranks' own
        config = LaunchConfig(
            run_id="none",  # as torchrun has it
            min_nodes=2,
            max_nodes=2,
            nproc_per_node=1,
            rdzv_backend="static",
            rdzv_endpoint=f"127.0.0.1:{port}",
            rdzv_configs={"rank": node, "timeout": TIMEOUT_S},
            start_method="fork",
            max_restarts=0,
            monitor_interval=0.05,
            logs_specs=DefaultLogsSpecs(log_dir=str(folder / f"node{node}")),
        )
        try:
            return elastic_launch(config, run_rank)()
        except ChildFailedError as error:
            return str(error)

    return run_ranks(agent, 2)


def run_here(document):
    from llm_train.config_parse import parse
    from llm_train.edge.run import run

    run(parse(document, [], "test"))
    return f"rank {os.environ['RANK']} of {os.environ['WORLD_SIZE']}"


def losses(folder):
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {record["step"]: record["loss"] for record in records if "loss" in record}


def test_tensor_parallel_over_two_nodes_trains_like_one_process(run_document, tmp_path):
    run_ranks(lambda _: run_here(run_document), 1)
    wanted = losses(Path(run_document["save"]["path"]))
    assert len(wanted) == 10
    run_document["parallel"] = {"tp": 2}
    run_document["save"]["path"] = str(tmp_path / "nodes")
    found = on_two_nodes(lambda: run_here(run_document), tmp_path)
    assert found == [{0: "rank 0 of 2"}, {1: "rank 1 of 2"}]
    assert losses(tmp_path / "nodes") == pytest.approx(wanted, abs=1e-5)


def test_a_rank_killed_on_one_node_ends_the_other_nodes_at_once(run_document, tmp_path):
    run_document["train"]["max_steps"] = 100_000
    metrics = Path(run_document["save"]["path"]) / "metrics.jsonl"

    def run_rank():
        import threading

        def kill():
            while not metrics.exists() or len(metrics.read_text().splitlines()) < 2:
                time.sleep(0.005)
            os.kill(os.getpid(), signal.SIGKILL)

        if os.environ["RANK"] == "1":
            threading.Thread(target=kill, daemon=True).start()
        run_here(run_document)

    started_s = time.monotonic()
    first, second = on_two_nodes(run_rank, tmp_path)
    assert time.monotonic() - started_s < TIMEOUT_S  # train.timeout_s is 600
    assert "Signal 9 (SIGKILL)" in second
    assert "FAILED" in first
