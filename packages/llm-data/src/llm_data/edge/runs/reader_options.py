"""What reads a run's records, and how its manifest names it."""

import json
from typing import cast

from llm_data.config import PreprocessConfig
from llm_data.edge.datasets.dataset_manifests import Options
from llm_data.edge.handlers import RecordReader, handler_origin, record_reader
from llm_data.edge.sources.inputs import Inputs
from llm_data.edge.sources.readers import Meter, read_batches, where
from llm_data.errors import UsageError
from llm_data.samples.spec import SampleSpec
from llm_data.samples.texts import TextSpec
from llm_data.tasks.chat import SampleReader
from llm_data.tasks.pretrain import TextReader


def text_reader(config: PreprocessConfig, inputs: Inputs) -> tuple[TextReader | None, Options]:
    """The reader of whole records as texts, None where the text stands in the run's key."""
    reader = _reader(config, inputs)
    if reader is None:
        if config.map_keys:
            raise UsageError(
                "--map-keys has no meaning for a text in --key; want --format alpaca, sharegpt or "
                "openai with it"
            )
        return None, {}
    return cast("TextReader", reader), _options(config, reader)


def sample_reader(config: PreprocessConfig, inputs: Inputs) -> tuple[SampleReader, Options]:
    """The reader of records as samples."""
    reader = _reader(config, inputs)
    assert reader is not None, "only a text needs no reader"
    return cast("SampleReader", reader), _options(config, reader)


def _reader(config: PreprocessConfig, inputs: Inputs) -> RecordReader | None:
    return record_reader(
        config,
        read_batches(inputs.files, key=None, start=None, meter=Meter()),
        where=lambda place: where(inputs.files, place),
    )


def _options(config: PreprocessConfig, reader: RecordReader) -> Options:
    """What decides the text of a record."""
    if isinstance(reader, SampleSpec | TextSpec):
        map_keys = json.dumps(dict(reader.map_keys), ensure_ascii=False, sort_keys=True)
        return {"format": reader.format.value, "map_keys": map_keys}
    assert config.handler is not None
    return {"handler": f"{config.handler}: {handler_origin(config.handler)}"}
