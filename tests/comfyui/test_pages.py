"""Every node explains itself: tooltips, a help page, and both languages."""

from __future__ import annotations

import ast
import json
import re
import urllib.request
from typing import Any

import pytest

from dev.client import Client
from dev.install import ROOT
from dev.server import PACK_NAME

CATEGORIES = {"Kosmos-G", "Kosmos-G/reference", "Kosmos-G/conditioning", "Kosmos-G/analysis"}
NODES = sorted(page.stem for page in (ROOT / "web/docs").glob("*.md"))
NUMBERED = re.compile(r"(image|reference)_[1-8]")
CHINESE = re.compile(r"[一-鿿]")


@pytest.fixture
def declared(client: Client) -> dict[str, Any]:
    """The pack's nodes as the server declares them."""
    return {name: node for name, node in client.get("/object_info").items() if name.startswith("KosmosG")}


def inputs(node: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Options of every input by name."""
    return {
        name: (declared[1] if len(declared) > 1 else {})
        for group in ("required", "optional")
        for name, declared in node["input"].get(group, {}).items()
    }


def test_there_is_one_page_for_each_node(declared: dict[str, Any]) -> None:
    assert sorted(declared) == NODES


def test_no_node_input_or_output_lacks_its_words(declared: dict[str, Any]) -> None:
    for name, node in declared.items():
        assert node["display_name"] != name
        assert len(node["description"]) > 30
        assert node["category"] in CATEGORIES
        for entry, options in inputs(node).items():
            assert options.get("tooltip"), f"{name}.{entry}"
        assert len(node["output_tooltips"]) == len(node["output"])
        assert all(node["output_tooltips"]), name


def test_every_node_can_be_searched_by_other_words() -> None:
    found = {}
    for path in (ROOT / "nodes").glob("*.py"):
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "node_schema":
                fields = {keyword.arg: keyword.value for keyword in call.keywords if keyword.arg}
                if "node_id" in fields:
                    found[fields["node_id"].value] = ast.literal_eval(fields["search_aliases"])
    assert sorted(found) == NODES
    assert all(len(aliases) >= 3 for aliases in found.values())


def in_markdown(text: str) -> str:
    """The text as Markdown that shows it: a bare <i> would be taken for italics, a backslash for an escape."""
    return text.replace("\\", "\\\\").replace("<", "&lt;")


@pytest.mark.parametrize("name", NODES)
def test_the_page_is_served_and_names_every_input_and_output(
    client: Client, declared: dict[str, Any], name: str
) -> None:
    with urllib.request.urlopen(f"http://{client.address}/extensions/{PACK_NAME}/docs/{name}.md") as answer:
        page = answer.read().decode()
    node = declared[name]
    assert page.startswith(f"# {node['display_name']}\n\n{in_markdown(node['description'])}\n")
    for section in ("Inputs", "Outputs", "A small graph", "Pitfalls"):
        assert f"\n## {section}\n" in page
    for entry, options in inputs(node).items():
        if NUMBERED.fullmatch(entry):
            stem = entry[:-2]
            assert f"\n- `{stem}_1` … `{stem}_8` (" in page
        else:
            assert f"\n- `{entry}` (" in page
            assert in_markdown(options["tooltip"]) in page
    for output, tooltip in zip(node["output_name"], node["output_tooltips"], strict=True):
        assert f"\n- `{output}` (" in page
        assert tooltip in page
    assert "\n|" not in page, "a table of sentences is cut off in the narrow panel that shows the page"


def entries(page: str, *headings: str) -> list[list[str]]:
    """Names of the inputs and of the outputs on a page, in order, under these headings."""
    parts = [page.split(f"\n## {heading}\n") for heading in headings]
    return [re.findall(r"^- `(\w+)`", part[1].split("\n## ")[0], re.MULTILINE) for part in parts]


@pytest.mark.parametrize("name", NODES)
def test_the_chinese_page_tells_the_same_in_the_words_of_the_nodes(name: str) -> None:
    english = (ROOT / f"web/docs/{name}.md").read_text(encoding="utf-8")
    chinese = (ROOT / f"web/docs/{name}/zh.md").read_text(encoding="utf-8")  # where ComfyUI looks for it
    assert entries(chinese, "输入", "输出") == entries(english, "Inputs", "Outputs")
    assert chinese.count("\n- ") == english.count("\n- ")
    words = json.loads((ROOT / "locales/zh/nodeDefs.json").read_text(encoding="utf-8"))[name]
    assert chinese.startswith(f"# {words['display_name']}\n\n{in_markdown(words['description'])}\n")
    for entry, part in words["inputs"].items():
        stem = entry[:-2]
        if not NUMBERED.fullmatch(entry):
            assert f"\n- `{entry}` {part['name']}（" in chinese
            assert f"）：{in_markdown(part['tooltip'])}" in chinese
        elif entry.endswith("_1"):
            assert f"\n- `{stem}_1` … `{stem}_8` {part['name']} … 8（" in chinese
    for part in words["outputs"].values():
        assert re.search(rf"\n- `\w+` {re.escape(part['name'])}（\w+）：{re.escape(part['tooltip'])}\n", chinese)


def test_every_choice_has_its_chinese_word(client: Client, declared: dict[str, Any]) -> None:
    known = client.get("/i18n")["zh"]["kosmosG"]["options"]
    choices = {
        (entry, value)
        for node in declared.values()
        for group in ("required", "optional")
        for entry, (kind, *options) in node["input"].get(group, {}).items()
        for value in (kind if isinstance(kind, list) else options[0].get("options", ()) if options else ())
        if entry != "file"
    }
    same = {("dtype", "fp16"), ("dtype", "bf16"), ("dtype", "fp32"), ("device", "cpu")}
    assert choices - same == {(entry, value) for entry, words in known.items() for value in words}
    assert all(CHINESE.search(word) for words in known.values() for word in words.values())


def test_every_workflow_has_its_chinese_note_and_titles() -> None:
    words = json.loads((ROOT / "locales/zh/main.json").read_text(encoding="utf-8"))["kosmosG"]
    assert all(CHINESE.search(note[0]) for note in words["notes"].values())
    for path in (ROOT / "workflows").glob("*.json"):
        workflow = json.loads(path.read_text(encoding="utf-8"))
        titles = [part.get("title") for part in (*workflow["nodes"], *workflow["groups"])]
        assert {re.sub(r"^\d+ ", "", title) for title in titles if title} <= set(words["titles"]), path.name
        (note,) = (node["widgets_values"][0] for node in workflow["nodes"] if node["type"] == "MarkdownNote")
        heading, *lines = note.split("\n")
        assert heading.removeprefix("## ") in words["notes"], path.name
        common = lines[lines.index("### Files") :]
        assert {line for line in common if line} <= set(words["lines"]), path.name


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_language_has_every_key(client: Client, declared: dict[str, Any], language: str) -> None:
    words = client.get("/i18n")[language]
    assert sorted(words["nodeDefs"]) == sorted(declared)
    parts = {part for category in CATEGORIES for part in category.split("/")}
    assert set(words["nodeCategories"]) == parts
    assert set(words["dataTypes"]) == {"KOSMOSG_IMAGE", "KOSMOSG_TRACE", "KOSMOSG_PROMPT"}
    for name, node in declared.items():
        entry = words["nodeDefs"][name]
        assert list(entry["inputs"]) == list(inputs(node))
        assert list(entry["outputs"]) == [str(number) for number in range(len(node["output"]))]
        texts = [entry["description"]]
        for part in (*entry["inputs"].values(), *entry["outputs"].values()):
            assert part["name"]
            texts.append(part["tooltip"])
        assert all(texts)
        assert all(CHINESE.search(text) for text in texts) == (language == "zh")


def test_the_english_words_are_those_of_the_nodes(client: Client, declared: dict[str, Any]) -> None:
    words = client.get("/i18n")["en"]["nodeDefs"]
    for name, node in declared.items():
        assert (words[name]["display_name"], words[name]["description"]) == (node["display_name"], node["description"])
        assert {key: part["tooltip"] for key, part in words[name]["inputs"].items()} == {
            key: options["tooltip"] for key, options in inputs(node).items()
        }
        assert [part["tooltip"] for part in words[name]["outputs"].values()] == node["output_tooltips"]
