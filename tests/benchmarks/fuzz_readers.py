"""Every reader of files that come from elsewhere, given thousands of files that are wrong.

    python tests/benchmarks/fuzz_readers.py                      # all readers, 20,000 inputs each
    python tests/benchmarks/fuzz_readers.py label_json --count 500 --seed 7 --keep /tmp/failures

A reader either reads a file or raises a UslError of one line. Anything else is a failure: another exception, a message
of several lines, more than `LONGEST` seconds, more memory than `MEMORY`. Inputs are numbered: the seed and the number
give the same bytes again, and `--keep` writes those that failed.

To add a reader, add an entry to `READERS`: valid files to begin with, and what reads one.
"""

import argparse
import io
import json
import logging
import random
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from mutations import mutated

from usl_lightning.base.errors import UslError

LONGEST = 10.0
"""Seconds for one input."""

MEMORY = 2 << 30
"""Bytes of address space that reading may take, beside what the process has at its beginning."""

LONGEST_LINE = 2_000
"""Characters of a message."""


@dataclass(frozen=True)
class Reader:
    """Something that reads a file.

    Attributes:
        name: of the entry.
        suffix: of the file, which is new for each input and is all there is in its folder.
        seeds: valid files; each is read before anything else, and must be.
        read: raises UslError if the file is wrong.
    """

    name: str
    suffix: str
    seeds: Callable[[], Sequence[bytes]]
    read: Callable[[Path], object]


@dataclass
class Outcome:
    """What came of a reader's inputs.

    Attributes:
        inputs, read, refused: how many there were, were read, and raised a UslError.
        failures: number of the input -> what happened.
        slowest: seconds of the slowest input.
        peak_mib: the process's largest size so far.
        seconds: of all inputs.
    """

    reader: str
    inputs: int = 0
    read: int = 0
    refused: int = 0
    failures: dict[int, str] = field(default_factory=dict)
    slowest: float = 0.0
    peak_mib: float = 0.0
    seconds: float = 0.0


def fuzz(reader: Reader, count: int, seed: int = 0, keep: Path | None = None) -> Outcome:
    """Give `count` inputs to a reader.

    Args:
        reader: the entry.
        count: inputs.
        seed: of all of them.
        keep: where to write those that failed.
    """
    seeds, outcome, began = reader.seeds(), Outcome(reader.name), time.perf_counter()
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder, _limits():
        for number in range(-len(seeds), count):
            content = seeds[number] if number < 0 else mutated(seeds, random.Random(f"{reader.name} {seed} {number}"))
            path = Path(folder) / f"input{reader.suffix}"
            path.write_bytes(content)
            start = time.perf_counter()
            problem = _problem(reader, path, outcome)
            outcome.slowest = max(outcome.slowest, time.perf_counter() - start)
            if problem is None and number < 0 and outcome.refused:
                problem = "a valid file was refused"
            if problem is not None:
                outcome.failures[number] = problem
                if keep is not None:
                    keep.mkdir(parents=True, exist_ok=True)
                    (keep / f"{reader.name}_{seed}_{number}{reader.suffix}").write_bytes(content)
    outcome.inputs = count + len(seeds)
    outcome.seconds = round(time.perf_counter() - began, 1)
    outcome.slowest = round(outcome.slowest, 4)
    outcome.peak_mib = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)
    return outcome


def _problem(reader: Reader, path: Path, outcome: Outcome) -> str | None:
    """What went wrong with one input; None if nothing did."""
    signal.setitimer(signal.ITIMER_REAL, LONGEST)
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            reader.read(path)
        outcome.read += 1
    except UslError as error:
        outcome.refused += 1
        line = str(error)
        if len(line.splitlines()) != 1 or len(line) > LONGEST_LINE:
            return f"not one line: {line[:200]!r}"
        try:
            line.encode()
        except UnicodeEncodeError:
            return f"cannot be printed: {line[:200]!a}"
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        place = error.__traceback__
        while place is not None and place.tb_next is not None:
            place = place.tb_next
        where = "" if place is None else f" ({Path(place.tb_frame.f_code.co_filename).name}:{place.tb_lineno})"
        return f"{type(error).__name__}: {str(error)[:200]}{where}"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return None


@contextmanager
def _limits() -> Iterator[None]:
    """Stop what takes too long, refuse memory to what takes too much, and say nothing of single files."""

    def too_long(*_: object) -> NoReturn:
        raise TimeoutError(f"longer than {LONGEST:.0f} s")

    logger = logging.getLogger("usl_lightning")
    told, before = logger.level, signal.signal(signal.SIGALRM, too_long)
    logger.setLevel(logging.ERROR)
    allowed = resource.getrlimit(resource.RLIMIT_AS)
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, allowed[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, allowed)
        signal.signal(signal.SIGALRM, before)
        logger.setLevel(told)


# the readers -----------------------------------------------------------------------------------------------

DATASET = {"name": "folder", "split": "train", "size": 60, "fingerprint": "sha256:" + "0123456789abcdef" * 4}
FILES = ["a/17.png", "4.png", "caf\u00e9.png"]
INDEX = {
    "format": "usl-label-index", "version": 1, "dataset": DATASET, "method": {"name": "usl", "params": {"k": 5}},
    "indices": [17, 4, 9], "labels": [1, None, 0], "classes": ["cat", "dog"], "files": FILES,
    "hashes": ["sha256:" + digit * 64 for digit in "abc"],
}  # fmt: skip


def _json(*values: Any) -> list[bytes]:
    return [
        json.dumps(value, ensure_ascii=bool(i % 2), indent=i % 3 or None).encode() for i, value in enumerate(values)
    ]


def _tasks() -> list[bytes]:
    choice = {"from_name": "choice", "to_name": "image", "type": "choices", "value": {"choices": ["cat"]}}
    full = [
        {"id": 1, "data": {"image": "/x", "index": 17, "file": FILES[0]}, "annotations": [{"result": [choice]}]},
        {"id": 2, "data": {"image": "/y", "index": 4}, "annotations": [{"was_cancelled": True, "result": []}]},
        {"id": 3, "data": {"file": FILES[2]}, "completions": [{"result": [choice]}], "predictions": []},
    ]
    small = [{"id": 1, "image": "/x", "index": 17, "label": "cat", "annotator": 1}, {"id": 2, "file": "4.png"}]
    other = [{"id": 1, "image": "/x", "index": 17, "choice": {"choices": ["bird"]}, "lead_time": 1.5}]
    return _json(full, small, other, [])


def _read_index(path: Path) -> None:
    """Read an index; what it writes is read back as the same."""
    from usl_lightning.labels import LabelIndex

    index = LabelIndex.read(path)
    if hash(index.indices) % 20 == 0 and (index.dataset is not None or index.plain):
        again = path.with_name("again.json")
        index.write(again)
        assert LabelIndex.read(again).indices == index.indices
    with suppress(UslError):
        index.for_training()


def _read_answers(path: Path) -> None:
    from usl_lightning.labelling.answers import by_number, read_answers
    from usl_lightning.labels import LabelIndex
    from usl_lightning.labels.entries import DatasetId

    index = LabelIndex(
        DatasetId(**DATASET), {}, (17, 4, 9), (None,) * 3, ("cat", "dog"), tuple(FILES)  # type: ignore[arg-type]
    )  # fmt: skip
    answers, classes = by_number(read_answers(path, index), index)
    assert set(answers) <= set(index.indices)
    assert classes[:2] == ("cat", "dog")


def _read_table(path: Path) -> None:
    from usl_lightning.labels.tables import label_cells, labels_in

    for known in ((), ("cat", "none")):
        labels_in(path, label_cells(path), known)


def _classes(path: Path) -> None:
    from usl_lightning.data.images.folders import read_class_list

    read_class_list(path)


def _arrays() -> list[bytes]:
    import numpy as np

    contents = []
    for array in (np.arange(5), np.array([3, 1], np.uint16), np.array([7], ">i4"), np.zeros(0, np.int8)):
        file = io.BytesIO()
        np.save(file, array)
        contents.append(file.getvalue())
    return contents


READERS = (
    Reader("label_json", ".json", lambda: _json(INDEX, {**INDEX, "unsure": [4]}, [3, 1, 2]), _read_index),
    Reader("label_csv", ".csv", lambda: [
        b"Index,ImageID\n17,a/17.png\n4,4.png\n", b"Index\n3\n1\n", b"Index,ImageID,Pseudolabel\r\n3,3,1\r\n5,5,0\r\n",
        "\ufeffIndex,ImageID\n1,\"caf\u00e9, 1.png\"\n2,'=x.png\n".encode(),
    ], _read_index),
    Reader("label_npy", ".npy", _arrays, _read_index),
    Reader("label_table", ".csv", lambda: [
        b"file,label\n1.png,cat\na/2.png,dog\n3.png,\n", b"file,label\r\n1.png,0\r\n2.png,1\r\n3.png,-1\r\n",
        b'file,label\n"1,2.png","a ""b"""\n2.png,1.0\n',
    ], _read_table),
    Reader("label_studio_json", ".json", _tasks, _read_answers),
    Reader("label_studio_csv", ".csv", lambda: [
        b"index,file,label\n17,a/17.png,cat\n4,4.png,\n9,caf\xc3\xa9.png,not sure\n", b"index;label\n17;bird\n4;-1\n",
        b'annotation_id,annotator,id,image,index,choice\n1,1,7,/x,17,cat\n2,1,8,/y,4,"{""choices"":[""dog""]}"\n',
    ], _read_answers),
    Reader("class_list", ".txt", lambda: [b"n01 cat\nn02 dog\n# x\n\nn03\n", b"\xef\xbb\xbfa\r\nb\r\n"], _classes),
)  # fmt: skip


def main() -> None:
    """Fuzz the readers named, or all, and print a line for each; exit code 1 if any failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("readers", nargs="*", metavar="READER", help=", ".join(reader.name for reader in READERS))
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="folder for inputs that failed")
    parser.add_argument("--json", type=Path, help="file for the figures")
    typed = parser.parse_args()
    chosen = [reader for reader in READERS if reader.name in (typed.readers or [reader.name])]
    outcomes = []
    for reader in chosen:
        outcome = fuzz(reader, typed.count, typed.seed, typed.keep)
        outcomes.append(outcome)
        print(
            f"{outcome.reader:20} {outcome.inputs:7,} inputs  {outcome.read:7,} read  {outcome.refused:7,} refused  "
            f"{len(outcome.failures):4} failed  slowest {outcome.slowest:.3f} s  peak {outcome.peak_mib:.0f} MiB  "
            f"{outcome.seconds:.0f} s", flush=True,
        )  # fmt: skip
        for number, problem in list(outcome.failures.items())[:10]:
            print(f"    input {number}: {problem}")
    if typed.json:
        typed.json.write_text(json.dumps([asdict(outcome) for outcome in outcomes], indent=1) + "\n")
    sys.exit(1 if any(outcome.failures for outcome in outcomes) else 0)


if __name__ == "__main__":
    main()
