"""The complete lists of the benchmarks, and the jobs that follow from them."""

import json
from collections import Counter

import pytest
import torch
import yaml
from PIL import Image

from tests.tiny import drawings as tiny
from training.base.errors import ConfigError
from training.evaluate.jobs import dreambench_jobs, pair_jobs
from training.evaluate.protocols import PROTOCOLS, mark_nouns, prompt_of, words_of
from training.evaluate.subjects import DREAMBENCH, Subject, check_images, open_image, read_subjects, subject_images

KOSMOSG, DREAMBOOTH = PROTOCOLS["kosmosg"], PROTOCOLS["dreambooth"]


@pytest.fixture(scope="module")
def dreambooth(tmp_path_factory):
    """All 30 subjects with six made-up pictures each."""
    return tiny.save_subjects(tmp_path_factory.mktemp("dreambooth"), {s.name: 6 for s in DREAMBENCH.subjects})


def test_there_are_30_subjects_21_objects_and_9_live_with_25_prompts_each():
    kinds = Counter(subject.kind for subject in DREAMBENCH.subjects)
    assert kinds == {"object": 21, "live": 9}
    assert len({subject.name for subject in DREAMBENCH.subjects}) == 30
    assert len({subject.noun for subject in DREAMBENCH.subjects}) == 15
    for prompts in DREAMBENCH.prompts.values():
        assert len(set(prompts)) == 25
        assert all(prompt.count("{}") == 1 and prompt.startswith("a ") for prompt in prompts)
    assert sum(len(DREAMBENCH.prompts[subject.kind]) for subject in DREAMBENCH.subjects) == 750
    assert len(set(DREAMBENCH.prompts["object"]) & set(DREAMBENCH.prompts["live"])) == 15


def test_every_subject_has_one_picked_picture():
    picked = {subject.name: subject.picked for subject in DREAMBENCH.subjects}
    assert len(picked) == 30
    assert Counter(picked.values()) == {"00.jpg": 4, "01.jpg": 5, "02.jpg": 10, "03.jpg": 3, "04.jpg": 7, "05.jpg": 1}
    assert picked["dog3"] == "05.jpg"
    assert picked["poop_emoji"] == "00.jpg"


def test_kosmos_g_makes_3000_pictures_of_750_prompts(dreambooth):
    jobs = dreambench_jobs(DREAMBENCH, dreambooth, KOSMOSG)
    assert len(jobs) == len({job.path for job in jobs}) == 3000
    assert len({(job.group, job.prompt) for job in jobs}) == 750
    assert all(job.prompt.count("<i>") == len(job.conditions) == 1 and job.seed == 0 for job in jobs)


def test_noise_is_shared_as_in_the_originals_batches_of_five_prompts(dreambooth):
    """Batch p0..p4 with four pictures each, prompts tiled: the k-th picture of the j-th prompt has row 5 k + j."""
    jobs = [job for job in dreambench_jobs(DREAMBENCH, dreambooth, KOSMOSG) if job.group == "dog"]
    for start in range(0, 100, 20):
        batch = jobs[start : start + 20]
        assert sorted(job.row for job in batch) == list(range(20))
        assert [job.row for job in batch[:4]] == [0, 5, 10, 15]
        assert {job.rows for job in batch} == {20}
    own_seeds = [job for job in dreambench_jobs(DREAMBENCH, dreambooth, DREAMBOOTH) if job.group == "dog"]
    assert [job.seed for job in own_seeds[:5]] == [0, 1, 2, 3, 0]


@pytest.mark.parametrize(
    ("template", "kosmosg", "dreambooth"),
    [
        ("a {} in the jungle", "<i> in the jungle", "a dog <i> in the jungle"),
        ("a red {}", "<i>, red", "a red dog <i>"),
        ("a cube shaped {}", "<i>, cube shaped", "a cube shaped dog <i>"),
        ("a {} wearing a red hat", "<i> wearing a red hat", "a dog <i> wearing a red hat"),
    ],
)
def test_prompts_are_worded_as_the_papers_do(template, kosmosg, dreambooth):
    assert prompt_of(template, ["dog"], KOSMOSG) == kosmosg
    assert prompt_of(template, ["dog"], DREAMBOOTH) == dreambooth
    assert words_of(template, ["dog"]) == template.replace("{}", "dog")


def test_two_nouns_are_marked_in_order():
    text = "a toy and a stuffed animal on the beach"
    assert mark_nouns(text, ["toy", "stuffed animal"], KOSMOSG) == "<i> and <i> on the beach"
    assert mark_nouns(text, ["toy", "stuffed animal"], DREAMBOOTH) == "a toy <i> and a stuffed animal <i> on the beach"
    with pytest.raises(ConfigError, match="lacks the noun 'cat'"):
        mark_nouns(text, ["toy", "cat"], KOSMOSG)
    assert prompt_of("a red {}", ["toy", "can"], KOSMOSG) == "<i> and <i>, red"
    assert words_of("a {} in the snow", ["toy", "can"]) == "a toy and a can in the snow"


def test_unos_list_of_pairs_is_read_as_it_is(dreambooth, tmp_path):
    """The form of dreambench_multiip.json: prompts in words, pictures relative to a folder that need not exist.

    These are pairs, wordings and paths of that list; the other pairs of its 30 are of the same form.
    """
    pairs = [
        ("backpack_dog", "02", "backpack", "bear_plushie", "03", "stuffed animal"),
        ("berry_bowl", "02", "bowl", "can", "01", "can"),
        ("candle", "02", "candle", "clock", "03", "clock"),
        ("colorful_sneaker", "01", "sneaker", "duck_toy", "01", "toy"),
        ("fancy_boot", "02", "boot", "grey_sloth_plushie", "04", "stuffed animal"),
    ]
    entries = [
        {
            "prompt": words_of(prompt, [noun_a, noun_b]),
            "image_paths": [f"./dreambooth/dataset/{a}/{file_a}.jpg", f"./dreambooth/dataset/{b}/{file_b}.jpg"],
        }
        for a, file_a, noun_a, b, file_b, noun_b in pairs
        for prompt in DREAMBENCH.prompts["object"]
    ]
    listed = tmp_path / "dreambench_multiip.json"
    listed.write_text(json.dumps(entries))
    jobs = pair_jobs(listed, DREAMBENCH, dreambooth, KOSMOSG)
    assert len(jobs) == 5 * 25 * 4
    assert {job.group for job in jobs} == {f"{a}+{b}" for a, _, _, b, _, _ in pairs}
    assert "a backpack and a stuffed animal in the jungle" in {job.text for job in jobs}
    assert {path.name for job in jobs for path in job.conditions if path.parent.name == "clock"} == {"03.jpg"}
    assert all(job.prompt.count("<i>") == len(job.conditions) == 2 for job in jobs)
    assert all(path.is_file() for job in jobs for path in job.conditions)
    assert len({job.path for job in jobs}) == 500
    named = tmp_path / "pairs.yaml"
    named.write_text("pairs: [[berry_bowl, can], [fancy_boot, cat]]")
    assert len(pair_jobs(named, DREAMBENCH, dreambooth, KOSMOSG)) == 200
    assert {job.text for job in pair_jobs(named, DREAMBENCH, dreambooth, KOSMOSG)} >= {"a boot and a cat in the snow"}
    entries[3]["image_paths"][0] = "nowhere/mug/00.jpg"
    listed.write_text(json.dumps(entries))
    with pytest.raises(ConfigError, match=r"names nowhere/mug/00\.jpg, found neither"):
        pair_jobs(listed, DREAMBENCH, dreambooth, KOSMOSG)


def test_a_pair_with_an_animal_gets_the_prompts_of_animals_wherever_it_stands(dreambooth, tmp_path):
    for names, kind in (("fancy_boot, cat", "live"), ("cat, fancy_boot", "live"), ("fancy_boot, can", "object")):
        (tmp_path / "pairs.yaml").write_text(f"pairs: [[{names}]]")
        jobs = pair_jobs(tmp_path / "pairs.yaml", DREAMBENCH, dreambooth, DREAMBOOTH)
        nouns = [DREAMBENCH.named(name).noun for name in names.split(", ")]
        assert {job.text for job in jobs} == {words_of(prompt, nouns) for prompt in DREAMBENCH.prompts[kind]}


def test_other_benchmarks_bring_their_nouns_along(dreambooth, tmp_path):
    image = dreambooth / "dataset" / "can" / "01.jpg"
    entry = {"prompt": "a hat on a lantern", "image_paths": [str(image)] * 2, "nouns": ["hat", "lantern"]}
    (tmp_path / "list.json").write_text(json.dumps([entry]))
    jobs = pair_jobs(tmp_path / "list.json", DREAMBENCH, dreambooth, DREAMBOOTH)
    assert jobs[0].prompt == "a hat <i> on a lantern <i>"
    (tmp_path / "list.json").write_text(json.dumps([{**entry, "nouns": ["hat"]}]))
    with pytest.raises(ConfigError, match="entry 1 has 1 nouns for 2 pictures"):
        pair_jobs(tmp_path / "list.json", DREAMBENCH, dreambooth, DREAMBOOTH)


def test_missing_and_broken_data_is_named(tmp_path):
    data = tiny.save_subjects(tmp_path, {subject.name: 6 for subject in DREAMBENCH.subjects[:3]})
    with pytest.raises(ConfigError, match=r"the subject 'berry_bowl' has no folder .*clone of google/dreambooth"):
        dreambench_jobs(DREAMBENCH, data, KOSMOSG)
    (data / "dataset" / "backpack" / "02.jpg").unlink()
    with pytest.raises(ConfigError, match=r"has no 02\.jpg, which stands for 'backpack'; it holds 00\.jpg"):
        dreambench_jobs(DREAMBENCH, data, KOSMOSG)
    whole = data / "dataset" / "bear_plushie" / "03.jpg"
    whole.write_bytes(whole.read_bytes()[:700])
    with pytest.raises(ConfigError, match=r"the picture .*03\.jpg cannot be read"):
        check_images([whole])


def test_pictures_are_read_upright_and_once(tmp_path):
    """As everywhere else, and nothing turns them again later."""
    turned = Image.Exif()
    turned[0x0112] = 6
    tiny.drawing(1, 64).resize((64, 32)).save(tmp_path / "turned.jpg", exif=turned)
    image = open_image(tmp_path / "turned.jpg")
    assert image.size == (32, 64)
    assert not image.getexif()


def test_subjects_of_ones_own_are_checked(tmp_path):
    good = {
        "name": "mugs",
        "prompts": {"object": ["a {} on the beach"]},
        "subjects": [{"name": "mug", "noun": "mug", "kind": "object", "picked": "00.png"}],
    }
    path = tmp_path / "subjects.yaml"
    path.write_text(yaml.safe_dump(good))
    assert read_subjects(path).subjects[0].noun == "mug"
    for wrong, sentence in (
        ({**good, "prompts": {"object": ["a mug on the beach"]}}, r"must have \{\} exactly once"),
        ({**good, "prompts": {"object": ["a {} beside a {}"]}}, r"must have \{\} exactly once"),
        ({**good, "prompts": {"live": ["a {}"]}}, "is of kind 'object', which has no prompts"),
        ({**good, "subjects": [{"name": "mug"}]}, "it needs exactly name, noun, kind and picked"),
        ({**good, "subjects": [{**good["subjects"][0], "noun": None}]}, "the noun of subject 1 is None; expected a"),
        ({**good, "subjects": [{**good["subjects"][0], "picked": 1}]}, "the picked of subject 1 is 1; .* in quotes"),
        ({**good, "promts": good["prompts"]}, "`promts` is no key of a subject list"),
        ({**good, "subjects": [["mug"]]}, "it needs exactly name"),
        ({"name": "mugs"}, "needs `prompts`"),
        ("!!timestamp x", "cannot be read: one of its values is not what its tag"),
        ("prompts: &a [*a]", "cannot be read: its aliases repeat"),
    ):
        path.write_text(wrong if isinstance(wrong, str) else yaml.safe_dump(wrong))
        with pytest.raises(ConfigError, match=sentence):
            read_subjects(path)


def test_photographs_of_a_subject_are_neither_its_masks_nor_hidden_files(tmp_path):
    data = tiny.save_subjects(tmp_path, {"mug": 2})
    (folder,) = tmp_path.rglob("mug")
    for name in ("00.mask.png", "01.MASK.PNG", "._00.jpg", "notes.txt"):
        (folder / name).write_bytes((folder / "00.jpg").read_bytes())
    found = subject_images(data, Subject("mug", "mug", "object", "00.jpg"))
    assert [path.name for path in found] == ["00.jpg", "01.jpg"]


def test_a_jobs_noise_is_its_row_of_the_whole_block(weights, sd):
    from training.evaluate.image_generator import ImageGenerator, Sampling
    from training.evaluate.jobs import Job

    generator = ImageGenerator(str(weights), sd, Sampling("ddim", 2, 3.0, 16), device=torch.device("cpu"))
    block = torch.randn(20, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(generator._noise(Job("a.png", "", "", row=7, rows=20)), block[7])
