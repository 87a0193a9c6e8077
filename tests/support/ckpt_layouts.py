"""Layouts of Megatron v1 that a model can have: every kind that llm-ckpt writes, drawn."""

from hypothesis import strategies as st

KINDS = ("even", "vpp", "noop", "noop vpp", "dualpipev", "uneven")


@st.composite
def v1_layouts(draw, case, arch):
    """Arguments of the `convert` fixture for a case of the zoo and its architecture."""
    layout = {"tp": draw(st.sampled_from([n for n in (1, 2) if n <= case.max_tp]))}
    layout |= _pipeline(draw, case, arch)
    layout |= _dialect(draw, layout["tp"], arch)
    if arch.moe is not None:
        layout |= _experts(draw, layout["tp"], arch)
    return layout


def _pipeline(draw, case, arch):
    if case.max_pp == 1 or draw(st.booleans()):
        return {}
    kind, layers = draw(st.sampled_from(KINDS)), arch.num_layers
    pipeline = {"pp": 2}
    if kind == "uneven" and layers > 1:
        first = draw(st.integers(1, layers - 1))
        return {**pipeline, "layers": (first, layers - first)}
    if kind == "dualpipev":
        pipeline["schedule"] = "dualpipev"
    elif "vpp" in kind:
        pipeline["vpp"] = 2
    chunks = 4 if len(pipeline) > 1 else 2
    count = -layers % chunks + (chunks if kind.startswith("noop") else 0)
    places = st.lists(st.integers(0, layers + count - 1), unique=True, min_size=count)
    pipeline["noop_layers"] = tuple(sorted(draw(places)[:count]))
    return pipeline


def _dialect(draw, tp, arch):
    dialect = draw(st.sampled_from(["megatron", "mindspeed"]))
    if tp > 1 and arch.gdn is not None:
        dialect = "megatron"  # MindSpeed-LLM refuses the other
    implementation = draw(st.sampled_from(["local", "transformer_engine"]))
    splits = dialect == "mindspeed" and arch.mla is not None and draw(st.booleans())
    return {"dialect": dialect, "implementation": implementation, "splits_mla": splits}


def _experts(draw, tp, arch):
    layouts = ["sequential", "te"] if arch.moe.bias else ["sequential", "te", "grouped"]
    sizes = [n for n in (1, 2, 4) if arch.moe.experts % n == 0]
    facts = {"experts": draw(st.sampled_from(layouts)), "ep": draw(st.sampled_from(sizes))}
    how = draw(st.sampled_from(["as tp", "whole", "tp extends ep"]))
    if how == "whole" or arch.moe.ffn_hidden_size % tp:
        return {**facts, "etp": 1}
    if how == "tp extends ep" and arch.moe.experts % (facts["ep"] * tp) == 0:
        return {**facts, "tp_extends_ep": True}
    return facts
