"""A Hugging Face folder: its files as bytes, and a model from it. Nothing is fetched, no code of a folder is run."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rankfold.hub.declared import check_ours
from rankfold.hub.errors import HubError
from rankfold.hub.whole import built, check_whole, without_pooler
from rankfold.run.disk.container import FAULTS, said
from rankfold.run.disk.pretrained import CONFIG, config_of
from rankfold.run.disk.tensors import SINGLE, Checkpoint, weight_files

SHARD = "5GB"
# what belongs to a model beside its weights: of its tokenizer or image processor, and of sentence-transformers
_COMPANIONS = re.compile(
    r"tokenizer.*\.(json|model)|vocab.*\.(json|txt)|merges\.txt|special_tokens_map\.json|added_tokens\.json|"
    r"spiece\.model|generation_config\.json|sentencepiece.*\.model|chat_template\.(json|jinja)|(pre)?processor(_config)?\.json|"
    r"preprocessor_config\.json|modules\.json|config_sentence_transformers\.json|sentence_\w+_config\.json|"
    r"LICENSE.*|NOTICE.*"
)
_STAGE = re.compile(r"\d+_\w+")  # a stage of sentence-transformers after the transformer
_STAGE_FILES = (CONFIG, SINGLE)


@contextmanager
def quietly() -> Iterator[None]:
    """Within the block transformers draws no bars and prints no tables: what is wrong is said by whoever calls it."""
    from transformers.utils import logging

    bars, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def files_of(model: Any, tokenizer: Any = None) -> dict[str, bytes]:
    """Every file of the folder that ``model.save_pretrained`` writes, by name, with those of the ``tokenizer``;
    what was written is read back first (``check_whole``).

    Without a tokenizer, what lies beside the weights in the folder that the model was loaded from: tokenizer, image
    processor, stages of sentence-transformers. Cost: the model twice in memory, once in the temporary folder.
    """
    check_ours(model)
    beside = {} if tokenizer is not None else companions(Path(str(getattr(model, "name_or_path", "") or "")))
    with tempfile.TemporaryDirectory(prefix="rankfold-") as place:
        with quietly():
            model.save_pretrained(place, max_shard_size=SHARD)
        if tokenizer is not None:
            tokenizer.save_pretrained(place)
        folder = Path(place)
        check_whole(folder, type(model))
        made = {
            str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()
        }
    return beside | made


def companions(folder: Path) -> dict[str, bytes]:
    """What belongs to the model in ``folder`` beside configuration and weights, by name relative to it."""
    if not str(folder) or not folder.is_dir() or not (folder / CONFIG).is_file():
        return {}
    found = {entry.name: entry for entry in folder.iterdir() if entry.is_file() and _COMPANIONS.fullmatch(entry.name)}
    if "modules.json" in found:
        for stage in folder.iterdir():
            if stage.is_dir() and _STAGE.fullmatch(stage.name):
                found |= {f"{stage.name}/{name}": stage / name for name in _STAGE_FILES if (stage / name).is_file()}
    return {name: found[name].read_bytes() for name in sorted(found)}


def check_code(directory: Path, config: dict[str, Any]) -> None:
    """``HubError`` for an architecture whose code lies in the folder or on the hub, which is not run here."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    kind = config.get("model_type")
    if kind in CONFIG_MAPPING:
        return
    if "auto_map" in config:
        raise HubError(
            f"{directory}: the architecture {kind!r} needs code from the model's own folder, which rankfold does "
            "not run: load it in a function of yours (trust_remote_code=True) and give package.module:function "
            "as MODEL"
        )
    raise HubError(
        f"{directory}: the installed transformers does not know the architecture {kind!r}: update transformers, "
        "check that this is a folder of transformers, or give rankfold.load(folder, model) a dense model of your own "
        "class"
    )


def check_weights(directory: Path) -> int:
    """The bytes of the weights in a folder; ``HubError`` in one line for a file that is missing or cut short.

    Reads the headers alone; what is damaged inside is seen by hashes, where a manifest holds them.
    """
    try:
        files = weight_files(directory)
    except ValueError as error:
        raise HubError(str(error)) from None
    if not files:
        other = next((path.name for ending in ("*.bin", "*.gguf", "*.h5") for path in directory.glob(ending)), None)
        there = f"only {other}, which is not read here" if other else "none"
        raise HubError(
            f"{directory}: weights in {SINGLE} were expected, and there are {there}: save the model as safetensors "
            "(save_pretrained)"
        )
    return sum(_size(file) for file in files)


def _size(file: Path) -> int:
    try:
        size = file.stat().st_size
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            header = json.loads(opened.read(length)) if length < min(size, 1 << 28) else {}
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        if not header or size != 8 + length + max(ends, default=0):
            raise ValueError("its length is not the one that its header tells")
    except OSError as error:
        raise HubError(
            f"{file}: {error.strerror or error}: a part of the model is missing, so download it again"
        ) from None
    except FAULTS as error:
        raise HubError(f"{file}: damaged or cut short ({said(error)}): download or save the model again") from None
    return size


def _class_of(config: dict[str, Any], given: type | None = None) -> Any:
    """The class that a configuration names, ``given`` where it is that one, or the one without a head."""
    import transformers

    names = config.get("architectures")
    name = str(names[0]) if isinstance(names, list) and names else ""
    if given is not None and given.__name__ == name:
        return given
    kind: Any = getattr(transformers, name, None)
    return kind if kind is not None and hasattr(kind, "from_pretrained") else transformers.AutoModel


def _names(directory: Path) -> list[str]:
    """Of the tensors in a folder; of one without weights, whose layers alone are asked for, as if it had a pooler."""
    try:
        return Checkpoint(directory).names
    except ValueError:
        return ["pooler"]


def skeleton(directory: str | Path) -> Any:
    """The network of a folder on the meta device: names, kinds and shapes of its layers, and no weights.

    Raises ``HubError`` in one line: no configuration, unknown architecture or one with code of its own.
    """
    import transformers

    directory = Path(directory)
    config = config_of(directory)
    check_code(directory, config)
    kind = _class_of(config)
    try:
        with quietly():
            read = transformers.AutoConfig.from_pretrained(directory, local_files_only=True)
        return built(kind, read, _names(directory))
    except (OSError, *FAULTS) as error:
        raise HubError(f"{directory}: transformers cannot build this model ({said(error)})") from None


def opened(directory: str | Path, given: type | None = None, **options: Any) -> Any:
    """The model in a folder, of the class that its configuration names; in eval mode, on the CPU, in its own dtype.

    ``given``: a class at hand, taken where it is the one that is named, which transformers may not know.
    ``options`` go to ``from_pretrained``. Raises ``HubError`` in one line: no configuration, unknown architecture or
    one with code of its own, weights missing or damaged, or that do not fit. Nothing is fetched.
    """
    directory = Path(directory)
    config = config_of(directory)
    kind = _class_of(config, given)
    if kind is not given:
        check_code(directory, config)
    check_weights(directory)
    try:
        with quietly():
            options |= without_pooler(kind, _names(directory))
            model, told = kind.from_pretrained(directory, local_files_only=True, output_loading_info=True, **options)
    except (OSError, *FAULTS) as error:
        raise HubError(f"{directory}: transformers cannot load this model ({said(error)})") from None
    lacking = sorted(told["missing_keys"]) + sorted(str(key) for key in told.get("mismatched_keys", ()))
    if lacking:
        raise HubError(
            f"{directory}: {len(lacking)} tensors of {type(model).__name__} are missing or have another shape "
            f"(the first is {lacking[0]}), so that they would be random: the folder is incomplete, or belongs to "
            "another model"
        )
    return model.eval()
