"""Read a logitstore 1.0 store with the standard library and numpy alone, from SPEC.md (rules are cited as F1, S4, ...).

    python read_numpy.py STORE OUT.npz

writes for every record of every live shard `ID|STREAM|TEMPERATURE`: float32 log-probabilities (rows, V); of a hidden
stream `ID|STREAM|numbers`; of an rnnt or seq2seq stream `ID|STREAM|labels`; and `ID|meta`: the metadata as JSON.
"""

import ast
import bisect
import collections
import gzip
import hashlib
import io
import json
import math
import os
import pathlib
import re
import stat
import sys
import tarfile
import zipfile
import zlib

import numpy as np

TEMPERATURES = (1, 1.5, 2, 4)
POINTS = (1.0, 4 / 3, 2.0, 4.0, 8.0)  # the temperatures of `tail`, E5
NUMBER = r"\d+(?:\.\d+)?(?:e[+-]\d+)?"  # A2
WHOLE = r"[1-9]\d*"  # A2: K, S and N
STREAM_NAME = re.compile(r"[a-z][a-z0-9_]{0,31}")  # F4
SHARD_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,199}")  # S1
COLUMN_DTYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "float16", "float32")  # S2
SUFFIX = {"zarr": ".zarr.zip", "zarr:blosc": ".zarr.zip", "webdataset": ".tar"}  # Z1, W1

ARCHIVE_ERRORS = (zlib.error, tarfile.TarError, zipfile.BadZipFile)

Column = collections.namedtuple("Column", "name dtype shape count chunk bytes")


class Damaged(ValueError):
    """A file that breaks a rule of the format."""


class Unknown(ValueError):
    """A name in a store that this reader does not know (F5)."""


def expect(condition, message, rule):
    """Refuse what breaks a rule."""
    if not condition:
        raise Damaged(f"{message} ({rule})")


# CRC-32C (F3): a table for a byte; long inputs are joined pairwise, since the CRC of A + B is shift(A, len(B)) ^ B.


def byte_table():
    """Make the table of the reflected Castagnoli polynomial."""
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, (table >> 1) ^ np.uint32(0x82F63B78), table >> 1).astype(np.uint32)
    return table


BYTE_TABLE = byte_table()
SHIFT_TABLES = []  # of level k: (4, 256), what each byte of a state becomes behind 2^k zero bytes


def apply_shift(tables, states):
    """Move states behind the zero bytes that the tables stand for."""
    low = tables[0][states & 255] ^ tables[1][states >> 8 & 255]
    return low ^ tables[2][states >> 16 & 255] ^ tables[3][states >> 24]


def shift_tables(level):
    """Return the tables of 2^level zero bytes."""
    while len(SHIFT_TABLES) <= level:
        states = np.arange(256, dtype=np.uint32)[None] << (
            np.arange(4, dtype=np.uint32)[:, None] * np.uint32(8)
        )
        if SHIFT_TABLES:
            last = SHIFT_TABLES[-1]
            SHIFT_TABLES.append(apply_shift(last, apply_shift(last, states)))
        else:
            SHIFT_TABLES.append(BYTE_TABLE[states & 255] ^ states >> np.uint32(8))
    return SHIFT_TABLES[level]


def crc32c(data):
    """Return the CRC-32C of bytes or of a uint8 array."""
    data = np.frombuffer(bytes(data), np.uint8)
    if len(data) < 64:
        state = 0xFFFFFFFF
        for byte in data.tolist():
            state = int(BYTE_TABLE[(state ^ byte) & 255]) ^ state >> 8
        return state ^ 0xFFFFFFFF
    data = data.copy()
    data[:4] ^= 255  # the same as a first state of 0xffffffff
    size = 1 << (len(data) - 1).bit_length()
    states = BYTE_TABLE[
        np.concatenate([np.zeros(size - len(data), np.uint8), data])
    ]  # zeros in front change nothing
    level = 0
    while len(states) > 1:
        states = apply_shift(shift_tables(level), states[0::2]) ^ states[1::2]
        level += 1
    return int(states[0]) ^ 0xFFFFFFFF


def check_crc(data, wanted, what, rule):
    """Refuse bytes of another CRC-32C."""
    expect(crc32c(data) == wanted, f"{what}: CRC-32C is not the one named", rule)


# Files and JSON


def read_bytes(store, path):
    """Read a regular file of the store; refuse links out of it, devices and pipes (F7)."""
    root, full = os.path.realpath(store), os.path.realpath(os.path.join(store, path))
    expect(full.startswith(root.rstrip(os.sep) + os.sep), f"{path}: leads out of the store", "F7")
    expect(stat.S_ISREG(os.stat(full).st_mode), f"{path}: not a regular file", "F7")
    with open(full, "rb") as file:
        return file.read()


def list_names(store, folder, suffix):
    """List the names in a folder that end in a suffix, without those that begin with a dot (F1)."""
    path = os.path.join(store, folder)
    if not os.path.isdir(path):
        return []
    return sorted(n for n in os.listdir(path) if n.endswith(suffix) and not n.startswith("."))


def once(pairs):
    """Make an object of pairs; refuse a key that stands twice (F2)."""
    result = dict(pairs)
    expect(len(result) == len(pairs), "a key stands twice in a JSON object", "F2")
    return result


def refuse_constant(name):
    """Refuse NaN and infinity (F2)."""
    raise Damaged(f"{name} in JSON (F2)")


def parse_json(data, what):
    """Parse UTF-8 JSON by the rules of F2."""
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=once, parse_constant=refuse_constant)
        json.dumps(value, ensure_ascii=False).encode("utf-8")  # refuses lone surrogates
    except (UnicodeError, json.JSONDecodeError) as error:
        raise Damaged(f"{what}: no valid JSON: {error} (F2)") from error
    return value


def parse_object(data, what):
    """Parse a JSON object."""
    value = parse_json(data, what)
    expect(isinstance(value, dict), f"{what}: no JSON object", "F3")
    return value


def split_sealed(data, what):
    """Parse sealed JSON (F3); return the object and what follows its last line."""
    at = data.find(b'\n"crc32c": ') + 1  # no earlier line begins so: the first is the last of the object
    expect(at > 0, f"{what}: no line with a CRC-32C", "F3")
    end = data.find(b"\n", at) + 1
    match = re.fullmatch(rb'"crc32c": (0|[1-9]\d*)\}\n', data[at:end])
    expect(match is not None, f"{what}: the last line is cut or malformed", "F3")
    expect(end <= 64 << 20, f"{what}: more than 64 MiB", "F3")
    check_crc(data[:at], int(match[1]), what, "F3")
    return parse_object(data[:end], what), data[end:]


def read_sealed(store, path):
    """Read a file that is sealed JSON and nothing else."""
    value, rest = split_sealed(read_bytes(store, path), path)
    expect(not rest, f"{path}: bytes behind the last line", "F3")
    return value


# The store


class Store:
    """A store: logitstore.json, the token table and the constants."""

    def __init__(self, path):
        """Read and check what records mean."""
        self.path = pathlib.Path(path)
        expect(
            os.path.lexists(self.path / "logitstore.json"), f"{path}: no logitstore.json, so no store", "C8"
        )
        self.meaning = read_sealed(path, "logitstore.json")
        data = read_bytes(path, "logitstore.json")
        self.digest = hashlib.sha256(data).digest()
        self.identity = "sha256:" + self.digest.hex()  # F5
        check_version(self.meaning, "logitstore.json")
        self.storage = self.meaning["storage"]["name"]
        if self.storage not in SUFFIX:
            raise Unknown(f"storage {self.storage!r} is not known (F5)")
        self.classes, self.blank = self.meaning["tokens"]["size"], self.meaning["tokens"]["blank"]
        self.tokens = read_tokens(path, self.meaning["tokens"])
        names = [s["name"] for s in self.meaning["streams"]]
        expect(len(set(names)) == len(names), "two streams have one name", "F4")
        self.streams = [Stream(self, s) for s in self.meaning["streams"]]
        self.columns = [c for s in self.streams for c in s.columns]  # S2

    def entries(self):
        """Return the entries of all shards that exist: name -> (head, ids) (C1, C6, C7)."""
        read, names = {}, None
        while names != (now := entry_names(self.path)):  # C7: until the names stay the same
            names = now
            read = {n: read[n] if n in read else read_entry(self, n) for n in names}
            read = {n: entry for n, entry in read.items() if entry}
        return live(read)

    def warn_if_records_miss(self, entries):
        """Say that entries are missing where notes.json names more records (F8)."""
        if not os.path.lexists(self.path / "notes.json"):
            return
        wanted = read_sealed(self.path, "notes.json").get("records", 0)
        found = sum(len(ids) for _, ids in entries.values())
        if found < wanted:
            print(
                f"warning: entries are missing: {found} records, notes.json names {wanted} (F8)",
                file=sys.stderr,
            )


def check_version(value, what):
    """Refuse another format or another major version (F5)."""
    expect(value.get("format") == "logitstore", f"{what}: not of a logitstore", "F4")
    match = re.fullmatch(r"(\d+)\.(\d+)", value["version"])
    expect(match is not None, f"{what}: version {value['version']!r}", "F4")
    if match[1] != "1":
        raise Unknown(f"{what}: version {value['version']} is of another major version (F5)")


def read_tokens(path, about):
    """Read the token table (F6)."""
    data = read_bytes(path, "tokens.txt")
    digest = "sha256:" + hashlib.sha256(data).hexdigest()
    expect(digest == about["sha256"], "tokens.txt: another SHA-256 than in logitstore.json", "F6")
    lines = data.decode("utf-8").split("\n")  # no other character breaks a line, F2
    expect(lines.pop() == "", "tokens.txt: no line feed at the end", "F6")
    expect(len(lines) == about["size"], f"tokens.txt: {len(lines)} lines for {about['size']} tokens", "F6")
    tokens = []
    for number, line in enumerate(lines):
        token, _, written = line.rpartition(" ")  # a token may hold spaces
        expect(token and "\r" not in token and written == str(number), f"tokens.txt: line {number}", "F6")
        tokens.append(token)
    expect(0 <= about["blank"] < len(tokens), "the blank is no token", "F4")
    return tokens


def entry_names(path):
    """List the shards that have an entry (C1)."""
    names = [n.removesuffix(".entry") for n in list_names(path, "sealed", ".entry")]
    return [n for n in names if SHARD_NAME.fullmatch(n)]  # F1: any other name is ignored


def read_entry(store, name):
    """Read an entry and its ids (C2); return None where it went since it was listed (C7)."""
    what = f"sealed/{name}.entry"
    try:
        data = read_bytes(store.path, what)
    except FileNotFoundError:
        return None
    head, rest = split_sealed(data, what)
    expect(head["shard"] == name, f"{what}: of shard {head['shard']!r}", "C2")
    expect(head["identity"] == store.identity, f"{what}: of another store", "C2")
    expect(len(rest) == head["ids"]["bytes"], f"{what}: {len(rest)} bytes of ids", "C2")
    check_crc(rest, head["ids"]["crc32c"], f"{what}: ids", "C2")
    expect(rest == b"" or rest.endswith(b"\n"), f"{what}: ids without a line feed at the end", "C2")
    ids = rest.decode("utf-8").split("\n")[:-1]
    expect(len(ids) == head["records"], f"{what}: {len(ids)} ids for {head['records']} records", "C2")
    for utt_id in ids:
        check_id(utt_id)
    return head, ids


def check_id(utt_id):
    """Refuse what is no utterance id (S3)."""
    good = 1 <= len(utt_id.encode("utf-8")) <= 4096 and not re.search(r"[\x00-\x1f\x7f-\x9f]", utt_id)
    expect(good, f"{utt_id!r} is no id", "S3")


def live(entries):
    """Leave out the shards that an entry replaces (C6)."""
    gone = {name for head, _ in entries.values() for name in head.get("replaces", [])}
    return {name: entry for name, entry in entries.items() if name not in gone}


# Streams: kinds, encodings, forms (A1)

ENCODINGS = {  # the pattern of an encoding, by a name for this reader
    "dense": "dense",
    "dense:int8": "dense:int8",
    "topk": f"topk:({WHOLE})",
    "nucleus": f"nucleus:({NUMBER})(?:@({NUMBER}))?",
    "factored": "factored",
    "factored:int8": "factored:int8",
    "factored:KL": f"factored:({NUMBER})",
    "collapsed": "collapsed",
    "vectors": "vectors",
    "vectors:int8": "vectors:int8",
    "": "",
}
ROWS = {"dense", "dense:int8", "topk", "nucleus"}
FACTORED = {"factored", "factored:int8", "factored:KL"}
TOGETHER = {  # A1
    "ctc": ROWS | FACTORED,
    "rnnt": ROWS | {"collapsed", "factored", "factored:KL"},
    "seq2seq": ROWS | FACTORED,
    "hidden": {"vectors", "vectors:int8"},
    "text": {""},
}
FORM = re.compile(rf"(?:(full|path|mean-u)|(banded|sample):({WHOLE}))(\+occupancy)?")  # S10


def smallest(classes):
    """Choose uint8, uint16 or uint32 by the number of classes (S2, E9)."""
    return "uint8" if classes <= 256 else "uint16" if classes <= 65536 else "uint32"


class Stream:
    """A stream of logitstore.json: its columns, form and constants."""

    def __init__(self, store, about):
        """Parse a stream's names; refuse those that are not known."""
        self.name, self.kind = about["name"], about["kind"]
        self.classes, self.blank, self.width = store.classes, store.blank, about.get("width")
        if self.kind not in TOGETHER:
            raise Unknown(f"kind {self.kind!r} is not known (F5)")
        plain = STREAM_NAME.fullmatch(self.name) and (
            self.name == self.kind or (self.kind == "hidden" and self.name.startswith("hidden_"))
        )
        expect(plain, f"{self.name!r} is no name of a stream of kind {self.kind}", "F4")
        self.parse_encoding(about["encoding"])
        self.parse_form(about["form"])
        self.activation, self.end = about.get("activation"), None
        for head in store.meaning["teacher"]["heads"]:
            if head["stream"] == self.name:
                self.end = head.get("end")  # of an attention decoder, F4
        if self.kind == "rnnt" and self.encoding in FACTORED and self.activation not in ("tanh", "relu"):
            raise Unknown(f"activation {self.activation!r} is not known (E17)")
        listed = about.get("constants", [])
        self.constants = {c["name"]: read_constant(store.path, self.name, c) for c in listed}
        self.columns = [(f"{self.name}.{a}", d, tuple(s)) for a, d, s in self.arrays() + self.more_arrays()]

    def parse_encoding(self, text):
        """Take an encoding apart (E1, A1, A2)."""
        for name, pattern in ENCODINGS.items():
            if name in TOGETHER[self.kind] and (match := re.fullmatch(pattern, text)):
                self.encoding, self.setting = name, match[1] if match.groups() else None
                break
        else:
            raise Unknown(f"encoding {text!r} of a stream of kind {self.kind} is not known (F5, A1)")
        if name == "topk":
            expect(int(self.setting) <= self.classes, f"{text} of {self.classes} classes", "E1")

    def parse_form(self, text):
        """Take a lattice form apart (S10)."""
        self.form, self.size, self.occupancy = "", 0, False
        if self.kind != "rnnt":
            expect(text == "", f"{self.name}: form {text!r}", "F4")
            return
        match = FORM.fullmatch(text)
        if not match:
            raise Unknown(f"form {text!r} is not known (F5, S10)")
        self.form, self.size, self.occupancy = match[1] or match[2], int(match[3] or 0), bool(match[4])
        if (self.encoding in FACTORED and text != "full") or (
            self.encoding == "collapsed" and self.form == "mean-u"
        ):
            raise Unknown(f"{self.name}: {self.encoding} does not stand with form {text} (A1)")

    def arrays(self):
        """List the arrays of the encoding: name, dtype, shape."""
        v, d = self.classes, self.width
        tail5 = ("tail", "int16", (5,))
        if self.encoding == "nucleus":
            return self.nucleus_arrays()
        if self.kind == "rnnt" and self.encoding == "factored":  # E17
            return [("enc", "int16", (d,)), ("scale", "float32", ()), ("dec", "float32", (d,))]
        if self.kind == "rnnt" and self.encoding == "factored:KL":  # E17
            return [("enc_coded", "uint8", ()), ("dec_coded", "uint8", ())]
        if self.encoding == "topk":  # E5
            k, ids = int(self.setting), "uint16" if v <= 65536 else "uint32"
            return [("ids", ids, (k,)), ("logp", "float16", (k,)), tail5, ("logz", "float32", ())]
        coded = [("code", "int8", (d,)), ("scale", "float32", ())]
        return {
            "dense": [("logp", "float16", (v,)), ("logz", "float32", ())],  # E3
            "dense:int8": [("root", "uint8", (v,)), ("depth", "float32", ()), ("logz", "float32", ())],  # E12
            "factored": [("h", "float16", (d,))],  # E14
            "factored:int8": coded,  # E15
            "factored:KL": [("coded", "uint8", ())],  # E16
            "collapsed": [("logp", "float16", (2,)), tail5],  # E18
            "vectors": [("h", "float16", (d,))],  # E19
            "vectors:int8": coded,  # E19
            "": [],  # S15
        }[self.encoding]

    def nucleus_arrays(self):
        """List the arrays of `nucleus` (E9)."""
        v = self.classes
        arrays = [
            ("count", smallest(v + 1), ()),  # uint8 where V < 256, uint16 where V < 65536
            ("ids", smallest(v), ()),
            ("below", "float16", ()),
            ("tail", "int16", (2,)),
            ("bend", "int8", (3,)),
        ]
        if float(self.setting) >= 0.001:
            return [*arrays, ("root", "uint8", (v,)), ("depth", "float32", ())]
        return [*arrays, ("logp", "float16", (v,))]

    def more_arrays(self):
        """List the labels (S2) and the columns of a form (S10)."""
        if self.kind not in ("rnnt", "seq2seq"):
            return []
        arrays = [("labels", smallest(self.classes), ())]
        if self.form in ("banded", "path"):
            arrays.append(("begin", "uint16", ()))
        if self.form == "sample":
            arrays.append(("positions", "uint16", ()))
        if self.occupancy and self.form != "mean-u":
            arrays.append(("occupancy", "float16", ()))
        return arrays


def read_constant(path, stream, about):
    """Read a constant and check it (E13)."""
    name = f"constants/{stream}.{about['name']}.npy"
    data = read_bytes(path, name)
    expect(data[:8] == b"\x93NUMPY\x01\x00", f"{name}: not a .npy file of version 1.0", "E13")
    end = 10 + int.from_bytes(data[8:10], "little")
    header, items = data[10:end].decode("latin-1"), data[end:]
    check_crc(items, about["crc32c"], name, "E13")  # which does not cover the header
    dtype, size = np.dtype(about["dtype"]).newbyteorder("<"), math.prod(about["shape"])
    try:
        written = ast.literal_eval(header)
    except (ValueError, SyntaxError) as error:
        raise Damaged(f"{name}: no header (E13)") from error
    wanted = {"descr": dtype.str, "fortran_order": False, "shape": tuple(about["shape"])}
    expect(written == wanted, f"{name}: another dtype, order or shape", "E13")
    expect(len(items) == size * dtype.itemsize, f"{name}: another length", "E13")
    return np.frombuffer(items, dtype).reshape(about["shape"])


# Shards


class Shard:
    """The records of a shard, read through its table (S4)."""

    def __init__(self, store, name, head, ids):
        """Read the file, check its length and checksums, and take the table apart."""
        self.store, self.name, self.ids = store, name, ids
        file, path = one_file(store, head), f"shards/{name}{SUFFIX[store.storage]}"
        expect(file["path"] == path, f"{name}: the file of its entry is {file['path']!r}, not {path}", "S1")
        self.path, self.data = path, read_bytes(store.path, path)
        expect(len(self.data) == file["bytes"], f"{path}: {len(self.data)} bytes, not {file['bytes']}", "S6")
        check_crc(self.data, file["crc32c"], path, "S6")
        at = head["layout"]["table"]
        table = self.data[at["offset"] : at["offset"] + at["bytes"]]
        expect(len(table) == at["bytes"], f"{path}: the table ends behind the file", "S6")
        check_crc(table, at["crc32c"], f"{path}: table", "S6")
        self.parse_table(table)
        self.check_table(head)
        self.meta = self.read_metadata()
        self.cache = {}

    def parse_table(self, table):
        """Take the head and the arrays of the table apart (S4)."""
        line, _, body = table.partition(b"\n")
        expect((len(line) + 1) % 64 == 0, f"{self.path}: the head of the table is not of 64 bytes", "S4")
        self.head, self.array = parse_object(line, f"{self.path}: head of the table"), {}
        for name, about in self.head["arrays"].items():
            expect(
                about["dtype"] in ("uint8", "uint16", "uint32", "uint64"),
                f"{name}: dtype {about['dtype']}",
                "S4",
            )
            dtype, size = np.dtype(about["dtype"]).newbyteorder("<"), math.prod(about["shape"])
            inside = about["begin"] % 8 == 0 and about["begin"] + size * dtype.itemsize <= len(body)
            expect(inside, f"{self.path}: array {name} is not in the table", "S4")
            array = np.frombuffer(body, dtype, size, about["begin"]).reshape(about["shape"])
            expect(
                not size or int(array.max()) < 1 << 53, f"{self.path}: a number in {name} is too large", "S4"
            )
            self.array[name] = array.astype(np.int64)

    def check_table(self, entry):
        """Check what the table says against the store and the entry (S2, S4, S18)."""
        head, path, n = self.head, self.path, entry["records"]
        about = head["about"]
        check_version(about, path)
        own = (about["shard"], about["identity"]) == (self.name, self.store.identity)
        expect(own, f"{path}: of another shard", "S18")
        expect(head["records"] == n, f"{path}: {head['records']} records, its entry has {n}", "S4")
        self.columns = [
            Column(c["name"], c["dtype"], tuple(c["shape"]), c["count"], c.get("chunk"), c.get("bytes"))
            for c in head["columns"]
        ]
        have = [(c.name, c.dtype, c.shape) for c in self.columns]
        expect(have == self.store.columns, f"{path}: other columns than the streams have", "S2")
        self.place = {c.name: k for k, c in enumerate(self.columns)}
        groups = list(dict.fromkeys(group_of(c.name) for c in self.columns))
        expect(head["checksums"] == groups, f"{path}: other checksums than the columns have", "S5")
        self.packs, packs = self.array["pack"], len(self.array["pack"]) - 1
        rising = packs >= 1 and self.packs[0] == 0 and self.packs[-1] == n and (np.diff(self.packs) > 0).all()
        expect(rising, f"{path}: packs", "S4")
        shapes = {"offset": (packs, len(self.columns)), "crc32c": (n, len(groups))}
        for name, shape in shapes.items():
            expect(self.array[name].shape == shape, f"{path}: shape of {name}", "S4")
        expect(not (self.array["offset"] % 64).any(), f"{path}: an offset is not a multiple of 64", "S4")
        self.counts = {
            c: self.count_array(c) for c in {*(c.count for c in self.columns), head["T"], head["U"]}
        }
        self.before = {c: np.concatenate([[0], np.cumsum(a)]) for c, a in self.counts.items()}
        frames = int(self.counts[head["T"]].sum())
        expect(frames == entry["frames"], f"{path}: {frames} frames, its entry has {entry['frames']}", "C2")

    def count_array(self, number):
        """Return n of every record of one `count` array (S4)."""
        array, n = self.array[f"count.{number}"], self.head["records"]
        expect(array.shape in ((n,), (1,)), f"{self.path}: shape of count.{number}", "S4")
        return np.broadcast_to(array, (n,))

    def pack_of(self, record):
        """Return the number of the pack of a record."""
        return int(self.packs.searchsorted(record, "right")) - 1

    def read_metadata(self):
        """Read the blocks of all packs (S3): a list of the text and the object of each record."""
        blocks, result = self.array["block"], []
        expect(blocks.ndim == 2 and blocks.shape[1] == 4, f"{self.path}: shape of block", "S4")
        firsts = blocks[:, 0]
        good = set(self.packs[:-1].tolist()) <= set(firsts.tolist()) and (np.diff(firsts) > 0).all()
        expect(
            good and firsts[-1] < self.head["records"], f"{self.path}: blocks do not begin with packs", "S3"
        )
        for pack, (first, end) in enumerate(
            zip(self.packs[:-1].tolist(), self.packs[1:].tolist(), strict=False)
        ):
            mine = blocks[(firsts >= first) & (firsts < end)]
            text = b"".join(self.read_block(*row) for row in mine.tolist())
            result += self.parse_pack(text, first, end, pack)
        return result

    def read_block(self, first, begin, size, crc):
        """Check a block, then decompress it (S5)."""
        data = self.data[begin : begin + size]
        expect(len(data) == size, f"{self.path}: a block ends behind the file", "S4")
        check_crc(data, crc, f"{self.path}: block of record {first}", "S5")
        return gzip.decompress(data)

    def parse_pack(self, text, first, end, pack):
        """Parse the metadata of a pack (S3)."""
        lines = text.split(b"\n")
        whole = lines[-2:] == [b"]", b""] and len(lines) == end - first + 2
        expect(whole, f"{self.path}: metadata of pack {pack}", "S3")
        result = []
        for record, line in enumerate(lines[:-2], first):
            expect(
                line[:1] == (b"[" if record == first else b","),
                f"{self.path}: metadata of record {record}",
                "S3",
            )
            meta = parse_object(line[1:], f"{self.path}: metadata of record {record}")
            same = meta["id"] == self.ids[record]
            expect(same, f"{self.path}: record {record} is {meta['id']!r}, not as in its entry", "C2")
            same = (meta["T"], meta.get("U", 0)) == (self.frames(record), self.labels(record))
            expect(same, f"{self.path}: T and U of {meta['id']!r} are not those of the table", "S4")
            result.append((line[1:].decode("utf-8"), meta))
        return result

    def frames(self, record):
        """Return T of a record."""
        return int(self.counts[self.head["T"]][record])

    def labels(self, record):
        """Return U of a record (S3)."""
        return int(self.counts[self.head["U"]][record])

    def items(self, column, record):
        """Return the items of a record in a column: (n, *shape) (S4)."""
        c = self.columns[self.place[column]] if isinstance(column, str) else column
        pack, before = self.pack_of(record), self.before[c.count]
        begin = int(before[record] - before[self.packs[pack]])
        count, dtype = int(self.counts[c.count][record]), np.dtype(c.dtype).newbyteorder("<")
        size, source = math.prod(c.shape) * dtype.itemsize, self.data
        at = int(self.array["offset"][pack, self.place[c.name]]) + begin * size
        if self.store.storage == "zarr:blosc":
            source, at = self.inflate(c, pack), begin * size
        data = source[at : at + count * size]
        expect(
            len(data) == count * size, f"{self.path}: {c.name} of record {record} ends behind the file", "S4"
        )
        return np.frombuffer(data, dtype).reshape(count, *c.shape)

    def inflate(self, column, pack):
        """Decompress the inner chunks of a column (Z3); a shard is one pack (Z1)."""
        if column.name not in self.cache:
            begin, number = (
                int(self.array["offset"][pack, self.place[column.name]]),
                self.items_of(column, pack),
            )
            data = self.data[begin : begin + column.bytes] if number else b""  # no items: any offset (Z2)
            self.cache[column.name] = self.inflate_data(column, data, number) if number else b""
        return self.cache[column.name]

    def items_of(self, column, pack):
        """Return the number of items of a column in a pack."""
        before = self.before[column.count]
        return int(before[self.packs[pack + 1]] - before[self.packs[pack]])

    def inflate_data(self, column, data, number):
        """Decompress the data of a column, and check its pairs."""
        import numcodecs  # for Blosc alone

        chunk_bytes = column.chunk * np.dtype(column.dtype).itemsize * math.prod(column.shape)
        chunks = []
        for begin, size in read_pairs(data, -(-number // column.chunk), f"{self.path}: {column.name}"):
            expect(
                begin + size <= len(data), f"{self.path}: {column.name}: a chunk ends behind the data", "Z3"
            )
            chunk = bytes(numcodecs.Blosc().decode(data[begin : begin + size]))
            full = len(chunk) == chunk_bytes  # the last one too
            expect(full, f"{self.path}: {column.name}: a chunk is not of {column.chunk} items", "Z3")
            chunks.append(chunk)
        return b"".join(chunks)

    def check_record(self, record):
        """Check every group of columns of a record (S5)."""
        joined = dict.fromkeys(self.head["checksums"], b"")
        for column in self.columns:
            joined[group_of(column.name)] += self.items(column, record).tobytes()
        for group, wanted in zip(joined, self.array["crc32c"][record].tolist(), strict=False):
            check_crc(joined[group], wanted, f"{self.path}: {group} of {self.ids[record]!r}", "S5")


def one_file(store, head):
    """Return the one file of a shard (S1)."""
    expect(len(head["files"]) == 1, f"{head['shard']}: {len(head['files'])} files", "S1")
    return head["files"][0]


def group_of(column):
    """Return the checksum group of a column (S5)."""
    return column if column.endswith(".labels") else column.partition(".")[0]


def read_pairs(data, number, what):
    """Read the pairs (begin, bytes) at the end of a column's data, and check their CRC-32C (Z2)."""
    pairs, crc = data[len(data) - 4 - 16 * number : -4], data[-4:]
    expect(len(pairs) == 16 * number and number > 0, f"{what}: data too short for {number} chunks", "Z2")
    check_crc(pairs, int.from_bytes(crc, "little"), f"{what}: pairs", "Z2")
    return np.frombuffer(pairs, "<u8").reshape(number, 2).tolist()


# What holds the arrays together: a reader does not need it (S6), but it has checksums too.


def check_container(shard):
    """Check the archive of a shard against its table."""
    if shard.store.storage == "webdataset":
        check_tar(shard)
    else:
        check_zip(shard)


def check_zip(shard):
    """Check the members of a Zarr archive (Z1 to Z4)."""
    with zipfile.ZipFile(io.BytesIO(shard.data)) as archive:
        bad = archive.testzip()
        expect(bad is None, f"{shard.path}: CRC-32 of {bad}", "Z1")
        names = set(archive.namelist())
        group = parse_object(archive.read("zarr.json"), f"{shard.path}: zarr.json")
        expect(
            group["attributes"]["logitstore"] == shard.head["about"], f"{shard.path}: another `about`", "Z1"
        )
        for column in shard.columns:
            folder, number = column.name.replace(".", "/"), shard.items_of(column, 0)
            about = parse_object(archive.read(f"{folder}/zarr.json"), f"{shard.path}: {folder}")
            expect(about["shape"] == [number, *column.shape], f"{shard.path}: shape of {folder}", "Z1")
            member = "/".join([folder, "c", "0"] + ["0"] * len(column.shape))
            expect((member in names) == (number > 0), f"{shard.path}: {member}", "Z1")
            if number:
                chunk = about["codecs"][0]["configuration"]["chunk_shape"][0]
                data = archive.read(member)
                begin = int(shard.array["offset"][0, shard.place[column.name]])
                expect(
                    shard.data[begin : begin + len(data)] == data,
                    f"{shard.path}: offset of {column.name}",
                    "Z2",
                )
                pairs = read_pairs(data, -(-number // chunk), f"{shard.path}: {column.name}")
                check_pairs(shard, column, chunk, pairs, len(data))


def check_pairs(shard, column, chunk, pairs, length):
    """Check the pairs of a column's inner chunks (Z2, Z3)."""
    if shard.store.storage == "zarr:blosc":
        expect(
            (column.chunk, column.bytes) == (chunk, length),
            f"{shard.path}: chunk and bytes of {column.name}",
            "Z3",
        )
        return
    size = chunk * np.dtype(column.dtype).itemsize * math.prod(column.shape)
    expect(
        pairs == [[k * size, size] for k in range(len(pairs))], f"{shard.path}: pairs of {column.name}", "Z2"
    )


def check_tar(shard):
    """Check the members of a tar (W1 to W4)."""
    with tarfile.open(fileobj=io.BytesIO(shard.data)) as archive:
        members = archive.getmembers()
        places = {m.name: m for m in members}
        ends = [members[0].name, members[-1].name]
        good = ends == ["__logitstore__/shard.json", "__logitstore__/table"]
        expect(good, f"{shard.path}: first or last member", "W2")
        for pack, (first, end) in enumerate(
            zip(shard.packs[:-1].tolist(), shard.packs[1:].tolist(), strict=False)
        ):
            key = f"{shard.name[:100]}/{pack:06}"
            member = f"{key}.items.json.gz"
            counts = parse_object(gzip.decompress(archive.extractfile(member).read()), member)
            for number, column in enumerate(shard.columns):
                have = counts[column.name] == shard.counts[column.count][first:end].tolist()
                expect(have, f"{shard.path}: numbers of items of {column.name} in pack {pack}", "W2")
                member = places[f"{key}.{column.name}.npy"]
                header = 10 + int.from_bytes(
                    shard.data[member.offset_data + 8 : member.offset_data + 10], "little"
                )
                same = member.offset_data + header == shard.array["offset"][pack, number]
                expect(same, f"{shard.path}: offset of {column.name} in pack {pack}", "W3")


# Log-probabilities


def log_sum_exp(x):
    """Return ln of the sum of exp over the last axis, which stays."""
    top = x.max(-1, keepdims=True)
    return top + np.log(np.exp(x - top).sum(-1, keepdims=True))


def soften(logits, tau):
    """Return the log-softmax of logits divided by a temperature (E4, E13)."""
    scaled = np.asarray(logits, np.float64) / tau
    return scaled - log_sum_exp(scaled)


def between(points, last, tau):
    """Interpolate the left-out mass at another temperature (E7); points is (n, 5), at POINTS."""
    nodes = [math.log(1 + 4 / t) for t in POINTS] + [0.0]
    y, total = math.log(1 + 4 / tau), 0
    for j, node in enumerate(nodes):
        others = [other for other in nodes if other != node]
        factor = math.prod((y - o) / (node - o) for o in others)
        total = total + factor * (points[:, j] if j < 5 else last)
    return total


def spread(classes, ids, logp, points, tau):
    """Make dense rows of kept classes (n, K) and left-out masses (n, 5) at POINTS (E7, E8)."""
    kept, left = np.asarray(logp, np.float64) / tau, classes - ids.shape[1]
    if left == 0:  # whatever is stored
        result = np.empty((len(ids), classes))
        np.put_along_axis(result, ids, kept - log_sum_exp(kept), 1)
        return result
    tail = points[:, POINTS.index(tau)] if tau in POINTS else between(points, math.log(left), tau)
    z = np.logaddexp(log_sum_exp(kept)[:, 0], tail)
    result = np.repeat((tail - z - math.log(left))[:, None], classes, 1)
    np.put_along_axis(result, ids, kept - z[:, None], 1)
    return result


def stored_ratio(tail):
    """Return ln(L / M) of stored tails (E6)."""
    return np.asarray(tail, np.float64) / 1024 - 20


def topk_rows(classes, ids, logp, tail, tau):
    """Make dense rows of `topk`, and of `collapsed` with its classes as ids (E7)."""
    ids, logp = np.asarray(ids, np.int64), np.asarray(logp, np.float64)
    points = np.concatenate([log_sum_exp(logp / t) for t in POINTS], 1) + stored_ratio(tail)
    return spread(classes, ids, logp, points, tau)


def int8_rows(root, depth):
    """Return logits of `dense:int8` (E12)."""
    return -depth[:, None].astype(np.float64) * (root.astype(np.float64) / 255) ** 2


def nucleus_row(classes, ids, below, tail, bend, tau):
    """Make one dense row of `nucleus` that is not whole (E10)."""
    below, (o1, o2) = below.astype(np.float64), stored_ratio(tail)
    best = -np.log1p(np.exp(o1)) - np.log1p(np.exp(below).sum())
    logp = np.concatenate([[best], best + below])[None]
    points = np.zeros((1, 5))
    if len(ids) < classes:
        tail1, tail2 = log_sum_exp(logp)[0, 0] + o1, log_sum_exp(logp / 2)[0, 0] + o2
        log_n = math.log(classes - len(ids))
        c = (tail1 - 2 * tail2 + log_n) / (math.log(5) - 2 * math.log(3))
        b = tail1 - log_n - c * math.log(5)
        points[0, 0], points[0, 2] = tail1, tail2
        for place, stored in zip((1, 3, 4), bend.tolist(), strict=False):
            t = POINTS[place]
            points[0, place] = log_n + b / t + c * math.log(1 + 4 / t) + stored / 128
    return spread(classes, ids[None].astype(np.int64), logp, points, tau)[0]


def nucleus_rows(classes, part, tau):
    """Make dense rows of `nucleus` (E10)."""
    counts = part["count"].astype(int)
    partial, kept = int((counts > 0).sum()), int(counts.sum())
    whole = part["logp"] if "logp" in part else int8_rows(part["root"], part["depth"])
    sizes = (len(part["ids"]), len(part["below"]), len(part["tail"]), len(part["bend"]), len(whole))
    expect(
        sizes == (kept, kept - partial, partial, partial, len(counts) - partial), "items of a nucleus", "E10"
    )
    whole, rows, at, seen = iter(soften(whole, tau)), [], 0, 0
    for count in counts.tolist():
        if not count:
            rows.append(next(whole))
            continue
        ids, below = part["ids"][at : at + count], part["below"][at - seen : at - seen + count - 1]
        rows.append(nucleus_row(classes, ids, below, part["tail"][seen], part["bend"][seen], tau))
        at, seen = at + count, seen + 1
    return np.array(rows).reshape(len(counts), classes)


def collapsed_rows(stream, logp, tail, following, tau):
    """Make dense rows of `collapsed` (E18); following is the next label of every node, -1 where there is none."""
    result = np.empty((len(logp), stream.classes))
    some, none = following >= 0, following < 0
    blank = np.full(len(logp), stream.blank)
    ids = np.stack([blank, following], 1)
    expect((logp[none, 1] == -65504).all(), "a second class where there is no label", "E18")
    if some.any():
        result[some] = topk_rows(stream.classes, ids[some], logp[some], tail[some], tau)
    if none.any():
        result[none] = topk_rows(stream.classes, ids[none, :1], logp[none, :1], tail[none], tau)
    return result


# Factored streams


class Lanes:
    """The lanes of a piece, from which symbols are read (E16)."""

    def __init__(self, words, lanes):
        """Take the first states: each high word first."""
        self.words, self.next, self.escapes = words, 2 * lanes, 0
        self.states = [words[2 * k] << 16 | words[2 * k + 1] for k in range(lanes)]

    def read(self, lane, sums):
        """Read a symbol with the sums of the frequencies, 0 first and 4096 last."""
        x = self.states[lane]
        m = x & 4095
        symbol = bisect.bisect_right(sums, m) - 1
        x = (sums[symbol + 1] - sums[symbol]) * (x >> 12) + m - sums[symbol]
        if x < 65536:
            expect(self.next < len(self.words), "a piece ends too early", "E16")
            x = x << 16 | self.words[self.next]
            self.next += 1
        self.states[lane] = x
        return symbol

    def escape(self):
        """Read a residual from the end of the piece."""
        self.escapes += 1
        expect(self.escapes <= len(self.words), "a piece has too many escapes", "E16")
        word = self.words[-self.escapes]
        return word - 65536 if word >= 32768 else word

    def check_end(self):
        """Check that every state is 65536 and every word was read."""
        done = all(x == 65536 for x in self.states) and self.next + self.escapes == len(self.words)
        expect(done, "a coded piece does not end as it must", "E16")


class Coder:
    """Decoder of `factored:KL` with the constants of a stream (E16)."""

    def __init__(self, constants, prefix=""):
        """Take the constants whose names begin with a prefix."""
        self.predict = constants[prefix + "predict"].astype(np.int64)
        self.begin = constants[prefix + "begin"].astype(np.int64)
        self.steps = constants[prefix + "steps"].astype(np.int64)
        self.sizes = constants[prefix + "sizes"].tolist()
        self.contexts = constants[prefix + "contexts"].tolist()
        self.step_sums = frequency_sums(constants[prefix + "step_tables"])
        self.size_sums = frequency_sums(constants[prefix + "size_tables"])
        self.sums = frequency_sums(constants[prefix + "tables"])

    def decode(self, coded, frames):
        """Return the codes (frames, r) of a record: its pieces, one behind the other."""
        data, at, pieces = coded.tobytes(), 0, []
        while at < len(data):
            expect(len(data) >= at + 8, "a piece is cut", "E16")
            n, lanes = np.frombuffer(data, "<u2", 2, at).tolist()
            (w,) = np.frombuffer(data, "<u4", 1, at + 4).tolist()
            expect(lanes >= 1 and w >= 2 * lanes and len(data) >= at + 8 + 2 * w, "a piece is cut", "E16")
            pieces.append(self.decode_piece(n, lanes, np.frombuffer(data, "<u2", w, at + 8).tolist()))
            at += 8 + 2 * w
        result = np.concatenate(pieces) if pieces else np.zeros((0, len(self.begin)), np.int64)
        expect(len(result) == frames, f"{len(result)} coded frames, not {frames}", "E16")
        return result

    def decode_piece(self, n, lanes, words):
        """Return the codes of a piece."""
        reader = Lanes(words, lanes)
        chosen, q, g = [], len(self.steps), len(self.sizes)
        for _ in range(n):
            q = reader.read(0, self.step_sums[q])  # Q for the first frame
            g = reader.read(
                0, self.size_sums[q * (len(self.sizes) + 1) + g]
            )  # this frame's q, the last one's g
            chosen.append((q, g))
        residuals = self.read_residuals(reader, chosen, lanes)
        reader.check_end()
        return self.add_up(chosen, residuals)

    def read_residuals(self, reader, chosen, lanes):
        """Read the residuals of all frames."""
        residuals, i, last = np.zeros((len(chosen), len(self.begin)), np.int64), 0, len(self.sums[0]) - 2
        for t, (q, g) in enumerate(chosen):
            for place in range(self.sizes[g]):
                symbol = reader.read(i % lanes, self.sums[self.contexts[q][g][place]])
                i += 1
                if symbol == last:  # A - 1
                    residuals[t, place] = reader.escape()
                else:
                    residuals[t, place] = -(symbol + 1) // 2 if symbol % 2 else symbol // 2
        return residuals

    def add_up(self, chosen, residuals):
        """Add residuals to what the frame before predicts."""
        codes = np.zeros_like(residuals)
        for t, (q, _) in enumerate(chosen):
            predicted = (codes[t - 1] @ self.predict + 128) // 256 if t else self.begin
            codes[t] = predicted + self.steps[q] * residuals[t]
        return codes


def frequency_sums(tables):
    """Return running sums of frequencies, 0 first; every row sums to 4096 (E16)."""
    sums = np.concatenate([np.zeros((len(tables), 1), np.int64), np.cumsum(tables.astype(np.int64), 1)], 1)
    expect((sums[:, -1] == 4096).all(), "a table of frequencies does not sum to 4096", "E16")
    return sums.tolist()


def factored_logits(stream, part, frames, labels, rows):
    """Return the logits of the rows of a factored stream (E13 to E17)."""
    constants = stream.constants
    if stream.kind == "rnnt":
        c = factored_nodes(stream, part, frames, labels)
    elif stream.encoding == "factored":
        c = part["h"].astype(np.float64)
    elif stream.encoding == "factored:int8":
        c = part["code"].astype(np.float64) * part["scale"][:, None].astype(np.float64)
    else:
        c = Coder(constants).decode(part["coded"], rows).astype(np.float64)
    return c @ constants["weight"].T.astype(np.float64) + constants["bias"].astype(np.float64)


def factored_nodes(stream, part, frames, labels):
    """Return what goes into the head at every node (E17)."""
    if stream.encoding == "factored":
        enc = part["enc"].astype(np.float64) * part["scale"][:, None].astype(np.float64)
        dec = part["dec"].astype(np.float64)
    else:
        enc = factored_side(stream, part, "enc", frames)
        dec = factored_side(stream, part, "dec", labels + 1)
    expect((len(enc), len(dec)) == (frames, labels + 1), "items of the two sides", "E17")
    sums = enc[:, None] + dec[None]
    nodes = np.tanh(sums) if stream.activation == "tanh" else np.maximum(sums, 0)
    return nodes.reshape(-1, nodes.shape[-1])


def factored_side(stream, part, side, number):
    """Return one side of a coded rnnt stream (E17)."""
    codes = Coder(stream.constants, side + "_").decode(part[side + "_coded"], number)
    back, mean = stream.constants[side + "_back"], stream.constants[side + "_mean"]
    return codes.astype(np.float64) @ back.astype(np.float64) + mean.astype(np.float64)


# Records


def positions(stream, part, frames, labels):
    """Return the label position of every row of an rnnt stream (S7, S10, S11); of `mean-u` None."""
    every = range(labels + 1)
    if stream.form == "mean-u":
        return None
    if stream.form == "full":
        return np.tile(every, frames)
    if stream.form == "sample":
        kept = part["positions"].astype(int)
        good = len(kept) == min(stream.size, labels + 1) and (np.diff(kept) > 0).all() and kept[-1] <= labels
        expect(good, "positions of `sample`", "S10")
        return np.tile(kept, frames)
    begin = part["begin"].astype(int)
    expect(len(begin) == frames and begin[0] == 0, "the first positions of the frames", "S11")
    if stream.form == "path":
        ends = np.append(begin[1:], labels)
        expect((ends >= begin).all(), "a path goes back", "S11")
        return np.concatenate([np.arange(b, e + 1) for b, e in zip(begin, ends, strict=False)])
    width = min(labels + 1, max(stream.size, -(-(labels + frames) // frames)))
    steps = np.diff(begin)
    good = begin[-1] == labels + 1 - width and (steps >= 0).all() and (steps < width).all()
    expect(good, "the band", "S11")
    return (begin[:, None] + np.arange(width)).reshape(-1)


def check_ids(stream, ids):
    """Refuse ids that are no classes."""
    expect(not ids.size or int(ids.max()) < stream.classes, f"{stream.name}: an id is no class", "F6")


class Part(dict):
    """The arrays and rows of one stream of a record."""

    def __init__(self, shard, stream, record):
        """Read the arrays of a stream."""
        super().__init__((name.partition(".")[2], shard.items(name, record)) for name, _, _ in stream.columns)
        self.stream, self.frames = stream, shard.frames(record)
        self.count = len(self["labels"]) if "labels" in self else 0  # U of this stream's own labels (S13)
        expect(self.frames >= 1, "a record without frames", "S7")
        self.rows, self.following = self.frames, None
        for name in ("labels", "ids"):
            if name in self:
                check_ids(stream, self[name])
        if stream.kind == "seq2seq":
            end = self["labels"][-1:].tolist() if stream.end is None else [stream.end]
            expect(self.count >= 1 and self["labels"][-1] == end[0], "labels of seq2seq do not end", "S13")
            self.rows = self.count
        elif stream.kind == "rnnt":
            self.make_nodes()
        self.check_rows()

    def make_nodes(self):
        """Find the nodes of the rows and the label that follows each."""
        at = positions(self.stream, self, self.frames, self.count)
        if at is not None:
            self.rows = len(at)
            self.following = np.append(self["labels"].astype(int), -1)[at]

    def check_rows(self):
        """Refuse another number of rows than the form and kind name."""
        names = {"occupancy"}
        if self.stream.encoding == "nucleus":
            names.add("count")  # the others are counted by nucleus_rows
        elif not (
            self.stream.kind == "rnnt" and self.stream.encoding in FACTORED
        ):  # two sides, factored_nodes
            names |= {array for array, _, _ in self.stream.arrays()} - {"coded"}
        for name in names & set(self):
            have = len(self[name])
            expect(have == self.rows, f"{self.stream.name}.{name}: {have} rows, not {self.rows}", "S7")

    def log_probabilities(self, temperatures):
        """Return the dense log-probabilities at each temperature, float32."""
        encoding, v = self.stream.encoding, self.stream.classes
        if encoding == "nucleus":
            rows = [nucleus_rows(v, self, t) for t in temperatures]
        elif encoding == "topk":
            rows = [topk_rows(v, self["ids"], self["logp"], self["tail"], t) for t in temperatures]
        elif encoding == "collapsed":
            rows = [
                collapsed_rows(self.stream, self["logp"], self["tail"], self.following, t)
                for t in temperatures
            ]
        else:
            logits = self.logits()
            rows = [soften(logits, t) for t in temperatures]
        for row in rows:
            expect(row.shape == (self.rows, v), f"{self.stream.name}: rows of shape {row.shape}", "S7")
        return [row.astype(np.float32) for row in rows]

    def logits(self):
        """Return logits of whole rows, up to a constant of each."""
        if self.stream.encoding == "dense":
            return self["logp"]
        if self.stream.encoding == "dense:int8":
            return int8_rows(self["root"], self["depth"])
        return factored_logits(self.stream, self, self.frames, self.count, self.rows)

    def numbers(self):
        """Return the numbers of a hidden stream (E19), float32."""
        if self.stream.encoding == "vectors":
            result = self["h"].astype(np.float32)
        else:
            result = self["code"].astype(np.float32) * self["scale"][:, None]
        expect(np.isfinite(result).all(), f"{self.stream.name}: a number is not finite", "S14")
        return result


def read_record(shard, record, temperatures=TEMPERATURES):
    """Return what a record holds, by key."""
    shard.check_record(record)
    text, meta = shard.meta[record]
    utt_id, result = meta["id"], {f"{meta['id']}|meta": np.array(text)}
    for stream in shard.store.streams:
        key = f"{utt_id}|{stream.name}"
        if stream.kind == "text":
            has = "text" in meta.get("hyp", {}).get(stream.name, {})
            expect(has, f"{utt_id!r}: no transcript of {stream.name}", "S15")
            continue
        part = Part(shard, stream, record)
        if stream.kind == "hidden":
            result[f"{key}|numbers"] = part.numbers()
            continue
        for tau, rows in zip(temperatures, part.log_probabilities(temperatures), strict=False):
            result[f"{key}|{tau:g}"] = rows
        if "labels" in part:
            result[f"{key}|labels"] = part["labels"]
    return result


def read_store(path):
    """Return what all records of a store hold, by key, and their places: id -> (shard, number)."""
    store, result, places = Store(path), {}, {}
    entries = store.entries()
    store.warn_if_records_miss(entries)
    for name, (head, ids) in sorted(entries.items()):
        if not ids:
            continue  # C2: nothing but skipped utterances; its files are not read
        shard = Shard(store, name, head, ids)
        check_container(shard)
        for record, utt_id in enumerate(ids):
            expect(utt_id not in places, f"{utt_id!r} stands twice in the store", "S3")
            places[utt_id] = (name, record)
            result.update(read_record(shard, record))
    return result, places


# The index (I)


class Run:
    """A run of the index (I2)."""

    def __init__(self, store, file):
        """Check a run and take it apart."""
        self.what, data = f"index/{file}", read_bytes(store.path, f"index/{file}")
        self.data = data
        name = hashlib.sha256(data).hexdigest()[:32]
        expect(file == f"{name}.idx", f"{self.what}: another SHA-256", "I1")
        expect(len(data) >= 80 and data[:8] == b"LOGITIDX", f"{self.what}: no run", "I2")
        self.records, lines, ids = np.frombuffer(data, "<u8", 3, 8).tolist()
        crc_front, crc_ids, _, crc_header = np.frombuffer(data, "<u4", 4, 64).tolist()
        check_crc(data[:76], crc_header, f"{self.what}: header", "I2")
        self.own = data[32:64] == store.digest
        self.blocks = -(-self.records // 512)
        self.place(lines, ids)
        check_crc(data[80 : self.at["hash"]], crc_front, f"{self.what}: shard lines", "I2")
        check_crc(data[self.at["begin"] :], crc_ids, f"{self.what}: ids", "I2")
        self.parse_lines(data[80 : 80 + lines])

    def place(self, lines, ids):
        """Find where the parts begin."""
        r, self.at, begin = self.records, {}, 80 + lines
        for name, size in (
            ("first", 8 * self.blocks),
            ("check", 8 * -(-self.blocks // 2)),  # filled up to a multiple of 8
            ("hash", 8 * r),
            ("number", 8 * -(-r // 2)),
            ("begin", 8 * (r + 1)),
            ("ids", ids),
        ):
            self.at[name] = begin
            begin += size
        expect(
            begin == len(self.data) and lines % 8 == 0 and r < 1 << 32, f"{self.what}: another length", "I2"
        )

    def parse_lines(self, text):
        """Take the shard lines apart: name -> (first record, records, CRC-32C of the entry)."""
        self.shards, first = {}, 0
        for line in text.decode("ascii").rstrip(" ").split("\n")[:-1]:
            name, count, crc = line.split(" ")
            self.shards[name] = (first, int(count), int(crc))
            first += int(count)
        expect(first == self.records, f"{self.what}: numbers of records", "I2")
        expect(list(self.shards) == sorted(self.shards), f"{self.what}: shard lines are not sorted", "I2")

    def numbers(self, name, dtype, begin, count):
        """Read numbers of one part."""
        return np.frombuffer(
            self.data, dtype, count, self.at[name] + begin * np.dtype(dtype).itemsize
        ).tolist()

    def block(self, k):
        """Check a block; return its hashes and numbers."""
        count = min(512, self.records - 512 * k)
        hashes, numbers = (
            self.numbers("hash", "<u8", 512 * k, count),
            self.numbers("number", "<u4", 512 * k, count),
        )
        data = np.array(hashes, "<u8").tobytes() + np.array(numbers, "<u4").tobytes()
        check_crc(data, self.numbers("check", "<u4", k, 1)[0], f"{self.what}: block {k}", "I2")
        expect(hashes[0] == self.numbers("first", "<u8", k, 1)[0], f"{self.what}: first of block {k}", "I2")
        return hashes, numbers

    def find(self, utt_id):
        """Return the shards and numbers of the records of an id."""
        wanted = hash_of(utt_id)
        first = self.numbers("first", "<u8", 0, self.blocks)
        k, found = max(0, bisect.bisect_left(first, wanted) - 1), []
        while k < self.blocks and first[k] <= wanted:  # equal hashes may begin in the block before
            found += [number for value, number in zip(*self.block(k), strict=False) if value == wanted]
            k += 1
        return [self.shard_of(number) for number in found if self.id_of(number) == utt_id]

    def id_of(self, number):
        """Return the id of a record: hashes may collide."""
        begin, end = self.numbers("begin", "<u8", number, 2)
        return self.data[self.at["ids"] :][begin : end - 1].decode("utf-8")  # each with its line feed

    def shard_of(self, number):
        """Return the shard of a record and its number there."""
        for name, (first, count, _) in self.shards.items():
            if first <= number < first + count:
                return name, number - first
        raise Damaged(f"{self.what}: record {number} is in no shard (I2)")


def hash_of(utt_id):
    """Return the hash of an id (I3)."""
    return int.from_bytes(hashlib.blake2b(utt_id.encode("utf-8"), digest_size=8).digest(), "big")


class Index:
    """Index of a store: runs, and the entries that no run covers (I1)."""

    def __init__(self, store):
        """Read the runs, and the entries that no run covers."""
        self.store, names = store, None
        while names != (now := entry_names(store.path)):  # C7
            names = now
            files = [
                n for n in list_names(store.path, "index", ".idx") if re.fullmatch(r"[0-9a-f]{32}\.idx", n)
            ]
            self.runs, self.uses = [run for run in (Run(store, n) for n in files) if run.own], {}
            for run in self.runs:
                for name in set(run.shards) & set(names):
                    self.uses.setdefault(name, run)  # not in a run it uses already
            others = {n: read_entry(store, n) for n in names if n not in self.uses}
            self.others = {n: entry for n, entry in others.items() if entry}
        # No run covers an entry with `replaces` (C5): the others name all that is replaced.
        self.gone = {name for head, _ in self.others.values() for name in head.get("replaces", [])}
        for name, run in self.uses.items():
            data = read_bytes(store.path, f"sealed/{name}.entry")
            check_crc(data, run.shards[name][2], f"sealed/{name}.entry, as {run.what} names it", "I2")

    def find(self, utt_id):
        """Return (shard, number) of a record, or None."""
        for run in self.runs:
            for name, number in run.find(utt_id):
                if self.uses.get(name) is run and name not in self.gone:
                    return name, number
        for name, (_, ids) in self.others.items():
            if name not in self.gone and utt_id in ids:
                return name, ids.index(utt_id)
        return None


def find(store, utt_id):
    """Find a record by its id: return (shard, number of the record), or None."""
    store = store if isinstance(store, Store) else Store(store)
    return Index(store).find(utt_id)


def check_index(path, places):
    """Check that the index finds every record where it is."""
    index = Index(Store(path))
    for utt_id, place in places.items():
        expect(
            index.find(utt_id) == place,
            f"{utt_id!r}: the index names {index.find(utt_id)}, not {place}",
            "I1",
        )
    expect(index.find("\n") is None, "the index finds an id that does not exist", "I2")


def main(arguments):
    """Read a store and write what it holds."""
    if len(arguments) != 2:
        return "usage: read_numpy.py STORE OUT.npz"
    try:
        result, places = read_store(arguments[0])
        check_index(arguments[0], places)
    except (Damaged, Unknown) as error:
        return f"refused: {error}"
    except (OSError, EOFError, LookupError, TypeError, ValueError, *ARCHIVE_ERRORS) as error:
        # a file, key or number that a rule names is missing or of another type
        return f"refused: malformed: {type(error).__name__}: {error}"
    with open(arguments[1], "wb") as file:
        np.savez(file, **result)
    print(f"{arguments[0]}: {len(places)} records, {len(result)} arrays")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
