"""Selection: explicit or in the documented order, never silent; cheap once made."""

import importlib.util
import subprocess
import sys
from importlib.metadata import entry_points
from inspect import signature

import pytest
import torch

from llm_kernels_npu import kernels
from llm_kernels_npu.cases import check_cases
from llm_kernels_npu.checked import checked
from llm_kernels_npu.errors import BackendMissingError, UnknownNameError
from llm_kernels_npu.parity import arguments, make
from llm_kernels_npu.registry import AUTO_ORDER, OPERATORS
from llm_kernels_npu.select import Choice, bind, choose, load


@pytest.fixture
def with_torch_npu(monkeypatch):
    """As on a machine where torch_npu can be imported (nothing imports it here)."""
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: True if name == "torch_npu" else find(name)
    )


@pytest.fixture
def without_torch_npu(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "torch_npu" else find(name)
    )


def test_auto_on_cpu_is_torch_where_it_is_written():
    for name, entry in OPERATORS.items():
        has_torch = any(backend.name == "torch" for backend in entry.backends)
        assert choose(name, device="cpu").backend == ("torch" if has_torch else "reference")


@pytest.mark.usefixtures("with_torch_npu")
def test_auto_on_npu_is_the_fused_operator_where_one_is_written():
    for name, entry in OPERATORS.items():
        has_npu = any(backend.name == "npu" for backend in entry.backends)
        assert (choose(name, device="npu").backend == "npu") == has_npu, name
    assert choose("layer_norm", device="npu").backend == "torch"


def test_auto_passes_over_a_backend_that_lacks_a_feature_and_says_so():
    choice = choose("attention", device="cpu", features=["softcap"])
    assert str(choice) == "attention reference (torch has no softcap)"


@pytest.mark.usefixtures("without_torch_npu")
def test_named_backend_without_its_package_is_an_error_with_the_remedy():
    with pytest.raises(BackendMissingError, match=r"needs torch_npu: pip install torch-npu=="):
        choose("rms_norm", device="npu", backend="npu")


def test_triton_for_another_device_is_not_triton_for_this_one(monkeypatch):
    find = importlib.util.find_spec
    builds = {"triton": True, "triton.backends.nvidia": True, "triton.backends.ascend": None}
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: builds[name] if name in builds else find(name)
    )
    assert choose("rms_norm", device="cuda").backend == "triton"
    with pytest.raises(BackendMissingError, match=r"triton.backends.ascend: .*triton-ascend"):
        choose("rms_norm", device="npu", backend="triton")


def test_named_backend_on_the_wrong_device_is_an_error():
    with pytest.raises(BackendMissingError, match="backend npu serves npu, not cpu"):
        kernels(device="cpu", backends={"rms_norm": "npu"})


def test_named_backend_that_lacks_a_feature_is_an_error():
    with pytest.raises(BackendMissingError, match="backend torch has no softcap"):
        choose("attention", device="cpu", backend="torch", features={"softcap"})


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"device": "cdua"}, r"unknown device 'cdua'; did you mean cuda\?"),
        ({"device": "cpu", "backends": {"rmsnorm": "auto"}}, r"did you mean rms_norm\?"),
        ({"device": "cpu", "backends": {"swiglu": "touch"}}, r"did you mean torch\?"),
        ({"device": "cpu", "features": {"attention": ["softcup"]}}, r"did you mean softcap\?"),
    ],
)
def test_unknown_names_get_a_suggestion(options, match):
    with pytest.raises(UnknownNameError, match=match):
        kernels(**options)


def test_provider_holds_every_operator_and_prints_one_line():
    provided = kernels(device="cpu", backends={"swiglu": "reference"})
    assert [choice.operator for choice in provided.choices] == list(OPERATORS)
    line = str(provided)
    assert line.startswith("kernels on cpu: rms_norm torch, swiglu reference, ")
    assert "\n" not in line
    for name in OPERATORS:
        assert callable(getattr(provided, name))


@pytest.mark.parametrize("group", ["llm_train.kernels", "llm_infer.kernels"])
def test_entry_point_gives_the_provider(group):
    (point,) = entry_points(group=group, name="llm-kernels-npu")
    out = point.load()(device="cpu").swiglu(torch.tensor([[0.0, 5.0]]))
    assert out.tolist() == [[0.0]]


def test_auto_order_ends_with_the_reference():
    for device in AUTO_ORDER:
        assert all(entry.auto_order(device)[-1] == "reference" for entry in OPERATORS.values())


def test_attention_on_cuda_is_pytorchs_unless_it_lacks_a_feature():
    assert choose("attention", device="cuda").backend == "torch"
    assert choose("attention", device="cuda", features=["softcap"]).backend != "torch"


def test_importing_needs_neither_torch_npu_nor_triton():
    code = (
        "import sys; sys.modules['torch_npu'] = sys.modules['triton'] = None\n"
        "import llm_kernels_npu; assert 'torch' not in sys.modules\n"
        "k = llm_kernels_npu.kernels(device='cpu')\n"
        "import torch; k.rms_norm(torch.ones(2, 4), torch.ones(4), eps=1e-6)\n"
        "q = torch.ones(1, 3, 2, 4); k.attention(q, q, q, causal=True)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_help_imports_no_torch():
    code = (
        "import sys; from llm_kernels_npu.cli import main\n"
        "try: main(['check', '--help'])\n"
        "except SystemExit: assert 'torch' not in sys.modules and 'rich' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, capture_output=True)


def test_bound_operator_has_the_operators_own_name_parameters_and_defaults():
    for name, entry in OPERATORS.items():
        backend = "torch" if any(one.name == "torch" for one in entry.backends) else "reference"
        run, bound = load(name, backend)[0], bind(Choice(operator=name, backend=backend))
        assert bound.__name__ == name
        assert [
            (one.name, one.kind, one.default) for one in signature(bound).parameters.values()
        ] == [(one.name, one.kind, one.default) for one in signature(run).parameters.values()]


def test_bound_operator_hands_arguments_on_as_they_came():
    given = {}

    def run(x, y=1.5, *, eps, mode="none"):
        given["run"] = (x, y, eps, mode)
        return "ran"

    def limit(x, y=1.5, *, eps, mode="none"):
        given["limit"] = (x, y, eps, mode)
        return "no" if mode == "bad" else None

    def refuse(reason, args, kwargs):
        raise LookupError(reason, args, kwargs)

    bound = checked(run, limit, refuse)
    assert bound("x", eps=1) == "ran"
    assert given == {"limit": ("x", 1.5, 1, "none"), "run": ("x", 1.5, 1, "none")}
    assert bound(eps=2, y=3, x="z", mode="m") == "ran"
    assert given["run"] == given["limit"] == ("z", 3, 2, "m")
    with pytest.raises(LookupError) as caught:
        bound("x", eps=1, mode="bad")
    assert caught.value.args == ("no", ("x", 1.5), {"eps": 1, "mode": "bad"})
    with pytest.raises(TypeError, match=r"run\(\) got an unexpected keyword argument 'epsilon'"):
        bound("x", epsilon=1)


def test_dispatch_adds_one_wrapper_and_the_check_of_limits():
    """What it costs in time is `benchmarks/kernel_dispatch.py`'s to say."""
    for name, entry in OPERATORS.items():
        backend = entry.backends[min(1, len(entry.backends) - 1)].name
        if entry.backend(backend).package is not None:
            continue
        case = check_cases(name)[0]
        args, options = arguments(case, make(case, device="cpu", dtype=torch.float32))
        run, limit = load(name, backend)
        bound = bind(Choice(operator=name, backend=backend))
        added = _python_calls(bound, args, options) - _python_calls(run, args, options)
        assert added == 1 + _python_calls(limit, args, options), name
        assert added <= 6, name


def _python_calls(call, args, options) -> int:
    """How many Python functions one call enters, itself included."""
    entered = []

    def note(_frame, event, _arg):
        if event == "call":
            entered.append(event)

    with torch.no_grad():
        call(*args, **options)
        sys.setprofile(note)
        try:
            call(*args, **options)
        finally:
            sys.setprofile(None)
    return len(entered)
