"""Which engine runs a folder: the one that was named, or the native one where it can."""

from pathlib import Path

from llm_infer.edge import model_folder
from llm_infer.edge.choices import LoadOptions
from llm_infer.edge.model_folder import Loaded
from llm_infer.errors import InferError


def load(folder: Path, options: LoadOptions, *, waits: bool = True) -> tuple[Loaded, str]:
    """The model, and a line that says which engine was taken and, when it was not native, why.

    Unless it `waits`, weights may come after it: see `Loaded.wait`.
    """
    if not folder.is_dir():
        raise InferError(f"{folder}: no such model folder")
    is_megatron = (folder / model_folder.MEGATRON_TRACKER).exists()
    if not is_megatron:
        model_folder.check(folder)
    reason = None
    if options.engine == "auto" and not is_megatron and not options.native_only:
        model_folder.keep_offline()
        from llm_infer.edge.native_model import reason_against_native

        reason = reason_against_native(folder, options)
    if options.engine == "transformers" or reason is not None:
        loaded = _on_transformers(folder, options)
        why = "" if reason is None else f" (not native: {reason.splitlines()[0]})"
        return loaded, f"{loaded.engine.description}{why}"
    model_folder.keep_offline()
    from llm_infer.edge.native_model import load_native

    loaded = load_native(folder, options, waits=waits)
    return loaded, loaded.engine.description


def _on_transformers(folder: Path, options: LoadOptions) -> Loaded:
    if options.native_only:
        names = ", ".join(options.native_only)
        raise InferError(f"{names}: only the native engine has this; use --engine native")
    return model_folder.load(folder, device=options.device, dtype=options.dtype)
