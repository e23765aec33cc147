"""Filters and near-duplicates in a whole `prepare`: the same store and evidence however the work is divided."""

import hashlib
import itertools
import json
import random
from pathlib import Path

import pytest
from filter_documents import documents, prose

from configs.errors import UserError
from data.engines import Engine
from data.filters.c4 import C4
from data.filters.chain import FilterOptions
from data.filters.fineweb import FineWeb
from data.filters.gopher import GopherQuality, GopherRepetition
from data.near_duplicates import jaccard, shingles
from data.prepare import Execution, StoreOptions, prepare
from data.store import open_store
from data.tokenizer import load_tokenizer

ALL = FilterOptions(GopherQuality(), GopherRepetition(), C4(), FineWeb(), mask=("emails", "ips"))
QUESTION = "In what country is Normandy located, and when did the Normans give it its name?"
EDITED = 12


def text_of(number):
    return "\n".join(prose(random.Random(1000 + number), 30))


def corpus(folder):
    """Writes documents that break rules, and good ones with copies in which a word is replaced."""
    folder.mkdir()
    texts = documents(72)
    for number in range(EDITED):
        words = text_of(number).split(" ")
        texts.append(" ".join(words))
        words[random.Random(number).randrange(len(words))] = "castle"
        texts.append(" ".join(words))
    texts += [f"{text_of(50)}\nMail ann@example.com from 8.8.8.8.", f"{text_of(51)} {QUESTION}"]
    random.Random(0).shuffle(texts)
    lines = [json.dumps({"text": text}) for text in texts]
    for name, part in (("a", lines[:40]), ("b", lines[40:])):
        (folder / f"{name}.jsonl").write_text("\n".join(part) + "\n")
    (folder.parent / "questions.jsonl").write_text(json.dumps({"question": QUESTION}) + "\n")
    return str(folder)


def digest(store):
    """Returns a hash of every file of a store, without times and the page."""
    whole = hashlib.sha256()
    for path in sorted(path for path in Path(store).rglob("*") if path.is_file()):
        data = path.read_bytes()
        if path.name == "manifest.json":
            data = json.dumps(json.loads(data) | {"mtimes_ns": []}, sort_keys=True).encode()
        if path.suffix != ".html":
            whole.update(path.name.encode() + data)
    return whole.hexdigest()


def options(folder, **changed):
    filters = changed.pop("filters", FilterOptions(**vars(ALL) | {"avoid": (f"qa={folder}/questions.jsonl",)}))
    return StoreOptions(tokenizer="bytes", filters=filters, near_duplicates=0.8, **changed)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return corpus(tmp_path_factory.mktemp("filters") / "texts")


@pytest.fixture(scope="module")
def made(source):
    folder = Path(source).parent
    manifest = prepare(source, folder / "store", options(folder), execution=Execution(Engine(processes=1)))
    return folder / "store", manifest


def texts_in(store):
    tokenizer, split = load_tokenizer(store), open_store(store, "train")
    bounds = split.offsets[0:]
    return [tokenizer.decode(ids.tolist()) for ids in split.read(bounds[:-1], bounds[1:])]


def test_the_counts_add_up(made):
    manifest = made[1]
    counts, filtered = manifest["collected"], manifest["filtered"]
    removed = filtered["removed"]
    kept = manifest["splits"]["train"]["documents"]
    assert counts["read"] == 98 == counts["empty"] + counts["duplicate"] + sum(removed.values()) + kept
    assert removed["near-duplicate"] == EDITED and removed["contamination: qa"] == 1
    assert len(removed) > 10 and filtered["changed"]["masked emails"] == filtered["changed"]["masked ips"] == 1
    assert filtered["contamination"] == {"qa": {"rows": 1, "rows_checked": 1, "rows_found": 1, "documents": 1}}
    sizes = manifest["bytes"]
    assert sizes["read"] > sum(size for name, size in sizes.items() if name != "read") > sizes["near-duplicate"] > 0


def test_the_steps_of_the_card_add_up_when_c4_leaves_no_line(tmp_path):
    rows = "".join(json.dumps({"text": text}) + "\n" for text in ("menu\nhome", "log in", text_of(1)))
    (tmp_path / "a.jsonl").write_text(rows)
    filters = FilterOptions(c4=C4(min_sentences=0))
    prepare(str(tmp_path / "a.jsonl"), tmp_path / "store", StoreOptions("bytes", filters=filters))
    card = json.loads((tmp_path / "store" / "card.json").read_text())
    assert card["removed"] == {"c4: no lines": 2}
    assert card["funnel"][-1]["documents"] == sum(split["documents"] for split in card["splits"].values()) == 1


def test_the_steps_of_the_card_add_up_when_masks_lengthen_the_text(tmp_path):
    (tmp_path / "a.txt").write_text(f"{text_of(1)} a@b.co")
    prepare(str(tmp_path / "a.txt"), tmp_path / "store", StoreOptions("bytes", filters=FilterOptions(mask=("emails",))))
    funnel = json.loads((tmp_path / "store" / "card.json").read_text())["funnel"]
    for before, step in itertools.pairwise(funnel):
        assert step["bytes"] == before["bytes"] - step["removed_bytes"]
    assert funnel[-1]["bytes"] == funnel[0]["bytes"] + 1


def test_what_remains(made):
    texts = texts_in(made[0])
    assert f"{text_of(50)}\nMail <EMAIL> from <IP>." in texts
    assert not any(QUESTION in text for text in texts)
    assert sum(any(text[:60] == text_of(n)[:60] for text in texts) for n in range(EDITED)) == EDITED


def test_every_reason_has_samples(made):
    card = json.loads((made[0] / "card.json").read_text())
    for reason, count in made[1]["filtered"]["removed"].items():
        if reason != "near-duplicate":
            samples = card["samples"][reason]
            assert len(samples) == min(count, 20) and samples == sorted(samples)
    assert "samples" not in made[1]["filtered"]


def test_what_is_masked_in_the_store_is_masked_in_its_card(source, tmp_path):
    (tmp_path / "a.jsonl").write_text(
        "".join(json.dumps({"text": f"{text}\nann@example.com"}) + "\n" for text in ("few words", text_of(1)))
    )
    filters = FilterOptions(gopher_quality=GopherQuality(), mask=("emails",))
    prepare(str(tmp_path / "a.jsonl"), tmp_path / "store", StoreOptions("bytes", filters=filters))
    for path in ("card.json", "card.html"):
        text = (tmp_path / "store" / path).read_text()
        assert "ann@" not in text and "few words" in text


def test_the_evidence_of_near_duplicates(made):
    store, _ = made
    lines = [json.loads(line) for line in (store / "near_duplicates.jsonl").read_text().splitlines()]
    kept = {hashlib.sha256(" ".join(text.split()).encode()).hexdigest()[:32] for text in texts_in(store)}
    assert [line["removed"] for line in lines] == sorted(line["removed"] for line in lines) and len(lines) == EDITED
    for line in lines:
        assert line["kept"] in kept and line["removed"] not in kept and 0.8 <= line["jaccard"] < 1
        assert line["jaccard"] >= 0.8 and line["removed_text"] != line["kept_text"]
    whole = [line for line in lines if line["start"] == 0 and len(line["removed_text"] + line["kept_text"]) < 1900]
    for line in whole:
        assert line["jaccard"] == jaccard(shingles(line["removed_text"]), shingles(line["kept_text"]))


@pytest.mark.parametrize(
    "execution",
    [
        Execution(Engine(processes=1), unit_bytes=3000),
        Execution(Engine(processes=2), unit_bytes=20_000),
    ],
)
def test_the_store_does_not_depend_on_how_the_work_is_divided(source, made, tmp_path, execution):
    prepare(source, tmp_path / "store", options(Path(source).parent), execution=execution)
    assert digest(tmp_path / "store") == digest(made[0])


def test_it_is_the_same_store_only_with_the_same_filters(source, made):
    folder, (store, manifest) = Path(source).parent, made
    assert prepare(source, store, options(folder)) == manifest
    for changed in (
        StoreOptions("bytes", filters=options(folder).filters),
        StoreOptions("bytes", near_duplicates=0.8),
        options(folder, filters=FilterOptions(**vars(options(folder).filters) | {"c4": C4(min_sentences=3)})),
    ):
        with pytest.raises(UserError, match=r"was prepared differently \(.*(filters|near_duplicates)"):
            prepare(source, store, changed)


def test_a_store_without_filters_records_none(source, tmp_path):
    manifest = prepare(source, tmp_path / "store", StoreOptions("bytes"))
    assert set(manifest["options"]) == {
        "tokenizer", "text_field", "validation_fraction", "validation_split", "seed", "strict",
    }  # fmt: skip
    assert "filtered" not in manifest
    with pytest.raises(UserError, match=r"was prepared differently \(near_duplicates None -> 0.8\)"):
        prepare(source, tmp_path / "store", StoreOptions("bytes", near_duplicates=0.8))


def test_counting_keeps_the_documents(source, tmp_path):
    folder = Path(source).parent
    filters = FilterOptions(avoid=(f"qa={folder}/questions.jsonl",), avoid_action="count")
    manifest = prepare(source, tmp_path / "store", StoreOptions("bytes", filters=filters))
    assert manifest["filtered"]["contamination"]["qa"] == {
        "rows": 1, "rows_checked": 1, "rows_found": 1, "documents": 1,
    }  # fmt: skip
    assert manifest["filtered"]["removed"] == {} and any(QUESTION in text for text in texts_in(tmp_path / "store"))


def test_nothing_left_is_an_error_that_counts(tmp_path):
    (tmp_path / "a.txt").write_text("short")
    filters = FilterOptions(gopher_quality=GopherQuality())
    with pytest.raises(UserError, match=r"no documents remain .*1 gopher: few words"):
        prepare(str(tmp_path / "a.txt"), tmp_path / "store", StoreOptions("bytes", filters=filters))


def test_licenses_are_checked_before_the_work_and_shown(source, tmp_path):
    with pytest.raises(UserError, match=r"license='c.jsonl=MIT': no source is named 'c.jsonl'"):
        prepare(source, tmp_path / "store", StoreOptions("bytes"), execution=Execution(licenses=("c.jsonl=MIT",)))
    execution = Execution(command="rootstock prepare --x", licenses=("CC0", "a.jsonl=MIT"))
    prepare(source, tmp_path / "store", StoreOptions("bytes"), execution=execution)
    card = json.loads((tmp_path / "store" / "card.json").read_text())
    assert [one["license"] for one in card["sources"]] == ["MIT", "CC0"]
    assert sum(one["tokens"] for one in card["sources"]) == card["splits"]["train"]["tokens"]
    assert sum(card["lengths"].values()) == card["splits"]["train"]["documents"]
    assert card["command"] == "rootstock prepare --x" and card["funnel"][0]["documents"] == 98
    page = (tmp_path / "store" / "card.html").read_text()
    assert "rootstock prepare --x" in page and "<script" not in page and "http" not in page.split("</style>")[1]


def test_a_source_of_which_every_document_is_a_copy_has_its_license(tmp_path):
    for name, numbers in (("a", (1, 2)), ("b", (2, 1))):
        rows = "".join(json.dumps({"text": text_of(number)}) + "\n" for number in numbers)
        (tmp_path / f"{name}.jsonl").write_text(rows)
    execution = Execution(licenses=("CC0", "b.jsonl=MIT"))
    prepare(str(tmp_path / "*.jsonl"), tmp_path / "store", StoreOptions("bytes"), execution=execution)
    one, other = json.loads((tmp_path / "store" / "card.json").read_text())["sources"]
    assert (one["documents"], one["license"]) == (2, "CC0")
    assert other == {"name": str(tmp_path / "b.jsonl"), "documents": 0, "bytes": 0, "tokens": 0, "license": "MIT"}


@pytest.mark.parametrize("method", ["documents", "tail"])
def test_the_text_of_the_sources_is_that_of_the_splits(method, source, tmp_path):
    options = StoreOptions("bytes", validation_fraction=0.3, validation_split=method)
    splits = prepare(source, tmp_path / "store", options)["splits"].values()
    card = json.loads((tmp_path / "store" / "card.json").read_text())
    for kind in ("bytes", "tokens"):
        assert sum(one[kind] for one in card["sources"]) == sum(split[kind] for split in splits), kind
    # A document that is split by its tail is in both splits.
    assert sum(one["documents"] for one in card["sources"]) == card["funnel"][-1]["documents"]
