"""One container: what is written is read, the same content has the same bytes, and nothing damaged gets through."""

import json
import tracemalloc
from contextlib import suppress

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from living import Living
from safetensors import safe_open
from safetensors.torch import load
from safetensors.torch import save as to_safetensors
from typing_extensions import TypedDict

import rankfold as rf
from rankfold.compress.measured import Statistics
from rankfold.compress.planning.fitted import read as read_fitted
from rankfold.compress.planning.plan import Plan
from rankfold.pipeline.trainings.config import read as read_config
from rankfold.recover import FactorModel
from rankfold.run.disk.container import Kind, checked, packed, parsed, read_object


class Note(TypedDict):
    count: int
    names: list[str]


KIND = Kind[Note]("rankfold.test", Note, "a test", "write it again")
TENSORS = {"a|x": torch.arange(6.0).reshape(2, 3).T, "b": torch.ones(2, dtype=torch.bfloat16), "c": torch.tensor(3)}
NOTE = Note(count=2, names=["ä", "b"])
DEEP = "[" * 200_000


def both(tensors, note):
    return tensors, note


def test_what_is_written_is_read(tmp_path):
    file = tmp_path / "x.safetensors"
    file.write_bytes(KIND.write(TENSORS, NOTE, more="text"))
    for source in (file, file.read_bytes()):
        tensors, note = KIND.read(source, both)
        assert note == NOTE
        assert tensors.keys() == TENSORS.keys()
        assert all(
            torch.equal(value, TENSORS[name]) and value.dtype == TENSORS[name].dtype for name, value in tensors.items()
        )
    with safe_open(str(file), "pt") as other:  # and by anybody else
        assert other.metadata()["more"] == "text"


def test_the_same_content_gives_the_same_bytes():
    text = {f"key {i}": str(i) for i in range(20)}
    assert len({packed(TENSORS, text) for _ in range(5)}) == 1
    assert packed(TENSORS, text) == packed(TENSORS, dict(reversed(text.items())))
    assert load(packed(TENSORS, text)).keys() == TENSORS.keys()
    assert packed(TENSORS) == to_safetensors({name: value.contiguous() for name, value in TENSORS.items()})


def test_files_of_every_type_are_those_of_safetensors(tmp_path):
    kinds = [torch.float64, torch.bfloat16, torch.float16, torch.int8, torch.bool, torch.complex64, torch.float8_e5m2]
    tensors = {f"{10 - i}": torch.ones(3, 2, dtype=torch.float32).to(kind) for i, kind in enumerate(kinds)}
    tensors |= {"scalar": torch.tensor(3), "none": torch.empty(0, 3), "kept": torch.ones(2, requires_grad=True)}
    turned = tensors | {"turned": torch.arange(6.0).reshape(2, 3).T}
    assert packed(turned) == to_safetensors({name: value.detach().contiguous() for name, value in turned.items()})
    assert packed({}) == to_safetensors({})
    file = tmp_path / "new" / "x.safetensors"
    KIND.write_to(file, tensors, NOTE)
    assert file.read_bytes() == KIND.write(tensors, NOTE)


def test_a_file_takes_no_copy_of_its_tensors_and_its_bytes_take_one(tmp_path):
    with Living() as living:
        tensors = {name: torch.ones(1 << 20, dtype=torch.float64) for name in "abc"}  # 24 MiB
        tracemalloc.start()
        KIND.write_to(tmp_path / "x.safetensors", tensors, NOTE)
        as_file = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        KIND.write(tensors, NOTE)
        as_bytes = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert living.most < (3 << 23) + (1 << 20)
    assert as_file < 1 << 20
    assert 3 << 23 <= as_bytes < (3 << 23) + (1 << 20)


def test_tensors_that_share_memory_are_written_each():
    x = torch.arange(4.0)
    assert torch.equal(load(packed({"a": x, "b": x[1:]}))["b"], x[1:])


def file_of(note: str, key: str = "rankfold.test") -> bytes:
    return to_safetensors({"b": torch.ones(2)}, metadata={key: note})


@pytest.mark.parametrize(
    "content",
    [
        b"", b"text", (2**60).to_bytes(8, "little") + b"{}", (2).to_bytes(8, "little") + b"[]",
        (len(DEEP)).to_bytes(8, "little") + DEEP.encode(), to_safetensors({"b": torch.ones(2)}), file_of("{"),
        file_of(DEEP), file_of("[]"), file_of('{"count": "2", "names": []}'), file_of('{"count": 2, "names": {}}'),
        file_of('{"count": 2}'),
        file_of('{"count": 2.5, "names": []}'), file_of(f'{{"count": {"9" * 10_000}, "names": []}}'),
        file_of(json.dumps(NOTE), "rankfold.other"),
    ],
)  # fmt: skip
def test_whatever_is_wrong_is_said_in_one_line(tmp_path, content):
    file = tmp_path / "bad.safetensors"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"bad.safetensors: damaged, or not a test .*: write it again") as said:
        KIND.read(file, both)
    assert "\n" not in str(said.value)
    assert len(str(said.value)) < 500


def test_what_the_reader_finds_wrong_is_said_in_the_same_way():
    for fault in (KeyError("gone"), ValueError("no"), RuntimeError("shape"), TypeError("x"), IndexError("y")):

        def build(tensors, note, fault=fault):
            raise fault

        with pytest.raises(ValueError, match="file: damaged, or not a test"):
            KIND.read(KIND.write(TENSORS, NOTE), build, "file")


def test_truth_values_are_no_numbers():
    data = KIND.write({"b": torch.ones(2, dtype=torch.bool)}, NOTE)
    with pytest.raises(ValueError, match="b holds truth values where there should be numbers"):
        KIND.read(data, both)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(draw=st.data())
def test_flipped_bits_and_cuts_never_give_another_error(draw):
    content = bytearray(KIND.write(TENSORS, NOTE))
    at = draw.draw(st.integers(0, len(content) - 1))
    content[at] ^= 1 << draw.draw(st.integers(0, 7))
    if draw.draw(st.booleans()):
        del content[at:]
    with suppress(ValueError):
        KIND.read(bytes(content), both)


@pytest.mark.parametrize("text", [DEEP, '{"a":' * 50_000, "9" * 10_000, "", "{", "\x00"])
def test_json_of_any_kind_is_refused_as_a_value_error(tmp_path, text):
    with pytest.raises(ValueError, match=r".+"):
        parsed(text)
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ValueError, match=r"x.json: damaged, or not a thing .*: make it again") as said:
        read_object(tmp_path / "x.json", "a thing", "make it again")
    assert "\n" not in str(said.value)


def test_types_are_checked():
    assert checked(dict[str, int], {"a": 1}) == {"a": 1}
    with pytest.raises(ValueError, match="a: Input should be a valid integer"):
        checked(dict[str, int], {"a": "x"})


@pytest.mark.parametrize("content", [DEEP, "{" * 3, "[1, 2]", "null", "9" * 10_000, '{"format": 1, "entries": ' + DEEP])
def test_every_file_that_is_read_refuses_absurd_json_in_one_line(tmp_path, content):
    file = tmp_path / "manifest.json"
    file.write_text(content)
    readers = {
        Plan.load: file,
        lambda path: rf.load(path, torch.nn.Linear(2, 2)): tmp_path,
        rf.SpectrumRecorder.load: file,
        Statistics.load: file,
        read_fitted: file,
        lambda path: FactorModel.from_bytes(path.read_bytes()): file,
    }
    for read, path in readers.items():
        with pytest.raises(ValueError, match=r".+") as said:
            read(path)
        assert "\n" not in str(said.value)
    if content.startswith("["):
        with pytest.raises(ValueError, match=r".+") as said:
            read_config(file)


def test_factors_of_a_recovery_are_checked_against_their_names():
    import numpy as np

    model = FactorModel(np.ones((3, 1)), np.ones((1, 4)), 0.5, 0.0, 1.0, ("a", "b"), ("x", "y", "z"))
    again = FactorModel.from_bytes(model.to_bytes())
    assert again.row_names == model.row_names
    assert np.array_equal(again.left, model.left)
    short = FactorModel(np.ones((3, 1)), np.ones((1, 4)), 0.5, 0.0, 1.0, ("a",), ("x", "y", "z"))
    with pytest.raises(ValueError, match=r"f: damaged, or not factors .*there are 1 and 3 names"):
        FactorModel.from_bytes(short.to_bytes(), "f")


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(draw=st.data())
def test_a_change_anywhere_is_noticed(draw):
    """Also inside of the numbers, which mean something whatever they are."""
    content = bytearray(KIND.write(TENSORS, NOTE))
    at = draw.draw(st.integers(0, len(content) - 1))
    content[at] ^= 1 << draw.draw(st.integers(0, 7))
    try:
        found = KIND.read(bytes(content), both)
    except ValueError:
        return
    tensors, note = found  # what is left are blanks behind the header, and names of other notes
    assert note == NOTE
    assert all(torch.equal(tensors[name], value) for name, value in TENSORS.items())


def test_files_without_a_hash_are_those_of_the_first_release():
    content = to_safetensors({"b": torch.ones(2)}, metadata={"rankfold.test": json.dumps(NOTE)})
    assert KIND.read(content, both)[1] == NOTE
