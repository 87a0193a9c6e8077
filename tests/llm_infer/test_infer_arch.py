import json
from pathlib import Path

import pytest

from llm_infer.arch import ArchError, parse

CONTRACT = Path(__file__).parents[1] / "contracts" / "arch"


def document_of(path):
    try:
        return json.loads(path.read_text())
    except ValueError:
        pytest.skip("reading JSON is llm-ckpt's")


@pytest.mark.parametrize("path", sorted((CONTRACT / "golden").glob("*.json")), ids=lambda p: p.stem)
def test_golden_archs_are_read(path):
    arch = parse(document_of(path), where=path.name)
    assert len(list(arch.each_layer())) == arch.num_layers


@pytest.mark.parametrize("path", sorted((CONTRACT / "broken").glob("*.json")), ids=lambda p: p.stem)
def test_broken_archs_are_refused(path):
    with pytest.raises(ArchError, match=path.name):
        parse(document_of(path), where=path.name)
