// Print every record of a store as JSON: its metadata, and its arrays as hexadecimal digits.
//
//     node read.mjs STORE
//
// Written from SPEC.md alone (rules C2, F3, S1 to S6), with Node and nothing else. Every checksum is compared.
// Storages zarr and webdataset need no more than this; zarr:blosc needs a Blosc decoder.

import fs from "node:fs";
import path from "node:path";
import zlib from "node:zlib";

const BYTES = {
  uint8: 1, int8: 1, uint16: 2, int16: 2, float16: 2, uint32: 4, int32: 4, float32: 4, uint64: 8,
};

const CRC_TABLE = Uint32Array.from({ length: 256 }, (_, n) => {
  for (let bit = 0; bit < 8; bit++) n = n & 1 ? (n >>> 1) ^ 0x82f63b78 : n >>> 1;
  return n;
});

function crc32c(data, before = 0) {
  let crc = ~before;
  for (const byte of data) crc = (crc >>> 8) ^ CRC_TABLE[(crc ^ byte) & 255];
  return ~crc >>> 0;
}

function require(good, what) {
  if (!good) throw new Error(what);
}

const product = (shape) => shape.reduce((a, b) => a * b, 1);

// F3, C2: a JSON object whose last line is its checksum; ids follow.
function readEntry(file) {
  const data = fs.readFileSync(file);
  const lastLine = data.indexOf('\n"crc32c": ') + 1;
  const entry = JSON.parse(data.subarray(0, data.indexOf("}\n", lastLine) + 2));
  require(crc32c(data.subarray(0, lastLine)) === entry.crc32c, `${file}: checksum of the entry`);
  return entry;
}

// S4: one line of JSON, then arrays of unsigned integers.
function readTable(data) {
  const lineFeed = data.indexOf(10);
  const head = JSON.parse(data.subarray(0, lineFeed));
  const array = (name) => {
    const { dtype, shape, begin } = head.arrays[name];
    const size = BYTES[dtype];
    return Array.from({ length: product(shape) }, (_, i) => {
      const at = lineFeed + 1 + begin + i * size;
      return size === 8 ? Number(data.readBigUInt64LE(at)) : data.readUIntLE(at, size);
    });
  };
  const counts = (k) => {
    const found = array(`count.${k}`);
    return found.length === head.records ? found : Array(head.records).fill(found[0]);
  };
  return { head, array, counts };
}

// S3: gzip members of lines, each a bracket or comma and the metadata of a record.
function readMetadata(file, blocks) {
  const found = [];
  for (let b = 0; b < blocks.length; b += 4) {
    const [, begin, bytes, checksum] = blocks.slice(b, b + 4);
    const block = file.subarray(begin, begin + bytes);
    require(crc32c(block) === checksum, "checksum of a metadata block");
    const lines = zlib.gunzipSync(block).toString("utf8").split("\n");
    found.push(...lines.filter((l) => l !== "" && l !== "]").map((l) => JSON.parse(l.slice(1))));
  }
  return found;
}

function* readShard(store, entry) {
  const file = fs.readFileSync(path.join(store, entry.files[0].path));
  require(file.length === entry.files[0].bytes, "length of the file");
  require(crc32c(file) === entry.files[0].crc32c, "checksum of the file");
  const at = entry.layout.table;
  const data = file.subarray(at.offset, at.offset + at.bytes);
  require(crc32c(data) === at.crc32c, "checksum of the table");
  const { head, array, counts } = readTable(data);
  const { columns, checksums } = head;
  const [packs, offsets, sums] = [array("pack"), array("offset"), array("crc32c")];
  const metadata = readMetadata(file, array("block"));
  const [frames, labels] = [counts(head.T), counts(head.U)];
  const items = columns.map((column) => counts(column.count));
  for (let pack = 0; pack + 1 < packs.length; pack++) {
    const next = columns.map((_, c) => offsets[pack * columns.length + c]);
    for (let i = packs[pack]; i < packs[pack + 1]; i++) {
      const arrays = columns.map(({ dtype, shape }, c) => {
        const size = items[c][i] * BYTES[dtype] * product(shape);
        const bytes = size ? file.subarray(next[c], next[c] + size) : Buffer.alloc(0);
        next[c] += size;
        return bytes;
      });
      require(metadata[i].T === frames[i] && metadata[i].U === labels[i], "T and U");
      checksums.forEach((group, g) => {
        // S5: labels are a group of their own, all other columns of a stream form one
        const groupOf = ({ name }) => (name.endsWith(".labels") ? name : name.split(".")[0]);
        const crc = columns.reduce((sum, c, n) => (groupOf(c) === group ? crc32c(arrays[n], sum) : sum), 0);
        require(crc === sums[i * checksums.length + g], `checksum of ${group}`);
      });
      const hex = columns.map(({ name }, c) => [name, arrays[c].toString("hex")]);
      yield { metadata: metadata[i], arrays: Object.fromEntries(hex) };
    }
  }
}

// C1, C6: shards are found by their entries; one that another replaces does not exist.
const [store] = process.argv.slice(2);
const names = fs.readdirSync(path.join(store, "sealed")).filter((n) => /^[^.].*\.entry$/.test(n));
const entries = names.sort().map((name) => readEntry(path.join(store, "sealed", name)));
const replaced = new Set(entries.flatMap((entry) => entry.replaces ?? []));
const found = [];
for (const entry of entries)
  if (entry.records && !replaced.has(entry.shard)) found.push(...readShard(store, entry));
console.log(JSON.stringify(found));
