"""Checkpoints made to do harm are refused in one sentence, quickly, and change nothing in the process."""

import argparse
import io
import os
import pickle
import time
import zipfile

import pytest
import torch

from kosmos_core import WeightsError
from kosmos_core.original.pickle_reader import read_checkpoint
from kosmos_core.original.strict_pickle import Refused, StrictUnpickler

REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n"
MAGIC = [pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})]
NO_STORAGES = pickle.dumps([], 2)


def legacy_file(path, description: bytes):
    """A file as torch wrote it before version 1.6, its description given as a pickle."""
    path.write_bytes(b"".join([*MAGIC, description, NO_STORAGES]))
    return path


def zip_file(path, description: bytes, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", description)
        archive.writestr("archive/version", "3\n")
    return path


def refusal(path):
    started = time.process_time()
    with pytest.raises(WeightsError) as caught:
        read_checkpoint(path)
    assert time.process_time() - started < 2
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000
    return str(caught.value)


SETS_ATTRIBUTES = [
    b"\x80\x02" + REBUILD + b"}X\x08\x00\x00\x00__name__X\x04\x00\x00\x00evilsb.",  # by a dictionary
    b"\x80\x02" + REBUILD + b"N}X\x0c\x00\x00\x00__defaults__)s\x86b.",  # by what slots would hold
]


@pytest.mark.parametrize("description", SETS_ATTRIBUTES)
@pytest.mark.parametrize("write", [legacy_file, zip_file])
def test_no_attribute_of_a_function_of_torch_can_be_set(write, description, tmp_path):
    before = dict(vars(torch._utils._rebuild_tensor_v2)), torch._utils._rebuild_tensor_v2.__defaults__
    assert "it sets attributes of a function" in refusal(write(tmp_path / "c.pt", description))
    assert (dict(vars(torch._utils._rebuild_tensor_v2)), torch._utils._rebuild_tensor_v2.__defaults__) == before


@pytest.mark.parametrize("write", [legacy_file, zip_file])
def test_the_source_code_of_a_module_is_not_compared(write, tmp_path, monkeypatch):
    """torch would write the difference to a file of the checkpoint's choice."""
    monkeypatch.chdir(tmp_path)
    text = b"".join(b"X" + len(part).to_bytes(4, "little") + part for part in (b"source.py", b"changed"))
    module = b"\x80\x02(X\x06\x00\x00\x00modulecargparse\nNamespace\n" + text + b"tQ."
    assert "it refers to a 'module', where only tensors are stored" in refusal(write(tmp_path / "c.pt", module))
    assert [entry.name for entry in tmp_path.iterdir()] == ["c.pt"]


HASH_BOMB = b"\x80\x02}N" + b"2\x86" * 60 + b"Ns."


@pytest.mark.parametrize(
    ("description", "reason"),
    [
        (HASH_BOMB, "a dictionary whose key is a tuple"),
        (b"\x80\x02(N" + b"2\x86" * 60 + b"Nd.", "a dictionary whose key is a tuple"),
        (b"\x80\x04\x8f(N\x90.", "the operation 0x8f"),  # a set, which hashes what it holds
        (b"\x80\x02]q\x00" + b"h\x00a" * 3 + b"cbuiltins\nstr\nh\x00\x85R.", "holds no model"),
        (b"\x80\x02cbuiltins\nstr\n]" + b"2\x86" * 40 + b"\x85R.", "holds no model"),
        (b"\x80\x02" + b"]" * 200_000 + b"a" * 199_999 + b".", "holds no model"),
        (b"\x80\x02}K\x01K\x02s.", "holds no model"),
        (b"\x80\x02]K\x01a.", "holds no model"),
        (b"\x80\x02cargparse\nNamespace\n)\x81q\x00}X\x01\x00\x00\x00ah\x00sb.", "holds no model"),
        (b"\x80\x02" + REBUILD + b"(NNNNtR.", "a tensor of a NoneType"),
        (b"\x80\x02" + REBUILD + b"NR.", "it calls something with a NoneType"),
        (b"\x80\x02NNR.", "it calls something with a NoneType"),
        (b"\x80\x02N)R.", "it calls a NoneType"),
        (b"\x80\x02cbuiltins\neval\n.", "it asks for builtins.eval"),
        (b"\x80\x02ctorch\nload\n.", "it asks for torch.load"),
        (b"\x80\x04\x8c\x08argparse\x8c\x0bos.getcwd()\x93.", "holds no model"),  # a stand-in, whatever it is called
        (b"\x80\x02cargparse\n_sys.exit\n)R.", "holds no model"),
        (b"\x80\x02", "cannot be read"),
        (b"\x80\x02a.", "cannot be read"),
        (b"\x80\x02(K\x01d.", "cannot be read"),
    ],
)
@pytest.mark.parametrize("write", [legacy_file, zip_file])
def test_descriptions_that_ask_for_more_than_values_are_refused_in_no_time(write, description, reason, tmp_path):
    assert reason in refusal(write(tmp_path / "c.pt", description))


def with_model(**entries):
    return {"model": {"x": torch.zeros(3)}, **entries}


def deep(depth=5000):
    value = argparse.Namespace()
    for _ in range(depth):
        value = argparse.Namespace(model=value, _content=value)
    return value


def circular():
    value = argparse.Namespace()
    value.model = value._content = {"model": value}
    return value


@pytest.mark.parametrize(
    "description",
    [deep(50), circular(), {1: 2, None: 3}, {"model": {3: 4}}, [1], "text", {"decoder_attention_heads": "x"}],
)
def test_odd_descriptions_of_a_run_tell_no_heads(description, tmp_path):
    torch.save(with_model(args=description, cfg=description), tmp_path / "c.pt")
    assert read_checkpoint(tmp_path / "c.pt")[1] is None


def test_heads_are_told_by_omegaconf_objects(tmp_path):
    leaf = argparse.Namespace(_val=8)
    options = argparse.Namespace(_content={"decoder_attention_heads": leaf})
    torch.save(with_model(args=None, cfg=argparse.Namespace(_content={"model": options})), tmp_path / "c.pt")
    assert read_checkpoint(tmp_path / "c.pt")[1] == 8


def test_tensors_that_claim_more_than_is_stored_are_refused(tmp_path):
    torch.save({"model": {"x": torch.zeros(1).expand(1 << 20, 1 << 20)}}, tmp_path / "c.pt")
    assert "1,099,511,627,776 numbers of which 1 are stored" in refusal(tmp_path / "c.pt")
    shared = torch.zeros(1000)
    torch.save({"model": {f"x{i}": shared for i in range(100)}}, tmp_path / "c.pt")
    assert "its tensors would take 400,000 bytes" in refusal(tmp_path / "c.pt")


def test_a_storage_larger_than_its_file_is_refused_before_memory_is_taken(tmp_path):
    torch.save({"model": {"x": torch.zeros(300)}}, tmp_path / "c.pt", _use_new_zipfile_serialization=False)
    content = (tmp_path / "c.pt").read_bytes()
    assert content.count(b"M\x2c\x01") == 2
    (tmp_path / "c.pt").write_bytes(content.replace(b"M\x2c\x01", b"\x8a\x06\x00\x00\x00\x00\x00\x10", 1))
    assert "numbers in a file of" in refusal(tmp_path / "c.pt")


def test_archives_that_are_more_than_a_checkpoint_are_refused(tmp_path):
    program = zip_file(tmp_path / "program.pt", b"\x80\x02}.")
    with zipfile.ZipFile(program, "a") as archive:
        archive.writestr("archive/constants.pkl", b"")
    assert "it is a TorchScript program" in refusal(program)
    bomb = zip_file(tmp_path / "bomb.pt", b"\x80\x02" + b"]" * 10_000_000, zipfile.ZIP_DEFLATED)
    assert bomb.stat().st_size < 100_000
    assert "is compressed" in refusal(bomb)


@pytest.mark.parametrize("protocol", [0, 2])  # values in lines, and values whose length is told
def test_a_description_is_read_up_to_a_bound(monkeypatch, protocol):
    monkeypatch.setattr(StrictUnpickler, "largest", 1000)
    with pytest.raises(Refused, match="its values take more than"):
        StrictUnpickler(io.BytesIO(pickle.dumps(["x" * 100] * 5 + [str(i) * 50 for i in range(50)], protocol))).load()


def test_a_tensor_with_a_name_that_no_line_can_show_is_named_as_damage(tmp_path):
    torch.save({"model": {"x\x1b[2J": torch.zeros(1)}}, tmp_path / "c.pt")
    assert "x\\x1b[2J" in refusal(tmp_path / "c.pt")
    torch.save({"model": {7: torch.zeros(1)}}, tmp_path / "c.pt")
    assert "one of its tensors is called 7" in refusal(tmp_path / "c.pt")


def test_plain_values_come_back_as_they_were():
    values = {"a": [1, -2, 3.5, 10**20, "text", None, True], "b": {1: (1, (2, 3))}, "c": []}
    for protocol in range(6):
        assert StrictUnpickler(io.BytesIO(pickle.dumps(values, protocol))).load() == values


def test_python_s_own_calls_never_run(tmp_path):
    class Harmful:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "made"),)

    for protocol in range(6):
        with pytest.raises(Refused):
            StrictUnpickler(io.BytesIO(pickle.dumps(Harmful(), protocol))).load()
    assert not (tmp_path / "made").exists()
