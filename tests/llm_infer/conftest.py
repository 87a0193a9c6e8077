import pytest
import torch

from llm_infer.edge.operators import resolve
from llm_infer.errors import InferError


@pytest.fixture(params=["torch", "compiled"])
def kernels(request):
    """Operators of torch, and those in C where there is a compiler."""
    try:
        return resolve(request.param, device="cpu", dtype=torch.float32)
    except InferError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """Tiny llama and qwen3 folders with room for a few sentences."""
    from tiny_lm import make_model

    root = tmp_path_factory.mktemp("infer_models")
    return {family: make_model(root / family, family, context=64) for family in ("llama", "qwen3")}


@pytest.fixture(scope="session")
def loaded(models):
    """Both, on the CPU."""
    from llm_infer.edge.model_folder import load

    return {
        family: load(folder, device="cpu", dtype="float32") for family, folder in models.items()
    }
