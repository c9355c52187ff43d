"""Models of transformers by the folder they lie in, or by their name on the Hugging Face hub."""

from __future__ import annotations

import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rankfold.run.disk.pretrained import FolderError, is_factored, is_folder
from rankfold.zoo.errors import ZooError
from rankfold.zoo.models import model_names

NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")  # OWNER/NAME
_WANTED = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja", "LICENSE*", "NOTICE*", "[0-9]_*/*"]
_SIDE = 224  # pixels, where a configuration does not say


def is_pretrained_name(spec: str) -> bool:
    """Whether it is a folder of transformers, or could be the name of one on the hub."""
    return is_folder(spec) or (NAME.fullmatch(spec) is not None and not Path(spec).exists())


def located(spec: str, *, download: bool = False) -> Path:
    """The folder of a model: ``spec`` itself, or where the hub's cache has it; fetched only with ``download``.

    Raises ``ZooError``, one line with the remedy: transformers not installed, a model that is not in the cache, that
    there is not, or whose terms have not been accepted.
    """
    if importlib.util.find_spec("transformers") is None:
        raise ZooError(f"{spec}: this is a model of transformers, which is not installed: pip install 'rankfold[hf]'")
    if is_folder(spec):
        return Path(spec)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        return Path(snapshot_download(spec, local_files_only=not download, allow_patterns=_WANTED))
    except GatedRepoError:
        raise ZooError(
            f"{spec}: this model is gated: accept its terms on its page of the hub, log in (hf auth login), and "
            "run again"
        ) from None
    except RepositoryNotFoundError:
        raise ZooError(
            f"{spec}: the hub has no such model, or it is private: check the name, or log in (hf auth login)"
        ) from None
    except LocalEntryNotFoundError:
        remedy = "check the connection" if download else "add --download to fetch it"
        raise ZooError(
            f"{spec}: this is neither a directory nor in the cache of the hub: {remedy}, or give a directory "
            f"that exists, or one of {', '.join(model_names())}"
        ) from None
    except (HfHubHTTPError, OSError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ZooError(f"{spec}: cannot be fetched from the hub ({reason}): try again, or give a folder") from None


def open_pretrained(spec: str, *, download: bool = False) -> tuple[Any, Any]:
    """The model that ``spec`` names, in eval mode, and one input of it (None: not known). ``ZooError`` in one line."""
    folder = located(spec, download=download)
    try:
        if is_factored(folder):
            raise ZooError(
                f"{spec}: it is already compressed: give the original, or make this one smaller with rankfold slice"
            )
        from rankfold import hub

        model = hub.opened(folder)
    except FolderError as error:
        raise ZooError(str(error)) from None
    return model, example_of(model)


def example_of(model: Any) -> Any:
    """One input of a model of transformers, as far as its configuration tells; None where it does not.

    Of tokens a few, drawn, with their mask, which whoever runs padded batches must give."""
    name, config = model.main_input_name, model.config
    if name == "input_ids":
        known = model.get_input_embeddings().num_embeddings
        ids = torch.randint(known, (1, 8), generator=torch.Generator().manual_seed(0))
        found = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        return found | ({"decoder_input_ids": ids} if config.is_encoder_decoder else {})
    if name == "pixel_values":
        side = getattr(config, "image_size", _SIDE)
        size = tuple(side) if isinstance(side, list | tuple) else (side, side)
        pixels: Tensor = torch.zeros(1, getattr(config, "num_channels", 3), *size)
        return {"pixel_values": pixels}
    return None


@dataclass(frozen=True)
class Reads:
    """How a model reads text: ``generates`` next tokens from windows of it, or takes line after line; ``vectors``: it
    gives a vector for each; ``vocabulary``: tokens it knows; ``positions``: the longest input (None: not told)."""

    generates: bool
    vectors: bool
    vocabulary: int
    positions: int | None


def table_of(model: Any) -> Any:
    """The embedding of the tokens that a model of transformers takes; None of one that takes none."""
    try:
        return model.get_input_embeddings()
    except NotImplementedError:  # what transformers says of a model of sounds or pictures
        return None


def takes_tokens(model: Any) -> bool:
    return model.main_input_name == "input_ids" and hasattr(table_of(model), "num_embeddings")


def continues(model: Any) -> bool:
    """Whether a model of transformers gives the next token of those that it takes."""
    return takes_tokens(model) and bool(model.can_generate()) and not model.config.is_encoder_decoder


def reads(model: Any) -> Reads:
    """How a model of transformers reads text; ``ZooError`` for one that takes none."""
    from rankfold.sites import is_pretrained

    table = table_of(model) if is_pretrained(model) else None
    if table is None or not takes_tokens(model):
        raise ZooError(
            f"{type(model).__name__} takes no tokens, and text is data for a language model or encoder of "
            "transformers: give other data, or such a model"
        )
    positions = getattr(model.config, "max_position_embeddings", None)
    headless = type(model) is type(model.base_model)
    return Reads(continues(model), headless, table.num_embeddings, positions if isinstance(positions, int) else None)


def tokenizer_of(folder: str | Path) -> Any:
    """The tokenizer in a folder; ``ZooError`` in one line where there is none that can be read without its own code."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    except (
        Exception
    ) as error:  # tokenizers raise exceptions of many kinds, some of them Rust panics turned to plain ones
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise ZooError(
            f"{folder}: it has no tokenizer that can be read ({reason}): put its files beside the weights, as "
            "AutoTokenizer.from_pretrained(ORIGINAL).save_pretrained(FOLDER) does, or give text that is already "
            "tokenised, --data tokens:FILE.npy"
        ) from None
