"""Checkpoints hold tensors alone; old ones with pickles are read on, and no checkpoint runs code."""

import io
import os
import pickle
import random
import shutil

import numpy
import pytest
import torch
import torch.distributed.checkpoint as dcp

from tests.training.launch import everything, train
from training import export
from training.base.errors import CheckpointError
from training.engine import checkpoint_reader as reader
from training.engine.checkpoint import latest_checkpoint
from training.engine.checkpoint_reader import from_tensor, read_progress, stored, to_tensor, value_of
from training.engine.run_state import random_state, set_random_state

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")

OPTIONS = "--steps", "4", "--checkpoint.every", "2", "--optim.ema", "0.9", "--checkpoint.asynchronous", "false"


@pytest.fixture(scope="module")
def run(smoke_stages, tmp_path_factory):
    """The arguments of a run of four steps, and its folder when it is done."""
    folder = tmp_path_factory.mktemp("reader")
    arguments = smoke_stages.arguments("lm", folder / "run", *OPTIONS)
    result = train(arguments, folder / "log")
    assert result.ok, result.output
    return arguments, folder / "run"


def as_old(checkpoint):
    """Rewrite a checkpoint as it was stored before counters, positions and random states became tensors."""
    state = everything(checkpoint)
    progress, streams = from_tensor(state.pop("progress")), {}
    for name in [name for name in state if name.startswith("data.")]:
        streams[name] = pickle.dumps(from_tensor(state.pop(name)))
    own = {name: state.pop(f"random.0.{name}") for name in ("python", "numpy", "torch")}
    version, numbers, gauss = from_tensor(own["python"])
    kind, keys, *rest = from_tensor(own["numpy"])
    generators = {
        "python": (version, tuple(numbers), gauss),
        "numpy": (kind, numpy.array(keys, dtype=numpy.uint32), *rest),
        "torch": own["torch"],
        "cuda": [torch.get_rng_state()],  # of a machine with a GPU
    }
    groups = [{"lr": 0.1, "betas": (0.9, 0.98), "params": ["decoder.norm.weight"]}]
    write(
        checkpoint,
        {
            **state,
            **streams,
            "progress": pickle.dumps(progress),
            "random.0": pickle.dumps(generators),
            "optimizer.param_groups": groups,
        },
    )


def write(checkpoint, state):
    shutil.rmtree(checkpoint)
    dcp.save(state, checkpoint_id=checkpoint, no_dist=True)


def set_back(run_folder, copy):
    """A copy of a run, set back to its second step."""
    shutil.copytree(run_folder, copy)
    shutil.rmtree(copy / "checkpoints" / "step-00000004")
    (copy / "checkpoints" / "latest").write_text("step-00000002\n")
    return copy / "checkpoints" / "step-00000002"


def elsewhere(arguments, run_folder):
    """The arguments, to go on in another folder."""
    place = arguments.index("--run_folder")
    return [*arguments[: place + 1], str(run_folder), *arguments[place + 2 :], "--resume", "auto"]


def test_a_checkpoint_holds_tensors_alone(run):
    shapes = stored(run[1] / "checkpoints" / "step-00000004")
    assert None not in shapes.values()
    assert {"progress", "data.0", "data.1", "random.0.python", "random.0.numpy", "random.0.torch"} < shapes.keys()


@pytest.mark.parametrize("form", ["new", "old"])
def test_a_checkpoint_of_either_form_goes_on_bit_equal(run, tmp_path, form):
    arguments, whole = run
    checkpoint = set_back(whole, tmp_path / "run")
    if form == "old":
        as_old(checkpoint)
        shapes = stored(checkpoint)
        assert shapes["progress"] is shapes["data.1"] is shapes["random.0"] is None
    result = train(elsewhere(arguments, tmp_path / "run"), tmp_path / "log")
    assert result.ok, result.output
    assert "Going on from" in result.output
    last = "checkpoints/step-00000004"
    found, expected = everything(tmp_path / "run" / last), everything(whole / last)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        if name == "progress" or name.startswith("data."):
            assert from_tensor(found[name]) == from_tensor(tensor), name
        else:
            assert torch.equal(found[name], tensor), name


def test_an_old_checkpoint_can_be_exported(run, tmp_path):
    checkpoint = set_back(run[1], tmp_path / "run")
    assert export.main([str(tmp_path / "run"), str(tmp_path / "new.safetensors")]) == 0
    as_old(checkpoint)
    provenance = export.export(tmp_path / "run", tmp_path / "old.safetensors")
    assert provenance["step"] == 2
    assert (tmp_path / "old.safetensors").read_bytes() == (tmp_path / "new.safetensors").read_bytes()


class Malicious:
    """Leaves a file where it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mknod, (str(self.path),)


def test_the_malicious_pickle_of_these_tests_does_run_code(tmp_path):
    pickle.loads(pickle.dumps(Malicious(tmp_path / "ran")))
    assert (tmp_path / "ran").exists()


@pytest.fixture(params=["counters", "data position", "random state", "an object", "table of contents"])
def malicious(request, run, tmp_path):
    """A run whose checkpoint runs code where it is unpickled, and what the refusal has to say."""
    checkpoint = set_back(run[1], tmp_path / "run")
    as_old(checkpoint)
    bad = Malicious(tmp_path / "ran")
    names = {"counters": "progress", "data position": "data.1", "random state": "random.0"}
    state = everything(checkpoint)
    old = {"progress": b"", "data.0": b"", "data.1": b"", "random.0": b""}
    dcp.load(old, checkpoint_id=checkpoint, no_dist=True)
    said = f"asks for {os.mknod.__module__}.mknod, which no checkpoint of a training contains"
    if request.param in names:
        old[names[request.param]] = pickle.dumps(bad)
    elif request.param == "an object":
        old["data.1"] = bad
        said = "its entry data.1 is an object of Python, where a training stores tensors or bytes"
    write(checkpoint, state | old)
    if request.param == "table of contents":
        file = io.BytesIO()
        pickle.dump(bad, file)
        (checkpoint / ".metadata").write_bytes(file.getvalue())
    return checkpoint, said


def test_a_checkpoint_that_would_run_code_is_refused_with_a_sentence(run, malicious, tmp_path):
    checkpoint, said = malicious
    result = train(elsewhere(run[0], tmp_path / "run"), tmp_path / "log")
    assert result.codes == [1], result.output
    assert f"{checkpoint} was not opened: " in result.output
    assert said in result.output
    assert "take checkpoints from a source that you trust" in result.output
    assert "Traceback" not in result.output
    assert not (tmp_path / "ran").exists()


def contents(folder):
    """Every file of a folder with its bytes."""
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class Addresses:
    """A NumPy array of Python objects, which a forged dtype lets bytes be the addresses of."""

    def __reduce__(self):
        rebuild, arguments, _ = numpy.empty(0).__reduce__()
        return rebuild, arguments, (1, (1,), ForgedDtype(), False, b"A" * 8)


class ForgedDtype:
    def __reduce__(self):
        no_objects_inside = 0
        fields = {"a": (numpy.dtype("O"), 0)}
        return numpy.dtype, ("V8", False, True), (3, "|", None, ("a",), fields, 8, 1, no_objects_inside)


def test_bytes_of_an_old_random_state_are_never_addresses(tmp_path):
    array = value_of(pickle.dumps(Addresses()))
    assert array.tolist() == [0x41414141, 0x41414141]


@pytest.mark.parametrize("protocol", [4, 5])
def test_an_old_random_state_is_read_in_every_form_of_pickle(protocol):
    kind, keys, *_ = numpy.random.get_state()
    assert value_of(pickle.dumps((kind, keys), protocol))[1].tolist() == keys.tolist()


def repack(checkpoint, change):
    """Write a checkpoint again with another table of contents."""
    metadata = dcp.FileSystemReader(checkpoint).read_metadata()
    change(metadata)
    (checkpoint / ".metadata").write_bytes(pickle.dumps(metadata))


def read_another_file(metadata):
    for part in metadata.storage_data.values():
        part.relative_path = "../../secret"


def enormous(metadata):
    metadata.state_dict_metadata["progress"].size = torch.Size([10**17])


def spoil(checkpoint, name, value):
    write(checkpoint, everything(checkpoint) | {name: value})


DAMAGE = {
    "a file outside": lambda checkpoint: repack(checkpoint, read_another_file),
    "more counters than memory holds": lambda checkpoint: repack(checkpoint, enormous),
    "counters that are no JSON": lambda checkpoint: spoil(checkpoint, "progress", torch.tensor([255, 1]).byte()),
    "counters without a step": lambda checkpoint: spoil(checkpoint, "progress", to_tensor({"steps": 2})),
    "counters of another program": lambda checkpoint: spoil(checkpoint, "progress", to_tensor({"step": 2, "a": 1})),
    "a position of something else": lambda checkpoint: spoil(checkpoint, "data.1", to_tensor([1])),
    "a random state of something else": lambda checkpoint: spoil(checkpoint, "random.0.python", to_tensor({"a": 1})),
    "an empty table of contents": lambda checkpoint: (checkpoint / ".metadata").write_bytes(b""),
    "a table of contents of something else": lambda checkpoint: (checkpoint / ".metadata").write_bytes(
        pickle.dumps({"a": 1})
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_a_sentence_and_changes_nothing_in_the_folder(run, tmp_path, damage):
    checkpoint = set_back(run[1], tmp_path / "run")
    DAMAGE[damage](checkpoint)
    before = contents(tmp_path / "run")
    result = train(elsewhere(run[0], tmp_path / "run"), tmp_path / "log")
    assert result.codes == [1], result.output
    assert f"error: {checkpoint} " in result.output
    assert "Traceback" not in result.output
    assert contents(tmp_path / "run") == before


@pytest.mark.parametrize("pointer", [b"\xff\xfe", b"../../step-00000002", b"/etc", b"step-00000009", b"a\0b", b""])
def test_a_pointer_to_no_checkpoint_of_the_folder_is_not_followed(run, tmp_path, pointer):
    checkpoint = set_back(run[1], tmp_path / "run")
    shutil.copytree(checkpoint, tmp_path / "step-00000002")
    shutil.copytree(checkpoint, checkpoint.parent / "step-00000003.old-7")  # a user's copy is none to go on from
    (checkpoint.parent / "latest").write_bytes(pointer)
    assert latest_checkpoint(checkpoint.parent) == checkpoint


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("config.yaml", b"\xff\xfe\x00"),
        ("config.yaml", b"a: [1"),
        ("config.yaml", b"- 1"),
        ("config.yaml", b"!!python/object/apply:os.mknod ['ran']"),
        ("config.yaml", b"stage: lm\nmodel: {decoder: {width: wide}}"),
        ("config.yaml", b"stage: lm\nmodel: {decoder: {width: 1048576, vocabulary: 1048576}}"),
        ("starts.jsonl", b""),
        ("starts.jsonl", b"{"),
        ("starts.jsonl", b"[1]"),
        ("tokenizer/sentencepiece.bpe.model", b"no model"),
        ("tokenizer/dict.txt", b"\xff"),
    ],
)
def test_a_damaged_file_of_the_run_folder_is_a_sentence_at_export(run, tmp_path, capsys, monkeypatch, file, content):
    monkeypatch.chdir(tmp_path)
    set_back(run[1], tmp_path / "run")
    (tmp_path / "run" / file).write_bytes(content)
    assert export.main([str(tmp_path / "run"), str(tmp_path / "out.safetensors")]) == 1
    assert f"{tmp_path / 'run'}" in (said := capsys.readouterr().err)
    assert said.count("\n") == 1
    assert not (tmp_path / "out.safetensors").exists()
    assert not (tmp_path / "ran").exists()


def test_a_checkpoint_of_something_else_is_a_sentence(tmp_path):
    dcp.save({"weight": torch.zeros(2)}, checkpoint_id=tmp_path / "step-2", no_dist=True)
    with pytest.raises(CheckpointError, match="step-2 holds no counters"):
        read_progress(tmp_path / "step-2")


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "..\\secret", "C:\\secret", "folder/part", "part/"])
def test_a_table_of_contents_names_files_of_its_own_folder_on_every_system(tmp_path, name):
    dcp.save({"weight": torch.zeros(2)}, checkpoint_id=tmp_path, no_dist=True)
    assert stored(tmp_path) == {"weight": (2,)}

    def change(metadata):
        for part in metadata.storage_data.values():
            part.relative_path = name

    repack(tmp_path, change)
    with pytest.raises(CheckpointError, match=r"it asks for the file .* which is none of its own"):
        stored(tmp_path)


def test_a_random_state_draws_the_same_numbers_again():
    random.gauss(0, 1), numpy.random.normal()  # both keep a second number for the next call
    state = random_state()
    drawn = [(random.gauss(0, 1), random.random(), numpy.random.normal(), torch.rand(3).tolist()) for _ in range(2)]
    set_random_state(state)
    assert drawn == [
        (random.gauss(0, 1), random.random(), numpy.random.normal(), torch.rand(3).tolist()) for _ in range(2)
    ]


def test_numbers_keep_all_their_digits_as_a_tensor():
    value = {"owed": [0.1 + 0.2, -1e-17, 2**63 - 1], "name": "Ätna"}
    assert from_tensor(to_tensor(value)) == value


@pytest.mark.parametrize("allowed", [reader.TABLE_OF_CONTENTS, reader.OLD_STATE])
def test_what_a_list_allows_cannot_be_changed(allowed):
    for module, name in allowed:
        for state in (b"}X\x08\x00\x00\x00__name__X\x04\x00\x00\x00evils", b"N}X\x08\x00\x00\x00__init__Ns\x86"):
            change = b"\x80\x02c" + f"{module}\n{name}\n".encode() + state + b"b."
            with pytest.raises(reader.Refused, match="sets attributes of a"):
                reader._Unpickler(io.BytesIO(change), allowed).load()


def test_an_entry_that_would_be_hashed_for_hours_is_refused():
    nested = ()
    for _ in range(60):
        nested = (nested, nested)
    index = reader.contents.MetadataIndex("x")
    object.__setattr__(index, "fqn", nested)
    content = pickle.dumps(index, 2)
    with pytest.raises(reader.Refused, match="an entry without a name"):
        reader._Unpickler(io.BytesIO(b"\x80\x02}" + content[2:-1] + b"Ns."), reader.TABLE_OF_CONTENTS).load()
