"""What `rankfold train` is asked for: a YAML file, checked key by key, and written back with nothing left open."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, field_validator, model_validator
from torch import nn

from rankfold.induce import LORITA, Condition, Dlrt, Spread
from rankfold.induce.dynamic.condition import Conditioning
from rankfold.induce.dynamic.cut import TOLERANCE
from rankfold.induce.ways import WAYS, Way, settings_of, way_named
from rankfold.objectives import objective_named
from rankfold.run.errors import UsageError
from rankfold.train import Augment, Distill, Plateau, Recipe, Relax
from rankfold.train.recipe import Decay
from rankfold.zoo import ZooError, default_data

DEFAULTS = LORITA
_REMEDY = {
    "model": "; for example 'model: digits-cnn'",
    "out": ": the directory of the run, such as 'out: runs/first', or --out DIR",
}
_KINDS = {field.name: field.type for field in fields(Recipe)}
_RECIPE = tuple(_KINDS)


class ConfigError(ValueError):
    """One sentence: the file, the key, what is wrong with it and what would be right."""


class Teacher(BaseModel):
    """Whose outputs `distill` learns from: by default a network of the same kind as the one that is trained."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    weights: str
    model: str | None = None


class Dynamic(BaseModel):
    """Dynamical low-rank training: `rankfold.dlrt_` at `rank`, with `convolutions` as matrices or in Tucker's form, and
    the settings of `rankfold.Dlrt`. `factors`: train on in factors once ranks are found. `condition`: the largest
    condition number of a layer; `spread`: the weight of a penalty on it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rank: int | None = Field(None, ge=1)
    convolutions: Literal["matrix", "tucker"] = "matrix"
    integrator: Literal["window", "parallel"] = "window"
    window: int = Field(20, ge=1)
    grow: float = Field(1.0, gt=0, le=1)
    reach: int = Field(40, ge=0)
    tolerance: float = Field(TOLERANCE, ge=0, lt=1)
    budget: float | None = Field(None, gt=0, le=1)
    most: int | None = Field(None, ge=1)
    factors: bool = False
    condition: float | None = Field(None, ge=1, allow_inf_nan=False)
    spread: float | None = Field(None, ge=0, allow_inf_nan=False)

    @model_validator(mode="after")
    def _one_of_each(self) -> Dynamic:
        if self.budget is not None and self.tolerance != TOLERANCE:
            raise ValueError("budget and tolerance are two ways to choose ranks: give one of them")
        if self.condition is not None and self.spread is not None:
            raise ValueError(
                "condition (a bound) and spread (a penalty) are two ways to keep condition numbers small: give one of "
                "them"
            )
        if self.factors and (self.condition is not None or self.spread is not None):
            raise ValueError(
                "factors that are trained themselves are not held by condition or spread: leave factors out, or both "
                "of these"
            )
        return self

    def optimizer(self, model: nn.Module, kind: Any, **settings: Any) -> Dlrt:
        """That of a `model` prepared by `dlrt_`, around one of torch's."""
        how: Conditioning | None = None
        if self.condition is not None:
            how = Condition(self.condition)
        elif self.spread is not None:
            how = Spread(self.spread)
        return Dlrt(
            model, kind, integrator=self.integrator, window=self.window, grow=self.grow,
            tolerance=None if self.budget is not None else self.tolerance, budget=self.budget, reach=self.reach,
            most=self.most, factors=self.factors, condition=how, **settings,
        )  # fmt: skip


class TrainConfig(BaseModel):
    """One training run. In the file the keys of `recipe` (`rankfold.train.Recipe`) stand beside the others.

    `depth` 1 is the ordinary network, 2 and more make a product of that many factors of every matrix that `where`
    selects (`rankfold.induce.overparametrize_`, with `start` and `inner`). `dlrt`: layers of low rank instead, from the
    first step; `way`: another way there (`rankfold.induce.ways`), its `name` and settings. `weights`: what to start
    from. `objective`: what outputs and targets mean, by name; by default it is told from data and model. `decay` only
    checks that the optimizer is the one you mean. `device`: "auto" is CUDA where there is any.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str
    data: str
    out: str
    download: bool = False
    weights: str | None = None
    depth: int = 1
    where: str | None = None
    start: str = "balanced"
    inner: int | list[int] | str | None = None
    dlrt: Dynamic | None = None
    way: Any = None
    teacher: Teacher | None = None
    objective: str | None = None
    decay: Decay | None = None
    record_spectra: bool = False
    tensorboard: bool = False
    device: str = "auto"
    threads: int | None = Field(None, ge=1)
    recipe: Recipe = DEFAULTS

    @field_validator("depth", mode="before")
    @classmethod
    def _whole_depth(cls, value: Any) -> Any:
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"must be 1 (the ordinary network) or a whole number of at least 2 factors, got {value!r}")
        return value

    @field_validator("way", mode="before")
    @classmethod
    def _known_way(cls, value: Any) -> Way | None:
        if value is None or isinstance(value, Way):
            return value
        if not isinstance(value, Mapping) or not isinstance(value.get("name"), str):
            raise ValueError(f"give a name, and settings below it, such as {{name: cuttlefish}}, got {value!r}")
        kind = WAYS.get(value["name"], Way)
        return way_named(**_open(value, {field.name: field.type for field in fields(kind)}))

    @field_validator("objective")
    @classmethod
    def _known_objective(cls, value: str | None) -> str | None:
        return None if value is None else objective_named(value).name

    @model_validator(mode="after")
    def _fits_together(self) -> TrainConfig:
        if self.decay not in (None, self.recipe.decay):
            pair = "adam and sgd" if self.decay == "coupled" else "adamw"
            raise ValueError(f"decay: that of {self.recipe.optimizer} is {self.recipe.decay}, {self.decay} is {pair}")
        if (self.recipe.distill is None) != (self.teacher is None):
            present, absent = ("teacher", "distill") if self.recipe.distill is None else ("distill", "teacher")
            raise ValueError(f"{absent}: is missing beside {present}")
        if self.dlrt is not None and self.depth > 1:
            raise ValueError(
                f"dlrt: it trains layers of low rank, and depth {self.depth} trains products of factors: choose "
                "one of the two"
            )
        if self.way is not None and (self.dlrt is not None or self.depth > 1):
            raise ValueError(
                f"way: {self.way.name} is one way to low rank, and {'dlrt' if self.dlrt else 'depth'} is "
                "another: choose one of the two"
            )
        return self

    def to_dict(self) -> dict[str, Any]:
        """Every key of the file, defaults included; `parse` is the inverse."""
        values = self.model_dump(mode="json", exclude={"recipe", "way"})
        values["way"] = None if self.way is None else settings_of(self.way)
        for key in ("objective", "dlrt", "way"):
            if values[key] is None:
                del values[key]  # as before there was such a key: what was written then compares equal
        return values | {"decay": self.recipe.decay} | self.recipe.to_dict()

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True)


def read(file: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file. Raises `OSError`, and ConfigError for what is not YAML or no mapping."""
    file = Path(file)
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except RecursionError:
        raise ConfigError(f"{file}: nested too deeply to be a configuration") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        quote = ' (a value that begins with * wants quotes: where: "*")' if "alias" in str(error) else ""
        raise ConfigError(f"{file}: this is not YAML: {' '.join(str(error).split())}{quote}") from None
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise ConfigError(f"{file}: it must hold keys and values, such as 'model: digits-cnn'")
    return values


def overridden(values: Mapping[str, Any], settings: Sequence[str]) -> dict[str, Any]:
    """`values` with every `key=value` of `settings` put in; keys may be dotted, values are YAML."""
    changed, plain = dict(values), ""
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not key or not equals:
            raise UsageError(f"--set {setting}: give KEY=VALUE, such as --set weight_decay=1e-3")
        try:
            changed = with_key(changed, key, text if text.startswith("*") else yaml.safe_load(text))
        except yaml.YAMLError as error:
            raise UsageError(f"--set {setting}: this is not YAML: {' '.join(str(error).split())}") from None
        if key == "depth":
            plain = setting
    low = next((key for key in ("dlrt", "way") if values.get(key) and changed[key]), None)
    if plain and low and changed["depth"] == values.get("depth", 1) == 1:  # it changes nothing, and was meant to
        raise ConfigError(
            f"--set {plain}: {low} would still train at low rank, which depth does not switch off: add --set {low}=null"
        )
    return changed


def with_key(values: Mapping[str, Any], key: str, value: Any) -> dict[str, Any]:
    """A copy of `values` where the dotted `key` has this value."""
    head, _, rest = key.partition(".")
    inside = values.get(head)
    return {**values, head: with_key(inside if isinstance(inside, Mapping) else {}, rest, value) if rest else value}


def at_key(values: Mapping[str, Any], key: str) -> Any:
    """What `with_key` has put there."""
    head, _, rest = key.partition(".")
    found = values.get(head)  # keys that may be absent are where they are null
    return at_key(found or {}, rest) if rest else found


def parse(values: Mapping[str, Any], source: str | Path = "config") -> TrainConfig:
    """The run that `values` ask for; ConfigError, naming `source` and the first key that is wrong."""
    _check_names(values, source)
    given = _open({key: value for key, value in values.items() if key in _RECIPE}, _KINDS)
    rest = _open({key: value for key, value in values.items() if key not in _RECIPE}, TrainConfig.__annotations__)
    if isinstance(rest.get("dlrt"), Mapping):
        rest["dlrt"] = _open(rest["dlrt"], Dynamic.__annotations__)
    try:
        recipe = TypeAdapter(Recipe).validate_python(DEFAULTS.to_dict() | given)
        if rest.get("data") is None and isinstance(rest.get("model"), str):
            rest["data"] = _own_data(rest["model"])
        return TrainConfig(**rest, recipe=recipe)
    except ValidationError as error:
        raise ConfigError(f"{source}: {_first_fault(error)}") from None
    except ZooError as error:
        raise ConfigError(f"{source}: {error}") from None


def _open(values: Mapping[str, Any], kinds: Mapping[str, Any]) -> dict[str, Any]:
    """Without the keys that are null and cannot be: those have their default."""
    return {key: value for key, value in values.items() if value is not None or "None" in str(kinds.get(key, None))}


def _own_data(model: str) -> str:
    if ":" in model:
        raise ZooError(
            f"key data is missing, as {model} is a network of your own: give data: digits, mnist or "
            "package.module:factory"
        )
    return default_data(model)


def _check_names(values: Mapping[str, Any], source: str | Path) -> None:
    top = {name: kind for name, kind in _annotated(TrainConfig).items() if name != "recipe"} | _KINDS
    _check_level(values, top, "", source)
    for key, part in (("augment", Augment), ("distill", Distill), ("plateau", Plateau), ("relax", Relax)):
        _check_level(values.get(key), {field.name: field.type for field in fields(part)}, f"{key}.", source)
    _check_level(values.get("teacher"), _annotated(Teacher), "teacher.", source)
    _check_level(values.get("dlrt"), _annotated(Dynamic), "dlrt.", source)


def _annotated(model: type[BaseModel]) -> dict[str, Any]:
    return {name: field.annotation for name, field in model.model_fields.items()}


def _check_level(values: Any, known: Mapping[str, Any], prefix: str, source: str | Path) -> None:
    for key, value in values.items() if isinstance(values, Mapping) else ():
        if isinstance(value, bool) and re.search(r"\b(int|float)\b", str(known.get(key))):  # that would pass for 1
            raise ConfigError(f"{source}: {prefix}{key}: give a number, got {value}")
        if key not in known:
            near = [name for name in known if "".join(word[0] for word in name.split("_")) == key]  # lr
            near = [prefix + name for name in near or difflib.get_close_matches(str(key), known, 3, 0.5)]
            said = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(known)}"
            raise ConfigError(f"{source}: unknown key {prefix}{key}; {said}")


def _first_fault(error: ValidationError) -> str:
    fault = error.errors()[0]
    key = ".".join(str(part) for part in fault["loc"] if isinstance(part, int) or str(part).islower())
    text = fault["msg"].removeprefix("Value error, ").removeprefix("recipe: ")
    if fault["type"] == "missing":
        return f"key {key} is missing{_REMEDY.get(key, '')}"
    if fault["type"] in ("dataclass_type", "model_type"):
        text = f"give its keys below it, got {fault['input']!r}"
    elif fault["type"] != "value_error":
        text = f"{text[0].lower()}{text[1:]}, got {fault['input']!r}"
    return f"{key}: {text}" if key else text
