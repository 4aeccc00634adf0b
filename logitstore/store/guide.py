"""The files of a store for people: ``SPEC.md``, the format's text, and ``README.md``, a page on this store."""

from __future__ import annotations

from importlib.resources import files
from textwrap import indent

from ..schema.spec import StoreSpec, StreamSpec
from ..storage.places import Place

SPEC_TEXT = "SPEC.md"
GUIDE = "README.md"
WITHOUT = {  # programs that print every record and its arrays
    "webdataset": """
import os, webdataset
shards = [f"shards/{name[:-6]}.tar" for name in sorted(os.listdir("sealed")) if name.endswith(".entry")]
for pack in webdataset.WebDataset(shards, shardshuffle=False, empty_check=False).decode():
    for i, record in enumerate(pack["record.json.gz"]):
        for name, items in pack["items.json.gz"].items():
            record[name] = pack[f"{name}.npy"][sum(items[:i]) : sum(items[: i + 1])]
        print(record)
""",
    "zarr": """
import gzip, json, numpy, os, zarr
for name in sorted(name[:-6] for name in os.listdir("sealed") if name.endswith(".entry")):
    shard = zarr.open_group(zarr.storage.ZipStore(f"shards/{name}.zarr.zip", mode="r"), mode="r")
    records = json.loads(gzip.decompress(shard["record"][:].tobytes()))
    head, _, body = shard["table"][:].tobytes().partition(b"\\n")
    head = json.loads(head)
    for column in head["columns"]:
        at = head["arrays"][f"count.{column['count']}"]
        items = numpy.frombuffer(body, at["dtype"], at["shape"][0], at["begin"]).astype(int)
        ends = numpy.cumsum(numpy.broadcast_to(items, len(records)))
        for record, part in zip(records, numpy.split(shard[column["name"].replace(".", "/")][:], ends[:-1])):
            record[column["name"]] = part
    for record in records:
        print(record)
""",
}


def spec_text() -> str:
    """Return the text of the format's specification, as it is installed."""
    return files("logitstore.schema").joinpath(SPEC_TEXT).read_text("utf-8")


def write_guide(place: Place, spec: StoreSpec) -> None:
    """Write ``SPEC.md`` and ``README.md`` into a new store."""
    place.write(SPEC_TEXT, spec_text().encode("utf-8"))
    place.write(GUIDE, guide(spec).encode("utf-8"))


def guide(spec: StoreSpec) -> str:
    """Return one page that says what a store holds, names its parts and shows how to read it."""
    storage = spec.storage["name"]
    pattern = "`shards/*.tar`" if storage == "webdataset" else f"`shards/` (storage `{storage}`)"
    streams = "\n".join(_line(stream) for stream in spec.streams)
    return f"""# Teacher logits of {_plain(spec.teacher.name)}

A store of the format logitstore {spec.version}: outputs of a speech recogniser, the teacher, for training a student
from them. `SPEC.md` beside this page is the whole format; no software is needed but a JSON parser and numpy,
or any other reader of arrays.

Teacher: {_plain(spec.teacher.name)}, {spec.teacher.sample_rate} Hz, {spec.teacher.frame_shift} samples a frame.
Tokens: {spec.tokens["size"]}; the blank is {spec.tokens["blank"]}.

| stream | encoding | lattice form |
|---|---|---|
{streams}

| file | what it is |
|---|---|
| `logitstore.json` | what the records mean: teacher, tokens, streams, storage; never changes |
| `notes.json` | number of records when the store was last finished, the manifest, versions of libraries |
| `tokens.txt` | the token table: token, space, id |
| `sealed/SHARD.entry` | one for every shard that exists: its files, their checksums, the ids of its records |
| {pattern} | the records; files here that no entry names are leftovers of a crash |
| `constants/` | arrays that a stream keeps once, such as the head's weight; may be missing |
| `index/` | finds a record by id; derived from the entries, may be removed |
| `skipped.jsonl` | utterances that could not be dumped; may be missing |
| `partial/` | writers at work; ignore it |

With logitstore installed (`pip install logitstore`):

    from logitstore import open_store
    store = open_store("THIS FOLDER")
    for utt_id in store:
        target = store[utt_id]

Without it, with {"webdataset" if storage == "webdataset" else "zarr"} alone:

{indent(WITHOUT["webdataset" if storage == "webdataset" else "zarr"].strip(), "    ")}

The names of the shards are those of the files of `sealed/`, and of nothing else. After a crash an entry may list
shards under `replaces`: these do not exist any more. "Read one record" in `SPEC.md` goes on from here.
"""


def _line(stream: StreamSpec) -> str:
    return f"| `{stream.name}` | {f'`{stream.encoding}`' if stream.encoding else 'transcripts'} | {stream.form} |"


def _plain(text: str) -> str:
    """Return text on one line, without characters that could end a cell or a heading."""
    return "".join(c if c.isprintable() else " " for c in text).replace("|", "/").strip() or "unnamed"
