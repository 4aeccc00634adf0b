"""Token errors of a student: labels only, pseudo-labels, and distillation from stores of several encodings.

    python benchmarks/student.py --out DIR [--seeds N] [--steps N] [--ctc-only] [--threads N]
    python benchmarks/student.py --short

The teacher is that of recipes/demo, the student and its settings are those of recipes/student. Every run has the same
steps, batches and seed as the others of its column. espeak-ng makes the audio: training sentences of the demo's
grammar in recordings that the teacher was not trained on, and test sentences that neither was trained on. Settings were
chosen on other recordings of the same kind. Scenarios:

* ``teacher's rate``: labels for everything, a student with the teacher's frames.
* ``half rate``: the same, a student with half as many.
* ``a quarter``: the teacher's rate, references for every fourth utterance, the teacher's targets for all. The other
  lattices follow the teacher's own transcripts.

Results are kept in DIR/results.jsonl, so that a stopped benchmark goes on, and more seeds add to it. ``--short`` trains
two students on the recordings in the repository for a few steps; its figures mean nothing.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch

sys.path.append(str(Path(__file__).resolve().parents[1]))

from logitstore import DumpOptions, Store, dump_logits, load_teacher, open_store, read_manifest
from logitstore.tokens.tokenise import Tokeniser
from recipes.demo.corpus import training, write
from recipes.student.train import Example, Settings, read_examples, score, train

ROOT = Path(__file__).resolve().parents[1]
TEACHER = f"{ROOT}/recipes/demo/teacher.py:load"
SEED = 102  # of the corpus; another one than that of the teacher's
SECONDS = {"train": 500.0, "dev": 120.0}  # of audio, at least
EVERY = 4  # one utterance of so many keeps its reference in the scenario of a quarter
STREAMS = {
    "dense": {"ctc": "dense", "rnnt": "dense"},
    "topk:16": {"ctc": "topk:16", "rnnt": "topk:16"},
    "factored:int8": {"ctc": "factored:int8", "rnnt": "factored"},
}
SCENARIOS = {  # rows of each scenario
    "teacher's rate": ("labels only", *STREAMS),
    "half rate": ("labels only", *STREAMS),
    "a quarter": ("labels only", "pseudo-labels", *STREAMS, "pseudo-labels + dense"),
}


@dataclass(frozen=True)
class Corpus:
    """Manifests of one corpus, and the folder of its stores."""

    train: Path
    test: Path
    stores: Path

    def store(self, encoding: str, scenario: str) -> Store:
        """Return a store of the teacher's logits; it is dumped where it is not there yet."""
        quarter = scenario == "a quarter"
        manifest = self.without_references() if quarter else self.train
        path = self.stores / f"{encoding.replace(':', '-')}{'-quarter' if quarter else ''}"
        options = DumpOptions(streams=STREAMS[encoding], transcripts="all")
        dump_logits(load_teacher(TEACHER), read_manifest(manifest), path, options)
        return open_store(path)

    def without_references(self) -> Path:
        """Return the training manifest with the text of every fourth utterance only."""
        lines = [json.loads(line) for line in self.train.read_text("utf-8").splitlines()]
        for number, line in enumerate(lines):
            if number % EVERY:
                del line["text"]
        path = self.train.with_name(f"{self.train.stem}-quarter.jsonl")
        path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), "utf-8")
        return path


def make_corpus(out: Path) -> Corpus:
    """Return the corpus in a folder; espeak-ng makes it where it is not there yet."""
    for split, seconds in SECONDS.items():
        if not (out / f"{split}.jsonl").exists():
            write(training(SEED, split), out, name=split, seconds=seconds)
    return Corpus(out / "train.jsonl", out / "dev.jsonl", out / "stores")


def students_data(
    row: str, scenario: str, examples: list[Example], corpus: Corpus
) -> tuple[list[Example], Store | None]:
    """Return the examples of a row of the table, and its store if targets are distilled."""
    encoding = next((name for name in STREAMS if row.endswith(name)), "")
    store = corpus.store(encoding, scenario) if encoding else None
    if scenario != "a quarter":
        return examples, store
    if row == "labels only":
        return examples[::EVERY], None
    transcripts = store or corpus.store("topk:16", scenario)
    chosen = []
    for number, example in enumerate(examples):
        labels = tuple(transcripts[example.id].labels.tolist())  # the reference, else by the teacher
        chosen.append(replace(example, labels=labels, labelled=number % EVERY == 0 or "pseudo" in row))
    return [e for e in chosen if e.labels], store


def measure(
    row: str, scenario: str, settings: Settings, data: tuple[list[Example], ...], corpus: Corpus
) -> dict:
    """Train and test one student; return its result for the cache."""
    own, store = students_data(row, scenario, data[0], corpus)
    seed, steps = settings.seed, settings.steps
    settings = replace(settings, rate=(1, 2) if scenario == "half rate" else (1, 1))
    any_store = store or corpus.store("topk:16", scenario)
    began = time.process_time()
    model = train(own, any_store, settings, distil=store is not None, name=f"{scenario}, {row}, seed {seed}")
    seconds = (time.process_time() - began) / steps
    result = {"row": row, "scenario": scenario, "seed": seed, "steps": steps, "seconds_a_step": seconds}
    if store is not None:
        size = sum(f.stat().st_size for f in Path(str(store.place)).rglob("*") if f.is_file())
        hours = sum(len(e.features) for e in data[0]) / 360_000
        result["megabytes_an_hour"] = size / hours / 1e6
    result["branches"] = "both" if settings.rnnt else "ctc"
    errors = score(model, data[1])
    return result | (errors if settings.rnnt else {"ctc": errors["ctc"]})


def print_table(results: list[dict]) -> None:
    """Print the means of all seeds, and their standard deviation where there are several."""
    print("token errors in percent, CTC / RNN-T: mean of the seeds ± standard deviation")
    for scenario, rows in SCENARIOS.items():
        print(f"\n{scenario:<24}{'CTC':>14}{'RNN-T':>14}{'seeds':>7}{'MB an hour':>12}{'s a step':>10}")
        for row in rows:
            found = [r for r in results if (r["row"], r["scenario"]) == (row, scenario)]
            if not found:
                continue
            cells = []
            for branch in ("ctc", "rnnt"):
                errors = [r[branch] for r in found if branch in r]
                if not errors:
                    cells.append("-")
                    continue
                spread = f" ± {statistics.stdev(errors):.1f}" if len(errors) > 1 else ""
                cells.append(f"{statistics.mean(errors):.1f}{spread}")
            size = f"{found[0]['megabytes_an_hour']:.0f}" if "megabytes_an_hour" in found[0] else "-"
            pace = statistics.mean(r["seconds_a_step"] for r in found)
            print(f"{row:<24}{cells[0]:>14}{cells[1]:>14}{len(found):>7}{size:>12}{pace:>10.3f}")


def main() -> None:
    """Run what the cache does not hold, seed after seed, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="folder of the corpus, the stores and the results")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument(
        "--ctc-only", action="store_true", help="train the CTC branch alone, in a fifth of the time"
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rows", nargs="+", metavar="ROW", help="rows of the table to run; all without it")
    parser.add_argument("--short", action="store_true", help="two runs of a few steps, in under a minute")
    given = parser.parse_args()
    if given.out is None and not given.short:
        parser.error("give --out DIR, or --short")
    torch.set_num_threads(given.threads)
    with tempfile.TemporaryDirectory() as scratch:
        out = given.out or Path(scratch)
        if given.short:
            demo = ROOT / "manifests" / "demo.jsonl"
            corpus, jobs = (
                Corpus(demo, demo, Path(scratch)),
                [(0, "half rate", r) for r in ("labels only", "topk:16")],
            )
        else:
            corpus = make_corpus(out)
            jobs = [
                (s, scenario, r)
                for s in range(given.seeds)
                for scenario, rows in SCENARIOS.items()
                for r in rows
            ]
        steps = 10 if given.short else given.steps
        cache = out / "results.jsonl"
        results = [json.loads(line) for line in cache.read_text().splitlines()] if cache.exists() else []
        branches = "ctc" if given.ctc_only else "both"
        results = [r for r in results if (r["steps"], r["branches"]) == (steps, branches)]
        done = {(r["seed"], r["scenario"], r["row"]) for r in results}
        todo = [job for job in jobs if job not in done and job[2] in (given.rows or [job[2]])]
        if todo:
            labels_of = Tokeniser(corpus.store("topk:16", "teacher's rate").tokens)
            data = read_examples(corpus.train, labels_of), read_examples(corpus.test, labels_of)
        for seed, scenario, row in todo:
            settings = Settings(steps=steps, seed=seed)
            if given.ctc_only:
                settings = replace(settings, rnnt=0.0, rnnt_kd=0.0)
            results.append(measure(row, scenario, settings, data, corpus))
            with cache.open("a") as file:
                file.write(json.dumps(results[-1]) + "\n")
        print_table(results)


if __name__ == "__main__":
    main()
