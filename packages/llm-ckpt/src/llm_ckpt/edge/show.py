"""What commands print: a checkpoint as a tree, a plan as a table, sizes for people."""

from collections.abc import Iterator

from llm_ckpt.plan import Plan
from llm_ckpt.source import WeightSource


def human(count: int) -> str:
    """Bytes in decimal units."""
    size = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def tree_lines(source: WeightSource) -> Iterator[str]:
    """A checkpoint's parameters as an indented tree, with shapes, dtypes and sizes."""
    located, total, shown = source.located, 0, tuple[str, ...]()
    place = "" if source.iteration is None else f", iteration {source.iteration}"
    yield f"{located.root}: {located.layout}{place}, family {source.architecture.family}"
    for name in source.names():
        *parents, leaf = name.split(".")
        for depth, parent in enumerate(parents):
            if shown[: depth + 1] != tuple(parents[: depth + 1]):
                yield f"{'  ' * (depth + 1)}{parent}"
        shown = tuple(parents)
        shape, dtype = source.shape(name), source.dtype(name)
        size = dtype.itemsize
        for extent in shape:
            size *= extent
        total += size
        text = f"{list(shape)} {str(dtype).removeprefix('torch.')} {human(size)}"
        yield f"{'  ' * (len(parents) + 1)}{leaf}  {text}"
    yield f"{len(source.names())} parameters, {human(total)}"


def plan_lines(plan: Plan) -> Iterator[str]:
    """A plan's files, total and memory."""
    for file in plan.files:
        yield f"  {file.path}  {human(file.nbytes)}"
    yield (
        f"{len(plan.files)} files, {human(plan.total_bytes)} on disk, "
        f"at most about {human(plan.peak_bytes)} of tensors in memory a worker"
    )
    if plan.target.layout == "v1":
        yield f"vocabulary padded to {plan.padded_vocab_size} rows"
    if plan.target.layout == "v2":
        yield keys_line(plan)


def keys_line(plan: Plan) -> str:
    """How layers are keyed in a v2 checkpoint: the model that loads it must ask for the same."""
    how = "one key a layer" if plan.target.is_per_layer else "layers stacked"
    return f"v2 keys: {how}"
