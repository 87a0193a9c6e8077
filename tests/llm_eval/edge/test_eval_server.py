"""An OpenAI-compatible server as the engine: same scores, patience, and nothing lost."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

import original_benchmarks as original
from llm_eval.edge import benchmark, model_folder
from llm_eval.edge.importing import import_data
from llm_eval.edge.perplexity import ModelChoice
from llm_eval.errors import EvalError
from llm_eval.harness.engine import Work
from llm_eval.harness.scorer_engine import ChunkEngine


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    from tiny_lm import make_model

    folder = tmp_path_factory.mktemp("served") / "tiny"
    return make_model(folder, "llama", context=256, spread=0.12)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("served_data")
    source = original.hellaswag(root / "hellaswag", rows=6)
    import_data("hellaswag", [source], root / "data", partial=False, overwrite=False)
    return root / "data"


class _Server(ThreadingHTTPServer):
    """The completions API over a transformers model; `fails` names the requests that get a 500."""

    def __init__(self, model, fails=()):
        self.model, self.tokenizer = model_folder.load(model, device="cpu", dtype="float32")
        self.fails, self.num_asked = frozenset(fails), 0
        super().__init__(("127.0.0.1", 0), _Handler)

    def __enter__(self):
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return super().__enter__()

    def __exit__(self, *error):
        self.shutdown()
        super().__exit__(*error)

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/v1"

    def choices(self, prompts):
        import torch

        for index, tokens in enumerate(prompts):
            with torch.no_grad():
                logprobs = self.model(torch.tensor([tokens])).logits[0].log_softmax(-1)
            likeliest = logprobs.max(-1).values.tolist()
            chosen = [logprobs[n, token].item() for n, token in enumerate(tokens[1:])]
            top = [{"likeliest": value} for value in likeliest]
            yield {
                "index": index,
                "text": "",
                "logprobs": {
                    # One more token is generated, as the client asks.
                    "token_logprobs": [None, *chosen, likeliest[-1]],
                    "top_logprobs": [None, *top],
                },
            }


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        number = self.server.num_asked
        self.server.num_asked += 1
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if number in self.server.fails:
            self.send_error(500, "out of memory")
            return
        answer = {"choices": list(self.server.choices(request["prompt"]))}
        body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def _run(model, data, output, *, url=None, retries=1):
    choice = benchmark.TaskChoice(
        names=("hellaswag",), include_path=None, num_fewshot=None, limit=3, data=data
    )
    chosen = ModelChoice(
        model=model, scorer="hf", device="cpu", dtype="float32", batch_size=4, max_length=None,
        url=url, retries=retries, threads=1,
    )  # fmt: skip
    return benchmark.run(choice, chosen, output, overwrite=False)


def _logprobs(output):
    rows = [json.loads(line) for line in (output / "samples.jsonl").read_text().splitlines()]
    return [answer[0][0] for row in rows for answer in row["resps"]]


def test_a_server_that_fails_once_gives_the_scores_of_the_model_it_serves(model, data, tmp_path):
    with _Server(model, fails={1}) as server:
        served = _run(model, data, tmp_path / "served", url=server.url)
        assert server.num_asked == 4
    local = _run(model, data, tmp_path / "local")
    names = ("acc,none", "acc_norm,none")
    found = [run.results["results"]["hellaswag"] for run in (served, local)]
    assert [found[0][name] for name in names] == [found[1][name] for name in names]
    assert _logprobs(tmp_path / "served") == pytest.approx(_logprobs(tmp_path / "local"), abs=1e-4)
    assert served.results["config"]["model"] == "server"


def test_a_server_that_fails_half_way_leaves_a_partial_result_to_continue(model, data, tmp_path):
    output = tmp_path / "out"
    with _Server(model, fails={1, 2}) as server:
        with pytest.raises(EvalError, match=r"a batch of 4 loglikelihood requests failed 2 times"):
            _run(model, data, output, url=server.url)
        partial = json.loads((output / "partial.json").read_text())
        assert (partial["partial"], partial["scored_requests"]) == (True, 4)
        continued = _run(model, data, output, url=server.url)
        assert continued.num_resumed_batches == 4
        assert server.num_asked == 3 + 2


def test_a_server_that_is_not_there_is_named(model, data, tmp_path):
    with pytest.raises(EvalError, match=r"failed 1 times: .*127\.0\.0\.1"):
        _run(model, data, tmp_path / "out", url="http://127.0.0.1:9/v1", retries=0)


class _Flaky:
    """A harness model that fails a given number of times."""

    def __init__(self, failures):
        self.failures = failures

    def generate_until(self, requests):
        if self.failures:
            self.failures -= 1
            raise ConnectionError("reset by peer")
        return ["text"] * len(requests)


def test_waits_double_between_tries():
    waits = []
    engine = ChunkEngine(_Flaky(4), batch_size=2, retries=4, sleep=waits.append)
    work = Work((0,), ("generate_until", (("context", {}),)))
    assert engine.score(work) == ["text"]
    assert [round(wait / 2**n) for n, wait in enumerate(waits)] == [1, 1, 1, 1]
    assert all(2**n <= wait <= 1.25 * 2**n for n, wait in enumerate(waits))


def test_a_url_and_a_scorer_exclude_each_other(tmp_path):
    choice = ModelChoice(
        model=tmp_path, scorer="llm-infer", device="cpu", dtype="auto", batch_size=1,
        max_length=None, url="http://x/v1",
    )  # fmt: skip
    with pytest.raises(EvalError, match="choose one of them"):
        benchmark.engine_choice(choice)
